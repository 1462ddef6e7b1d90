"""`make airflow`: Airflow with the example DAGs, and the sandbox, until Ctrl-C."""

from __future__ import annotations

import os
import secrets
import sys
import time

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from dev.airflow_runner.local import LocalAirflow
from dev.airflow_runner.processes import free_port, is_free
from dev.demo import DAG_ID, EXAMPLE_DAGS, JOB_SECONDS, SONGS_FOLDER, run, say, songs_folder_variable, tracks_tab

UI_PORT = 8080


def main() -> int:
    """Run Airflow and the sandbox until Ctrl-C."""
    if os.environ.get("WHISUL_API_KEY"):
        say("WHISUL_API_KEY is set, but not used here: all requests go to the sandbox.")
    port = UI_PORT
    if not is_free(port):
        port = free_port()
        say(f"Port {UI_PORT} is taken; the UI gets port {port}.")
    options = SandboxOptions(api_key=secrets.token_hex(16), job_seconds=JOB_SECONDS)
    with Sandbox(options) as sandbox:
        say("Starting Airflow on SQLite (scheduler, triggerer, API server) …")
        env = {"AIRFLOW_CONN_WHISUL_DEFAULT": sandbox.connection, **songs_folder_variable(SONGS_FOLDER)}
        with LocalAirflow(EXAMPLE_DAGS, env=env, port=port) as airflow:
            airflow.wait_for_dags(DAG_ID, "whisul_nightly_songs", "whisul_one_song", "whisul_retry_failed_song")
            airflow.unpause("whisul_nightly_songs")
            run_id = airflow.trigger(DAG_ID)
            airflow.trigger("whisul_one_song")
            airflow.trigger("whisul_retry_failed_song")
            say(
                f"\nAirflow {airflow.airflow_version}: {airflow.ui_url}   (no login)\n"
                f"The sandbox:    {sandbox.base_url}\n"
                f"Tracks tab:     {tracks_tab(airflow, run_id)}\n"
                f"Files:          {SONGS_FOLDER}\n\n"
                "Four of the example DAGs are running; start more runs in the UI. Ctrl-C stops everything. Only\n"
                "the files are kept."
            )
            while True:
                airflow.check()
                time.sleep(1)


if __name__ == "__main__":
    sys.exit(run(main))

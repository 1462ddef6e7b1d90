"""
``make demo``: an example DAG on a real Airflow, from its prompts to songs in a folder and in Airflow's UI.

It uses the sandbox, which costs nothing. With WHISUL_API_KEY set it makes real songs at Whisul instead.
"""

from __future__ import annotations

import ast
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from dev.airflow_runner.client import TaskInstance
from dev.airflow_runner.local import LocalAirflow
from dev.airflow_runner.processes import LocalAirflowError, tail

CHECKOUT = Path(__file__).resolve().parent.parent
EXAMPLE_DAGS = CHECKOUT / "example_dags"
SONGS_FOLDER = CHECKOUT / "demo-songs"
DAG_ID = "whisul_keep_songs"
# Long enough to see the tasks wait.
JOB_SECONDS = (8.0, 20.0)
SANDBOX_TIMEOUT = 300.0
REAL_TIMEOUT = 3900.0
# Time for a Ctrl-C before the first song is paid for.
GRACE_SECONDS = 5

STATES = {
    "scheduled": "is scheduled",
    "queued": "waits for a worker",
    "running": "runs on a worker",
    "deferred": "waits in the triggerer",
    "success": "done",
    "failed": "FAILED",
    "up_for_retry": "failed, will be retried",
    "upstream_failed": "cannot run: an upstream task failed",
}


def main() -> int:
    """Run the demo and return the exit status."""
    prompts = read_prompts(EXAMPLE_DAGS / f"{DAG_ID}.py")
    with backend(prompts) as (connection, timeout):
        say("Starting Airflow on SQLite (scheduler, triggerer, API server) …")
        started = time.monotonic()
        env = {"AIRFLOW_CONN_WHISUL_DEFAULT": connection, **songs_folder_variable(SONGS_FOLDER)}
        with LocalAirflow(EXAMPLE_DAGS, env=env) as airflow:
            say(f"Airflow {airflow.airflow_version} is up after {time.monotonic() - started:.0f} s.")
            airflow.wait_for_dags(DAG_ID)
            airflow.unpause(DAG_ID)
            run_id = airflow.trigger(DAG_ID)
            say(f"Its scheduler starts a run of {DAG_ID}: {len(prompts)} songs.\n")
            state = airflow.wait(DAG_ID, run_id, timeout, Progress(prompts))
            tasks = airflow.task_instances(DAG_ID, run_id)
            songs = [
                airflow.xcom(DAG_ID, run_id, task.task_id, task.map_index)
                for task in tasks
                if task.task_id == "song" and task.state == "success"
            ]
            if songs:
                say("\n" + table(songs))
            if state != "success" or len(songs) != len(prompts):
                explain(airflow, run_id, tasks)
                return 1
            manifest = airflow.xcom(DAG_ID, run_id, "keep")
            say(
                f"\n{len(songs)} songs, from prompt to file, by a real Airflow.\n"
                f"Files:         {SONGS_FOLDER / run_id}   ({manifest['manifest']} lists them)"
            )
            if sys.stdin.isatty():
                say(f"Tracks tab:    {tracks_tab(airflow, run_id)}")
                input("\nAirflow and the sandbox run until you press Enter: open the Tracks tab in a browser. ")
    say("All processes are stopped, and the files are kept. To use the UI: make airflow")
    return 0


def songs_folder_variable(folder: Path) -> dict[str, str]:
    """Return the environment variable by which the example DAG stores its songs in a folder of this machine."""
    return {"AIRFLOW_VAR_WHISUL_SONGS_FOLDER": f"file://{folder}"}


def tracks_tab(airflow: LocalAirflow, run_id: str) -> str:
    """Return the URL of the Tracks tab of a run."""
    return f"{airflow.ui_url}/dags/{DAG_ID}/runs/{quote(run_id, safe='')}/plugin/whisul-tracks"


def read_prompts(dag_file: Path) -> list[str]:
    """
    Return the prompts of an example DAG.

    The file is parsed and not imported: to import Airflow would make files in the user's home directory.

    :raises ValueError: The file has no ``PROMPTS``.
    """
    for node in ast.parse(dag_file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROMPTS":
            return [str(prompt) for prompt in ast.literal_eval(node.value)]
    raise ValueError(f"{dag_file.name} has no PROMPTS")


@contextmanager
def backend(prompts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield the Airflow connection to Whisul or to the sandbox, as JSON, and the seconds that the run may take."""
    key = os.environ.get("WHISUL_API_KEY", "").strip()
    if not key:
        with Sandbox(SandboxOptions(api_key=secrets.token_hex(16), job_seconds=JOB_SECONDS)) as sandbox:
            say(f"The sandbox serves a local Whisul at {sandbox.base_url}: no key, no cost.")
            yield sandbox.connection, SANDBOX_TIMEOUT
        return
    say(
        f"WHISUL_API_KEY is set: this makes {len(prompts)} real songs at Whisul, which COSTS CREDITS.\n"
        f"Starting in {GRACE_SECONDS} s; Ctrl-C to stop, `WHISUL_API_KEY= make demo` for the sandbox."
    )
    time.sleep(GRACE_SECONDS)
    yield json.dumps({"conn_type": "whisul", "password": key}), REAL_TIMEOUT


class Progress:
    """Prints a line whenever the state of a task has changed."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = prompts
        self._states: dict[tuple[str, int], str] = {}
        self._started = time.monotonic()

    def __call__(self, tasks: list[TaskInstance]) -> None:
        for task in tasks:
            key = (task.task_id, task.map_index)
            if task.state is None or self._states.get(key) == task.state:
                continue
            self._states[key] = task.state
            prompt = shorten(self._prompts[task.map_index], 40) if task.map_index >= 0 else ""
            state = STATES.get(task.state, task.state)
            say(f"{time.monotonic() - self._started:4.0f} s  {task.task_id:<6}  {prompt:<40}  {state}".rstrip())


def table(songs: Sequence[dict[str, Any]]) -> str:
    """Return the songs as a table."""
    rows = [("PROMPT", "TITLE", "BPM", "LENGTH", "URL")]
    rows += [
        (
            shorten(song["prompt"], 40),
            shorten(song["title"], 32),
            shorten(song["bpm"], 6),
            length(song["duration_seconds"]),
            shorten(song["song_url"], 200),
        )
        for song in songs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]) for row in rows
    )


def length(seconds: float | None) -> str:
    """Return a duration as ``m:ss``; a dash where the API gave none."""
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def shorten(value: object, width: int) -> str:
    """Return a value of the API as one line, without control characters that a terminal would obey."""
    text = "-" if value is None else "".join(char if char.isprintable() else " " for char in str(value))
    return text if len(text) <= width else text[: width - 1] + "…"


def explain(airflow: LocalAirflow, run_id: str, tasks: Sequence[TaskInstance]) -> None:
    """Print which tasks failed, and the end of the log of the first one. The other logs mostly say the same."""
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed[:1]:
        log = airflow.task_log(DAG_ID, run_id, task.task_id, task.map_index, task.try_number)
        say(f"\n--- The end of the log of {task.label}:\n{tail(log)}", sys.stderr)
    say(f"\nThe demo has failed: {', '.join(task.label for task in failed) or 'not all songs were made'}.", sys.stderr)


def say(text: str, to: Any = None) -> None:
    """Print, and flush the output, which may be a pipe."""
    print(text, file=to or sys.stdout, flush=True)


def stop_once(signum: int, frame: FrameType | None) -> None:
    """Stop, and ignore a second Ctrl-C, which would leave processes behind."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(command: Any) -> int:
    """Run a command that starts processes, so that no signal leaves one behind. Return the exit status."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop_once)
    try:
        return int(command())
    except KeyboardInterrupt:
        say("\nStopped, and all processes with it.", sys.stderr)
        return 130
    except LocalAirflowError as error:
        say(f"\n{error}", sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run(main))

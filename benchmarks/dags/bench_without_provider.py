"""The songs, made without this provider in two ways. Apart: a task process imports all that its DAG file does."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta

from airflow.providers.common.compat.sdk import dag, task

PROMPTS = [f"song number {number}" for number in range(int(os.environ.get("WHISUL_BENCH_SONGS", "60")))]
INTERVAL = 10
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=10)}
#: Seconds to wait after the first, second, … 429 in a row, as the API's documentation asks clients to.
BACK_OFF = (5, 10, 20, 40, 60, 60, 60)


@dag(schedule=None, catchup=False, default_args=RETRIES)
def bench_task() -> None:
    @task
    def song(prompt: str) -> dict[str, object]:
        import requests

        url, headers = os.environ["WHISUL_BENCH_URL"], {"Authorization": f"Bearer {os.environ['WHISUL_BENCH_KEY']}"}

        def ask(method: str, path: str, **options: object) -> dict[str, object]:
            for wait in BACK_OFF:
                response = requests.request(method, url + path, headers=headers, timeout=30, **options)  # type: ignore[arg-type]
                if response.status_code != 429:
                    break
                time.sleep(wait)
            response.raise_for_status()
            return dict(response.json())

        job_id = ask("POST", "/generate", json={"prompt": prompt})["job_id"]
        while True:
            time.sleep(INTERVAL)
            job = ask("GET", f"/jobs/{job_id}")
            if job["status"] != "running":
                return job

    song.expand(prompt=PROMPTS)


@dag(schedule=None, catchup=False, default_args=RETRIES)
def bench_http() -> None:
    from airflow.providers.http.operators.http import HttpOperator
    from airflow.providers.http.sensors.http import HttpSensor

    headers = {"Authorization": f"Bearer {os.environ['WHISUL_BENCH_KEY']}", "Content-Type": "application/json"}
    submit = HttpOperator.partial(
        task_id="submit",
        endpoint="/generate",
        headers=headers,
        response_filter=lambda response: response.json()["job_id"],
    ).expand(data=[json.dumps({"prompt": prompt}) for prompt in PROMPTS])
    # With a response_check it does not defer, although it is told to: each poll takes a task process.
    HttpSensor.partial(
        task_id="song",
        headers=headers,
        deferrable=True,
        mode="reschedule",
        poke_interval=INTERVAL,
        timeout=3600,
        response_check=lambda response: response.json()["status"] == "completed",
    ).expand(endpoint=submit.output.map(lambda job_id: f"/jobs/{job_id}"))


bench_task()
bench_http()

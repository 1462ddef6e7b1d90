"""The songs, made with this provider in three ways. Compared by ``python -m benchmarks.worker_cost``."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.providers.common.compat.sdk import dag

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor

PROMPTS = [f"song number {number}" for number in range(int(os.environ.get("WHISUL_BENCH_SONGS", "60")))]
INTERVAL = 10
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=10)}


@dag(schedule=None, catchup=False, default_args=RETRIES)
def bench_sensor() -> None:
    submit = WhisulGenerateOperator.partial(task_id="submit").expand(prompt=PROMPTS)
    WhisulJobSensor.partial(task_id="song", poke_interval=INTERVAL).expand(job_id=submit.output)


@dag(schedule=None, catchup=False, default_args=RETRIES)
def bench_operator() -> None:
    WhisulGenerateOperator.partial(task_id="song", wait_for_completion=True, poll_interval=INTERVAL).expand(
        prompt=PROMPTS
    )


@dag(schedule=None, catchup=False, default_args=RETRIES)
def bench_batch() -> None:
    WhisulGenerateBatchOperator(task_id="song", prompts=PROMPTS, poll_interval=INTERVAL)


bench_sensor()
bench_operator()
bench_batch()

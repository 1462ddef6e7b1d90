"""A night that is too much for one machine: songs with a task each, and as many again as a batch."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator

MAPPED, BATCH = int(os.environ["WHISUL_TEST_MAPPED"]), int(os.environ["WHISUL_TEST_BATCH"])
# One more than a worker can hold: whichever worker the batch is on, one of these is on it too when it is killed.
ON_WORKER = 7
# Still being waited for when the batch is, so that the triggerer that is killed has some of both.
LONG, LONG_SECONDS = 20, 90


def mapped(index: int) -> dict[str, object]:
    """What one mapped task is made of."""
    if index < ON_WORKER:
        return {"prompt": f"[sandbox:seconds=60] mapped {index}", "deferrable": False}
    if index >= MAPPED - LONG:
        return {"prompt": f"[sandbox:seconds={LONG_SECONDS}] mapped {index}"}
    return {"prompt": f"mapped {index}"}


with DAG("whisul_cluster", schedule=None, default_args={"retries": 3, "retry_delay": timedelta(seconds=1)}):
    WhisulGenerateBatchOperator(
        task_id="batch", prompts=[f"batch {index}" for index in range(BATCH)], poll_interval=5, priority_weight=2
    )
    WhisulGenerateOperator.partial(task_id="song", wait_for_completion=True).expand_kwargs(
        [mapped(index) for index in range(MAPPED)]
    )

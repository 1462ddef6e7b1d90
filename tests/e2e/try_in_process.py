"""
One try of a task on a worker of its own, without an Airflow around it.

``python -m tests.e2e.try_in_process TRY_NUMBER [die]`` makes a song and prints it. With ``die`` it kills itself the
moment that its job is recorded.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

from airflow_provider_whisul.operators.whisul import XCOM_JOB_ID, WhisulGenerateOperator
from tests.support.airflow import TaskContext

RETRIES = 3


class MortalContext(TaskContext):
    def xcom_push(self, key: str, value: Any) -> None:
        if key == XCOM_JOB_ID:
            os.kill(os.getpid(), signal.SIGKILL)


def main(try_number: int, dies: bool) -> None:
    # Airflow 2's loggers do not propagate, and Airflow 3 prints only in its own processes.
    log = logging.getLogger("airflow_provider_whisul")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    operator = WhisulGenerateOperator(
        task_id="song",
        prompt="[sandbox:seconds=0] a slow waltz",
        wait_for_completion=True,
        deferrable=False,
        poll_interval=5,
        retries=RETRIES,
    )
    context = MortalContext() if dies else TaskContext()
    context.try_number, context.max_tries = try_number, RETRIES
    print(json.dumps(context.run(operator)))


if __name__ == "__main__":
    main(int(sys.argv[1]), dies=sys.argv[2:] == ["die"])

"""As many tasks as the songs of ``bench_songs``, which do nothing but defer once: what Airflow itself takes for one."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator, Context, dag

SONGS = int(os.environ.get("WHISUL_BENCH_SONGS", "60"))
SECONDS = 5
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=10)}


class DeferOnceOperator(BaseOperator):
    """
    Defers to a trigger that only sleeps.

    :param number: The number of the task.
    """

    def __init__(self, *, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number

    def execute(self, context: Context) -> None:
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=SECONDS)), method_name="execute_complete")

    def execute_complete(self, context: Context, event: Any) -> None:
        """Do nothing."""


@dag(schedule=None, catchup=False, default_args=RETRIES)
def bench_floor() -> None:
    DeferOnceOperator.partial(task_id="song").expand(number=list(range(SONGS)))


bench_floor()

"""Songs whose making is interrupted. Their tasks kill themselves, at an exact moment of the first try."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from airflow.sdk import DAG, Context

from airflow_provider_whisul.api.models import Song, WhisulJob
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.state.state_store import StateStore

Moment = Literal["before POST", "after POST", "job stored", "polled", "resumed", "delivered"]

KILLS = Path(os.environ["AIRFLOW_HOME"], "kills.jsonl")


class MortalOperator(WhisulGenerateOperator):
    """
    Kills its own process as ``kill -9`` does.

    :param dies: The moment in the first try at which it does; None for never.
    """

    def __init__(self, *, dies: Moment | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dies = dies
        self._is_first_try = False

    @cached_property
    def hook(self) -> WhisulHook:
        return MortalHook(self)

    def execute(self, context: Context) -> str | Song:
        self._is_first_try = context["ti"].try_number == 1
        context["task_state_store"] = MortalStore(context["task_state_store"], self)
        returned = super().execute(context)
        self.reach("delivered")
        return returned

    def execute_complete(self, context: Context, event: object, **kwargs: Any) -> Song:
        self._is_first_try = context["ti"].try_number == 1
        self.reach("resumed")
        song = super().execute_complete(context, event, **kwargs)
        self.reach("delivered")
        return song

    def reach(self, moment: Moment) -> None:
        """Kill this process if the moment is the one to die at."""
        if self._is_first_try and self.dies == moment:
            with KILLS.open("a") as kills:
                kills.write(json.dumps({"task_id": self.task_id, "moment": moment, "at": time.time()}) + "\n")
            os.kill(os.getpid(), signal.SIGKILL)


class MortalHook(WhisulHook):
    def __init__(self, task: MortalOperator) -> None:
        super().__init__(task.whisul_conn_id, clock=task.clock)
        self._task = task

    def generate(self, prompt: str, *, before_send: Callable[[], None] | None = None) -> str:
        def record_intent() -> None:
            if before_send is not None:
                before_send()
            self._task.reach("before POST")

        job_id = super().generate(prompt, before_send=record_intent)
        self._task.reach("after POST")
        return job_id

    def get_job(self, job_id: str, *, retry: bool = True, max_wait: float | None = None) -> WhisulJob:
        job = super().get_job(job_id, retry=retry, max_wait=max_wait)
        self._task.reach("polled")
        return job


class MortalStore:
    def __init__(self, store: StateStore, task: MortalOperator) -> None:
        self._store = store
        self._task = task

    def get(self, key: str) -> object:
        return self._store.get(key)

    def set(self, key: str, value: Mapping[str, object]) -> None:
        self._store.set(key, value)
        if value["job_id"] is not None:
            self._task.reach("job stored")

    def delete(self, key: str) -> None:
        self._store.delete(key)


def song(task_id: str, dies: Moment | None = None, *, seconds: int = 12, **options: Any) -> None:
    """Make a task whose prompt ends with its own id, so that its submissions can be told from others."""
    MortalOperator(
        task_id=task_id,
        prompt=f"[sandbox:seconds={seconds}] {task_id}",
        dies=dies,
        **{"wait_for_completion": True, "poll_interval": 5, **options},
    )


DEFAULTS = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG("whisul_crashes", schedule=None, default_args=DEFAULTS):
    # Started first: most of the other tasks end before these two do.
    song("outage_deferred", seconds=45, whisul_conn_id="whisul_outage", priority_weight=2)
    song("outage_on_worker", seconds=45, whisul_conn_id="whisul_outage", priority_weight=2, deferrable=False)
    song("key_revoked", seconds=40, whisul_conn_id="whisul_revoked")
    song("cleared", seconds=40)
    song("before_post", "before POST")
    song("before_store", "after POST")
    song("before_store_fail", "after POST", on_ambiguous_submit="fail")
    song("after_store", "job stored")
    song("resuming", "resumed")
    song("delivered", "delivered")
    song("polling_on_worker", "polled", deferrable=False)
    song("delivered_on_worker", "delivered", deferrable=False)
    song("not_waiting", "job stored", wait_for_completion=False)

with DAG("whisul_scheduler_killed", schedule=None, default_args=DEFAULTS):
    song("scheduler_deferred", seconds=45)
    song("scheduler_on_worker", seconds=45, deferrable=False)

with DAG("whisul_triggerer_killed", schedule=None, default_args=DEFAULTS):
    song("triggerer", seconds=30)

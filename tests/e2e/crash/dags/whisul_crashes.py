"""Songs whose making is interrupted. Their tasks kill themselves, at an exact moment of the first try."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from airflow.providers.common.compat.sdk import DAG, Context

from airflow_provider_whisul.api.messages import Request, Response
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.state.song_state import SongState, Submission

#: ``next song``: a batch is about to submit another song. ``before POST``: the intent is recorded. ``response``: the
#: response has come, and is not in the ledger yet. ``in ledger``: it is there, and not in the task's record yet.
Moment = Literal[
    "next song", "before POST", "response", "in ledger", "recorded", "polled", "resumed", "delivered", "never"
]

AIRFLOW_IS_3_0 = version("apache-airflow").startswith("3.0.")

KILLS = Path(os.environ["AIRFLOW_HOME"], "kills.jsonl")

#: At which submission a batch dies. At its third one only the ledger has the job of its second song.
BATCH_SONGS, SECOND, THIRD = 3, 2, 3


class MortalTask:
    """
    Kills its own process as ``kill -9`` does; a mixin before an operator.

    :param dies: The moment in the first try at which it does.
    :param fatal_submission: At which submission of the first try it does, where the moment is one of a submission.
    """

    task_id: str
    whisul_conn_id: str
    clock: Any
    dies: Moment = "never"
    fatal_submission: int = 1
    _is_first_try = False

    @cached_property
    def hook(self) -> WhisulHook:
        return MortalHook(self)

    def begin(self, context: Context) -> None:
        self._is_first_try = context["ti"].try_number == 1

    def execute_complete(self, context: Context, event: object, **kwargs: Any) -> Any:
        self.begin(context)
        self.reach("resumed")
        returned = super().execute_complete(context, event, **kwargs)  # type: ignore[misc]
        self.reach("delivered")
        return returned

    def reach(self, moment: Moment) -> None:
        """Kill this process if the moment is the one to die at."""
        if self._is_first_try and self.dies == moment:
            with KILLS.open("a") as kills:
                kills.write(json.dumps({"task_id": self.task_id, "moment": moment, "at": time.time()}) + "\n")
            if AIRFLOW_IS_3_0:
                # It retries no task whose process was killed, but one whose whole worker was.
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


# Airflow wants an operator to have an ``__init__`` and an ``execute`` of its own.


class MortalOperator(MortalTask, WhisulGenerateOperator):
    def __init__(self, *, dies: Moment, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dies = dies

    def execute(self, context: Context) -> Any:
        self.begin(context)
        returned = super().execute(context)
        self.reach("delivered")
        return returned

    def _submit(self, context: Context, state: SongState) -> Submission:
        submission = super()._submit(context, state)
        self.reach("recorded")
        return submission


class MortalBatchOperator(MortalTask, WhisulGenerateBatchOperator):
    def __init__(self, *, dies: Moment, fatal_submission: int = SECOND, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dies = dies
        self.fatal_submission = fatal_submission

    def execute(self, context: Context) -> Any:
        self.begin(context)
        if not self.deferrable:
            # Here, so that no other task loads it.
            from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

            get_job = WhisulAsyncHook.get_job

            async def get_job_and_die(*args: Any, **kwargs: Any) -> WhisulJob:
                job = await get_job(*args, **kwargs)
                self.reach("polled")
                return job

            WhisulAsyncHook.get_job = get_job_and_die  # type: ignore[method-assign]
        returned = super().execute(context)
        self.reach("delivered")
        return returned


class MortalHook(WhisulHook):
    def __init__(self, task: MortalTask) -> None:
        super().__init__(task.whisul_conn_id, clock=task.clock)
        self._task = task
        self._submissions = 0

    def generate(
        self,
        prompt: str,
        *,
        before_send: Callable[[], None] | None = None,
        before_wait: Callable[[], None] | None = None,
        on_refused: Callable[[], None] | None = None,
        submission: SubmissionId | None = None,
    ) -> str:
        self._submissions += 1
        self._reach("next song")

        def record_intent() -> None:
            if before_send is not None:
                before_send()
            self._reach("before POST")

        job_id = super().generate(
            prompt, before_send=record_intent, before_wait=before_wait, on_refused=on_refused, submission=submission
        )
        self._reach("in ledger")
        return job_id

    def get_job(self, job_id: str, *, retry: bool = True, max_wait: float | None = None) -> WhisulJob:
        job = super().get_job(job_id, retry=retry, max_wait=max_wait)
        self._task.reach("polled")
        return job

    def _exchange(self, request: Request) -> Response:
        response = super()._exchange(request)
        if request.method == "POST":
            self._reach("response")
        return response

    def _reach(self, moment: Moment) -> None:
        if self._submissions == self._task.fatal_submission:
            self._task.reach(moment)


def song(task_id: str, dies: Moment = "never", *, seconds: int = 12, **options: Any) -> None:
    """Make a task whose prompt ends with its own id, so that its submissions can be told from others."""
    MortalOperator(
        task_id=task_id,
        prompt=f"[sandbox:seconds={seconds}] {task_id}",
        dies=dies,
        **{"wait_for_completion": True, "poll_interval": 5, **options},
    )


def batch(task_id: str, dies: Moment = "never", *, seconds: int = 12, **options: Any) -> None:
    """Make a task of several such songs."""
    MortalBatchOperator(
        task_id=task_id,
        prompts=[f"[sandbox:seconds={seconds}] song {number} of {task_id}" for number in range(BATCH_SONGS)],
        dies=dies,
        poll_interval=5,
        **options,
    )


OPTIONS: dict[str, Any] = {
    "schedule": None,
    "start_date": datetime(2026, 1, 1),
    "default_args": {"retries": 3, "retry_delay": timedelta(seconds=1)},
}

with DAG("whisul_crashes", **OPTIONS):
    # Started first: most of the other tasks end before these do.
    song("cleared", seconds=40, priority_weight=2)
    batch("batch_cleared", seconds=40, priority_weight=2)
    # A later try of these waits until the response that their first try has lost is overdue.
    song("before_post", "before POST", priority_weight=2)
    song("response", "response", priority_weight=2)
    song("response_fail", "response", priority_weight=2, on_ambiguous_submit="fail")
    batch("batch_response", "response", priority_weight=2)
    song("in_ledger", "in ledger")
    song("recorded", "recorded")
    song("resuming", "resumed")
    song("delivered", "delivered")
    song("polling_on_worker", "polled", deferrable=False)
    song("delivered_on_worker", "delivered", deferrable=False)
    song("not_waiting", "recorded", wait_for_completion=False)
    batch("batch_submitting", "next song", fatal_submission=THIRD)
    batch("batch_in_ledger", "in ledger")
    batch("batch_resuming", "resumed")
    batch("batch_delivered", "delivered")
    batch("batch_on_worker", "polled", deferrable=False)

with DAG("whisul_outage", **OPTIONS):
    song("outage_deferred", seconds=45, whisul_conn_id="whisul_outage", priority_weight=2)
    song("outage_on_worker", seconds=45, whisul_conn_id="whisul_outage", priority_weight=2, deferrable=False)
    song("key_revoked", seconds=40, whisul_conn_id="whisul_revoked")

with DAG("whisul_scheduler_killed", **OPTIONS):
    # This one first: the other one holds the only slot of an Airflow 2 on SQLite.
    song("scheduler_deferred", seconds=30, priority_weight=2)
    song("scheduler_on_worker", seconds=30, deferrable=False)

with DAG("whisul_triggerer_killed", **OPTIONS):
    song("triggerer", seconds=30)
    batch("batch_triggerer", seconds=30)

"""Waiting for a Whisul job in the triggerer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.polling import (
    LAST_POLL_MAX_WAIT,
    DeadlineSource,
    JobPoller,
    check_poll_interval,
    last_poll_max_wait,
)
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.triggers.events import CompletedEvent, ErrorEvent
from airflow_provider_whisul.version_compat import deferral_ends_at

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
    from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger

#: Seconds before Airflow ends a deferral in which no last poll waits for the rate limiter's permission: its response
#: must come, and the task must be resumed with it.
DEFERRAL_END_MARGIN = 60.0

#: The log line where a user ends a task whose job runs on.
NOT_CANCELLED = (
    "Whisul cannot cancel a job: job %s continues, and costs what it costs. A later try of this task waits for it "
    "again (a WhisulGenerateOperator where a record is kept, a WhisulJobSensor always). Until then a WhisulJobSensor "
    "with this job id finds it."
)


class WhisulJobTrigger(BaseTrigger):
    """
    Polls a job until it has ended, and reports how.

    It only sends GET requests, so it may run twice, or again after a restart. It waits one to two intervals before its
    first poll: the task that defers has just submitted or polled, and a thousand triggers must not poll in the same
    moment. Where the account's jobs are known to take longer, it waits until one in twenty would be over.

    :param job_id: The job.
    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param poll_interval: Seconds between two polls, at least 5.
    :param deadline: When waiting ends, in Unix seconds (UTC). A restart does not prolong it.
    :param deadline_source: What the deadline comes from: the wait's own timeout, or the task's execution_timeout.
    :param not_before: When the first request may be sent at the earliest, as the numbers of
        :class:`~airflow_provider_whisul.rate_limit.backoff.NotBefore`: the end of a cool-down that the task has met.
        None for no cool-down.
    :param submitted_at: When the job was submitted, in Unix seconds; None where nobody knows.
    :param dag_id: The DAG that waits for the job; blank where none is known.
    """

    #: Time, sleep and jitter; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    def __init__(
        self,
        job_id: str,
        whisul_conn_id: str,
        poll_interval: float,
        deadline: float,
        deadline_source: DeadlineSource = "timeout",
        not_before: Sequence[Any] | None = None,
        submitted_at: float | None = None,
        dag_id: str = "",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_id = job_id
        self.whisul_conn_id = whisul_conn_id
        self.poll_interval = check_poll_interval(poll_interval, "poll_interval")
        self.deadline = deadline
        self.deadline_source = deadline_source
        self.not_before = None if not_before is None else NotBefore(*not_before)
        self.submitted_at = submitted_at
        self.dag_id = dag_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the trigger is created from: ids and times only, since Airflow stores and logs it."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job_id": self.job_id,
                "whisul_conn_id": self.whisul_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "deadline_source": self.deadline_source,
                "not_before": None if self.not_before is None else list(self.not_before),
                "submitted_at": self.submitted_at,
                "dag_id": self.dag_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event when waiting has ended, a :class:`CompletedEvent` or an :class:`ErrorEvent`."""
        event: CompletedEvent | ErrorEvent
        try:
            song = await self._wait()
        except WhisulError as error:
            event = {"status": "error", "job_id": self.job_id, "error": error.as_dict()}
        else:
            event = {"status": "completed", "job_id": self.job_id, "song": song}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Log what happens to the job when a user ends the task (Airflow 3.3 and later)."""
        self.log.warning(NOT_CANCELLED, self.job_id)

    async def _wait(self) -> Song:
        clock = self.clock
        poller = JobPoller(
            self.job_id,
            self.poll_interval,
            self.deadline,
            self.deadline_source,
            # Other triggers may have the same deadline.
            crowd_max_wait=last_max_wait(self, math.inf) - LAST_POLL_MAX_WAIT,
            submitted_at=self.submitted_at,
            dag_id=self.dag_id,
        )
        delay = poller.initial_delay(clock.time(), clock.random(), self.not_before)
        self.log.info(
            "Polling Whisul job %s every %g s, first in %.0f s or later", self.job_id, self.poll_interval, delay
        )
        if self.not_before is None:
            # Before the connection is looked up: of a thousand triggers started together each does so at its own time.
            await clock.async_sleep(delay)
            delay = 0.0
        async with (await async_hook_class())(self.whisul_conn_id, clock=clock) as hook:
            if self.not_before is not None:
                await hook.pause_until(self.not_before)
            job = await hook.follow(poller, delay)
        return cast(Song, job.song)


def last_max_wait(trigger: WhisulJobTrigger | WhisulBatchTrigger, jobs: float, *, on_worker: bool = False) -> float:
    """
    Return the seconds after its deadline for which a trigger's last polls wait for the rate limiter's permission.

    As :func:`~airflow_provider_whisul.polling.last_poll_max_wait`, or less where Airflow ends the deferral before. That
    is so where the trigger begins late, since no triggerer has run. On 2.11 it is also so where the task has an
    ``execution_timeout`` that ends shortly after the deadline.

    :param trigger: The trigger, which is about to begin.
    :param jobs: How many jobs are waited for together; infinite where nobody knows.
    :param on_worker: Whether the trigger runs on a worker.
    """
    longest = last_poll_max_wait(jobs, trigger.deadline_source, on_worker=on_worker)
    left = deferral_ends_at(trigger) - DEFERRAL_END_MARGIN - max(trigger.deadline, trigger.clock.time())
    return max(min(longest, left), LAST_POLL_MAX_WAIT)


_hook_class: type[WhisulAsyncHook] | None = None


async def async_hook_class() -> type[WhisulAsyncHook]:
    """
    Return :class:`~airflow_provider_whisul.hooks.whisul_async.WhisulAsyncHook`.

    It is imported at first use, so that reading a DAG file imports no HTTP client, and in a thread: the import takes
    some 200 ms, which no other trigger in the event loop should have to wait out.
    """
    global _hook_class
    if _hook_class is None:
        _hook_class = await asyncio.to_thread(_import_hook_class)
    return _hook_class


def _import_hook_class() -> type[WhisulAsyncHook]:
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

    return WhisulAsyncHook

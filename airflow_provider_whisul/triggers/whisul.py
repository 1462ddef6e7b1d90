"""Waiting for a Whisul job in the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_whisul.api import Song, WhisulJob
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import (
    SerializedError,
    WhisulError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    error_from_dict,
)
from airflow_provider_whisul.pace import check_poll_interval
from airflow_provider_whisul.version_compat import is_deferral_timeout
from airflow_provider_whisul.watch import JobWatch

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

#: What is said where a user ends a task whose job runs on.
NOT_CANCELLED = (
    "Whisul cannot cancel a job: job %s goes on, and costs what it costs. A later try of this task goes on with it "
    "(a WhisulGenerateOperator from Airflow 3.3 on, a WhisulJobSensor always); until then a WhisulJobSensor with this "
    "job id finds it."
)


class CompletedEvent(TypedDict):
    """What a trigger reports of a completed job."""

    status: Literal["completed"]
    job_id: str
    song: Song


class ErrorEvent(TypedDict):
    """What a trigger reports when waiting ended in any other way."""

    status: Literal["error"]
    job_id: str
    error: SerializedError


class WhisulJobTrigger(BaseTrigger):
    """
    Looks at a job until it is over, and reports how it ended.

    It only ever looks (GET), so it may be run twice or again after a restart. The first look waits one to two
    intervals: whoever defers to it has just looked, and a thousand triggers must not look in the same moment.

    :param job_id: The job.
    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param poll_interval: Seconds between two looks, at least 5.
    :param deadline: When waiting ends, in Unix seconds (UTC), so that a restart does not prolong it.
    :param submitted_at: When the job was submitted, in Unix seconds, if that is known: for a minute, a job that Whisul
        does not find is only not there yet.
    :param not_before: When the first look may be made at the earliest, in Unix seconds: the end of a rate limit that
        whoever defers has met.
    """

    #: Time and chance; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    def __init__(
        self,
        job_id: str,
        whisul_conn_id: str,
        poll_interval: float,
        deadline: float,
        submitted_at: float | None = None,
        not_before: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_id = job_id
        self.whisul_conn_id = whisul_conn_id
        self.poll_interval = check_poll_interval(poll_interval, "poll_interval")
        self.deadline = deadline
        self.submitted_at = submitted_at
        self.not_before = not_before

    def serialize(self) -> tuple[str, dict[str, str | float | None]]:
        """Return what the trigger is made from again: ids and times only, since it is stored and logged."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job_id": self.job_id,
                "whisul_conn_id": self.whisul_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "submitted_at": self.submitted_at,
                "not_before": self.not_before,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event when the job or our patience is over: a :class:`CompletedEvent` or an :class:`ErrorEvent`."""
        event: CompletedEvent | ErrorEvent
        try:
            job = await self._wait()
        except WhisulError as error:
            event = {"status": "error", "job_id": self.job_id, "error": error.as_dict()}
        else:
            event = {"status": "completed", "job_id": self.job_id, "song": job.song()}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Say what becomes of the job where a user ends the waiting (Airflow 3.3 and later)."""
        self.log.warning(NOT_CANCELLED, self.job_id)

    async def _wait(self) -> WhisulJob:
        clock = self.clock
        watch = JobWatch(self.job_id, self.poll_interval, self.deadline, self.submitted_at)
        wait = watch.first_wait(clock.time(), clock.random(), self.not_before)
        self.log.info("Looking at Whisul job %s every %g s, first in %.0f s", self.job_id, self.poll_interval, wait)
        if self.not_before is None:
            # Before the connection is looked up: of a thousand triggers begun together each does so at its own time.
            await clock.asleep(wait)
            wait = 0.0
        async with (await async_hook_class())(self.whisul_conn_id, clock=clock) as hook:
            if self.not_before is not None:
                await hook.keep_quiet(self.not_before)
            return await wait_until_over(hook, watch, clock, wait)


_hook_class: type[WhisulAsyncHook] | None = None


async def async_hook_class() -> type[WhisulAsyncHook]:
    """
    Return the client's class.

    Loaded at first use, so that reading a DAG file loads no HTTP client, and in a thread: it takes some 200 ms, which
    no other trigger in the event loop should have to wait out.
    """
    global _hook_class
    if _hook_class is None:
        _hook_class = await asyncio.to_thread(_load_hook_class)
    return _hook_class


def _load_hook_class() -> type[WhisulAsyncHook]:
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

    return WhisulAsyncHook


async def wait_until_over(hook: WhisulAsyncHook, watch: JobWatch, clock: Clock, wait: float) -> WhisulJob:
    """
    Look at a job whenever its watch says so, until it is completed, and return it.

    :param hook: The client.
    :param watch: The job, and until when it is waited for.
    :param clock: The time.
    :param wait: Seconds until the first look.
    :raises WhisulError: The job failed, or can no longer be waited for.
    """
    following: float | None = wait
    while following is not None:
        await clock.asleep(following)
        seen: WhisulJob | WhisulError
        try:
            seen = job = await _look(hook, watch, clock)
        except WhisulError as error:
            seen = error
        following = watch.after(seen, clock.time(), clock.random())
    return job


async def _look(hook: WhisulAsyncHook, watch: JobWatch, clock: Clock) -> WhisulJob:
    """Look at a job when it is its turn, but do not wait for that much longer than for the job itself."""
    now = clock.time()
    patience = max(watch.deadline + watch.poll_interval - now, watch.poll_interval)
    try:
        return await hook.get_job(watch.job_id, due=now, patience=patience)
    except TimeoutError:
        raise WhisulRateLimitError(
            f"The pace of this API key let nobody look at job {watch.job_id} in time.", job_id=watch.job_id
        ) from None


def song_from_event(event: object, job_id: str) -> Song:
    """
    Return the song that a trigger's event brings, or raise the error that it brings.

    :param event: The event, as Airflow hands it to ``execute_complete``: not to be trusted to be one of ours.
    :param job_id: The job that was waited for.
    :raises WhisulError: The one that ended the wait, or a plain one where the event makes no sense.
    """
    match event:
        case {"status": "completed", "song": {"job_id": str()} as song}:
            return cast(Song, song)
        case {"status": "error", "error": {"type": str(), "message": str(), "job_id": _, "http_status": _} as error}:
            raise error_from_dict(cast(SerializedError, error))
    raise WhisulError(
        f"The trigger that waited for Whisul job {job_id} reported something that is no event of it: {event!r:.200}. "
        "The job is not affected; a WhisulJobSensor with this job id finds it.",
        job_id=job_id,
    )


def deferral_error(error: Exception, job_id: str) -> WhisulError:
    """
    Return what it means that Airflow ended a deferral by itself, without an event.

    :param error: One of :data:`~airflow_provider_whisul.version_compat.DEFERRAL_ERRORS`.
    :param job_id: The job that was waited for.
    """
    found_by = "a WhisulJobSensor with this job id finds it."
    if is_deferral_timeout(error):
        return WhisulJobTimeoutError(
            f"Nothing was heard in time from the trigger that waited for Whisul job {job_id}. Is a triggerer running? "
            f"The job may still be running, and may still complete: {found_by}",
            job_id=job_id,
        )
    return WhisulError(
        f"The trigger that waited for Whisul job {job_id} ended with an error of its own: {error}. Its traceback is in "
        f"this log. The job is not affected: {found_by}",
        job_id=job_id,
    )

"""Waiting for many Whisul jobs with one trigger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_whisul.api import WhisulJob
from airflow_provider_whisul.batch import (
    LARGEST_ENTRY,
    LARGEST_ERROR,
    LARGEST_SONG,
    BatchPart,
    PackedPart,
    PartPacker,
    cut,
    unpack_part,
)
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock, utc
from airflow_provider_whisul.exceptions import (
    SerializedError,
    WhisulConfigurationError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulTLSError,
    WhisulUnauthorizedError,
    error_from_dict,
)
from airflow_provider_whisul.pace import check_poll_interval
from airflow_provider_whisul.triggers.whisul import NOT_CANCELLED, async_hook_class, wait_until_over
from airflow_provider_whisul.version_compat import is_deferral_timeout
from airflow_provider_whisul.watch import JobWatch

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

#: Bytes of a part at which it is handed over: there is room for one more song, which may be one that does not compress
#: and grows by a third as text, and for what is around the part.
_FULL_PART = LARGEST_ENTRY - 4 * LARGEST_SONG

#: Seconds that a failed song waits for others to be handed over with, before it is submitted again.
_FAILURE_WAIT = 60.0

#: Seconds between two lines of progress in the task's log.
PROGRESS_SECONDS = 30.0


#: What one request tells of all of them.
ABOUT_ALL = (WhisulUnauthorizedError, WhisulConfigurationError, WhisulTLSError)


class PartEvent(TypedDict):
    """What the trigger reports when some jobs are over."""

    status: Literal["part"]
    part: PackedPart


class BatchErrorEvent(TypedDict):
    """What the trigger reports when waiting has come to an end, with the jobs that were over before."""

    status: Literal["error"]
    part: PackedPart
    error: SerializedError


class WhisulBatchTrigger(BaseTrigger):
    """
    Looks at many jobs, each no sooner than its interval and all of them spread out, and reports those that are over.

    It only ever looks (GET). It reports in parts, each small enough for any database; who it reports to takes the part
    and defers again for the rest.

    :param job_ids: The jobs.
    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param poll_interval: Seconds between two looks at one job, at least 5.
    :param deadline: When waiting ends, in Unix seconds (UTC).
    :param submitted_at: When the last of the jobs was submitted, in Unix seconds.
    :param total: How many songs the whole batch has, for the progress in the log.
    :param delivered: How many of them are there already, likewise.
    :param failed: How many of them have failed for good, likewise.
    :param resumed: Whether another trigger has waited for the same jobs until just now.
    :param said_at: When the last line of progress was written, in Unix seconds.
    :param not_before: When the first look may be made at the earliest, in Unix seconds: the end of a rate limit that
        whoever defers has met. Where that is beyond the deadline, no job is looked at and all are late.
    """

    #: Time and chance; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    def __init__(
        self,
        job_ids: Sequence[str],
        whisul_conn_id: str,
        poll_interval: float,
        deadline: float,
        submitted_at: float | None = None,
        total: int = 0,
        delivered: int = 0,
        failed: int = 0,
        resumed: bool = False,
        said_at: float | None = None,
        not_before: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_ids = list(job_ids)
        self.whisul_conn_id = whisul_conn_id
        self.poll_interval = check_poll_interval(poll_interval, "poll_interval")
        self.deadline = deadline
        self.submitted_at = submitted_at
        self.total = total
        self.delivered = delivered
        self.failed = failed
        self.resumed = resumed
        self.said_at = said_at
        self.not_before = not_before

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the trigger is made from again: ids, times and counts only, since it is stored and logged."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job_ids": self.job_ids,
                "whisul_conn_id": self.whisul_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "submitted_at": self.submitted_at,
                "total": self.total,
                "delivered": self.delivered,
                "failed": self.failed,
                "resumed": self.resumed,
                "said_at": self.said_at,
                "not_before": self.not_before,
            },
        )

    async def on_kill(self) -> None:
        """Say what becomes of the jobs where a user ends the waiting (Airflow 3.3 and later)."""
        self.log.warning(NOT_CANCELLED, ", ".join(self.job_ids[:3]) + (" …" if len(self.job_ids) > 3 else ""))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, a :class:`PartEvent` or a :class:`BatchErrorEvent`."""
        event: PartEvent | BatchErrorEvent
        part = PartPacker()
        try:
            await self._gather(part)
            event = {"status": "part", "part": part.packed()}
        except WhisulError as error:
            said: SerializedError = {**error.as_dict(), "message": cut(str(error), 2_000)}
            event = {"status": "error", "part": part.packed(), "error": said}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _gather(self, part: PartPacker) -> None:
        """Fill a part with jobs that are over, until it is full, nothing is left, or waiting must end."""
        self.log.info("Looking at %d Whisul jobs, each every %g s", len(self.job_ids), self.poll_interval)
        over: asyncio.Queue[tuple[str, WhisulJob | Exception]] = asyncio.Queue()
        async with (await async_hook_class())(self.whisul_conn_id, clock=self.clock) as hook:
            if self.not_before is not None:
                await hook.keep_quiet(self.not_before)
            watchers = [asyncio.ensure_future(self._watch(hook, job_id, over)) for job_id in self.job_ids]
            try:
                await self._collect(over, part)
            finally:
                for watcher in watchers:
                    watcher.cancel()
                await asyncio.gather(*watchers, return_exceptions=True)

    async def _watch(
        self, hook: WhisulAsyncHook, job_id: str, over: asyncio.Queue[tuple[str, WhisulJob | Exception]]
    ) -> None:
        """Look at one job until it is over or can no longer be waited for."""
        clock = self.clock
        watch = JobWatch(job_id, self.poll_interval, self.deadline, self.submitted_at)
        try:
            wait = watch.first_wait(clock.time(), clock.random(), self.not_before, resumed=self.resumed)
            job = await wait_until_over(hook, watch, clock, wait)
        except Exception as error:
            # Whatever it is: nobody else would hear of it before the trigger ends.
            over.put_nowait((job_id, error))
        else:
            over.put_nowait((job_id, job))

    async def _collect(self, over: asyncio.Queue[tuple[str, WhisulJob | Exception]], part: PartPacker) -> None:
        took: list[float] = []
        said = self.said_at or self.clock.time()
        hand_over_at: float | None = None
        left = len(self.job_ids)
        while left and part.size() < _FULL_PART and not (hand_over_at and self.clock.time() >= hand_over_at):
            try:
                job_id, seen = await asyncio.wait_for(over.get(), PROGRESS_SECONDS)
            except TimeoutError:
                pass
            else:
                left -= 1
                if isinstance(seen, WhisulJob):
                    song = cast("dict[str, object]", {**seen.song()})
                    del song["prompt"], song["job_id"]
                    part.add(job_id, song if len(json.dumps(song)) <= LARGEST_SONG else None)
                    if seen.started_at and seen.finished_at:
                        took.append((seen.finished_at - seen.started_at).total_seconds())
                elif isinstance(seen, WhisulJobNotFoundError):
                    part.gone[job_id] = cut(str(seen), LARGEST_ERROR)
                elif isinstance(seen, WhisulJobFailedError):
                    part.failed[job_id] = cut(str(seen), LARGEST_ERROR)
                    hand_over_at = hand_over_at or self.clock.time() + _FAILURE_WAIT
                elif isinstance(seen, ABOUT_ALL) or not isinstance(seen, WhisulError):
                    # All others would meet the same; or a bug, which Airflow shows with its traceback.
                    raise seen
                else:
                    part.late[job_id] = self._late(seen)
            if self.clock.time() - said >= PROGRESS_SECONDS:
                said = self.clock.time()
                self._say_progress(part, took, said)

    def _late(self, error: WhisulError) -> str:
        """Return why a job that may still complete is no longer waited for; short, as it may be said of all of them."""
        timed_out = isinstance(error, WhisulJobTimeoutError)
        reason = f"It was not over by {utc(self.deadline)}." if timed_out else cut(str(error), LARGEST_ERROR - 100)
        return f"{reason} It may still complete: from Airflow 3.3 on a retry goes on with it."

    def _say_progress(self, part: PartPacker, took: list[float], now: float) -> None:
        failed = self.failed + len(part.failed) + len(part.gone) + len(part.late)
        line = progress(self.delivered + part.songs, self.total, failed)
        if took and self.submitted_at is not None:
            left = max(self.submitted_at + max(took) - now, self.poll_interval)
            line += f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
        self.log.info("%s", line)


def progress(delivered: int, total: int, failed: int) -> str:
    """Return how far a batch has got, as the task's log says it."""
    return f"{delivered:,} of {total:,} delivered, {failed:,} failed"


def batch_deferral_error(error: Exception) -> WhisulError:
    """
    Return what it means that Airflow ended the deferral of a batch by itself, without an event.

    :param error: One of :data:`~airflow_provider_whisul.version_compat.DEFERRAL_ERRORS`.
    """
    go_on = "The jobs are not affected: from Airflow 3.3 on a retry of this task goes on with them."
    if is_deferral_timeout(error):
        return WhisulJobTimeoutError(
            f"Nothing was heard in time from the trigger that waited for the batch. Is a triggerer running? {go_on}"
        )
    return WhisulError(
        f"The trigger that waited for the batch ended with an error of its own: {error}. Its traceback is in this log. "
        f"{go_on}"
    )


def part_from_event(event: object) -> tuple[BatchPart, WhisulError | None]:
    """
    Return the jobs that an event says are over, and the error that ended the wait, if one did.

    :param event: The event, as Airflow hands it to ``execute_part``: not to be trusted to be one of ours.
    :raises WhisulError: It is none.
    """
    # Songs that cannot be read are like any other event that makes no sense.
    with suppress(ValueError):
        match event:
            case {
                "status": "part",
                "part": {"completed": str(), "failed": dict(), "gone": dict(), "late": dict()} as part,
            }:
                return unpack_part(cast(PackedPart, part)), None
            case {
                "status": "error",
                "part": {"completed": str(), "failed": dict(), "gone": dict(), "late": dict()} as part,
                "error": {"type": str(), "message": str(), "job_id": _, "http_status": _} as error,
            }:
                return unpack_part(cast(PackedPart, part)), error_from_dict(cast(SerializedError, error))
    raise WhisulError(
        f"The trigger that waited for the batch reported something that is no event of it: {event!r:.200}. The jobs "
        "are not affected: from Airflow 3.3 on a retry of this task goes on with them."
    )

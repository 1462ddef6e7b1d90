"""Waiting for many Whisul jobs with one trigger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_whisul.api.models import WhisulJob
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
)
from airflow_provider_whisul.polling import JobPoller, check_poll_interval
from airflow_provider_whisul.state.batch_state import MAX_ERROR_BYTES, MAX_SONG_BYTES
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.text import truncate_json
from airflow_provider_whisul.triggers.events import BatchErrorEvent, ChunkEvent, ChunkPacker
from airflow_provider_whisul.triggers.whisul import async_hook_class

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

#: Bytes at which a chunk is reported: there is room for one more song, which may be one that does not compress and
#: grows by a third as text, and for what is around the chunk.
_FULL_CHUNK_BYTES = MAX_ENTRY_BYTES - 4 * MAX_SONG_BYTES

#: Seconds that a failed song waits for others to be reported with, before it is submitted again.
_FAILURE_WAIT = 60.0

#: Seconds between two lines of progress in the task's log.
PROGRESS_SECONDS = 30.0

#: Errors that every other request with the connection would meet too.
ACCOUNT_ERRORS = (WhisulUnauthorizedError, WhisulConfigurationError, WhisulTLSError)


class WhisulBatchTrigger(BaseTrigger):
    """
    Polls many jobs, each no sooner than its interval and all of them spread out, and reports those that have ended.

    It only sends GET requests. It reports in chunks, each small enough for any database. The task applies a chunk and
    defers again for the rest.

    :param job_ids: The jobs.
    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param poll_interval: Seconds between two polls of one job, at least 5.
    :param deadline: When waiting ends, in Unix seconds (UTC).
    :param submitted_at: When the last of the jobs was submitted, in Unix seconds.
    :param total: How many songs the whole batch has, for the progress in the log.
    :param delivered: How many of them are completed already, likewise.
    :param failed: How many of them have failed for good, likewise.
    :param resumed: Whether another trigger has waited for the same jobs until just now.
    :param progress_logged_at: When the last line of progress was logged, in Unix seconds.
    :param not_before: When the first request may be sent at the earliest, in Unix seconds: the end of a cool-down that
        the task has met. Where that is after the deadline, no job is polled and all are timed out.
    """

    #: Time, sleep and jitter; replaced by tests.
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
        progress_logged_at: float | None = None,
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
        self.progress_logged_at = progress_logged_at
        self.not_before = not_before

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the trigger is created from: ids, times and counts only, since Airflow stores and logs it."""
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
                "progress_logged_at": self.progress_logged_at,
                "not_before": self.not_before,
            },
        )

    async def on_kill(self) -> None:
        """Log what happens to the jobs when a user ends the task (Airflow 3.3 and later)."""
        self.log.warning(
            "Whisul cannot cancel jobs: these %d continue, and cost credits. From Airflow 3.3 on a later try of this "
            "task waits for them again. A WhisulJobSensor finds each by its id: %s",
            len(self.job_ids),
            ", ".join(self.job_ids[:3]) + (" …" if len(self.job_ids) > 3 else ""),
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, a :class:`ChunkEvent` or a :class:`BatchErrorEvent`."""
        event: ChunkEvent | BatchErrorEvent
        chunk = ChunkPacker()
        try:
            await self._fill(chunk)
            event = {"status": "chunk", "chunk": chunk.packed()}
        except WhisulError as error:
            serialized: SerializedError = {**error.as_dict(), "message": truncate_json(str(error), 2_000)}
            event = {"status": "error", "chunk": chunk.packed(), "error": serialized}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _fill(self, chunk: ChunkPacker) -> None:
        """Add jobs that have ended to a chunk, until it is full, no job is left, or waiting must end."""
        self.log.info("Polling %d Whisul jobs, each every %g s", len(self.job_ids), self.poll_interval)
        ended: asyncio.Queue[tuple[str, WhisulJob | Exception]] = asyncio.Queue()
        async with (await async_hook_class())(self.whisul_conn_id, clock=self.clock) as hook:
            if self.not_before is not None:
                await hook.pause_until(self.not_before)
            waits = [asyncio.ensure_future(self._wait(hook, job_id, ended)) for job_id in self.job_ids]
            try:
                await self._collect(ended, chunk)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    async def _wait(
        self, hook: WhisulAsyncHook, job_id: str, ended: asyncio.Queue[tuple[str, WhisulJob | Exception]]
    ) -> None:
        """Poll one job until it has ended or can no longer be waited for."""
        clock = self.clock
        poller = JobPoller(job_id, self.poll_interval, self.deadline, self.submitted_at)
        try:
            delay = poller.initial_delay(clock.time(), clock.random(), self.not_before, resumed=self.resumed)
            job = await hook.wait_for_job(poller, delay)
        except Exception as error:
            # Any error at all: without it the trigger would wait for this job until its deadline.
            ended.put_nowait((job_id, error))
        else:
            ended.put_nowait((job_id, job))

    async def _collect(self, ended: asyncio.Queue[tuple[str, WhisulJob | Exception]], chunk: ChunkPacker) -> None:
        durations: list[float] = []
        progress_logged_at = self.progress_logged_at or self.clock.time()
        report_at: float | None = None
        left = len(self.job_ids)
        while left and chunk.size() < _FULL_CHUNK_BYTES and not (report_at and self.clock.time() >= report_at):
            try:
                job_id, result = await asyncio.wait_for(ended.get(), PROGRESS_SECONDS)
            except TimeoutError:
                pass
            else:
                left -= 1
                self._add(chunk, job_id, result)
                if isinstance(result, WhisulJob):
                    if result.started_at and result.finished_at:
                        durations.append((result.finished_at - result.started_at).total_seconds())
                elif isinstance(result, WhisulJobFailedError):
                    report_at = report_at or self.clock.time() + _FAILURE_WAIT
            if self.clock.time() - progress_logged_at >= PROGRESS_SECONDS:
                progress_logged_at = self.clock.time()
                self._log_progress(chunk, durations, progress_logged_at)

    def _add(self, chunk: ChunkPacker, job_id: str, result: WhisulJob | Exception) -> None:
        if isinstance(result, WhisulJob):
            song = {key: value for key, value in (result.song or {}).items() if key not in ("prompt", "job_id")}
            chunk.add_completed(job_id, song if len(json.dumps(song)) <= MAX_SONG_BYTES else None)
        elif isinstance(result, WhisulJobNotFoundError):
            chunk.not_found[job_id] = truncate_json(str(result), MAX_ERROR_BYTES)
        elif isinstance(result, WhisulJobFailedError):
            chunk.failed[job_id] = truncate_json(str(result), MAX_ERROR_BYTES)
        elif isinstance(result, ACCOUNT_ERRORS) or not isinstance(result, WhisulError):
            # Either all other jobs would get the same error, or it is a bug, whose traceback Airflow then shows.
            raise result
        else:
            timed_out = isinstance(result, WhisulJobTimeoutError)
            reason = "The job had not ended by " + utc(self.deadline) + "." if timed_out else str(result)
            # The reason is short, since it may be repeated for every job.
            reason = truncate_json(reason, MAX_ERROR_BYTES - 100)
            chunk.timed_out[job_id] = f"{reason} It may still complete: from Airflow 3.3 on a retry waits for it again."

    def _log_progress(self, chunk: ChunkPacker, durations: list[float], now: float) -> None:
        failed = self.failed + len(chunk.failed) + len(chunk.not_found) + len(chunk.timed_out)
        line = progress(self.delivered + chunk.songs, self.total, failed)
        if durations and self.submitted_at is not None:
            left = max(self.submitted_at + max(durations) - now, self.poll_interval)
            line += f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
        self.log.info("%s", line)


def progress(delivered: int, total: int, failed: int) -> str:
    """
    Return the progress of a batch as a log line.

    :param delivered: How many songs are completed.
    :param total: How many songs the batch has.
    :param failed: How many songs have failed.
    """
    return f"{delivered:,} of {total:,} delivered, {failed:,} failed"

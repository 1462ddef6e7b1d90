"""Waiting for many Whisul jobs with one trigger."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from itertools import chain, repeat
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
from airflow_provider_whisul.outage import Outage
from airflow_provider_whisul.polling import DeadlineSource, JobPoller, check_poll_interval
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.state.batch_song import MAX_ERROR_BYTES, MAX_SONG_BYTES
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.text import count, truncate_json
from airflow_provider_whisul.triggers.events import BatchErrorEvent, ChunkEvent, ChunkPacker, LoggedEvent
from airflow_provider_whisul.triggers.whisul import async_hook_class, last_max_wait

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul_async import LookUp, WhisulAsyncHook

#: Bytes at which a chunk is reported: there is room for one more song, which may be one that does not compress and
#: grows by a third as text, and for what is around the chunk.
_FULL_CHUNK_BYTES = MAX_ENTRY_BYTES - 4 * MAX_SONG_BYTES

#: Seconds that a failed song waits for others to be reported with, before it is submitted again.
_FAILURE_WAIT = 60.0

#: Seconds that any other result waits for others to be reported with: the batch's first one, and later ones. Until then
#: the user does not see the song. Each report costs two task processes, which is half a second of CPU, and the next
#: trigger counts failed polls anew: so the later ones leave room for as many as a job is given up after.
_FIRST_RESULT_WAIT, _RESULT_WAIT = 300.0, 600.0

#: Seconds between two lines of progress in the task's log.
PROGRESS_SECONDS = 30.0

#: Errors that every other request with the connection would meet too.
ACCOUNT_ERRORS = (WhisulUnauthorizedError, WhisulConfigurationError, WhisulTLSError)


class WhisulBatchTrigger(BaseTrigger):
    """
    Polls many jobs, each no sooner than its interval and all of them spread out, and reports those that have ended.

    It only sends GET requests. It reports in chunks, each small enough for any database, and within minutes of the
    chunk's first result. The task applies a chunk and defers again for the rest.

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
    :param not_before: When the first request may be sent at the earliest, as the numbers of
        :class:`~airflow_provider_whisul.rate_limit.backoff.NotBefore`: the end of a cool-down that the task has met.
    :param deadline_source: What the deadline comes from: the wait's own timeout, or the task's execution_timeout.
    :param dag_id: The DAG that waits for the jobs; blank where none is known.
    :param submitted_before: For each of the jobs, in their order, how many seconds before ``submitted_at`` it was
        submitted; None for a job of which nobody knows, or that was polled before. Empty where that is so for all.
    """

    #: Time, sleep and jitter; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    #: How a worker that runs the trigger itself looks up the Airflow connections; None in the triggerer.
    look_up: LookUp | None = None

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
        not_before: Sequence[Any] | None = None,
        deadline_source: DeadlineSource = "timeout",
        dag_id: str = "",
        submitted_before: Sequence[float | None] = (),
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
        self.not_before = None if not_before is None else NotBefore(*not_before)
        self.deadline_source = deadline_source
        self.dag_id = dag_id
        self.submitted_before = list(submitted_before)

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
                "not_before": None if self.not_before is None else list(self.not_before),
                "deadline_source": self.deadline_source,
                "dag_id": self.dag_id,
                "submitted_before": self.submitted_before,
            },
        )

    async def on_kill(self) -> None:
        """Log what happens to the jobs when a user ends the task (Airflow 3.3 and later)."""
        self.log_not_cancelled()

    def log_not_cancelled(self) -> None:
        """Log what happens to the jobs when the task is ended."""
        self.log.warning(
            "Whisul cannot cancel jobs: these %d continue, and cost credits. A later try of this task waits for "
            "them again, where a record is kept. A WhisulJobSensor finds each by its id: %s",
            len(self.job_ids),
            ", ".join(self.job_ids[:3]) + (" …" if len(self.job_ids) > 3 else ""),
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, a :class:`ChunkEvent` or a :class:`BatchErrorEvent`."""
        event: ChunkEvent | BatchErrorEvent
        chunk = ChunkPacker()
        outcome = "chunk"
        try:
            await self._fill(chunk)
            event = {"status": "chunk", "chunk": chunk.packed()}
        except WhisulError as error:
            serialized: SerializedError = {**error.as_dict(), "message": truncate_json(str(error), 2_000)}
            event = {"status": "error", "chunk": chunk.packed(), "error": serialized}
            outcome = f"error: {type(error).__name__}"
        yield TriggerEvent(LoggedEvent(event, f"{outcome}, {chunk.summary()}"))  # type: ignore[no-untyped-call]

    async def _fill(self, chunk: ChunkPacker) -> None:
        """Add jobs that have ended to a chunk, until it is full, no job is left, or waiting must end."""
        self.log.info("Polling %s, each every %g s", count(len(self.job_ids), "Whisul job"), self.poll_interval)
        ended: asyncio.Queue[tuple[str, WhisulJob | Exception]] = asyncio.Queue()
        async with (await async_hook_class())(self.whisul_conn_id, clock=self.clock, look_up=self.look_up) as hook:
            if self.not_before is not None:
                await hook.pause_until(self.not_before)
            waits = [asyncio.ensure_future(self._wait(hook, poller, ended)) for poller in self._pollers()]
            try:
                await self._collect(ended, chunk)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    def _pollers(self) -> list[JobPoller]:
        outage, max_wait = Outage(), last_max_wait(self, len(self.job_ids), on_worker=self.look_up is not None)
        return [
            JobPoller(
                job_id,
                self.poll_interval,
                self.deadline,
                self.deadline_source,
                outage,
                max_wait,
                None if self.submitted_at is None or before is None else self.submitted_at - before,
                self.dag_id,
            )
            for job_id, before in zip(self.job_ids, chain(self.submitted_before, repeat(None)), strict=False)
        ]

    async def _wait(
        self, hook: WhisulAsyncHook, poller: JobPoller, ended: asyncio.Queue[tuple[str, WhisulJob | Exception]]
    ) -> None:
        """Poll one job until it has ended or can no longer be waited for."""
        clock = self.clock
        try:
            # Nobody polls a job of a batch while others are submitted. Of one that was polled by an earlier trigger it
            # is not told when it was submitted.
            since = 0.0 if self.resumed else poller.submitted_at
            delay = poller.initial_delay(clock.time(), clock.random(), self.not_before, since)
            job = await hook.follow(poller, delay)
        except Exception as error:
            # Any error at all: without it the trigger would wait for this job until its deadline.
            ended.put_nowait((poller.job_id, error))
        else:
            ended.put_nowait((poller.job_id, job))

    async def _collect(self, ended: asyncio.Queue[tuple[str, WhisulJob | Exception]], chunk: ChunkPacker) -> None:
        durations: list[float] = []
        self.progress_logged_at = self.progress_logged_at or self.clock.time()
        result_wait = _RESULT_WAIT if self.delivered else _FIRST_RESULT_WAIT
        report_at = math.inf
        left = len(self.job_ids)
        while left and chunk.size() < _FULL_CHUNK_BYTES and self.clock.monotonic() < report_at:
            try:
                job_id, result = await asyncio.wait_for(ended.get(), PROGRESS_SECONDS)
            except TimeoutError:
                pass
            else:
                left -= 1
                self._add(chunk, job_id, result)
                wait = _FAILURE_WAIT if isinstance(result, WhisulJobFailedError) else result_wait
                report_at = min(report_at, self.clock.monotonic() + wait)
                if isinstance(result, WhisulJob) and result.started_at and result.finished_at:
                    durations.append((result.finished_at - result.started_at).total_seconds())
            # The clock may have been put back since.
            if not 0 <= self.clock.time() - self.progress_logged_at < PROGRESS_SECONDS:
                self.progress_logged_at = self.clock.time()
                self._log_progress(chunk, durations, self.progress_logged_at)

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
            by = f"by {utc(self.deadline)}" + (" (execution_timeout)" if self.deadline_source != "timeout" else "")
            reason = f"The job had not ended {by}." if timed_out else str(result)
            # The reason is short, since it may be repeated for every job.
            reason = truncate_json(reason, MAX_ERROR_BYTES - 100)
            chunk.timed_out[job_id] = (
                f"{reason} It may still complete: a retry waits for it again, where a record is kept."
            )

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


def seconds_before(submitted_at: float, times: Sequence[float | None]) -> list[float | None]:
    """
    Return the ``submitted_before`` of a :class:`WhisulBatchTrigger`: short, since a database keeps it.

    :param submitted_at: When the last of the jobs was submitted, in Unix seconds.
    :param times: When each was, likewise; None where nobody knows.
    """
    if all(at is None for at in times):
        return []
    return [None if at is None else round(submitted_at - at, 1) for at in times]

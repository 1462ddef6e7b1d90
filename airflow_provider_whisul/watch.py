"""
Waiting for a job, as decisions alone: when to look again, what to live through, when to stop.

The trigger and the hook's synchronous wait both follow a :class:`JobWatch`; they only look and sleep.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from airflow_provider_whisul.api import WhisulJob, quote
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
)
from airflow_provider_whisul.pace import MAX_CONSECUTIVE_BLIPS, MIN_POLL_INTERVAL, may_yet_appear, retry_wait

log = logging.getLogger(__name__)


@dataclass
class JobWatch:
    """
    The state of waiting for one job.

    It is told what each look at the job brought, and answers how long to wait before the next one.

    :param job_id: The job.
    :param poll_interval: Seconds between two looks, at least :data:`~airflow_provider_whisul.pace.MIN_POLL_INTERVAL`.
    :param deadline: When patience ends, in Unix seconds.
    :param submitted_at: When the job was submitted, in Unix seconds, if that is known.
    """

    job_id: str
    poll_interval: float
    deadline: float
    submitted_at: float | None = None
    _blips: int = field(default=0, init=False)
    _was_there: bool = field(default=False, init=False)
    _missing_since: float | None = field(default=None, init=False)
    _last_error: WhisulError | None = field(default=None, init=False)
    _warned_of_status: bool = field(default=False, init=False)

    def first_wait(self, now: float, chance: float, not_before: float | None = None, *, resumed: bool = False) -> float:
        """
        Return the seconds to wait before the first look.

        One interval, since whoever starts to wait may just have looked, and up to one more, so that a thousand jobs
        that are waited for from the same moment on are not looked at in the same moments for ever.

        :param now: Unix seconds.
        :param chance: From 0 up to 1.
        :param not_before: When Whisul may be asked again at the earliest, Unix seconds, if it has said so.
        :param resumed: Whether the job was waited for until just now, so that only what the API demands is kept of the
            first interval. Less would not do: a trigger may be begun again at any moment, or end at its first look.
        :raises WhisulJobTimeoutError: That is beyond the deadline.
        """
        if not_before is not None and not_before > self.deadline:
            raise self._timed_out()
        least = MIN_POLL_INTERVAL if resumed else self.poll_interval
        wait = self._until_deadline(now, least + self.poll_interval * chance)
        return wait if not_before is None else max(wait, not_before - now)

    def after(self, seen: WhisulJob | WhisulError, now: float, chance: float) -> float | None:
        """
        Return the seconds to wait before the next look, None when the job is completed.

        :param seen: What the last look brought.
        :param now: When its answer came, Unix seconds.
        :param chance: From 0 up to 1.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The deadline has come, or comes before Whisul may be asked again.
        :raises WhisulError: The look failed in a way that another look cannot mend, or too often in a row.
        """
        if isinstance(seen, WhisulError):
            return self._after_error(seen, now, chance)
        self._blips = 0
        self._was_there = True
        self._missing_since = None
        self._last_error = None
        if seen.failed:
            raise seen.failure()
        if seen.completed:
            return None
        if not seen.status_known and not self._warned_of_status:
            self._warned_of_status = True
            log.warning(
                "Whisul reports the undocumented status %r for job %s; it is taken as still running.",
                seen.status,
                self.job_id,
            )
        return self._next_wait(now, self.poll_interval)

    def _after_error(self, error: WhisulError, now: float, chance: float) -> float:
        if not error.transient and not self._may_yet_appear(error, now):
            raise error
        self._last_error = error
        if isinstance(error, WhisulRateLimitError):
            # How long the whole account keeps quiet is its pace's business: this job is due as ever.
            wait = self.poll_interval
            if now + max(wait, error.retry_after or 0.0) > self.deadline:
                raise self._timed_out()
        else:
            self._blips += 1
            if self._blips >= MAX_CONSECUTIVE_BLIPS:
                raise error
            wait = self._next_wait(now, max(self.poll_interval, retry_wait(error, self._blips, chance)))
        log.warning("%s Looking at job %s again in %.0f s.", error, self.job_id, wait)
        return wait

    def _may_yet_appear(self, error: WhisulError, now: float) -> bool:
        if not isinstance(error, WhisulJobNotFoundError):
            return False
        if self._missing_since is None:
            self._missing_since = now
        # A job that was there is gone for good when it stays away: what stands before the API says 404 at times too.
        return may_yet_appear(self.submitted_at, now) or (self._was_there and may_yet_appear(self._missing_since, now))

    def _next_wait(self, now: float, wait: float) -> float:
        if now >= self.deadline:
            raise self._timed_out()
        return self._until_deadline(now, wait)

    def _until_deadline(self, now: float, wait: float) -> float:
        """Shorten a wait so that the last look falls on the deadline, but never below what the API allows."""
        return max(MIN_POLL_INTERVAL, min(wait, self.deadline - now))

    def _timed_out(self) -> WhisulJobTimeoutError:
        last = f" The last look failed: {quote(str(self._last_error))}" if self._last_error else ""
        return WhisulJobTimeoutError(
            f"Whisul job {self.job_id} was not over by {utc(self.deadline)}, and waiting for it ended. It may still be "
            f"running, and may still complete: a WhisulJobSensor with this job id finds it.{last}",
            job_id=self.job_id,
        )

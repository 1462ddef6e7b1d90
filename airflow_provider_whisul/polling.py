"""
Waiting for a job, as decisions alone: when to poll again, which errors to tolerate, when to stop.

The trigger and the hook's synchronous wait both follow a :class:`JobPoller`. They only send requests and sleep. The
API's side is documented at https://docs.whisul.com, page guides/polling-jobs.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from datetime import timedelta

from airflow_provider_whisul.api.models import PollResult
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
)
from airflow_provider_whisul.rate_limit.backoff import transient_delay
from airflow_provider_whisul.text import quote

log = logging.getLogger(__name__)

#: Seconds. The API asks not to poll one job more often than once every 5 to 10 s.
MIN_POLL_INTERVAL = 5.0
DEFAULT_POLL_INTERVAL = 10.0

#: Seconds that a job is waited for unless the user configures a timeout. Most jobs take a few minutes.
DEFAULT_TIMEOUT = 3600.0

#: Seconds in which a 404 is tolerated: after a job's submission, when it may not be there yet, and after the first 404
#: about a job that was there, when a gateway may be at fault.
NOT_FOUND_GRACE = 60.0

#: Waiting for a job ends with this many transient failures since the last response about it; a 429 does not count. At
#: the default interval that is about seven minutes.
MAX_CONSECUTIVE_POLL_FAILURES = 20

#: A task polls once before it defers. It waits at most this many seconds for the rate limiter's permission.
FIRST_POLL_MAX_WAIT = 5.0

#: Seconds. Nobody waits longer than a year, and no ``timedelta`` breaks at it.
MAX_SECONDS = 365 * 86_400.0

#: Seconds by which Airflow's own timeout of a deferral is later than our deadline, so that our clear message wins.
FRAMEWORK_TIMEOUT_MARGIN = 300.0


@dataclass
class JobPoller:
    """
    The state of waiting for one job.

    It takes in the result of each poll, and returns how long to wait before the next one.

    :param job_id: The job.
    :param poll_interval: Seconds between two polls, at least :data:`MIN_POLL_INTERVAL`.
    :param deadline: When waiting ends, in Unix seconds.
    :param submitted_at: When the job was submitted, in Unix seconds, None if that is not known.
    """

    job_id: str
    poll_interval: float
    deadline: float
    submitted_at: float | None = None
    _consecutive_failures: int = field(default=0, init=False)
    _was_found: bool = field(default=False, init=False)
    _not_found_since: float | None = field(default=None, init=False)
    _last_error: WhisulError | None = field(default=None, init=False)
    _warned_of_status: bool = field(default=False, init=False)

    def initial_delay(
        self, now: float, jitter: float, not_before: float | None = None, *, resumed: bool = False
    ) -> float:
        """
        Return the seconds to wait before the first poll.

        One interval, since the job may just have been polled, and up to one more, so that a thousand jobs that are
        waited for from the same moment on are not polled in the same moments for ever.

        :param now: Unix seconds.
        :param jitter: From 0 up to 1.
        :param not_before: When the next request may be sent at the earliest, Unix seconds, None unless the key is
            throttled.
        :param resumed: Whether the job was waited for until just now. Then the first poll waits only for the API's
            least interval.
        :raises WhisulJobTimeoutError: ``not_before`` is after the deadline.
        """
        if not_before is not None and not_before > self.deadline:
            raise self._timed_out()
        least = MIN_POLL_INTERVAL if resumed else self.poll_interval
        delay = self._until_deadline(now, least + self.poll_interval * jitter)
        return delay if not_before is None else max(delay, not_before - now)

    def next_delay(self, result: PollResult, now: float, jitter: float) -> float | None:
        """
        Return the seconds to wait before the next poll, None when the job is completed.

        :param result: The result of the last poll.
        :param now: When its response came, Unix seconds.
        :param jitter: From 0 up to 1.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The deadline has come, or comes before the next request may be sent.
        :raises WhisulError: The poll failed with an error that is not transient, or too many failed in a row.
        """
        if isinstance(result, WhisulError):
            return self._delay_after_error(result, now, jitter)
        self._consecutive_failures = 0
        self._was_found = True
        self._not_found_since = None
        self._last_error = None
        if result.failed:
            raise result.failed_error()
        if result.completed:
            return None
        if not result.status_known and not self._warned_of_status:
            self._warned_of_status = True
            log.warning(
                "Whisul reports the undocumented status %r for job %s; it counts as still running.",
                result.status,
                self.job_id,
            )
        return self._delay_within_deadline(now, self.poll_interval)

    def _delay_after_error(self, error: WhisulError, now: float, jitter: float) -> float:
        if not error.transient and not self._is_tolerated_not_found(error, now):
            raise error
        self._last_error = error
        if isinstance(error, WhisulRateLimitError):
            # The rate limiter decides when the account's next request is sent: this job is due as ever.
            delay = self.poll_interval
            # Our rate limiter's refusal has no status. Its cool-down is how long no request can be sent.
            blocked_for = error.cooldown if error.http_status is None else error.retry_after
            if now + max(delay, blocked_for or 0.0) > self.deadline:
                raise self._timed_out()
        else:
            self._consecutive_failures += 1
            if self._consecutive_failures >= MAX_CONSECUTIVE_POLL_FAILURES:
                raise error
            delay = self._delay_within_deadline(now, max(self.poll_interval, transient_delay(jitter)))
        log.warning("%s Polling job %s again in %.0f s.", error, self.job_id, delay)
        return delay

    def _is_tolerated_not_found(self, error: WhisulError, now: float) -> bool:
        if not isinstance(error, WhisulJobNotFoundError):
            return False
        if self._not_found_since is None:
            self._not_found_since = now
        return within_not_found_grace(self.submitted_at, now) or (
            self._was_found and within_not_found_grace(self._not_found_since, now)
        )

    def _delay_within_deadline(self, now: float, delay: float) -> float:
        if now >= self.deadline:
            raise self._timed_out()
        return self._until_deadline(now, delay)

    def _until_deadline(self, now: float, delay: float) -> float:
        """Shorten a delay so that the last poll is at the deadline, but never below what the API allows."""
        return max(MIN_POLL_INTERVAL, min(delay, self.deadline - now))

    def _timed_out(self) -> WhisulJobTimeoutError:
        last = f" The last poll failed: {quote(str(self._last_error))}" if self._last_error else ""
        return WhisulJobTimeoutError(
            f"Waiting for Whisul job {self.job_id} has ended, since no further poll is possible by its deadline, "
            f"{utc(self.deadline)}. The job may still be running, and may still complete: a WhisulJobSensor with this "
            f"job id finds it.{last}",
            job_id=self.job_id,
        )


def within_not_found_grace(since: float | None, now: float) -> bool:
    """
    Return whether a 404 about a job is still tolerated.

    :param since: When the job was submitted, or first not found, in Unix seconds; None where that is not known.
    :param now: The time, in Unix seconds.
    """
    return since is not None and now - since < NOT_FOUND_GRACE


def check_poll_interval(value: float | timedelta, name: str) -> float:
    """
    Return a poll interval in seconds, refusing one that the API does not allow.

    :param value: Seconds, or a ``timedelta``.
    :param name: The argument's name, for the message.
    :raises ValueError: The interval is under 5 s, or not a number of seconds.
    """
    seconds = _in_seconds(value)
    if not MIN_POLL_INTERVAL <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"{name} is {seconds:g} s, but Whisul allows polling a job only once every {MIN_POLL_INTERVAL:g} to 10 s. "
            f"Polling faster gets the key rate-limited. Use {MIN_POLL_INTERVAL:g} or more; {DEFAULT_POLL_INTERVAL:g} "
            "is usual."
        )
    return seconds


def check_timeout(value: float | timedelta) -> float:
    """
    Return a timeout in seconds.

    :param value: Seconds, or a ``timedelta``.
    :raises ValueError: The timeout is not a positive number of seconds.
    """
    seconds = _in_seconds(value)
    if not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"timeout is {seconds:g} s; it must be a positive number of seconds.")
    return seconds


def _in_seconds(value: float | timedelta) -> float:
    """Return a duration in seconds, NaN if the value is none."""
    try:
        return value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan

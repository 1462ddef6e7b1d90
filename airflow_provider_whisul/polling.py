"""
Waiting for a job, as decisions alone: when to poll again, which errors to tolerate, when to stop.

The trigger, the sensor and the hook's synchronous wait follow a :class:`JobPoller`. They only send requests and sleep.
The API's side is documented at https://docs.whisul.com, page guides/polling-jobs.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from airflow_provider_whisul.api.messages import job_request
from airflow_provider_whisul.api.models import PollResult, describe_job
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulSongMissingError,
)
from airflow_provider_whisul.outage import Outage
from airflow_provider_whisul.rate_limit.backoff import NotBefore, transient_delay
from airflow_provider_whisul.rate_limit.durations import Durations
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE
from airflow_provider_whisul.text import quote
from airflow_provider_whisul.version_compat import ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT

log = logging.getLogger(__name__)

#: Seconds. The API asks not to poll one job more often than once every 5 to 10 s.
MIN_POLL_INTERVAL = 5.0
DEFAULT_POLL_INTERVAL = 10.0

#: Seconds that a job is waited for unless the user configures a timeout. Most jobs take a few minutes.
DEFAULT_TIMEOUT = 3600.0

#: Seconds for which a 404 is tolerated, from the first one on: the job may not be there yet, or a gateway is at fault.
NOT_FOUND_GRACE = 60.0

#: Seconds for which a completed job is polled again while its response has no URL of the song.
SONG_URL_GRACE = 300.0

#: Waiting for a job ends with this many transient failures since the last response about it; a 429 does not count. At
#: the default interval that is about seven minutes.
MAX_CONSECUTIVE_POLL_FAILURES = 20

#: A task polls once before it defers. It waits at most this many seconds for the rate limiter's permission.
FIRST_POLL_MAX_WAIT = 5.0

#: Seconds after the deadline for which the last poll waits for the rate limiter's permission: others use the same key.
LAST_POLL_MAX_WAIT = 5.0

#: The same for each job of a batch, where nothing is known of the limit.
LAST_POLL_SECONDS_PER_JOB = 1 / INITIAL_RATE

#: Seconds. Nobody waits longer than a year, and no ``timedelta`` breaks at it.
MAX_SECONDS = 365 * 86_400.0

#: Seconds by which Airflow's own timeout of a deferral is later than our deadline, so that our clear message wins.
FRAMEWORK_TIMEOUT_MARGIN = 300.0

#: Seconds by which our deadline is before an ``execution_timeout`` at which Airflow ends a deferral, or a tenth of that
#: where it is less: the task must still be resumed.
EXECUTION_TIMEOUT_MARGIN = 30.0


#: What ends a wait: the timeout of the wait itself, or of the task.
DeadlineSource = Literal["timeout", "execution_timeout"]


@dataclass
class NotFoundGrace:
    """
    For how long a job that Whisul does not find is polled again.

    :param since: When Whisul did not find the job for the first time, in Unix seconds; None while it does.
    """

    since: float | None = None

    def next_delay(self, now: float, poll_interval: float) -> float | None:
        """
        Return the seconds to wait after a 404 before the next poll, None if the 404 is final.

        So it takes two polls a minute apart before a job counts as gone, whatever its poll interval is.

        :param now: When the 404 came, in Unix seconds.
        :param poll_interval: Seconds between two polls of the job.
        """
        # The clock may have been put back since.
        self.since = now if self.since is None else min(self.since, now)
        left = self.since + NOT_FOUND_GRACE - now
        return max(MIN_POLL_INTERVAL, min(poll_interval, left)) if left > 0 else None


@dataclass
class JobPoller:
    """
    The state of waiting for one job.

    It takes in the result of each poll, and returns how long to wait before the next one.

    :param job_id: The job.
    :param poll_interval: Seconds between two polls, at least :data:`MIN_POLL_INTERVAL`.
    :param deadline: When waiting ends, in Unix seconds.
    :param source: What the deadline comes from, for the message.
    :param outage: Where failed polls are logged; shared by the jobs of a batch.
    :param last_max_wait: Seconds after the deadline for which the last poll waits for the rate limiter's permission.
    :param submitted_at: When the job was submitted, in Unix seconds; None where nobody knows.
    :param dag_id: The DAG that waits for the job; blank where none is known.
    :param crowd_max_wait: Seconds that the last poll waits longer where the polls of other jobs are why, and no block.
    """

    job_id: str
    poll_interval: float
    deadline: float
    source: DeadlineSource = "timeout"
    outage: Outage = field(default_factory=Outage)
    last_max_wait: float = LAST_POLL_MAX_WAIT
    submitted_at: float | None = None
    dag_id: str = ""
    crowd_max_wait: float = 0.0
    _polled: bool = field(default=False, init=False)
    _ran_at: float | None = field(default=None, init=False)
    _put_off: float = field(default=0.0, init=False)
    _consecutive_failures: int = field(default=0, init=False)
    _not_found: NotFoundGrace = field(default_factory=NotFoundGrace, init=False)
    _no_url_since: float | None = field(default=None, init=False)
    _last_error: WhisulError | None = field(default=None, init=False)
    _warned_of_status: bool = field(default=False, init=False)
    _prompt: str | None = field(default=None, init=False)

    @property
    def job_is_missing(self) -> bool:
        """Whether Whisul has not found the job since it was last found."""
        return self._not_found.since is not None

    def initial_delay(
        self, now: float, jitter: float, not_before: NotBefore | None = None, since: float | None = None
    ) -> float:
        """
        Return the seconds to wait before the first poll.

        One interval, since the job may just have been polled, and up to one more, so that a thousand jobs that are
        waited for from the same moment on are not polled in the same moments for ever.

        :param now: Unix seconds.
        :param jitter: From 0 up to 1.
        :param not_before: When the next request may be sent at the earliest, None unless the key is throttled.
        :param since: When the first interval began, in Unix seconds; None for now. The API's least interval begins now
            in any case: a trigger may be started again at any moment, and may end at its first poll.
        """
        age = 0.0 if since is None else max(now - since, 0.0)
        delay = max(self.poll_interval - age, MIN_POLL_INTERVAL) + self.poll_interval * jitter
        if not_before is not None:
            delay = max(delay, not_before.wait(now))
        return self.until_deadline(now, delay)

    def first_poll_delay(self, now: float, durations: Durations) -> float:
        """
        Return the seconds by which the first poll is put off, since the job is too young to be over.

        At most one interval: then this is asked again, since more is known by then. 0 where the poll is to be sent.

        :param now: Unix seconds.
        :param durations: How long jobs of the account take.
        """
        # A job that was submitted later than now tells nothing: one of two clocks is wrong, or this one was put back.
        if self._polled or self.submitted_at is None or now < self.submitted_at:
            return 0.0
        age = durations.first_poll_age()
        # A clock that is put back by less must not add up.
        left = min(self.submitted_at + age - now, age - self._put_off, self.deadline - now, self.poll_interval)
        self._put_off += max(left, 0.0)
        return max(left, 0.0)

    def waiting_poll(self, now: float, due: float) -> WaitingPoll:
        """
        Return what decides how soon the rate limiter permits the next poll.

        :param now: When the poll is due, in Unix seconds.
        :param due: The same time on the rate limiter's clock.
        """
        submitted, ran_at = (None if at is None else due - (now - at) for at in (self.submitted_at, self._ran_at))
        return WaitingPoll(due, self.dag_id, submitted, ran_at, self.poll_interval, self.crowd_max_wait)

    def max_wait(self, now: float) -> float:
        """
        Return the seconds that the next poll waits for the rate limiter's permission at most.

        :param now: Unix seconds.
        """
        # A first poll after the deadline, as where no triggerer has run, is worth the same wait.
        return max(self.deadline + self.last_max_wait - now, 0.0 if self._polled else self.last_max_wait)

    def next_delay(self, result: PollResult, now: float, jitter: float) -> float | None:
        """
        Return the seconds to wait before the next poll, None when the job is completed and has the URL of its song.

        :param result: The result of the last poll.
        :param now: When its response came, Unix seconds.
        :param jitter: From 0 up to 1.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The deadline has come.
        :raises WhisulSongMissingError: The job is completed, and has had no URL of the song for five minutes, or until
            the deadline.
        :raises WhisulError: The poll failed with an error that is not transient, or too many failed in a row.
        """
        self._polled = True
        try:
            delay = self._next_delay(result, now, jitter)
        except WhisulError as error:
            error.prompt = self._prompt
            self.outage.ended(self.job_id, now, recovered=not isinstance(result, WhisulError))
            raise
        if isinstance(result, WhisulError):
            self.outage.failed(self.job, self.job_id, result, now, delay or 0.0)
        else:
            self.outage.ended(self.job_id, now, recovered=True)
        return delay

    @property
    def job(self) -> str:
        """The job as a message names it, with its prompt once a poll has told it."""
        return describe_job(self.job_id, self._prompt)

    @property
    def last_failure(self) -> str:
        """The error of the last poll, as the continuation of a message; empty where it had none."""
        return f" The last poll failed: {quote(str(self._last_error))}" if self._last_error else ""

    def _next_delay(self, result: PollResult, now: float, jitter: float) -> float | None:
        if isinstance(result, WhisulError):
            return self._delay_after_error(result, now, jitter)
        self._consecutive_failures = 0
        self._not_found.since = None
        self._last_error = None
        self._prompt = result.prompt or self._prompt
        self._ran_at = now
        if self.submitted_at is None and result.started_at is not None:
            self.submitted_at = result.started_at.timestamp()
        if result.failed:
            raise result.failed_error()
        if result.has_song_url:
            return None
        if result.completed:
            self._check_song_url_grace(now)
        elif not result.status_known and not self._warned_of_status:
            self._warned_of_status = True
            log.warning(
                "Whisul reports the undocumented status %r for %s; it counts as still running.", result.status, self.job
            )
        return self._delay_within_deadline(now, self.poll_interval)

    def _check_song_url_grace(self, now: float) -> None:
        if self._no_url_since is None:
            log.warning(
                "Whisul says that %s is completed, but gives no URL of the song. Polling it for %.0f more minutes.",
                self.job,
                SONG_URL_GRACE / 60,
            )
        # The clock may have been put back since.
        self._no_url_since = now if self._no_url_since is None else min(self._no_url_since, now)
        if now - self._no_url_since >= SONG_URL_GRACE or now >= self.deadline:
            raise WhisulSongMissingError(
                f"Whisul says that {self.job} is completed, but has given no URL of the song since "
                f"{utc(self._no_url_since)}. The song is paid for: look at your Whisul dashboard. A WhisulJobSensor "
                "with this job id finds it once the URL is there.",
                job_id=self.job_id,
                http_status=200,
            )

    def _delay_after_error(self, error: WhisulError, now: float, jitter: float) -> float:
        delay: float | None
        if isinstance(error, WhisulJobNotFoundError):
            delay = self._not_found.next_delay(now, self.poll_interval)
            if delay is None:
                raise error
        elif not error.transient:
            raise error
        elif isinstance(error, WhisulRateLimitError):
            # The rate limiter decides when the account's next request is sent: this job is due as ever. A request that
            # it refused has no status. It is not made again before it can be permitted.
            refused_for = error.cooldown if error.http_status is None else None
            delay = max(self.poll_interval, refused_for or 0.0)
        else:
            self._consecutive_failures += 1
            if self._consecutive_failures >= MAX_CONSECUTIVE_POLL_FAILURES:
                raise error
            delay = max(self.poll_interval, transient_delay(jitter))
        self._last_error = error
        return self._delay_within_deadline(now, delay)

    def _delay_within_deadline(self, now: float, delay: float) -> float:
        if now >= self.deadline:
            raise self._timed_out()
        return self.until_deadline(now, delay)

    def until_deadline(self, now: float, delay: float) -> float:
        """
        Shorten a delay so that the last poll is at the deadline, but never below what the API allows.

        :param now: Unix seconds.
        :param delay: Seconds.
        """
        return max(MIN_POLL_INTERVAL, min(delay, self.deadline - now))

    def _timed_out(self) -> WhisulJobTimeoutError:
        by = "the task's execution_timeout" if self.source == "execution_timeout" else "the timeout"
        return WhisulJobTimeoutError(
            f"Waiting for Whisul {self.job} ended at {utc(self.deadline)}, by {by}: the job had not ended. It may "
            "still be running, and may still complete: a WhisulJobSensor with this job id finds it."
            f"{self.last_failure}",
            job_id=self.job_id,
        )


def last_poll_max_wait(jobs: float, source: DeadlineSource, *, on_worker: bool = False) -> float:
    """
    Return the seconds after the deadline for which the last polls of some jobs wait for the rate limiter's permission.

    Each may have completed since its poll before, and all last polls are due in the same moment.

    :param jobs: How many jobs are waited for together; infinite where nobody knows.
    :param source: What the deadline comes from.
    :param on_worker: Whether a worker waits for them, whose task Airflow ends at the execution_timeout.
    """
    if source == "execution_timeout" and (on_worker or ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT):
        return LAST_POLL_MAX_WAIT
    return min(max(LAST_POLL_MAX_WAIT, jobs * LAST_POLL_SECONDS_PER_JOB), FRAMEWORK_TIMEOUT_MARGIN - 60)


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


def start_polling(
    job_id: str, poll_interval: float, timeout: float, submitted_at: float | None, now: float
) -> JobPoller:
    """
    Return what a caller of a hook waits for a job with, and log that it does.

    :param job_id: The job's id.
    :param poll_interval: Seconds between two polls.
    :param timeout: Seconds to wait at most.
    :param submitted_at: When the job was submitted, in Unix seconds; None for unknown.
    :param now: Unix seconds.
    :raises ValueError: The interval is under 5 s, or the timeout no positive number.
    :raises WhisulInvalidInputError: The id cannot be a job's.
    """
    poll_interval, deadline = check_poll_interval(poll_interval, "poll_interval"), now + check_timeout(timeout)
    # Refuses an id that cannot be one, before the log repeats it.
    job_request(job_id)
    log.info("Polling Whisul job %s every %g s, until %s at most", job_id, poll_interval, utc(deadline))
    return JobPoller(job_id, poll_interval, deadline, submitted_at=submitted_at)


def _in_seconds(value: float | timedelta) -> float:
    """Return a duration in seconds, NaN if the value is none."""
    try:
        return value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan

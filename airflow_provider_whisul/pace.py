"""
How often Whisul may be asked, and how long we are patient: the API's limits and ours, in one place and without a clock.

The API's side is documented at https://docs.whisul.com, pages guides/polling-jobs and guides/error-handling.
"""

from __future__ import annotations

import math
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime

from airflow_provider_whisul.exceptions import WhisulError, WhisulRateLimitError

#: Seconds. The API asks not to look at one job more often than once every 5 to 10 s.
MIN_POLL_INTERVAL = 5.0
DEFAULT_POLL_INTERVAL = 10.0

#: Seconds that a job is waited for unless the user says otherwise. Most take a few minutes.
DEFAULT_TIMEOUT = 3600.0

#: Seconds to keep quiet after the first, second, … 429 in a row. The last one repeats.
RATE_LIMIT_LADDER = (5.0, 10.0, 20.0, 40.0, 60.0)

#: Seconds, least and most, before the same request again after a 5xx or a broken connection.
BLIP_WAIT = (10.0, 30.0)

#: Seconds after its submission in which a job that is not found is only not there yet, and after it was last there in
#: which it may only be out of sight.
APPEARANCE_GRACE = 60.0

#: How often one request is made, all in all, before the hook gives up.
MAX_ATTEMPTS = 1 + len(RATE_LIMIT_LADDER)

#: How many failed looks in a row at a running job are lived through: about seven minutes of them.
MAX_CONSECUTIVE_BLIPS = 20

#: Seconds. A worker waits no longer than this for a request to go through, its retries included: the task fails, and
#: Airflow's retries wait.
MAX_WORKER_WAIT = 600.0

#: Seconds that a worker waits for its turn to look once, before the triggerer takes over.
FIRST_LOOK_PATIENCE = 5.0

#: Seconds. A longer ``Retry-After`` makes no sense: a time of day, perhaps, where seconds are due.
LONGEST_RETRY_AFTER = 86_400.0

#: Seconds. Nobody waits longer than a year, and no ``timedelta`` breaks at it.
LONGEST = 365 * 86_400.0

#: Seconds that Airflow's own timeout of a deferral lies beyond our deadline, so that the clear message wins.
FRAMEWORK_TIMEOUT_MARGIN = 300.0


def retry_wait(error: WhisulError, consecutive: int, chance: float) -> float:
    """
    Return the seconds to wait before asking again after a transient error.

    After a 429 that is what the documented ladder says, or ``Retry-After`` where longer. After a 5xx, a broken
    connection or an unreadable answer it is 10 to 30 s.

    :param error: The error.
    :param consecutive: How many of its kind there have been in a row, this one included.
    :param chance: From 0 up to 1: where between the least and the most.
    """
    if isinstance(error, WhisulRateLimitError):
        rung = RATE_LIMIT_LADDER[min(consecutive, len(RATE_LIMIT_LADDER)) - 1]
        return max(rung, error.retry_after or 0.0)
    least, most = BLIP_WAIT
    return least + chance * (most - least)


def quiet_until(error: WhisulError, now: float) -> float | None:
    """
    Return when Whisul may be asked again after a single error, in Unix seconds, None where it is only the usual pace.

    :param error: The error.
    :param now: When it came, in Unix seconds.
    """
    return now + retry_wait(error, 1, 0.0) if isinstance(error, WhisulRateLimitError) else None


def may_yet_appear(submitted_at: float | None, now: float) -> bool:
    """
    Return whether a job that Whisul does not find may only not be there yet.

    :param submitted_at: When it was submitted, in Unix seconds; None where that is not known.
    :param now: The time, in Unix seconds.
    """
    return submitted_at is not None and now - submitted_at < APPEARANCE_GRACE


def parse_retry_after(value: str | None, now: float) -> float | None:
    """
    Read a ``Retry-After`` header as seconds from now, None where there is none or it makes no sense.

    :param value: The header: a number of seconds or an HTTP date.
    :param now: The time the answer came, Unix seconds.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            if date.tzinfo is None:
                date = date.replace(tzinfo=UTC)
            seconds = date.timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if -math.inf < seconds <= LONGEST_RETRY_AFTER else None


def in_seconds(value: float | timedelta) -> float:
    """Return a duration in seconds that the user gave as such or as a ``timedelta``; NaN if it is none."""
    try:
        return value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_poll_interval(value: float | timedelta, name: str) -> float:
    """
    Return a poll interval in seconds, refusing one that the API does not allow.

    :param value: Seconds, or a ``timedelta``.
    :param name: What the user calls it, for the message.
    :raises ValueError: It is under 5 s, or not a number of seconds.
    """
    seconds = in_seconds(value)
    if not MIN_POLL_INTERVAL <= seconds <= LONGEST:
        raise ValueError(
            f"{name} is {seconds:g} s, but Whisul allows looking at a job only once every 5 to 10 s, and polling "
            f"faster gets the key rate-limited. Use {MIN_POLL_INTERVAL:g} or more; {DEFAULT_POLL_INTERVAL:g} is usual."
        )
    return seconds


def check_timeout(value: float | timedelta) -> float:
    """
    Return a timeout in seconds.

    :param value: Seconds, or a ``timedelta``.
    :raises ValueError: It is not a positive number of seconds.
    """
    seconds = in_seconds(value)
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"timeout is {seconds:g} s; it must be a positive number of seconds.")
    return seconds

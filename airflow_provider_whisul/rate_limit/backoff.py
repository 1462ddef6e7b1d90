"""How long to wait before the same request again (page guides/error-handling)."""

from __future__ import annotations

from typing import NamedTuple

from airflow_provider_whisul.exceptions import WhisulError, WhisulRateLimitError

#: Seconds to wait after the first, second, … 429 in a row. The last step repeats.
BACKOFF_SCHEDULE = (5.0, 10.0, 20.0, 40.0, 60.0)

#: Seconds, least and most, to wait after a transient failure: a 5xx, a broken connection or an unreadable response.
TRANSIENT_DELAY = (10.0, 30.0)

#: How often a worker sends one request, retries included, before it gives up.
MAX_WORKER_ATTEMPTS = 1 + len(BACKOFF_SCHEDULE)

#: Seconds that a worker waits for one request at most, retries included. Then the task fails, and Airflow's retries
#: wait.
MAX_WORKER_WAIT = 600.0


class NotBefore(NamedTuple):
    """
    When the next request may be sent, for another machine, whose clock may say another time.

    :param at: Unix seconds, by the clock of the machine that has met the 429.
    :param seconds: The seconds until then, when it did.
    :param store_id: The ``store_id`` of the rate limiter that knows of the 429. None for unknown, as in a trigger of an
        earlier version.
    :param throttled_at: When the latest 429 came that this rate limiter knew of, by the clock of its store. None for
        unknown.
    """

    at: float
    seconds: float
    store_id: int | None = None
    throttled_at: float | None = None

    def wait(self, now: float) -> float:
        """
        Return the seconds to wait, which is no more than the machine that has met the 429 had to, whatever its clock
        said. 0 or less where the time is past.

        :param now: Unix seconds.
        """
        return min(self.at - now, self.seconds)


def backoff_delay(step: int) -> float:
    """
    Return the seconds to wait after a 429.

    :param step: The step of the backoff schedule, from 0 on.
    """
    return BACKOFF_SCHEDULE[min(step, len(BACKOFF_SCHEDULE) - 1)]


def transient_delay(jitter: float) -> float:
    """
    Return the seconds to wait after a transient failure.

    :param jitter: From 0 up to 1: where between the least and the most.
    """
    least, most = TRANSIENT_DELAY
    return least + jitter * (most - least)


def retry_delay(error: WhisulError, step: int, jitter: float) -> float:
    """
    Return the seconds to wait before a retry after a transient error.

    After a 429 that is the backoff schedule, or the server's ``Retry-After`` or our rate limiter's cool-down where one
    of these is longer. After any other error it is 10 to 30 s.

    :param error: The error.
    :param step: The step of the backoff schedule, from 0 on.
    :param jitter: From 0 up to 1: where between the least and the most.
    """
    if isinstance(error, WhisulRateLimitError):
        return max(backoff_delay(step), error.retry_after or 0.0, error.cooldown or 0.0)
    return transient_delay(jitter)


def throttled_until(
    error: WhisulError, now: float, store_id: int | None = None, throttled_at: float | None = None
) -> NotBefore | None:
    """
    Return when the next request may be sent after an error; None unless the key is blocked.

    After a 429 that is :func:`retry_delay`. A request that the rate limiter has refused tells of no 429 but an earlier
    one, with what is left of its cool-down; of no block where it was refused for the rate alone.

    :param error: The error.
    :param now: When the error came, in Unix seconds.
    :param store_id: The ``store_id`` of the rate limiter that the error comes from.
    :param throttled_at: When the latest 429 came that this rate limiter knows of, by the clock of its store.
    """
    if not isinstance(error, WhisulRateLimitError):
        return None
    delay = error.cooldown if error.http_status is None else retry_delay(error, 0, 0.0)
    return None if delay is None else NotBefore(now + delay, delay, store_id, throttled_at)

"""When a worker sends a request again, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable

import tenacity

from airflow_provider_whisul.api.messages import Request
from airflow_provider_whisul.api.outcomes import is_retryable
from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulError, WhisulRateLimitError
from airflow_provider_whisul.rate_limit.backoff import transient_delay


def retrying(
    request: Request, *, attempts: int, give_up_at: float, clock: Clock, warn: Callable[..., object]
) -> tenacity.Retrying:
    """
    Return what calls a function that sends a request, again where that can help.

    :param request: The request.
    :param attempts: How often it is sent at most.
    :param give_up_at: When no further attempt may begin, on the monotonic clock.
    :param clock: Time, sleep and jitter.
    :param warn: Logs each wait; takes a format and its arguments.
    """

    def delay(state: tenacity.RetryCallState) -> float:
        # After a 429 the next attempt waits for the rate limiter.
        throttled = isinstance(_error_of(state), WhisulRateLimitError)
        return 0.0 if throttled else transient_delay(clock.random())

    def give_up(state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        cooldown = (error.cooldown if isinstance(error, WhisulRateLimitError) else None) or 0.0
        waits_until = clock.monotonic() + max(state.upcoming_sleep, cooldown)
        return state.attempt_number >= attempts or waits_until > give_up_at

    def log_retry(state: tenacity.RetryCallState) -> None:
        warn(
            "%s Sending the request again %s (attempt %d of %d failed).",
            _error_of(state),
            f"in {state.upcoming_sleep:.0f} s" if state.upcoming_sleep else "when the rate limiter permits it",
            state.attempt_number,
            attempts,
        )

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, WhisulError) and is_retryable(request, error)
        ),
        stop=give_up,
        wait=delay,
        before_sleep=log_retry,
        sleep=clock.sleep,
        reraise=True,
    )


def _error_of(state: tenacity.RetryCallState) -> WhisulError:
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, WhisulError):
        raise TypeError(f"Only a WhisulError is retried, not {error!r}.")
    return error

"""How long to wait before the same request is sent again."""

from __future__ import annotations

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
)
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_ATTEMPTS, retry_delay, throttled_until


@pytest.mark.parametrize(
    ("step", "retry_after", "expected"),
    [
        (0, None, 5),
        (1, None, 10),
        (2, None, 20),
        (3, None, 40),
        (4, None, 60),
        (5, None, 60),
        (999, None, 60),
        (0, 0.0, 5),
        (0, 4.9, 5),
        (0, 5.1, 5.1),
        (0, 3600.0, 3600),
        (2, 12.0, 20),
        (4, 61.0, 61),
    ],
)
@pytest.mark.parametrize("jitter", [0.0, 0.999])
@pytest.mark.parametrize("source", ["retry_after", "cooldown"])
def test_after_a_429_the_delay_is_the_schedule_s_step_or_retry_after_or_cooldown_where_longer(
    step: int, retry_after: float | None, expected: float, jitter: float, source: str
) -> None:
    error = WhisulRateLimitError("m", **{source: retry_after})
    assert retry_delay(error, step, jitter) == expected


@pytest.mark.parametrize(("retry_after", "cooldown"), [(30.0, 90.0), (90.0, 30.0)])
def test_the_longer_of_retry_after_and_cooldown_counts(retry_after: float, cooldown: float) -> None:
    assert retry_delay(WhisulRateLimitError("m", retry_after=retry_after, cooldown=cooldown), 0, 0.0) == 90


@pytest.mark.parametrize("cls", [WhisulServerError, WhisulConnectionError, WhisulResponseError])
@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 10), (0.25, 15), (1.0, 30)])
@pytest.mark.parametrize("step", [0, 18])
def test_after_a_transient_failure_the_delay_is_10_to_30_s(
    cls: type[WhisulError], jitter: float, expected: float, step: int
) -> None:
    assert retry_delay(cls("m"), step, jitter) == expected


def test_six_attempts_use_each_step_of_the_backoff_schedule_once() -> None:
    delays = [retry_delay(WhisulRateLimitError("m"), step, 0) for step in range(MAX_WORKER_ATTEMPTS - 1)]
    assert delays == [5, 10, 20, 40, 60]


def test_only_a_block_forbids_the_next_request_for_a_time() -> None:
    assert throttled_until(WhisulRateLimitError("m", http_status=429), 1000.0) == (1005, 5, None, None)
    error = WhisulRateLimitError("m", http_status=429, retry_after=30.0)
    assert throttled_until(error, 1000.0, 7, 12.5) == (1030, 30, 7, 12.5)
    assert throttled_until(WhisulRateLimitError("m", cooldown=40.0), 1000.0, 7, 12.5) == (1040, 40, 7, 12.5)
    # Of a block that is nearly over a refusal tells no more than what is left of it.
    assert throttled_until(WhisulRateLimitError("m", cooldown=1.25), 1000.0) == (1001.25, 1.25, None, None)
    # The rate limiter has refused it for the rate alone.
    assert throttled_until(WhisulRateLimitError("m"), 1000.0) is None
    assert throttled_until(WhisulServerError("m"), 1000.0) is None

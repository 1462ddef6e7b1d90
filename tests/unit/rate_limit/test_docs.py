"""docs/rate_limits.md states the law with the numbers of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_whisul.api.messages import MAX_EXHAUSTED, MAX_RETRY_AFTER
from airflow_provider_whisul.rate_limit import block, rate_limiter, submission_line, throttle
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE
from airflow_provider_whisul.rate_limit.block import Block
from airflow_provider_whisul.rate_limit.throttle import Throttle

PAGE = Path(__file__).resolve().parents[3] / "docs" / "rate_limits.md"
LAW = " ".join(PAGE.read_text().partition("\nThe law:\n")[2].partition("\nOnly its user")[0].split())


@pytest.mark.parametrize(
    "sentence",
    [
        f"The rate begins at {throttle.INITIAL_RATE:g} request per second.",
        f"it grows by {100 * throttle.INCREASE:g} % per second: it doubles in ten seconds.",
        "It never falls below one request in ten seconds.",
        f"({', '.join(f'{step:g}' for step in BACKOFF_SCHEDULE)} s), or `Retry-After` where that is longer",
        f"Of a `Retry-After` {MAX_RETRY_AFTER / 60:g} minutes count at most",
        "Where nothing is heard of a probe for a minute",
        "one step less for each five minutes since then",
        f"After the first block the rate is {throttle.FIRST_DECREASE:g} of the one that was too much.",
        "by 4 % in 100 seconds, and has doubled after five minutes",
        "A block within a minute of requests after another one",
        f"The ceiling is then {throttle.SOON_DECREASE:g} of the rate.",
        f"The ceiling is then {throttle.DECREASE:g} of the rate",
        f"twice as long, up to {throttle.MAX_CEILING_DOUBLES_AFTER / 60:g} minutes",
        "has asked within two seconds",
        f"{100 * rate_limiter.POLL_SHARE:g} % of the rate, or {100 * rate_limiter.URGENT_POLL_SHARE:g} % where",
        f"every {submission_line.MAX_TURN_WAIT / 2:g} to {submission_line.MAX_TURN_WAIT:g} s at least",
        "nothing is sent until it is reset, for a minute at most",
    ],
)
def test_the_page_has_the_sentence(sentence: str) -> None:
    assert sentence in LAW


def test_the_times_in_words_are_those_of_the_code() -> None:
    assert block.PROBE_TIMEOUT == throttle.SOON == MAX_EXHAUSTED == 60
    assert block.STEP_FORGOTTEN_AFTER == throttle.CEILING_DOUBLES_AFTER == 300
    assert rate_limiter.SUBMISSIONS_PRESS_FOR == 2
    assert throttle.MIN_RATE == 1 / 10
    assert pytest.approx(2, rel=0.05) == (1 + throttle.INCREASE) ** 10


def test_the_ceiling_rises_as_the_page_says() -> None:
    for seconds, factor in ((100.0, 1.04), (300.0, 2.0)):
        law = Throttle(rate=100.0, max_rate=1e9, ceiling=10.0, last_request_at=0.0)
        law.increase(seconds, overdue=0.0)
        assert law.rate == pytest.approx(10 * factor, rel=0.005)


def test_a_block_begins_with_the_step_that_the_page_says() -> None:
    for seconds, step in ((1.0, 3), (299.0, 3), (300.0, 2), (599.0, 2), (600.0, 1), (3_000.0, 0)):
        law = Block(throttled_at=0.0, step=3)
        # A response that asks all requests to wait is no 429.
        law.wait(seconds - 0.5, 3.0)
        law.start(seconds, last_request=1)
        assert law.step == step

"""How the rate grows, and what a block leaves of it."""

from __future__ import annotations

import json
import math

import pytest

from airflow_provider_whisul.rate_limit.rate_limiter import Kind, RateLimiter
from airflow_provider_whisul.rate_limit.throttle import (
    CEILING_DOUBLES_AFTER,
    DECREASE,
    FIRST_DECREASE,
    INCREASE,
    INITIAL_RATE,
    MAX_CEILING_DOUBLES_AFTER,
    MAX_RATE,
    MIN_RATE,
    OVERDUE_AFTER,
    SOON,
    SOON_DECREASE,
)
from tests.support.limiter_client import Client

LATE = OVERDUE_AFTER + 1


def tripped_client(seconds_of_work: float = 40.0) -> tuple[Client, float]:
    """Return a client after its first block, and the rate that caused it."""
    client = Client()
    client.work(seconds_of_work)
    tripped = client.rate
    client.trip()
    return client, tripped


def test_the_rate_grows_by_a_share_while_requests_are_overdue() -> None:
    client = Client()
    client.work(30)
    assert client.rate == pytest.approx(INITIAL_RATE * math.exp(INCREASE * 30), rel=0.1)


def test_a_lease_of_many_requests_raises_the_rate_as_much_as_so_many_leases() -> None:
    one, many = Client(), Client()
    for client in (one, many):
        client.work(40)
    one.work(10)
    until = many.now + 10
    while many.now < until:
        lease = many.take(count=100, overdue=LATE)
        assert lease.count > 1
        many.now += lease.delay + (lease.count - 1) * lease.interval
    assert many.rate == pytest.approx(one.rate, rel=0.1)


def test_the_rate_does_not_grow_where_the_rate_limiter_delays_nothing() -> None:
    client = Client()
    for _ in range(100):
        client.send(LATE)
        client.now += 2 / INITIAL_RATE
    assert client.rate == INITIAL_RATE


def test_a_client_that_sends_without_a_break_does_not_raise_the_rate_far_beyond_its_own() -> None:
    client = Client()
    for request in range(2000):
        client.send(LATE)
        # It takes 0.1 to 0.3 s for each request.
        client.now += 0.1 + 0.02 * (7 * request % 11)
    assert client.rate < 8


def test_neither_does_one_that_is_fast() -> None:
    client = Client()
    for _ in range(30_000):
        client.send(LATE)
        client.now += 0.02
    assert client.rate < 75


def test_no_client_raises_the_rate_beyond_the_most() -> None:
    client = Client()
    for _ in range(20_000):
        client.send(LATE)
    assert client.rate == MAX_RATE


def test_the_rate_does_not_grow_for_a_short_delay() -> None:
    client = Client(8)
    client.limiter.configure(None)
    for _ in range(50):
        client.send()
    assert client.rate == 8


def test_a_delay_that_the_rate_limiter_is_about_to_cause_counts_as_overdue() -> None:
    client = Client()
    client.send()
    assert client.take(overdue=0).delay > OVERDUE_AFTER
    assert client.rate > INITIAL_RATE


def test_polls_do_not_raise_the_rate_while_submissions_are_waiting() -> None:
    rates = {}
    for waiting in (True, False):
        limiter, now = RateLimiter(), 1000.0
        while now < 1060:
            if waiting and now % 1 == 0:
                limiter.submissions_until = now + 2
            limiter.acquire(now, "poll", overdue=60, urgent=True)
            now += 0.125
        rates[waiting] = limiter.throttle.rate
    assert rates[True] == INITIAL_RATE
    assert rates[False] > 9


def test_a_block_lowers_the_rate_and_sets_a_ceiling_that_rises_slowly_at_first() -> None:
    client, tripped = tripped_client()
    assert client.rate == client.limiter.throttle.ceiling == FIRST_DECREASE * tripped
    client.work(CEILING_DOUBLES_AFTER / 3)
    assert client.rate == pytest.approx(1.04 * FIRST_DECREASE * tripped, rel=0.01)
    client.work(CEILING_DOUBLES_AFTER * 2 / 3)
    assert client.rate == pytest.approx(2 * FIRST_DECREASE * tripped, rel=0.1)


def test_a_rate_below_a_ceiling_that_has_risen_grows_as_before_the_first_429() -> None:
    client, _ = tripped_client()
    client.work(2)
    client.now += 2 * CEILING_DOUBLES_AFTER
    before = client.rate
    client.work(10)
    assert client.rate == pytest.approx(before * math.exp(INCREASE * 10), rel=0.1)


def test_the_same_limit_found_again_lowers_the_rate_less_and_is_remembered_for_longer() -> None:
    client, tripped = tripped_client()
    for memory in (2 * CEILING_DOUBLES_AFTER, MAX_CEILING_DOUBLES_AFTER, MAX_CEILING_DOUBLES_AFTER):
        while client.rate < tripped:
            client.work(1)
        found = client.rate
        client.trip()
        assert client.rate == client.limiter.throttle.ceiling == DECREASE * found
        assert client.limiter.throttle.ceiling_doubles_after == memory


@pytest.mark.parametrize(("seconds", "share"), [(SOON / 2, SOON_DECREASE), (SOON + 5, DECREASE)])
def test_a_block_soon_after_another_one_lowers_the_rate_more(seconds: float, share: float) -> None:
    client, _ = tripped_client()
    client.work(seconds)
    found = client.rate
    client.trip()
    assert client.rate == client.limiter.throttle.ceiling == pytest.approx(share * found)


def test_a_block_soon_after_another_one_is_remembered_for_no_longer() -> None:
    client, _ = tripped_client()
    for _ in range(3):
        client.work(SOON / 2)
        client.trip()
    assert client.limiter.throttle.ceiling_doubles_after == CEILING_DOUBLES_AFTER


def test_a_limit_per_minute_that_is_a_tenth_of_the_first_rate_is_found_in_seven_blocks() -> None:
    client, tripped = tripped_client(60)
    blocks = 1
    while client.rate > tripped / 10:
        client.work(20)
        client.trip()
        blocks += 1
    assert blocks == 7


def test_a_throttle_for_a_store_that_has_lost_its_data_can_be_kept_there() -> None:
    client, _ = tripped_client()
    client.work(5)
    limiter = RateLimiter()
    limiter.recover(client.limiter.throttle, client.limiter.durations)
    limiter.configure(None)
    limiter.acquire(client.now, "poll", overdue=LATE)
    kept = RateLimiter.from_dict(json.loads(json.dumps(limiter.as_dict())))
    assert kept == limiter
    assert kept.throttle.ceiling == client.limiter.throttle.ceiling


def test_the_rate_recovers_from_the_minimum_within_two_hours() -> None:
    client = Client()
    for _ in range(40):
        client.trip()
    assert client.rate == MIN_RATE
    began = client.now
    while client.rate <= 10:
        client.work(60)
        assert client.now - began <= 2 * 3600


def test_a_configured_limit_is_the_initial_rate_and_never_exceeded() -> None:
    client = Client(8)
    assert client.rate == 8
    client.work(600)
    assert client.rate == 8


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_configured_limit_must_be_above_zero(limit: float) -> None:
    with pytest.raises(ValueError, match=r"^max_requests_per_second is \S+; it must be above 0\.$"):
        RateLimiter(limit)


@pytest.mark.parametrize("kind", ["submission", "poll"])
def test_a_configured_limit_below_the_least_rate_holds(kind: Kind) -> None:
    client = Client(0.01)
    client.take(kind)
    before = client.now
    client.take(kind)
    assert client.now - before == pytest.approx(100, abs=1.1)

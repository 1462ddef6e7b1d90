"""The law of the rate limiter: time is a number, and nothing is sent."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.rate_limit.block import JITTER, PROBE_TIMEOUT, STEP_FORGOTTEN_AFTER, Block
from airflow_provider_whisul.rate_limit.limiter_client import refusal
from airflow_provider_whisul.rate_limit.rate_limiter import (
    LEASE_SECONDS,
    MAX_AHEAD,
    STATE_VERSION,
    Lease,
    RateLimiter,
)
from airflow_provider_whisul.rate_limit.throttle import (
    FIRST_DECREASE,
    INITIAL_RATE,
    MIN_RATE,
    OVERDUE_AFTER,
)
from tests.support.limiter_client import NOW, Client, throttled_client

LATE = OVERDUE_AFTER + 1


# --- without a block


def test_the_first_request_is_allowed_at_once() -> None:
    lease = RateLimiter().acquire(NOW, "poll")
    assert lease == Lease(first=1, count=1, delay=0.0, interval=1 / INITIAL_RATE)


def test_requests_are_evenly_spaced() -> None:
    client = Client(INITIAL_RATE)
    times = []
    for _ in range(10):
        client.send()
        times.append(client.now)
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([1 / INITIAL_RATE] * 9)


def test_idle_time_permits_no_burst() -> None:
    client = Client()
    client.send()
    client.now += 3600
    client.send(LATE)
    assert client.cooldown == pytest.approx(1 / INITIAL_RATE, rel=0.2)
    assert client.rate == INITIAL_RATE


# --- a block


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_each_failed_probe_is_followed_by_the_next_step_of_the_backoff_schedule(jitter: float) -> None:
    client = Client()
    assert client.respond(client.send(), True, jitter=jitter)
    waits = [client.cooldown]
    for _ in range(6):
        assert client.respond(client.send(), True, jitter=jitter)
        waits.append(client.cooldown)
    assert waits == pytest.approx([wait * (1 + JITTER * jitter) for wait in (5, 10, 20, 40, 60, 60, 60)])


@pytest.mark.parametrize(
    ("retry_after", "cooldown"), [(None, 5), (0.0, 5), (4.0, 5), (7.0, 7), (900.0, 900), (3600.0, 960)]
)
def test_retry_after_counts_where_it_is_longer_than_the_backoff_step(
    retry_after: float | None, cooldown: float
) -> None:
    client = Client()
    client.respond(client.send(), True, retry_after)
    assert client.cooldown == pytest.approx(cooldown)
    client.respond(client.send(), True, retry_after)
    assert client.cooldown == pytest.approx(max(10, cooldown))


def test_a_second_probe_is_not_allowed_before_the_first_has_a_response() -> None:
    client = throttled_client()
    probe = client.send()
    assert client.cooldown == PROBE_TIMEOUT
    client.respond(probe, False)
    assert not client.blocked
    assert client.cooldown < 1 / MIN_RATE


def test_all_429s_of_one_burst_are_one_block() -> None:
    client = Client()
    client.work(30)
    tripped = client.rate
    requests = [client.send() for _ in range(5)]
    assert client.respond(requests[2], True)
    for request in (requests[0], requests[3], requests[4]):
        assert not client.respond(request, True, after=0.1)
    # The cool-down begins with the last of them, and is still the schedule's first step.
    assert client.cooldown == pytest.approx(5)
    assert client.rate == FIRST_DECREASE * tripped
    assert not client.respond(requests[1], False)
    assert client.blocked
    assert client.cooldown == pytest.approx(5)


def test_a_late_429_of_a_request_before_the_block_begins_no_new_block() -> None:
    client = Client()
    first, late = client.send(), client.send()
    client.respond(first, True)
    client.respond(client.send(), False)
    assert not client.respond(late, True)
    assert not client.blocked


def test_a_late_429_does_not_shorten_a_longer_retry_after() -> None:
    client = Client()
    first, late = client.send(), client.send()
    client.respond(first, True, 120)
    client.respond(late, True, after=0.5)
    assert client.cooldown == pytest.approx(119.5)


def test_the_retry_after_of_a_late_429_holds_although_the_probe_ends_the_block() -> None:
    client = Client()
    first, late = client.send(), client.send()
    client.respond(first, True)
    probe = client.send()
    client.respond(late, True, 120)
    client.respond(probe, False)
    assert not client.blocked
    assert client.cooldown == pytest.approx(120)


def test_a_late_success_of_a_request_before_the_block_is_not_the_probe_s_response() -> None:
    client = Client()
    first, late = client.send(), client.send()
    client.respond(first, True)
    client.send()
    client.respond(late, False)
    assert client.cooldown == PROBE_TIMEOUT


def test_a_probe_without_any_result_is_followed_by_another_after_its_timeout() -> None:
    client = throttled_client()
    client.send()
    sent_at = client.now
    second = client.send()
    assert client.now == sent_at + PROBE_TIMEOUT
    client.respond(second, False)
    assert not client.blocked


def test_a_probe_without_a_response_is_repeated_after_the_same_step() -> None:
    client = throttled_client()
    client.respond(client.send(), True)
    assert client.respond(client.send(), None, after=30)
    assert client.blocked
    assert client.cooldown == pytest.approx(10)


def test_a_request_without_a_response_changes_nothing() -> None:
    client = Client()
    assert not client.respond(client.send(), None)
    assert not client.blocked
    assert client.rate == INITIAL_RATE


@pytest.mark.parametrize(
    ("later", "cooldown"), [(0, 20), (STEP_FORGOTTEN_AFTER - 30, 20), (STEP_FORGOTTEN_AFTER + 30, 10), (86_400, 5)]
)
def test_the_next_block_begins_with_the_step_that_ended_the_one_before_unless_that_was_long_ago(
    later: float, cooldown: float
) -> None:
    client = throttled_client()
    client.respond(client.send(), True)
    client.respond(client.send(), True)
    client.respond(client.send(), False)
    client.now += later
    client.respond(client.send(), True)
    assert client.cooldown == pytest.approx(cooldown)


def test_a_clock_that_is_put_back_delays_no_request() -> None:
    client = Client()
    late = client.send()
    client.now -= 3600
    assert client.cooldown <= 1 / INITIAL_RATE
    client.respond(client.send(), True)
    client.now -= 3600
    assert client.cooldown == pytest.approx(5)
    client.respond(late, True)
    assert client.cooldown == pytest.approx(5)
    client.respond(client.send(), False)
    assert not client.blocked
    client.work(60)
    assert client.rate < INITIAL_RATE


@pytest.mark.parametrize("blocked", [True, False])
def test_times_of_a_clock_that_was_ahead_delay_the_next_request_once(blocked: bool) -> None:
    client = Client()
    client.now += 3600
    client.respond(client.send(), blocked)
    client.now -= 3600
    due = client.cooldown
    assert 0 < due <= 5
    client.now += due
    assert client.cooldown <= 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(-90_000, 90_000),
            st.floats(0, 60),
            st.sampled_from([True, False, None]),
            st.sampled_from([None, 7.0, 300.0]),
        ),
        max_size=40,
    )
)
def test_no_jump_of_the_clock_delays_a_request_by_more_than_what_is_due(
    events: list[tuple[float, float, bool | None, float | None]],
) -> None:
    client = Client()
    for jump, after, throttled, retry_after in events:
        client.now += jump
        # Neither the interval after a lease that may be ahead nor the cool-down can be longer.
        due = max(MAX_AHEAD + LEASE_SECONDS + 1 / client.rate, client.limiter.block.cooldown, PROBE_TIMEOUT)
        assert client.cooldown <= due + 1e-6
        client.respond(client.send(), throttled, retry_after, after=after)
    client.now -= 90_000
    client.send()
    state = json.loads(json.dumps(client.limiter.as_dict()))
    # What is stored lies ahead of the clock by no more than a lease.
    assert state["throttle"]["last_request_at"] <= client.now + MAX_AHEAD + LEASE_SECONDS
    assert state["block"]["began"] <= client.now


def test_a_changed_limit_keeps_what_was_learnt() -> None:
    client = throttled_client(8, seconds_of_work=5)
    client.respond(client.send(), False)
    assert client.rate == pytest.approx(8 * FIRST_DECREASE)
    client.limiter.configure(2)
    assert client.rate == 2
    client.limiter.configure(20)
    client.work(60)
    assert client.rate == pytest.approx(FIRST_DECREASE * 8, rel=0.05)


# --- state and refusal


def test_a_rate_limiter_from_a_state_continues_where_the_other_one_was() -> None:
    client = throttled_client(seconds_of_work=40)
    probe = client.send()
    again = Client()
    again.now = client.now
    again.limiter = RateLimiter.from_dict(json.loads(json.dumps(client.limiter.as_dict())))
    assert again.limiter == client.limiter
    for each in (client, again):
        each.respond(probe, True)
        each.respond(each.send(), False)
        each.work(60)
    assert again.limiter == client.limiter


def test_a_refusal_names_when_the_next_request_may_be_sent() -> None:
    error = refusal(NOW + 30, NOW, Block(active=True))
    assert (error.cooldown, error.retry_after, error.http_status) == (30, None, None)
    assert "may be sent at 2026-02-17 15:40:04 UTC" in str(error)
    assert refusal(NOW - 1, NOW, Block(active=True)).cooldown == 0
    assert refusal(NOW + 30, NOW, Block(active=False)).cooldown is None


def test_while_a_probe_is_out_a_refusal_tells_of_no_cooldown() -> None:
    assert refusal(NOW + 30, NOW, Block(active=True, probing=True)).cooldown is None


def test_a_store_keeps_its_id_also_when_it_is_reset() -> None:
    limiter = RateLimiter()
    kept = RateLimiter.from_dict(json.loads(json.dumps(limiter.as_dict())))
    kept.forget()
    assert kept.store_id == limiter.store_id != RateLimiter().store_id


def _nested_numbers() -> list[tuple[str, ...]]:
    state = RateLimiter().as_dict()
    nested = [(part, name) for part in ("throttle", "block") for name in state[part]]  # type: ignore[attr-defined]
    return [*nested, *((name,) for name in state)]


@pytest.mark.parametrize("path", _nested_numbers(), ids=".".join)
@pytest.mark.parametrize("nonsense", ["x", None, [], {}, math.nan, [-1], [0.5]], ids=str)
def test_a_state_with_nonsense_in_any_field_is_a_new_rate_limiter(path: tuple[str, ...], nonsense: object) -> None:
    if path in (("durations",), ("jobs",), ("line",)) and nonsense == []:
        return
    state = json.loads(json.dumps(throttled_client(seconds_of_work=40).limiter.as_dict()))
    target = state[path[0]] if len(path) == 2 else state
    target[path[-1]] = nonsense
    assert RateLimiter.from_dict(state, 7) == RateLimiter(7)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("throttle", "rate", 0.0),
        ("throttle", "rate", math.inf),
        ("throttle", "ceiling", 0.0),
        ("throttle", "ceiling_age", -1.0),
        ("throttle", "ceiling_age", math.inf),
        ("throttle", "ceiling_doubles_after", 0.0),
        ("block", "step", 5),
        ("block", "step", -1),
        ("block", "cooldown", math.inf),
        ("block", "cooldown", 1e9),
        ("block", "cooldown", -1.0),
        ("block", "last_request_before", 10**9),
        ("block", "last_request_before", -1),
    ],
)
def test_a_state_with_a_number_that_no_rate_limiter_writes_is_a_new_one(part: str, name: str, value: float) -> None:
    state = json.loads(json.dumps(throttled_client().limiter.as_dict()))
    state[part][name] = value
    assert RateLimiter.from_dict(state) == RateLimiter()


@pytest.mark.parametrize("place", [[], [1], [1.5, 1.0], [1, 2], ["x", 1.0], [1, math.inf], [1, 1.0, 1], None])
def test_a_state_with_a_place_that_makes_no_sense_is_a_new_one(place: object) -> None:
    state = {**throttled_client().limiter.as_dict(), "line": [[1, 1.0], place]}
    assert RateLimiter.from_dict(state) == RateLimiter()
    assert RateLimiter.from_dict({**state, "line": [[1, 1.0]]}).block.active


@pytest.mark.parametrize("state", [None, [], 7, "x", {}, {"version": 1}])
def test_what_is_no_state_is_a_new_rate_limiter(state: object) -> None:
    assert RateLimiter.from_dict(state, 7) == RateLimiter(7)


def test_a_state_of_another_version_or_with_another_field_is_a_new_rate_limiter() -> None:
    state = throttled_client().limiter.as_dict()
    assert RateLimiter.from_dict({**state, "version": STATE_VERSION + 1}) == RateLimiter()
    assert RateLimiter.from_dict({**state, "more": 1}) == RateLimiter()
    assert RateLimiter.from_dict(state) != RateLimiter()


@pytest.mark.parametrize("limit", [0.001, 1e-6])
def test_a_limit_that_was_far_too_low_is_forgotten_once_nobody_sets_it(limit: float) -> None:
    limiter = RateLimiter(limit)
    limiter.acquire(NOW, "poll")
    limiter = RateLimiter.from_dict(limiter.as_dict())
    limiter.configure(None)
    assert limiter.throttle.rate == MIN_RATE


def test_a_rate_that_cannot_be_divided_by_is_that_of_a_damaged_store() -> None:
    state = RateLimiter().as_dict()
    state["throttle"]["rate"] = 5e-324  # type: ignore[index]
    assert RateLimiter.from_dict(state) == RateLimiter()

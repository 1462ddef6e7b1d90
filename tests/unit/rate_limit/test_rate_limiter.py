"""The law of the rate limiter: time is a number, and nothing is sent."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.rate_limit.rate_limiter import (
    CEILING,
    CEILING_DOUBLES_AFTER,
    INITIAL_RATE,
    JITTER,
    MAX_PRESSING,
    MIN_RATE,
    OVERDUE_AFTER,
    PRESSING_AFTER,
    PROBE_TIMEOUT,
    RateLimiter,
    refusal,
)

NOW = 1_771_342_774.0
LATE = OVERDUE_AFTER + 1


class Client:
    """A client that sends each request at the earliest permitted time."""

    def __init__(self, limit: float | None = None) -> None:
        self.limiter = RateLimiter(limit)
        self.now = NOW

    def send(self, overdue: float = 0.0) -> int:
        """Wait until a request is allowed, and return its number."""
        at = self.limiter.next_allowed_at(self.now)
        assert at < math.inf
        self.now = max(self.now, at)
        return self.limiter.on_request(self.now, overdue)

    def respond(
        self,
        request: int,
        throttled: bool | None,
        retry_after: float | None = None,
        jitter: float = 0.0,
        after: float = 0,
    ) -> bool:
        self.now += after
        return self.limiter.on_response(self.now, request, throttled, retry_after, jitter)

    def work(self, seconds: float, overdue: float = LATE) -> None:
        """Send requests for so many seconds, each of them successful."""
        until = self.now + seconds
        while self.now < until:
            self.respond(self.send(overdue), False)

    @property
    def rate(self) -> float:
        return self.limiter.throttle.rate

    @property
    def blocked(self) -> bool:
        return self.limiter.block.active

    @property
    def cooldown(self) -> float:
        """Seconds until the next request is allowed."""
        return self.limiter.next_allowed_at(self.now) - self.now


def blocked_client(limit: float | None = None, seconds_of_work: float = 0.0) -> Client:
    client = Client(limit)
    client.work(seconds_of_work)
    client.respond(client.send(), True)
    return client


# --- without a block


def test_the_first_request_is_allowed_at_once() -> None:
    assert RateLimiter().next_allowed_at(NOW) <= NOW


def test_requests_are_evenly_spaced_at_the_initial_rate() -> None:
    client = Client()
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


@pytest.mark.parametrize(
    ("overdue", "rate"), [(LATE, INITIAL_RATE + 30), (OVERDUE_AFTER, INITIAL_RATE), (0, INITIAL_RATE)]
)
def test_the_rate_grows_by_one_half_per_second_while_requests_are_overdue(overdue: float, rate: float) -> None:
    client = Client()
    client.work(60, overdue)
    assert client.rate == pytest.approx(rate, abs=0.5)


def test_a_configured_limit_is_the_initial_rate_and_never_exceeded() -> None:
    client = Client(8)
    assert client.rate == 8
    client.work(600)
    assert client.rate == 8


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_configured_limit_must_be_above_zero(limit: float) -> None:
    with pytest.raises(ValueError, match=r"^max_requests_per_second is \S+; it must be above 0\.$"):
        RateLimiter(limit)


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


@pytest.mark.parametrize(("retry_after", "cooldown"), [(None, 5), (0.0, 5), (4.0, 5), (7.0, 7), (3600.0, 3600)])
def test_retry_after_counts_where_it_is_longer_than_the_backoff_step(
    retry_after: float | None, cooldown: float
) -> None:
    client = Client()
    client.respond(client.send(), True, retry_after)
    assert client.cooldown == pytest.approx(cooldown)
    client.respond(client.send(), True, retry_after)
    assert client.cooldown == pytest.approx(max(10, cooldown))


def test_a_second_probe_is_not_allowed_before_the_first_has_a_response() -> None:
    client = blocked_client()
    probe = client.send()
    assert client.cooldown == PROBE_TIMEOUT
    client.respond(probe, False)
    assert not client.blocked
    assert client.cooldown < 1 / MIN_RATE


@pytest.mark.parametrize("seconds_of_work", [0, 30])
def test_a_block_halves_the_rate_and_sets_a_ceiling(seconds_of_work: float) -> None:
    client = Client()
    client.work(seconds_of_work)
    tripped = client.rate
    client.respond(client.send(), True)
    assert client.rate == tripped / 2
    client.respond(client.send(), False)
    client.work(30)
    assert client.rate == pytest.approx(CEILING * tripped, rel=0.01)
    client.work(CEILING_DOUBLES_AFTER / 3)
    assert client.rate == pytest.approx(CEILING * tripped, rel=0.1)


@pytest.mark.parametrize(("overdue", "faster"), [(LATE, 1), (2 * PRESSING_AFTER, 2), (3600, MAX_PRESSING)])
def test_the_ceiling_rises_with_time_and_faster_where_requests_are_late(overdue: float, faster: float) -> None:
    client = blocked_client(seconds_of_work=40)
    tripped = 2 * client.rate
    client.respond(client.send(), False)
    client.work(CEILING_DOUBLES_AFTER / faster, overdue)
    assert client.rate == pytest.approx(2 * CEILING * tripped, rel=0.05)


def test_the_rate_recovers_from_the_minimum_within_two_hours() -> None:
    client = Client()
    for _ in range(20):
        client.respond(client.send(), True)
        client.respond(client.send(), False)
    assert client.rate == MIN_RATE
    client.work(2 * 3600)
    assert client.rate > 20


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
    assert client.rate == tripped / 2
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
    client = blocked_client()
    client.send()
    sent_at = client.now
    second = client.send()
    assert client.now == sent_at + PROBE_TIMEOUT
    client.respond(second, False)
    assert not client.blocked


def test_a_probe_without_a_response_is_repeated_after_the_same_step() -> None:
    client = blocked_client()
    client.respond(client.send(), True)
    assert client.respond(client.send(), None, after=30)
    assert client.blocked
    assert client.cooldown == pytest.approx(10)


def test_a_request_without_a_response_changes_nothing() -> None:
    client = Client()
    assert not client.respond(client.send(), None)
    assert not client.blocked
    assert client.rate == INITIAL_RATE


def test_the_next_block_begins_with_the_step_that_ended_the_one_before() -> None:
    client = blocked_client()
    client.respond(client.send(), True)
    client.respond(client.send(), True)
    client.respond(client.send(), False)
    client.respond(client.send(), True)
    assert client.cooldown == pytest.approx(20)
    # Its first probe ended it, so the next block begins one step lower.
    client.respond(client.send(), False)
    client.respond(client.send(), True)
    assert client.cooldown == pytest.approx(10)


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
    assert client.rate == pytest.approx(CEILING * INITIAL_RATE, rel=0.01)


# --- state and refusal


def test_a_rate_limiter_from_a_state_continues_where_the_other_one_was() -> None:
    client = blocked_client(seconds_of_work=40)
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
    error = refusal(NOW + 30, NOW)
    assert (error.cooldown, error.retry_after, error.http_status) == (30, None, None)
    assert "may be sent at 2026-02-17 15:40:04 UTC" in str(error)
    assert refusal(NOW - 1, NOW).cooldown == 0


# --- any sequence of events


@dataclass
class SendRequest:
    overdue: float
    waits_for_probe: bool


@dataclass
class ReceiveResponse:
    which: int
    after: float
    throttled: bool | None
    retry_after: float | None
    jitter: float


EVENTS = st.one_of(
    st.builds(SendRequest, st.floats(0, 300), st.booleans()),
    st.builds(
        ReceiveResponse,
        st.integers(0, 9),
        st.floats(0, 3),
        st.sampled_from([False, False, False, True, None]),
        st.sampled_from([None, None, 0.0, 7.0, 300.0]),
        st.floats(0, 1, exclude_max=True),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=120), st.sampled_from([None, 0.05, 3.0, 20.0]))
def test_spacing_cooldown_and_single_probe_hold_in_any_sequence_of_events(
    events: list[SendRequest | ReceiveResponse], limit: float | None
) -> None:
    limiter, now = RateLimiter(limit), NOW
    under_way: list[int] = []
    probes: set[int] = set()
    probing = False
    last_sent = not_before = -math.inf
    last_before_block = 0
    for event in events:
        if isinstance(event, SendRequest):
            at = limiter.next_allowed_at(now)
            # A single probe: nothing is sent until its response has come, or it must be lost.
            assert not probing or at >= last_sent + PROBE_TIMEOUT
            if probing and not event.waits_for_probe:
                continue
            now = max(now, at)
            assert now >= not_before - 1e-6
            assert now - last_sent >= 1 / limiter.throttle.rate - 1e-6
            probing = limiter.block.active
            request = limiter.on_request(now, event.overdue)
            if probing:
                probes.add(request)
            last_sent = now
            under_way.append(request)
        elif under_way:
            now += event.after
            request = under_way.pop(event.which % len(under_way))
            was_blocked, was_rate = limiter.block.active, limiter.throttle.rate
            limiter.on_response(now, request, event.throttled, event.retry_after, event.jitter)
            if event.throttled and (was_blocked or request > last_before_block):
                not_before = max(not_before, now + max(5.0, event.retry_after or 0.0))
                assert limiter.block.active
            if was_blocked:
                # Only a probe's success ends a block, and no response changes the rate meanwhile.
                assert limiter.block.active == (request not in probes or event.throttled is not False)
                assert limiter.throttle.rate == was_rate
            elif limiter.block.active:
                last_before_block = max([request, *under_way])
            if request in probes:
                probing = False
            if not limiter.block.active:
                probes.clear()
        assert min(MIN_RATE, limit or math.inf) <= limiter.throttle.rate <= (limit or math.inf)

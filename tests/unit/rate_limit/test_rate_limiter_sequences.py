"""The law of the rate limiter in any sequence of events."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.rate_limit.block import MAX_COOLDOWN, PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, MAX_AHEAD, Kind, RateLimiter
from airflow_provider_whisul.rate_limit.throttle import MIN_RATE
from tests.support.limiter_client import Client


@dataclass
class TakeLease:
    kind: Kind
    count: int
    overdue: float
    urgent: bool
    waits_for_probe: bool
    client: int | None


@dataclass
class ReceiveResponse:
    which: int
    after: float
    throttled: bool | None
    retry_after: float | None
    jitter: float


EVENTS = st.one_of(
    st.builds(
        TakeLease,
        st.sampled_from(["submission", "poll"]),
        st.integers(1, 20),
        st.floats(0, 300),
        st.booleans(),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
    st.builds(
        ReceiveResponse,
        st.integers(0, 9),
        st.floats(0, 3),
        st.sampled_from([False, False, False, True, None]),
        st.sampled_from([None, None, 0.0, 7, 300.0, 86_400.0]),
        st.floats(0, 1, exclude_max=True),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=120), st.sampled_from([None, 0.05, 3.0, 20.0]))
def test_spacing_cooldown_and_single_probe_hold_in_any_sequence_of_events(
    events: list[TakeLease | ReceiveResponse], limit: float | None
) -> None:
    client = Client(limit)
    limiter = client.limiter
    under_way: list[int] = []
    probes: set[int] = set()
    probing = False
    last_sent = not_before = -math.inf
    last_before_block = 0
    for event in events:
        # What is kept can be read: a state that makes no sense would be taken for none, and a block be forgotten.
        kept = json.loads(json.dumps(limiter.as_dict()))
        assert RateLimiter.from_dict(kept).as_dict() == kept
        if isinstance(event, TakeLease):
            if probing and not event.waits_for_probe:
                # A single probe: nothing is sent until its response has come, or it must be lost.
                assert last_sent + PROBE_TIMEOUT - client.now - 0.01 <= limiter.acquire(client.now, "submission")
                continue
            place = event.client if event.kind == "submission" else None
            if place is not None:
                # Another one waits in front of it, and is never heard of again.
                limiter.line.wait(client.now, 9, earliest=1.0, next_in=1.0, before=0.0)
            lease = client.take(event.kind, event.count, event.overdue, event.urgent, place)
            first_at, last_at = client.now + lease.delay, client.now + lease.delay + (lease.count - 1) * lease.interval
            assert not probing or first_at >= last_sent + PROBE_TIMEOUT - 1e-6
            assert first_at >= not_before - 1e-6
            # Even spacing, within the lease and to the requests before it.
            assert lease.interval == pytest.approx(1 / limiter.throttle.rate)
            assert first_at - last_sent >= lease.interval - 1e-6
            assert lease.delay <= MAX_AHEAD + 0.01 + lease.interval * (event.kind == "poll")
            assert last_at - first_at <= LEASE_SECONDS
            assert 1 <= lease.count <= event.count
            assert lease.probe == limiter.block.active
            probing = lease.probe
            requests = list(range(lease.first, lease.first + lease.count))
            if probing:
                assert lease.count == 1
                assert lease.delay <= 0.01
                probes.update(requests)
            assert all(limiter.is_permitted(request) for request in requests)
            last_sent = last_at
            under_way.extend(requests)
        elif under_way:
            client.now += event.after
            request = under_way.pop(event.which % len(under_way))
            was_blocked, was_rate = limiter.block.active, limiter.throttle.rate
            limiter.on_response(client.now, request, event.throttled, event.retry_after, event.jitter)
            if event.throttled and (was_blocked or request > last_before_block):
                not_before = max(not_before, client.now + max(5.0, min(event.retry_after or 0.0, MAX_COOLDOWN)))
                assert limiter.block.active
            if was_blocked:
                # Only a probe's success ends a block, and no response changes the rate meanwhile.
                assert limiter.block.active == (request not in probes or event.throttled is not False)
                assert limiter.throttle.rate == was_rate
            elif limiter.block.active:
                last_before_block = max([request, *under_way])
                assert not any(limiter.is_permitted(other) for other in under_way)
            if request in probes:
                probing = False
            if not limiter.block.active:
                probes.clear()
        assert min(MIN_RATE, limit or math.inf) <= limiter.throttle.rate <= (limit or math.inf)

"""The pace of an account, on numbers alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.account_pace import (
    CEILING,
    CEILING_DOUBLES_AFTER,
    JITTER,
    LEAST_RATE,
    MOST_PRESSING,
    OVERDUE_AFTER,
    PRESSING_AFTER,
    PROBE_LOST_AFTER,
    START_RATE,
    AccountPace,
)

NOW = 1_771_342_774.0
LATE = OVERDUE_AFTER + 1


class Client:
    """Asks as soon as it may, and says how it went."""

    def __init__(self, most: float | None = None) -> None:
        self.pace = AccountPace(most)
        self.now = NOW

    def send(self, overdue: float = 0.0) -> int:
        at = self.pace.next_at(self.now)
        assert at < math.inf
        self.now = max(self.now, at)
        return self.pace.sent(self.now, overdue)

    def answer(
        self, ticket: int, limited: bool | None, retry_after: float | None = None, chance: float = 0.0, after: float = 0
    ) -> bool:
        self.now += after
        return self.pace.answered(self.now, ticket, limited, retry_after, chance)

    def work(self, seconds: float, overdue: float = LATE) -> None:
        """Get so many seconds of requests answered well."""
        until = self.now + seconds
        while self.now < until:
            self.answer(self.send(overdue), False)

    def quiet(self) -> float:
        return self.pace.next_at(self.now) - self.now


def blocked(most: float | None = None, seconds_of_work: float = 0.0) -> Client:
    client = Client(most)
    client.work(seconds_of_work)
    client.answer(client.send(), True)
    return client


# --- without a block


def test_the_first_request_goes_at_once() -> None:
    assert AccountPace().next_at(NOW) <= NOW


def test_requests_are_evenly_spaced() -> None:
    client = Client()
    times = []
    for _ in range(10):
        client.send()
        times.append(client.now)
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([1 / START_RATE] * 9)


def test_idle_time_saves_up_no_requests() -> None:
    client = Client()
    client.send()
    client.now += 3600
    client.send(LATE)
    assert client.quiet() == pytest.approx(1 / START_RATE, rel=0.2)


@pytest.mark.parametrize(("overdue", "rate"), [(LATE, START_RATE + 30), (OVERDUE_AFTER, START_RATE), (0, START_RATE)])
def test_the_rate_grows_by_one_half_per_second_while_work_is_overdue(overdue: float, rate: float) -> None:
    client = Client()
    client.work(60, overdue)
    assert client.pace.rate == pytest.approx(rate, abs=0.5)


def test_a_known_limit_is_the_first_rate_and_the_last() -> None:
    client = Client(8)
    assert client.pace.rate == 8
    client.work(600)
    assert client.pace.rate == 8


@pytest.mark.parametrize("most", [0, -1, math.nan])
def test_a_known_limit_is_above_zero(most: float) -> None:
    with pytest.raises(ValueError, match=r"^max_requests_per_second is \S+; it must be above 0\.$"):
        AccountPace(most)


# --- a block


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_failed_probes_climb_the_ladder(chance: float) -> None:
    client = Client()
    assert client.answer(client.send(), True, chance=chance)
    waits = [client.quiet()]
    for _ in range(6):
        assert client.answer(client.send(), True, chance=chance)
        waits.append(client.quiet())
    assert waits == pytest.approx([wait * (1 + JITTER * chance) for wait in (5, 10, 20, 40, 60, 60, 60)])


@pytest.mark.parametrize(("retry_after", "quiet"), [(None, 5), (0.0, 5), (4.0, 5), (7.0, 7), (3600.0, 3600)])
def test_retry_after_counts_where_it_is_longer(retry_after: float | None, quiet: float) -> None:
    client = Client()
    client.answer(client.send(), True, retry_after)
    assert client.quiet() == pytest.approx(quiet)
    client.answer(client.send(), True, retry_after)
    assert client.quiet() == pytest.approx(max(10, quiet))


def test_only_one_probe_goes() -> None:
    client = blocked()
    probe = client.send()
    assert client.quiet() == PROBE_LOST_AFTER
    client.answer(probe, False)
    assert not client.pace.blocked
    assert client.quiet() < 1 / LEAST_RATE


@pytest.mark.parametrize("seconds_of_work", [0, 30])
def test_after_a_block_half_the_rate_and_a_ceiling(seconds_of_work: float) -> None:
    client = Client()
    client.work(seconds_of_work)
    tripped = client.pace.rate
    client.answer(client.send(), True)
    assert client.pace.rate == tripped / 2
    client.answer(client.send(), False)
    client.work(30)
    assert client.pace.rate == pytest.approx(CEILING * tripped, rel=0.01)
    client.work(CEILING_DOUBLES_AFTER / 3)
    assert client.pace.rate == pytest.approx(CEILING * tripped, rel=0.1)


@pytest.mark.parametrize(("overdue", "faster"), [(LATE, 1), (2 * PRESSING_AFTER, 2), (3600, MOST_PRESSING)])
def test_a_block_is_forgotten_in_time_and_sooner_where_work_is_late(overdue: float, faster: float) -> None:
    client = blocked(seconds_of_work=40)
    tripped = 2 * client.pace.rate
    client.answer(client.send(), False)
    client.work(CEILING_DOUBLES_AFTER / faster, overdue)
    assert client.pace.rate == pytest.approx(2 * CEILING * tripped, rel=0.05)


def test_full_speed_comes_back_from_the_very_bottom() -> None:
    client = Client()
    for _ in range(20):
        client.answer(client.send(), True)
        client.answer(client.send(), False)
    assert client.pace.rate == LEAST_RATE
    client.work(2 * 3600)
    assert client.pace.rate > 20


def test_one_burst_is_one_block() -> None:
    client = Client()
    client.work(30)
    tripped = client.pace.rate
    tickets = [client.send() for _ in range(5)]
    assert client.answer(tickets[2], True)
    for ticket in (tickets[0], tickets[3], tickets[4]):
        assert not client.answer(ticket, True, after=0.1)
    # As quiet as if the last of them had been the first, and no rung higher.
    assert client.quiet() == pytest.approx(5)
    assert client.pace.rate == tripped / 2
    assert not client.answer(tickets[1], False)
    assert client.pace.blocked
    assert client.quiet() == pytest.approx(5)


def test_a_straggler_after_the_block_begins_none() -> None:
    client = Client()
    first, straggler = client.send(), client.send()
    client.answer(first, True)
    client.answer(client.send(), False)
    assert not client.answer(straggler, True)
    assert not client.pace.blocked


def test_a_straggler_does_not_cut_retry_after_short() -> None:
    client = Client()
    first, straggler = client.send(), client.send()
    client.answer(first, True, 120)
    client.answer(straggler, True, after=0.5)
    assert client.quiet() == pytest.approx(119.5)


def test_a_straggler_that_comes_after_the_probe_has_gone_is_heeded() -> None:
    client = Client()
    first, straggler = client.send(), client.send()
    client.answer(first, True)
    probe = client.send()
    client.answer(straggler, True, 120)
    client.answer(probe, False)
    assert not client.pace.blocked
    assert client.quiet() == pytest.approx(120)


def test_a_straggler_takes_no_probes_place() -> None:
    client = Client()
    first, straggler = client.send(), client.send()
    client.answer(first, True)
    client.send()
    client.answer(straggler, False)
    assert client.quiet() == PROBE_LOST_AFTER


def test_a_probe_that_comes_to_nothing_is_followed_by_another() -> None:
    client = blocked()
    client.send()
    lost_at = client.now
    second = client.send()
    assert client.now == lost_at + PROBE_LOST_AFTER
    client.answer(second, False)
    assert not client.pace.blocked


def test_a_probe_without_an_answer_is_repeated_and_climbs_no_rung() -> None:
    client = blocked()
    client.answer(client.send(), True)
    assert client.answer(client.send(), None, after=30)
    assert client.pace.blocked
    assert client.quiet() == pytest.approx(10)


def test_a_request_without_an_answer_teaches_nothing() -> None:
    client = Client()
    assert not client.answer(client.send(), None)
    assert not client.pace.blocked
    assert client.pace.rate == START_RATE


def test_the_next_block_is_not_probed_sooner_than_the_last_one_ended() -> None:
    client = blocked()
    client.answer(client.send(), True)
    client.answer(client.send(), True)
    client.answer(client.send(), False)
    client.answer(client.send(), True)
    assert client.quiet() == pytest.approx(20)
    # It was over at the first probe, so the next may be shorter.
    client.answer(client.send(), False)
    client.answer(client.send(), True)
    assert client.quiet() == pytest.approx(10)


def test_a_clock_that_is_put_back_stops_nobody() -> None:
    client = Client()
    straggler = client.send()
    client.now -= 3600
    assert client.quiet() <= 1 / START_RATE
    client.answer(client.send(), True)
    client.now -= 3600
    assert client.quiet() == pytest.approx(5)
    client.answer(straggler, True)
    assert client.quiet() == pytest.approx(5)
    client.answer(client.send(), False)
    assert not client.pace.blocked
    client.work(60)
    assert client.pace.rate == pytest.approx(CEILING * START_RATE, rel=0.01)


# --- whatever happens


@dataclass
class Ask:
    overdue: float
    patient: bool


@dataclass
class Hear:
    which: int
    after: float
    limited: bool | None
    retry_after: float | None
    chance: float


EVENTS = st.one_of(
    st.builds(Ask, st.floats(0, 300), st.booleans()),
    st.builds(
        Hear,
        st.integers(0, 9),
        st.floats(0, 3),
        st.sampled_from([False, False, False, True, None]),
        st.sampled_from([None, None, 0.0, 7.0, 300.0]),
        st.floats(0, 1, exclude_max=True),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=120), st.sampled_from([None, 0.05, 3.0, 20.0]))
def test_whatever_happens(events: list[Ask | Hear], most: float | None) -> None:
    pace, now = AccountPace(most), NOW
    under_way: list[int] = []
    probes: set[int] = set()
    probing = False
    last_sent = quiet_until = -math.inf
    last_before_block = 0
    for event in events:
        if isinstance(event, Ask):
            at = pace.next_at(now)
            # A single probe: nobody goes until its answer is there, or it must be lost.
            assert not probing or at >= last_sent + PROBE_LOST_AFTER
            if probing and not event.patient:
                continue
            now = max(now, at)
            assert now >= quiet_until - 1e-6
            assert now - last_sent >= 1 / pace.rate - 1e-6
            probing = pace.blocked
            ticket = pace.sent(now, event.overdue)
            if probing:
                probes.add(ticket)
            last_sent = now
            under_way.append(ticket)
        elif under_way:
            now += event.after
            ticket = under_way.pop(event.which % len(under_way))
            was_blocked, was_rate = pace.blocked, pace.rate
            pace.answered(now, ticket, event.limited, event.retry_after, event.chance)
            if event.limited and (was_blocked or ticket > last_before_block):
                quiet_until = max(quiet_until, now + max(5.0, event.retry_after or 0.0))
                assert pace.blocked
            if was_blocked:
                # Only a probe's good answer ends a block, and no answer changes the rate meanwhile.
                assert pace.blocked == (ticket not in probes or event.limited is not False)
                assert pace.rate == was_rate
            elif pace.blocked:
                last_before_block = max([ticket, *under_way])
            if ticket in probes:
                probing = False
            if not pace.blocked:
                probes.clear()
        assert min(LEAST_RATE, most or math.inf) <= pace.rate <= (most or math.inf)

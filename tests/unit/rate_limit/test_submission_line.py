"""Submissions that wait ask when their turn is likely, and not for each permit."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import pytest

from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.rate_limiter import Lease, RateLimiter
from airflow_provider_whisul.rate_limit.submission_line import (
    ASKS_LATE,
    MAX_PLACES,
    MAX_TURN_WAIT,
    PLACE_SECONDS,
    SubmissionLine,
)
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from tests.support.clock import NOON, FakeClock
from tests.support.limiter_client import NOW
from tests.support.rate_limiter import CountingStore, account_settings


@dataclass
class Clients:
    """
    Clients that wait for one permit each, from nearly the same moment on.

    :param limiter: What they ask.
    :param count: How many there are.
    """

    limiter: RateLimiter
    count: int
    asked: int = 0
    #: Each client's number, with when its request is sent.
    sent: list[tuple[float, int]] = field(default_factory=list)

    def run(self, dead: Callable[[float, int], bool] = lambda now, client: False) -> float:
        """Let all of them wait, and return the seconds until the last request that is sent."""
        waiting = [(NOW + client * 0.01, client) for client in range(self.count)]
        while waiting:
            now, client = heapq.heappop(waiting)
            if dead(now, client):
                continue
            self.asked += 1
            answer = self.limiter.acquire(now, "submission", overdue=now - NOW, client=client)
            if isinstance(answer, Lease):
                self.sent.append((now + answer.delay, client))
            else:
                assert 0 < answer <= MAX_TURN_WAIT
                heapq.heappush(waiting, (now + answer, client))
        return max(at for at, _ in self.sent) - NOW


@pytest.mark.parametrize(("rate", "most"), [(0.5, 16), (1.0, 10), (8.0, 4)])
def test_sixty_that_wait_ask_a_few_times_each_and_lose_no_permit(rate: float, most: float) -> None:
    clients = Clients(RateLimiter(rate), 60)
    assert clients.run() == pytest.approx(59 / rate, rel=0.01)
    assert clients.asked / 60 < most
    assert clients.limiter.line.places == []


def test_who_comes_first_is_served_first_but_for_a_few_places() -> None:
    clients = Clients(RateLimiter(4.0), 60)
    clients.run()
    assert max(abs(place - client) for place, (_, client) in enumerate(sorted(clients.sent))) <= 4


@pytest.mark.parametrize("rate", [1.0, 8.0])
def test_the_death_of_half_of_them_delays_the_others_by_less_than_a_place_is_kept(rate: float) -> None:
    clients = Clients(RateLimiter(rate), 60)
    seconds = clients.run(dead=lambda now, client: client < 30 and now > NOW + 2)
    assert len(clients.sent) >= 30
    assert seconds <= (len(clients.sent) - 1) / rate + PLACE_SECONDS


def test_the_death_of_one_costs_hardly_more_than_its_permit() -> None:
    clients = Clients(RateLimiter(1.0), 60)
    assert clients.run(dead=lambda now, client: client == 5 and now > NOW + 1) <= 60


@pytest.mark.parametrize("survivor", [10, 59])
def test_one_that_is_left_alone_does_not_wait_for_the_dead(survivor: int) -> None:
    clients = Clients(RateLimiter(0.5), 60)
    clients.run(dead=lambda now, client: client != survivor and now > NOW + 1)
    assert [client for _, client in clients.sent][-1] == survivor
    assert clients.sent[-1][0] - NOW <= MAX_TURN_WAIT + 2


def test_those_that_wait_notice_that_the_rate_has_risen() -> None:
    clients, risen = Clients(RateLimiter(0.5), 60), []

    def rise(now: float, client: int) -> bool:
        if now > NOW + 5 and not risen:
            risen.append(now)
            clients.limiter.configure(20.0)
        return False

    assert clients.run(dead=rise) <= 5 + MAX_TURN_WAIT + 60 / 20 + 1


def test_a_rate_that_is_still_being_found_rises_as_fast_as_where_all_ask_all_the_time() -> None:
    limiter, now = RateLimiter(), NOW
    for _ in range(300):
        while not isinstance(lease := limiter.acquire(now, "submission", overdue=now - NOW), Lease):
            now += lease
    without_a_line = now + lease.delay - NOW
    assert Clients(RateLimiter(), 300).run() == pytest.approx(without_a_line, rel=0.03)


def test_all_that_wait_during_a_block_are_permitted_after_it() -> None:
    clients, probes = Clients(RateLimiter(4.0), 40), []
    limiter = clients.limiter

    def throttle(now: float, client: int) -> bool:
        if now > NOW + 2 and not probes:
            limiter.on_response(now, limiter.last_request, throttled=True)
            probes.append(0)
        elif limiter.block.probing and limiter.last_request != probes[-1]:
            probes.append(limiter.last_request)
            # The response to the probe comes before anybody asks again.
            limiter.on_response(now, limiter.last_request, throttled=False)
        return False

    seconds = clients.run(dead=throttle)
    assert len(probes) == 2
    assert len(clients.sent) == 40
    assert seconds <= 2 + 5 + 40 / limiter.throttle.rate + 2


def test_those_that_wait_for_the_response_to_a_probe_ask_every_second_in_turn() -> None:
    limiter = RateLimiter(2.0)
    limiter.pause(NOW, 5)
    assert limiter.acquire(NOW, "submission", client=1) == pytest.approx(5)
    assert isinstance(limiter.acquire(NOW + 5, "submission", client=1), Lease)
    waits = [limiter.acquire(NOW + 5.1, "submission", client=client) for client in range(2, 12)]
    assert waits[0] == 1.0
    assert waits == sorted(waits)  # type: ignore[type-var]
    assert waits[-1] > 2  # type: ignore[operator]


# --- the places


def test_a_place_that_was_given_before_the_clock_was_put_back_delays_no_poll() -> None:
    limiter = RateLimiter(1.0)
    limiter.acquire(NOW, "submission")
    limiter.acquire(NOW, "submission", client=1, max_ahead=0.0)
    assert limiter.line.places
    hour_before = NOW - 3_600
    limiter.acquire(hour_before, "poll")
    assert limiter.submissions_press_until <= hour_before + PLACE_SECONDS + 1


def test_a_place_is_kept_while_its_client_asks_in_time() -> None:
    line = SubmissionLine()
    for client in (7, 8, 9):
        assert line.wait(NOW, client, 1.0, 0.0, 0.0) == 1.0
    assert [line.place(NOW + 1, client) for client in (7, 8, 9, 10)] == [0, 1, 2, 3]
    line.wait(NOW + 19, 8, 1.0, 0.0, 0.0)
    assert line.waits_until == NOW + 19 + PLACE_SECONDS
    # The others have not asked for so long.
    assert [line.place(NOW + 1 + PLACE_SECONDS, client) for client in (8, 10)] == [0, 1]
    line.leave(8)
    assert line.places == []


def test_a_question_that_only_keeps_a_place_writes_rarely_and_never_too_late() -> None:
    line, now, writes = SubmissionLine(), NOW, 0
    for _ in range(100):
        before = [list(place) for place in line.places]
        now += line.wait(now, 7, 4.0, 5.0, 0.0)
        writes += line.places != before
        assert line.place(now + ASKS_LATE - 0.1, 7) == 0
        assert line.waits_until > now
    assert writes <= 26


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
def test_a_clock_that_jumps_forgets_the_places_and_nothing_else(jump: float) -> None:
    limiter = RateLimiter(0.5)
    for client in range(5):
        limiter.acquire(NOW, "submission", client=client)
    limiter.acquire(NOW + jump, "submission", client=9)
    assert len(limiter.line.places) <= 1
    assert limiter.submissions_press_until <= NOW + jump + PLACE_SECONDS


def test_so_many_that_the_state_would_grow_without_bound_share_the_last_place() -> None:
    limiter = RateLimiter(0.5)
    for client in range(2 * MAX_PLACES):
        limiter.acquire(NOW, "submission", client=client)
    assert len(limiter.line.places) == MAX_PLACES
    assert limiter.line.place(NOW, 2 * MAX_PLACES - 1) == MAX_PLACES


def test_a_submission_that_waits_long_for_its_turn_goes_before_polls_meanwhile() -> None:
    limiter = RateLimiter(1.0)
    for client in range(30):
        limiter.acquire(NOW, "submission", client=client)
    # Nobody asks for some seconds, but somebody waits.
    now = NOW + 4
    assert limiter.submissions_press_until > now
    limiter.acquire(now, "submission")
    polls = [limiter.acquire(now + second, "poll") for second in range(3)]
    assert sum(isinstance(answer, Lease) for answer in polls) <= 3
    assert limiter.submissions_press_until > NOW + 6


# --- clients of a store


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    return CountingStore(clock.clock)


def test_a_worker_is_refused_for_the_limit_and_not_for_its_place(store: CountingStore, clock: FakeClock) -> None:
    settings = account_settings(1.0)
    for client in range(50):
        store.update(lambda limiter, now, client=client: limiter.acquire(now, "submission", client=client))
    # Those before it may have died.
    WorkerRateLimiter(store, settings, clock.clock).acquire("submission", 30)
    with pytest.raises(WhisulRateLimitError):
        WorkerRateLimiter(store, settings, clock.clock).acquire("submission", 0.0)


def test_a_worker_that_waits_asks_a_few_times_only(store: CountingStore, clock: FakeClock) -> None:
    worker = WorkerRateLimiter(store, account_settings(0.02), clock.clock)
    worker.acquire("submission", 600)
    began = store.updates
    worker.acquire("submission", 600)
    assert clock.now - NOON == pytest.approx(50)
    # With the one that checks the permit.
    assert 7 <= store.updates - began <= 13


def test_a_try_that_gave_up_leaves_no_second_place(store: CountingStore, clock: FakeClock) -> None:
    settings = account_settings(0.5)
    first, second = (WorkerRateLimiter(store, settings, clock.clock) for _ in range(2))
    first.acquire("submission", 600)
    for _ in range(2):
        with pytest.raises(WhisulRateLimitError):
            second.acquire("submission", 0.1)
    assert len(store.limiter.line.places) == 1
    second.acquire("submission", 600)
    assert store.limiter.line.places == []


def test_a_file_keeps_the_places_and_for_how_long(clock: FakeClock) -> None:
    settings = account_settings(None)

    def ask(client: int) -> None:
        FileStore(settings, clock.clock).update(lambda limiter, now: limiter.acquire(now, "submission", client=client))

    FileStore(settings, clock.clock).update(lambda limiter, now: limiter.pause(now, 600))
    ask(1)
    ask(2)
    clock.now += PLACE_SECONDS - 0.1
    ask(2)
    # In a moment in which nothing else changes.
    ask(1)
    places = FileStore(settings, clock.clock).update(lambda limiter, now: limiter.line.places)
    assert [client for client, _ in places] == [1, 2]
    assert [until for _, until in places] == pytest.approx([clock.now + PLACE_SECONDS] * 2, abs=0.001)


def test_a_state_of_the_version_before_is_a_new_rate_limiter_and_stays_where_it_is(clock: FakeClock) -> None:
    settings = replace(account_settings(0.5))
    state = RateLimiter().as_dict()
    block = {name: value for name, value in asdict(RateLimiter().block).items() if name != "ended_at"}
    assert RateLimiter.from_dict({**state, "block": block, "version": 5}) == RateLimiter()
    assert "v6-" in FileStore(settings, clock.clock).path.name

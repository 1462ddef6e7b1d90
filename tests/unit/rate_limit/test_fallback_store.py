"""What happens while a store is away."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.fallback_store import FallbackStore
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.limiter_store import (
    DayIsFullError,
    Decide,
    MemoryStore,
    T,
)
from airflow_provider_whisul.rate_limit.rate_limiter import Lease, Permit, RateLimiter
from airflow_provider_whisul.rate_limit.store_choice import limiter_store
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from tests.support.clock import FakeClock
from tests.unit.rate_limit.unsteady_store import Logged, UnsteadyStore, block, is_blocked, take_number

SETTINGS = ConnectionSettings("https://api.whisul.test", "a-secret-key")


def ask(limiter: RateLimiter, now: float) -> Lease | float:
    return limiter.acquire(now, "submission")


def test_the_store_is_used_while_it_is_there(
    store: FallbackStore, primary: UnsteadyStore, backup: MemoryStore, logged: Logged
) -> None:
    assert [store.update(take_number) for _ in range(3)] == [1, 2, 3]
    assert (primary.limiter.last_request, backup.limiter.last_request) == (3, 0)
    assert store.where == primary.where
    assert logged() == []


def test_while_it_is_away_the_other_one_is_used_and_the_log_says_so_once(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock, logged: Logged
) -> None:
    primary.away = True
    for _ in range(5):
        store.update(take_number)
        clock.now += 30
    assert store.where == "this process"
    assert logged() == [
        (
            "WARNING",
            "The rate limiter cannot be kept in the unsteady store: It is away. Until it can, the requests of this API "
            "key are limited by this process alone.",
        )
    ]


def test_it_is_tried_again_after_10_s_and_then_at_most_every_60_s(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    primary.away = True
    tried = []
    for second in range(301):
        asked = primary.asked
        store.update(take_number)
        if primary.asked > asked:
            tried.append(second)
        clock.now += 1
    assert tried == [0, 10, 30, 70, 130, 190, 250]


def test_it_is_used_again_when_it_is_back_and_the_log_says_so_once(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock, logged: Logged
) -> None:
    primary.away = True
    store.update(take_number)
    primary.away = False
    clock.now += 10
    for _ in range(2):
        store.update(take_number)
    assert store.where == primary.where
    assert logged()[1:] == [("INFO", "The rate limiter is kept in the unsteady store again.")]
    # Away once more, it is tried again after 10 s once more.
    primary.away = True
    store.update(take_number)
    primary.away = False
    clock.now += 10
    store.update(take_number)
    assert store.where == primary.where


def test_a_block_holds_when_the_store_goes_away(store: FallbackStore, primary: UnsteadyStore, clock: FakeClock) -> None:
    store.update(lambda limiter, now: limiter.on_response(now, take_number(limiter, now), True, retry_after=30))
    clock.now += 2
    primary.away = True
    assert store.update(ask) == pytest.approx(28)
    clock.now += 28
    lease = store.update(ask)
    assert isinstance(lease, Lease)
    assert lease.probe


def test_a_block_that_was_met_meanwhile_holds_when_the_store_comes_back(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    primary.away = True
    store.update(take_number)
    clock.now += 9
    store.update(lambda limiter, now: limiter.on_response(now, take_number(limiter, now), True, retry_after=30))
    clock.now += 1
    primary.away = False
    assert store.update(ask) == pytest.approx(29)
    assert primary.limiter.block.active


@pytest.mark.parametrize(("idle", "holds"), [(29.0, True), (30.0 + PROBE_TIMEOUT / 2, True), (3600.0, False)])
@pytest.mark.parametrize("lost", [True, False], ids=["the store has lost its data", "the store is away"])
def test_a_block_begins_again_elsewhere_only_while_it_may_still_hold(
    store: FallbackStore,
    primary: UnsteadyStore,
    backup: MemoryStore,
    clock: FakeClock,
    idle: float,
    holds: bool,
    lost: bool,
) -> None:
    """Another process may have ended it while this one was idle."""
    store.update(lambda limiter, now: limiter.on_response(now, take_number(limiter, now), True, retry_after=30))
    rate = primary.limiter.throttle.rate
    clock.now += idle
    primary.limiter, primary.away = RateLimiter(), not lost
    assert store.update(is_blocked) == holds
    used = primary.limiter if lost else backup.limiter
    if lost and not holds:
        assert used.throttle.rate == rate


@pytest.mark.parametrize("blocked_again", [False, True])
def test_a_429_of_a_request_that_the_backup_permitted_is_not_lost_when_the_store_comes_back(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock, blocked_again: bool
) -> None:
    for _ in range(30):
        store.update(take_number)
    primary.away = True
    request = store.update(take_number)
    # Other machines have never lost the store. They have met a block there, and ended it.
    limiter, now = primary.limiter, clock.now + primary.ahead
    limiter.last_request = 500
    limiter.pause(now, 5)
    if not blocked_again:
        probe = limiter.acquire(now + 5, "submission")
        assert isinstance(probe, Lease)
        limiter.on_response(now + 5, probe.first, throttled=False)
    rate = limiter.throttle.rate
    clock.now += 10
    primary.away = False
    # Its response comes only now, and is reported to the store that is back.
    store.update(lambda limiter, now: limiter.on_response(now, request, throttled=True, retry_after=30))
    assert primary.limiter.block.active
    assert store.update(ask) == pytest.approx(30)
    assert (primary.limiter.throttle.rate == rate) == blocked_again


def test_a_429_of_a_request_that_the_store_permitted_is_not_lost_when_it_goes_away(
    store: FallbackStore, primary: UnsteadyStore, backup: MemoryStore, clock: FakeClock
) -> None:
    # The backup knows of a block of an earlier night, with a higher number.
    backup.limiter.last_request = 500
    backup.limiter.pause(clock.now - 100, 5)
    probe = backup.limiter.acquire(clock.now - 90, "submission")
    assert isinstance(probe, Lease)
    backup.limiter.on_response(clock.now - 90, probe.first, throttled=False)
    request = store.update(take_number)
    primary.away = True
    store.update(lambda limiter, now: limiter.on_response(now, request, throttled=True, retry_after=30))
    assert store.update(ask) == pytest.approx(30)


def test_the_response_to_a_probe_of_the_backup_does_not_end_the_stores_block(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    primary.away = True
    store.update(block)
    clock.now += 6
    probe = store.update(ask)
    assert isinstance(probe, Lease)
    primary.limiter.pause(clock.now + primary.ahead, 60)
    clock.now += 4
    primary.away = False
    store.update(lambda limiter, now: limiter.on_response(now, probe.first, throttled=False))
    assert primary.limiter.block.active


def test_a_submission_that_the_backup_permitted_is_not_sent_into_the_stores_block(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    primary.away = True
    request = 0
    for _ in range(5):
        request = store.update(take_number)
    primary.limiter.pause(clock.now + primary.ahead, 60)
    clock.now += 10
    primary.away = False
    assert not store.update(lambda limiter, now: limiter.is_permitted(request))


def test_a_late_429_of_a_request_from_before_a_block_is_no_new_event(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    early = store.update(take_number)
    store.update(block)
    clock.now += 5
    probe = store.update(ask)
    assert isinstance(probe, Lease)
    store.update(lambda limiter, now: limiter.on_response(now, probe.first, throttled=False))
    assert not store.update(lambda limiter, now: limiter.on_response(now, early, throttled=True))
    assert not store.update(is_blocked)


def test_a_block_is_told_once_and_ends_with_its_probe(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    store.update(block)
    primary.away = True
    clock.now += 6
    store.update(is_blocked)
    clock.now += 6
    probe = store.update(ask)
    assert isinstance(probe, Lease)
    assert store.update(lambda limiter, now: limiter.on_response(now, probe.first, throttled=False))
    assert not store.update(is_blocked)
    primary.away = False
    # The primary still knows of its block, and sends a probe of its own.
    clock.now += 60
    assert store.update(is_blocked)


def test_a_block_that_another_process_has_found_to_be_over_is_not_brought_back(
    store: FallbackStore, primary: UnsteadyStore, backup: MemoryStore, clock: FakeClock
) -> None:
    store.update(block)
    clock.now += 6
    other = FallbackStore(primary, backup, clock.clock)
    probe = other.update(ask)
    assert isinstance(probe, Lease)
    other.update(lambda limiter, now: limiter.on_response(now, probe.first, throttled=False))
    assert not store.update(is_blocked)


def test_a_block_that_a_probe_has_ended_is_begun_again_by_none_of_the_processes_that_come_back(
    primary: UnsteadyStore, clock: FakeClock
) -> None:
    pods = [pod(primary, MemoryStore(clock.clock), clock) for _ in range(10)]
    pods[0].on_response(pods[0].acquire("poll", 60), throttled=True)
    rate = primary.limiter.throttle.rate
    all_ask(pods)
    primary.away = True
    all_ask(pods)
    primary.away = False
    clock.now += 10
    all_succeed(pods, clock)
    assert primary.limiter.throttle.ceiling == rate


def test_a_block_that_a_probe_has_ended_is_begun_again_by_none_of_the_processes_that_leave(
    primary: UnsteadyStore, backup: MemoryStore, clock: FakeClock
) -> None:
    tasks = [pod(primary, backup, clock) for _ in range(10)]
    tasks[0].on_response(tasks[0].acquire("poll", 60), throttled=True)
    all_ask(tasks)
    primary.away = True
    clock.now += 6
    all_succeed(tasks[:1], clock)
    rate = backup.limiter.throttle.rate
    all_succeed(tasks[1:], clock)
    assert backup.limiter.throttle.ceiling == rate
    # A later 429 begins one as ever.
    tasks[0].on_response(tasks[0].acquire("poll", 60), throttled=True)
    assert backup.limiter.throttle.ceiling < rate


@pytest.mark.parametrize("put_back_by", [3.0, 3600.0])
def test_a_block_is_told_to_a_store_whose_clock_was_put_back_to_before_the_end_of_the_one_before(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock, put_back_by: float
) -> None:
    store.update(block)
    clock.now += 6
    probe = store.update(ask)
    assert isinstance(probe, Lease)
    store.update(lambda limiter, now: limiter.on_response(now, probe.first, throttled=False))
    clock.now += 1
    primary.away = True
    store.update(lambda limiter, now: limiter.on_response(now, take_number(limiter, now), True, retry_after=600))
    clock.now += 10
    store.update(ask)
    clock.now += 60
    primary.ahead -= put_back_by
    primary.away = False
    # Another process is the first to notice.
    primary.update(ask)
    assert store.update(is_blocked)


def pod(primary: UnsteadyStore, backup: MemoryStore, clock: FakeClock) -> WorkerRateLimiter:
    return WorkerRateLimiter(FallbackStore(primary, backup, clock.clock), SETTINGS, clock.clock)


def all_ask(pods: Sequence[WorkerRateLimiter]) -> None:
    for each in pods:
        each.is_permitted(Permit(0))


def all_succeed(pods: Sequence[WorkerRateLimiter], clock: FakeClock) -> None:
    for each in pods:
        each.on_response(each.acquire("submission", 60), throttled=False)
        clock.now += 0.5


def test_requests_are_numbered_on_when_the_store_changes(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    """A 429 of a request with a lower number would be taken for one of before the latest block."""
    for _ in range(5):
        store.update(take_number)
    primary.away = True
    assert [store.update(take_number) for _ in range(2)] == [6, 7]
    primary.away = False
    clock.now += 10
    assert store.update(take_number) == 8


def test_a_store_that_has_lost_its_data_is_told_the_rate_even_where_a_new_process_came_first(
    store: FallbackStore, primary: UnsteadyStore
) -> None:
    def learn(limiter: RateLimiter, now: float) -> None:
        limiter.throttle.rate, limiter.throttle.ceiling, limiter.throttle.last_request_at = 12.0, 14.0, now
        limiter.durations.add([61.0])
        limiter.last_request = 50

    store.update(learn)
    primary.limiter = RateLimiter()
    # A task process that has seen nothing yet.
    primary.update(take_number)
    found = store.update(lambda limiter, now: (limiter.throttle, limiter.durations.seconds, limiter.last_request))
    assert (found[0].rate, found[0].ceiling, found[0].last_request_at) == (12.0, 14.0, -math.inf)
    assert found[1:] == ([61], 50)


def test_processes_that_tell_a_store_that_has_lost_its_data_keep_the_interval(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    other = FallbackStore(primary, MemoryStore(clock.clock), clock.clock)
    # Each knows of later requests than the one before it.
    for one in (store, other, other, other):
        one.update(ask)
        clock.now += 10
    primary.limiter = RateLimiter()
    first, second = store.update(ask), other.update(ask)
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    assert second.delay - first.delay == pytest.approx(first.interval)


def test_a_store_that_was_away_and_has_lost_nothing_keeps_what_others_have_learnt_there(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock
) -> None:
    store.update(take_number)
    primary.away = True
    for _ in range(9):
        store.update(take_number)
    primary.limiter.throttle.rate = 7.0
    primary.away = False
    clock.now += 10
    assert store.update(lambda limiter, _: (limiter.throttle.rate, limiter.last_request)) == (7.0, 10)


def test_after_a_reset_no_process_brings_back_what_it_has_seen(store: FallbackStore, primary: UnsteadyStore) -> None:
    for _ in range(3):
        store.update(take_number)
    store.update(lambda limiter, _: setattr(limiter.throttle, "rate", 12.0))
    primary.reset()
    assert store.update(lambda limiter, _: (limiter.throttle.rate, limiter.last_request)) == (INITIAL_RATE, 3)


def test_a_reset_forgets_both(store: FallbackStore, primary: UnsteadyStore, clock: FakeClock) -> None:
    store.update(block)
    store.reset()
    assert not store.update(is_blocked)
    store.update(block)
    primary.away = True
    store.reset()
    assert not store.update(is_blocked)


# --- the submissions of the day


def test_the_day_is_counted_while_the_store_is_there(
    store: FallbackStore, primary: UnsteadyStore, clock: FakeClock, logged: Logged
) -> None:
    assert store.count_submission(2) == "today"
    primary.away = True
    # The ledger alone counts.
    assert [store.count_submission(2) for _ in range(3)] == [None] * 3
    primary.away = False
    # Though nothing else tries it again yet.
    assert store.count_submission(2) == "today"
    with pytest.raises(DayIsFullError):
        store.count_submission(2)
    store.uncount_submission("today")
    assert len(primary.counted) == 1
    primary.away = True
    store.uncount_submission("today")
    assert logged()[-1] == (
        "WARNING",
        "A submission that made no job counts as one of today in the unsteady store: It is away.",
    )


def test_a_block_holds_though_counting_has_found_the_store_away(store: FallbackStore, primary: UnsteadyStore) -> None:
    store.update(block)
    primary.away = True
    assert store.count_submission(2) is None
    assert store.update(is_blocked)


def test_without_a_safe_folder_each_process_limits_itself_and_its_log_says_so_once(
    clock: FakeClock, logged: Logged
) -> None:
    FileStore(SETTINGS).path.parent.write_text("")
    store = limiter_store(SETTINGS, None, clock.clock)
    for _ in range(2):
        store.update(block)
    assert store.update(is_blocked)
    assert not limiter_store(SETTINGS, None, clock.clock).update(is_blocked)
    assert [message for _, message in logged()] == [
        f"The rate limiter cannot be kept in {FileStore(SETTINGS).where}: File exists. Until it can, the requests of "
        "this API key are limited by this process alone."
    ] * 2
    assert tempfile.gettempdir() in logged()[0][1]


def test_a_decision_that_is_made_anew_finds_a_lost_store_as_it_was(
    primary: UnsteadyStore, store: FallbackStore
) -> None:
    store.update(take_number)
    store.update(lambda limiter, now: limiter.durations.add([60.0]))
    found = []

    def add(limiter: RateLimiter, now: float) -> None:
        limiter.durations.add([90.0])
        found.append(limiter.durations.seconds)

    decide_once = primary.update

    def decide_twice(decide: Decide[T]) -> T:
        # As where another process comes first, and the store that has lost its data is read once more.
        decide(RateLimiter(), 0.0)
        return decide_once(decide)

    primary.limiter = RateLimiter()
    primary.update = decide_twice  # type: ignore[method-assign]
    store.update(add)
    assert found == [[60, 90], [60, 90]]

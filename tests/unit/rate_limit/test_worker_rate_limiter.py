"""The rate limiter of a worker, on a clock that only a sleep advances."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from threading import Thread

import pytest

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.limiter_client import CHECK_INTERVAL
from airflow_provider_whisul.rate_limit.limiter_store import Decide, LimiterStore, T
from airflow_provider_whisul.rate_limit.poll_queue import MAX_UNPOLLED
from airflow_provider_whisul.rate_limit.rate_limiter import Kind
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE, MIN_RATE
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from tests.support.clock import NOON, FakeClock
from tests.support.rate_limiter import CountingStore, account_settings

KINDS: tuple[Kind, ...] = ("submission", "poll")


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    return CountingStore(clock.clock)


def worker(store: LimiterStore, clock: FakeClock, limit: float | None = None) -> WorkerRateLimiter:
    return WorkerRateLimiter(store, account_settings(limit), clock.clock)


# --- the rate


def test_requests_are_permitted_at_the_rate(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock, 4.0)
    sent = []
    for _ in range(4):
        limiter.acquire("poll", 60)
        sent.append(clock.now - NOON)
    assert sent == pytest.approx([0, 0.25, 0.5, 0.75])


def test_two_workers_share_the_rate(store: CountingStore, clock: FakeClock) -> None:
    one, other = worker(store, clock, 4.0), worker(store, clock, 4.0)
    for limiter in (one, other, one, other, one):
        limiter.acquire("submission", 60)
    assert clock.now - NOON == pytest.approx(1)


def test_a_limit_that_the_user_has_changed_is_taken_up_by_the_next_task(store: CountingStore, clock: FakeClock) -> None:
    worker(store, clock, 1.0).acquire("poll", 60)
    worker(store, clock, 100.0).acquire("poll", 60)
    assert clock.now - NOON == pytest.approx(0.01)


def test_a_limit_that_was_too_much_stays_known(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock, 8.0)
    limiter.on_response(limiter.acquire("poll", 60), throttled=True)
    limiter.on_response(limiter.acquire("poll", 60), throttled=False)
    began = clock.now
    worker(store, clock, 8.0).acquire("poll", 60)
    assert clock.now - began == pytest.approx(1 / store.limiter.throttle.rate)
    assert store.limiter.throttle.rate < 8


def test_the_store_is_told_of_submissions_which_go_first(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock, 10.0)
    limiter.acquire("poll", 600)
    assert store.limiter.submissions_until < clock.now
    limiter.acquire("submission", 600)
    assert store.limiter.submissions_until > clock.now


def test_a_poll_that_has_waited_long_has_a_larger_share_beside_submissions(clock: FakeClock) -> None:
    class Crowded(CountingStore):
        def update(self, decide: Decide[T]) -> T:
            # Others submit and poll without a pause, and always come first.
            for kind in KINDS:
                super().update(lambda limiter, now, kind=kind: limiter.acquire(now, kind))
            return super().update(decide)

    limiter = worker(Crowded(clock.clock), clock, 1.0)
    limiter.acquire("poll", 600)
    assert clock.now - NOON <= MAX_UNPOLLED


# --- blocks


def test_a_request_waits_for_the_cooldown_and_is_the_only_probe(store: CountingStore, clock: FakeClock) -> None:
    first, second = worker(store, clock), worker(store, clock)
    assert first.on_response(first.acquire("poll", 60), throttled=True) == 5
    probe = second.acquire("poll", 60)
    assert clock.now == pytest.approx(NOON + 5)
    # While the probe has no response, no other process sends a request.
    with pytest.raises(WhisulRateLimitError):
        first.acquire("poll", 10)
    assert clock.now <= NOON + 5 + 10 + 1
    assert second.on_response(probe, throttled=False) is None
    first.acquire("poll", 1)


def test_a_request_that_waits_notices_that_another_process_ended_the_block(
    store: CountingStore, clock: FakeClock
) -> None:
    first, second = worker(store, clock), worker(store, clock)
    first.on_response(first.acquire("poll", 60), throttled=True)
    probe = second.acquire("poll", 60)
    probed_at = clock.now

    def end_the_block(_: float) -> None:
        if clock.now >= probed_at + 3 and store.limiter.block.active:
            second.on_response(probe, throttled=False)

    clock.on_sleep = end_the_block
    # It is not refused although the probe may take longer than this.
    first.acquire("poll", 10)
    assert clock.now - probed_at <= 3 + 2 * CHECK_INTERVAL


def test_a_probe_whose_process_was_killed_is_followed_by_another(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock)
    limiter.on_response(limiter.acquire("poll", 60), throttled=True)
    worker(store, clock).acquire("poll", 60)
    assert limiter.acquire("poll", 600).probe
    assert clock.now - NOON == pytest.approx(5 + PROBE_TIMEOUT, abs=0.01)


def test_a_request_that_waited_for_its_permit_is_not_sent_into_a_block(store: CountingStore, clock: FakeClock) -> None:
    one, other = worker(store, clock, 2.0), worker(store, clock, 2.0)
    earlier = other.acquire("poll", 60)
    clock.on_sleep = lambda _: store.limiter.block.active or other.on_response(earlier, throttled=True)
    assert one.acquire("poll", 60).probe
    assert clock.now - NOON == pytest.approx(5)


def test_a_process_that_was_stopped_while_it_waited_asks_again(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock, 2.0)
    limiter.acquire("poll", 60)

    def stop(_: float) -> None:
        clock.on_sleep = lambda _: None
        clock.now += 100

    clock.on_sleep = stop
    assert limiter.acquire("poll", 600).number == 3


@pytest.mark.parametrize(("throttled", "cooldown"), [(True, 5), (False, None), (None, None)])
def test_on_response_returns_a_cooldown_only_after_a_429(
    store: CountingStore, clock: FakeClock, throttled: bool | None, cooldown: float | None
) -> None:
    limiter = worker(store, clock)
    assert limiter.on_response(limiter.acquire("poll", 60), throttled) == cooldown


def test_a_permit_holds_until_a_block_begins(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock)
    one, other = limiter.acquire("submission", 60), limiter.acquire("poll", 60)
    assert limiter.is_permitted(one)
    limiter.on_response(other, throttled=True)
    assert not limiter.is_permitted(one)


def test_a_block_and_its_end_are_logged(
    store: CountingStore, clock: FakeClock, task_log: Callable[[], list[str]]
) -> None:
    limiter = worker(store, clock)
    limiter.on_response(limiter.acquire("poll", 60), throttled=True)
    limiter.on_response(limiter.acquire("poll", 60), throttled=False)
    lines = [line for line in task_log() if "Whisul" in line]
    assert "No request is sent before 2026-02-17 12:00:05 UTC" in lines[0]
    assert "block of this API key is over" in lines[1]


def test_a_process_that_was_stopped_before_it_sent_its_probe_sends_another_at_once(
    store: CountingStore, clock: FakeClock
) -> None:
    limiter = worker(store, clock)
    limiter.on_response(limiter.acquire("poll", 60), throttled=True)
    clock.now += 5
    times = iter([0.0, 0.0, 10.0])
    clocked = clock.clock

    def monotonic() -> float:
        # The process stops between the store's answer and the request.
        clock.now += next(times, 0.0)
        return clock.now

    limiter._clock = replace(clocked, monotonic=monotonic)
    began = clock.now
    assert limiter.acquire("poll", 600).probe
    assert clock.now - began < PROBE_TIMEOUT / 2


def test_a_probe_that_was_not_sent_is_followed_by_another_at_once(store: CountingStore, clock: FakeClock) -> None:
    one, other = worker(store, clock), worker(store, clock)
    one.on_response(one.acquire("poll", 60), throttled=True)
    one.give_back(one.acquire("poll", 60))
    assert other.acquire("submission", 60).probe
    assert clock.now - NOON < 5 + 1 / MIN_RATE


def test_a_permit_that_was_not_used_costs_no_decision(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock)
    limiter.give_back(limiter.acquire("submission", 60))
    assert store.updates == 1


# --- max_wait


def test_a_request_that_is_not_permitted_in_time_is_refused_at_once_with_the_cooldown(
    store: CountingStore, clock: FakeClock
) -> None:
    limiter = worker(store, clock)
    limiter.on_response(limiter.acquire("poll", 60), throttled=True, retry_after=120.0)
    with pytest.raises(WhisulRateLimitError, match="Nothing was sent") as raised:
        limiter.acquire("poll", 119)
    assert (raised.value.cooldown, raised.value.retry_after, raised.value.http_status) == (120, None, None)
    assert clock.slept == []
    limiter.acquire("poll", 120)
    assert clock.now == pytest.approx(NOON + 120)


def test_a_refused_request_takes_no_permit_from_the_next_one(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock)
    number = limiter.acquire("poll", 60).number
    with pytest.raises(WhisulRateLimitError):
        limiter.acquire("poll", 0)
    assert clock.slept == []
    assert limiter.acquire("poll", 60).number == number + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_wait", [0.0, 0.3, 0.9, 1.5, 3.9])
def test_no_request_is_permitted_after_its_time(
    store: CountingStore, clock: FakeClock, max_wait: float, kind: Kind
) -> None:
    limiter = worker(store, clock, 0.25)
    limiter.acquire(kind, 60)
    with pytest.raises(WhisulRateLimitError):
        limiter.acquire(kind, max_wait)
    assert clock.now - NOON <= max_wait
    limiter.acquire(kind, 4.0)
    assert clock.now - NOON == pytest.approx(4)


def test_a_refusal_for_the_rate_alone_tells_of_no_cooldown(store: CountingStore, clock: FakeClock) -> None:
    limiter = worker(store, clock, 0.1)
    limiter.acquire("poll", 60)
    with pytest.raises(WhisulRateLimitError) as raised:
        limiter.acquire("poll", 5)
    assert raised.value.cooldown is None


def test_a_refusal_while_a_probe_is_out_tells_of_no_cooldown(store: CountingStore, clock: FakeClock) -> None:
    """A trigger would pause the whole account for as long as the response to the probe may take."""
    limiter = worker(store, clock)
    limiter.on_response(limiter.acquire("poll", 60), throttled=True)
    assert limiter.acquire("poll", 60).probe
    with pytest.raises(WhisulRateLimitError) as raised:
        worker(store, clock).acquire("poll", 5)
    assert raised.value.cooldown is None


def test_threads_and_forked_processes_have_places_of_their_own_in_the_line(
    store: CountingStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = worker(store, clock, 0.2)
    limiter.acquire("submission", 60)

    def wait() -> None:
        with pytest.raises(WhisulRateLimitError):
            limiter.acquire("submission", 0.0)

    wait()
    wait()
    thread = Thread(target=wait)
    thread.start()
    thread.join()
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        wait()
    assert len(store.limiter.line.places) == 3


# --- the store, and the clocks


def test_a_request_that_need_not_wait_costs_one_decision_and_its_response_none(
    store: CountingStore, clock: FakeClock
) -> None:
    limiter = worker(store, clock)
    permit = limiter.acquire("poll", 60)
    assert store.updates == 1
    for throttled in (False, None):
        limiter.on_response(permit, throttled)
    assert store.updates == 1
    limiter.on_response(permit, throttled=True)
    assert store.updates == 2
    probe = limiter.acquire("poll", 60)
    asked = store.updates
    limiter.on_response(probe, throttled=False)
    assert store.updates == asked + 1


def test_the_duration_of_a_job_is_kept_at_once(store: CountingStore, clock: FakeClock) -> None:
    times = {"started_at": "2026-02-17T12:00:00", "finished_at": "2026-02-17T12:01:30"}
    limiter = worker(store, clock)
    limiter.add_job(WhisulJob.from_json("a", {"status": "running"}))
    assert store.updates == 0
    limiter.add_job(WhisulJob.from_json("a", {"status": "failed", **times}))
    assert (store.limiter.durations.seconds, store.updates) == ([90], 1)
    limiter.acquire("poll", 60)
    assert store.limiter.durations.seconds == [90]


def test_a_job_that_is_polled_again_after_its_end_counts_once(store: CountingStore, clock: FakeClock) -> None:
    times = {"started_at": "2026-02-17T12:00:00", "finished_at": "2026-02-17T12:01:30"}
    for job_id in ("a", "b", "a"):
        # Each in another process.
        for _ in range(2):
            worker(store, clock).add_job(WhisulJob.from_json(job_id, {"status": "failed", **times}))
    assert store.limiter.durations.seconds == [90, 90]


def test_only_a_wait_for_the_rate_limiter_is_measured(
    store: CountingStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(metrics, "rate_limit_wait", waits.append)
    limiter = worker(store, clock, 2.0)
    for _ in range(3):
        limiter.acquire("poll", 60)
    assert waits == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("rate", "response_takes", "pause", "grows"),
    [(20.0, 0.0, 0.0, True), (0.2, 5.0, 0.0, True), (20.0, 0.0, 5.0, False), (0.2, 0.0, 5.0, False)],
)
def test_the_rate_grows_only_while_a_worker_sends_without_a_break(
    store: CountingStore, clock: FakeClock, rate: float, response_takes: float, pause: float, grows: bool
) -> None:
    limiter = worker(store, clock)
    store.limiter.throttle.rate = rate
    for _ in range(100):
        permit = limiter.acquire("submission", 60)
        clock.now += response_takes
        limiter.on_response(permit, throttled=False)
        clock.now += pause
    assert (store.limiter.throttle.rate > rate) == grows


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
@pytest.mark.parametrize("throttled", [True, False])
def test_a_wall_clock_that_was_wrong_for_one_task_delays_no_other(ahead: float, throttled: bool) -> None:
    clock = FakeClock(wall_ahead=ahead)
    one = worker(FileStore(account_settings(None), clock.clock), clock)
    one.on_response(one.acquire("poll", max_wait=0), throttled)
    clock.wall_ahead = 0.0
    began = clock.now
    worker(FileStore(account_settings(None), clock.clock), clock).acquire("poll", max_wait=600)
    assert clock.now - began == pytest.approx(5 if throttled else 1 / INITIAL_RATE)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_a_wall_clock_that_is_set_during_a_block_does_not_end_it(ahead: float) -> None:
    clock = FakeClock()
    one, other = (worker(FileStore(account_settings(None), clock.clock), clock) for _ in range(2))
    one.on_response(one.acquire("poll", max_wait=0), True, retry_after=60.0)
    began, clock.wall_ahead = clock.now, ahead
    with pytest.raises(WhisulRateLimitError) as refused:
        other.acquire("poll", max_wait=10)
    assert refused.value.cooldown == pytest.approx(60)
    other.acquire("poll", max_wait=600)
    assert clock.now - began == pytest.approx(60)


def test_a_response_that_asks_to_wait_delays_the_requests_of_all_workers(
    store: CountingStore, clock: FakeClock
) -> None:
    first, second = worker(store, clock, 10.0), worker(store, clock, 10.0)
    assert first.on_response(first.acquire("poll", 60), throttled=False, retry_after=12) is None
    second.acquire("submission", 60)
    assert clock.now - NOON == pytest.approx(12)

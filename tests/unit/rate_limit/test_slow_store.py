"""A store that takes long for each decision, as a Redis in another region does: two round trips of up to 120 ms."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.limiter_store import Decide, T
from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, MAX_LEASE_SECONDS, RateLimiter
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from tests.support.clock import FakeClock, VirtualLoop, run_virtually, thread_clock
from tests.support.rate_limiter import Account, CountingStore, account_settings


class DistantStore(CountingStore):
    """A store whose decisions take a while, half of it on the way there."""

    def __init__(self, clock: Clock, seconds: float, limiter: RateLimiter | None = None) -> None:
        super().__init__(clock)
        self.limiter = limiter or self.limiter
        self.seconds = seconds
        #: Seconds by which the next answer is late.
        self.late = 0.0

    def update(self, decide: Decide[T]) -> T:
        self._clock.sleep(self.seconds / 2)
        result = super().update(decide)
        late, self.late = self.late, 0.0
        self._clock.sleep(self.seconds / 2 + late)
        return result


async def sent_at(loop: VirtualLoop, limit: float | None, polls: int, seconds: float) -> list[float]:
    """Return when polls are sent that are all due at once."""
    account = Account(loop, limit, DistantStore(thread_clock(loop), seconds))
    await asyncio.gather(*(account.request("a") for _ in range(polls)))
    return account.times


async def end(polls: list[asyncio.Task[float | None]]) -> None:
    """Cancel polls, and wait until the store is not being asked any more: else its thread would wait for ever."""
    for poll in polls:
        poll.cancel()
    await asyncio.sleep(5)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.24])
@pytest.mark.parametrize("limit", [1.0, 2.0, 5.0, 8.0, 20.0, 100.0])
def test_polls_are_sent_at_four_fifths_of_the_rate_at_least(seconds: float, limit: float) -> None:
    times = run_virtually(lambda loop: sent_at(loop, limit, int(20 * limit) + 1, seconds))
    # How slow the store is, is known after three answers.
    assert times[-1] - times[0] <= 20 / 0.8 + 2
    assert all(later - earlier >= 1 / limit - 1e-6 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.24])
def test_the_rate_rises_where_the_limit_is_unknown(seconds: float) -> None:
    times, at_once = (run_virtually(lambda loop, took=took: sent_at(loop, None, 400, took)) for took in (seconds, 0.0))
    assert times[-1] <= 1.3 * at_once[-1]


@pytest.mark.parametrize("limit", [1.0, 20.0])
def test_a_block_of_another_process_is_noticed_within_two_answers_and_a_lease(limit: float) -> None:
    async def main(loop: VirtualLoop) -> tuple[float, list[float]]:
        account = Account(loop, limit, DistantStore(thread_clock(loop), 0.2))
        polls = [account.start("a") for _ in range(int(20 * limit))]
        await asyncio.sleep(10)
        account.limiter.on_response(loop.time(), account.limiter.last_request, True)
        blocked_at = loop.time()
        await asyncio.sleep(4)
        await end(polls)
        return blocked_at, account.times

    blocked_at, times = run_virtually(main)
    assert max(times) <= blocked_at + 2 * 0.2 + MAX_LEASE_SECONDS


def test_an_answer_that_was_held_up_is_checked() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 20.0, store := DistantStore(thread_clock(loop), 0.1))
        for _ in range(4):
            await account.request("a")
        store.seconds = 2.0
        waiting = account.start("b")
        await asyncio.sleep(1.5)
        assert account.limiter.last_request == 5
        # Another process has met it after the store has answered.
        account.limiter.on_response(loop.time(), account.limiter.last_request, True)
        store.seconds = 0.1
        await waiting
        assert account.times[-1] >= 1.5 + 5

    run_virtually(main)


@pytest.mark.parametrize("late", [0.2, 0.45, 1.0])
@pytest.mark.parametrize("phase", [0.0, 0.3, 0.6])
def test_an_answer_that_comes_late_adds_no_burst_to_the_requests_of_others(late: float, phase: float) -> None:
    async def main(loop: VirtualLoop) -> list[float]:
        shared = RateLimiter()
        accounts = [Account(loop, 20.0, DistantStore(thread_clock(loop), 0.24, shared)) for _ in range(2)]
        polls = [account.start("a") for account in accounts for _ in range(300)]
        await asyncio.sleep(8 + phase)
        accounts[0].store.late = late  # type: ignore[attr-defined]
        await asyncio.sleep(6)
        await end(polls)
        return sorted(accounts[0].times + accounts[1].times)

    times = run_virtually(main)
    assert len(times) >= 0.8 * 20 * 14
    # Those of LEASE_SECONDS more, for which a lease may be used late.
    assert max(sum(at <= other < at + 1 for other in times) for at in times) <= 20 * (1 + LEASE_SECONDS) + 1


@pytest.mark.parametrize("lag", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("limit", [1.0, 8.0, 20.0])
def test_a_loop_that_is_late_for_each_answer_sends_polls_all_the_same(lag: float, limit: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, limit)
        in_thread = account.rate_limiter._in_thread

        def late_in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
            def pass_time(_: object) -> None:
                loop.virtual.elapsed += lag

            answer = in_thread(function)
            answer.add_done_callback(pass_time)
            return answer

        account.rate_limiter._in_thread = late_in_thread  # type: ignore[method-assign]
        await asyncio.gather(*(account.request("a") for _ in range(int(20 * limit))))
        assert account.times[-1] <= 2 * 20

    run_virtually(main)


@pytest.mark.parametrize("limit", [1.0, 20.0])
def test_polls_are_sent_where_each_answer_takes_longer_than_the_one_before(limit: float) -> None:
    async def main(loop: VirtualLoop) -> list[float]:
        account = Account(loop, limit, store := DistantStore(thread_clock(loop), 0.02))
        polls = [account.start("a") for _ in range(int(60 * limit))]
        while loop.time() < 60:
            await asyncio.sleep(0.5)
            store.seconds = min(1.1 * store.seconds, 1.0)
        await end(polls)
        return account.times

    times = run_virtually(main)
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 6


@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("late", [0.3, 1.0])
def test_a_late_answer_costs_no_more_than_a_question(limit: float | None, late: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, limit, store := DistantStore(thread_clock(loop), 0.001))
        store.late = late
        polls = [account.start("a") for _ in range(100)]
        await asyncio.sleep(4)
        # Each permit is asked for and checked. The rate of an unknown limit rises by 7 % in a second.
        assert store.updates <= 2 * len(account.sent) + 5
        assert account.limiter.throttle.rate <= 1.36
        await end(polls)

    run_virtually(main)


def test_a_workers_429_that_the_loop_knows_of_drops_no_permit() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 20.0)
        await account.request("a", throttled=True)
        await account.request("a")
        known = NotBefore(loop.wall() + 10, 10, account.limiter.store_id, account.limiter.block.throttled_at)
        polls = [account.start("a") for _ in range(300)]
        began = loop.time()
        for _ in range(100):
            await asyncio.sleep(0.1)
            await account.rate_limiter.pause_until(known)
        assert len(account.sent) >= 0.9 * account.limiter.throttle.rate * (loop.time() - began)
        await end(polls)

    run_virtually(main)


def test_nothing_is_sent_after_a_workers_429_that_an_earlier_version_has_met_before_the_first_answer() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0, DistantStore(thread_clock(loop), 0.04))
        polls = [account.start("a") for _ in range(30)]
        await asyncio.sleep(0.01)
        await account.rate_limiter.pause_until(NotBefore(loop.wall() + 10, 10, None, None))
        await asyncio.sleep(5)
        assert account.sent == []
        await end(polls)

    run_virtually(main)


def test_nothing_is_sent_once_the_loop_knows_of_a_workers_429() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 20.0, DistantStore(thread_clock(loop), 0.24))
        polls = [account.start("a") for _ in range(300)]
        for phase in (0.0, 0.1, 0.4):
            await asyncio.sleep(5 + phase)
            sent = len(account.sent)
            assert sent < len(polls)
            pausing = loop.create_task(account.rate_limiter.pause_until(NotBefore(loop.wall() + 10, 10)))
            await asyncio.sleep(9)
            assert len(account.sent) == sent
            await pausing
            # The probe, and the rate again.
            await asyncio.sleep(5)
        await end(polls)

    run_virtually(main)


@pytest.mark.parametrize("seconds", [0.1, 0.4])
def test_a_worker_asks_a_store_once_that_takes_as_long_as_usual(clock: FakeClock, seconds: float) -> None:
    worker = WorkerRateLimiter(store := DistantStore(clock.clock, seconds), account_settings(20.0), clock.clock)
    for _ in range(10):
        worker.acquire("submission", 60)
    # What is usual is known after three answers.
    assert store.updates == 10 + 3


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_the_first_answers_are_checked_where_they_come_late(clock: FakeClock, before: int) -> None:
    store = DistantStore(clock.clock, 0.0)
    worker = WorkerRateLimiter(store, account_settings(20.0), clock.clock)
    for _ in range(before):
        worker.acquire("poll", 60)

    def block(seconds: float) -> None:
        if seconds > 1:
            clock.on_sleep = lambda _: None
            # Another process has met it after the store has answered.
            store.limiter.on_response(clock.now, store.limiter.last_request, True)

    store.late, clock.on_sleep = 2.0, block
    asked_at = clock.now
    worker.acquire("poll", 60)
    assert clock.now >= asked_at + 5


@pytest.mark.parametrize("answers", [[0.0] * 3, [1.5] * 3 + [0.0] * 2])
def test_a_permit_that_was_waited_for_is_checked_whatever_earlier_answers_took(
    clock: FakeClock, answers: list[float]
) -> None:
    store = DistantStore(clock.clock, 0.0)
    worker = WorkerRateLimiter(store, account_settings(1.0), clock.clock)
    for store.seconds in answers:
        worker.acquire("poll", 60)
    store.seconds = 0.0

    def block(seconds: float) -> None:
        if seconds > 0.5:
            clock.on_sleep = lambda _: None
            store.limiter.on_response(clock.now, store.limiter.last_request, True)

    clock.on_sleep = block
    asked_at = clock.now
    worker.acquire("poll", 60)
    assert clock.now >= asked_at + 5

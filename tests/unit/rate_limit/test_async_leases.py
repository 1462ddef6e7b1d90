"""How an event loop's rate limiter uses its store: leases ahead of need, asked for in a thread."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.clock import SYSTEM_CLOCK
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.limiter_store import Decide, T
from airflow_provider_whisul.rate_limit.rate_limiter import Permit
from tests.support.clock import NOON, VirtualLoop, loop_clock, run_virtually
from tests.support.rate_limiter import Account, CountingStore, account_settings


def test_the_store_is_asked_only_in_a_thread() -> None:
    threads = set()

    class Store(CountingStore):
        def update(self, decide: Decide[T]) -> T:
            threads.add(threading.get_ident())
            return super().update(decide)

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, store=Store(loop_clock(loop)))
        await asyncio.gather(*(account.request(name, throttled=name == "a") for name in "abc"))
        await account.rate_limiter.pause_until(NotBefore(NOON + 100, 100))

    run_virtually(main)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("rate", [200.0, 5_000.0])
def test_100_polls_per_second_need_seven_decisions_per_second(rate: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        account, random_numbers = Account(loop, rate), random.Random(1)
        await asyncio.gather(*(account.request("a", at=random_numbers.uniform(0, 20)) for _ in range(2_000)))
        assert len(account.sent) == 2_000
        assert account.store.updates <= 20 * 7

    run_virtually(main)


def test_a_response_costs_no_decision_unless_it_is_a_429_or_a_probes() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)

        async def decisions(**how: Any) -> int:
            permit = await account.rate_limiter.acquire()
            before = account.store.updates
            await account.rate_limiter.on_response(permit, **how)
            return account.store.updates - before

        assert await decisions(throttled=False) == 0
        assert await decisions(throttled=None) == 0
        assert await decisions(throttled=True) == 1
        assert await decisions(throttled=False) == 1
        assert not account.blocked
        assert await decisions(throttled=False) == 0

    run_virtually(main)


def test_polls_that_come_within_a_lease_use_its_permits_at_the_rate() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0)
        # Enough of them that a lease for several is worth it.
        await asyncio.gather(*(account.request("a", at=n / 100) for n in range(201)))
        await account.request("b")
        await asyncio.sleep(0.1)
        asked = account.store.updates
        await asyncio.gather(*(account.request("c") for _ in range(3)))
        assert account.store.updates == asked
        assert all(later - earlier >= 0.01 - 1e-6 for earlier, later in itertools.pairwise(account.times))

    run_virtually(main)


def test_permits_that_nobody_has_used_run_out() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0)
        await asyncio.gather(*(account.request("a", at=n / 100) for n in range(100)))
        await asyncio.sleep(5)
        asked = account.store.updates
        await account.request("b")
        assert account.store.updates == asked + 1

    run_virtually(main)


def test_an_own_429_drops_the_rest_of_the_lease() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0)
        tasks = [account.start("a", takes=0.005, throttled=True), *(account.start("b") for _ in range(19))]
        await asyncio.wait(tasks)
        # The second permit of the lease would have been for 0.01 s.
        assert account.times[:2] == [0, pytest.approx(5.005)]

    run_virtually(main)


def test_an_own_response_that_asks_to_wait_drops_the_rest_of_the_lease() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0)
        tasks = [account.start("a", takes=0.005, retry_after=7.0), *(account.start("b") for _ in range(19))]
        await asyncio.wait(tasks)
        assert account.times[:2] == [0, pytest.approx(7.005)]
        assert not account.blocked

    run_virtually(main)


def test_a_lease_that_began_later_is_not_used_after_a_block_of_another_process() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 2.0)
        other = Account(loop, 2.0, account.store)
        permit = await other.rate_limiter.acquire()
        waiting = account.start("a")
        await asyncio.sleep(0.2)
        assert account.limiter.last_request == 2
        await other.rate_limiter.on_response(permit, throttled=True)
        await waiting
        assert account.times == [pytest.approx(5.2)]

    run_virtually(main)


def test_a_lease_that_nobody_waits_for_any_more_is_given_back() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 2.0)
        other = Account(loop, 2.0, account.store)
        await other.request("a")
        waiting = account.start("b")
        await asyncio.sleep(0.2)
        waiting.cancel()
        await asyncio.sleep(0.31)
        await other.request("c")
        assert other.times == [0, pytest.approx(0.51)]

    run_virtually(main)


@pytest.mark.parametrize("blocked", [True, False])
def test_a_poll_that_is_cancelled_while_the_store_is_asked_blocks_nobody(blocked: bool) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, store=(store := SlowStore(loop)))
        store.may_answer.set()
        if blocked:
            await account.request("x", throttled=True)
            await asyncio.sleep(5)
        store.may_answer.clear()
        store.asked.clear()
        waiting = account.start("a")
        await store.is_asked()
        waiting.cancel()
        await asyncio.wait([waiting])
        store.may_answer.set()
        await account.request("b")
        assert account.names.endswith("b")
        # At most one even interval after the permit that nobody used.
        assert loop.time() <= (5 if blocked else 0) + 0.2
        assert not account.blocked

    run_virtually(main)


def test_a_process_that_was_stopped_before_its_lease_began_asks_again() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 2.0)
        await account.request("a")
        waiting = account.start("b")
        await asyncio.sleep(0.2)
        assert account.limiter.last_request == 2
        loop.virtual.elapsed += 100
        await waiting
        assert account.limiter.last_request == 3
        assert account.times == [0, pytest.approx(100.2)]

    run_virtually(main)


def test_a_process_that_was_stopped_in_the_middle_of_its_lease_sends_nothing_into_a_block() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0)
        other = Account(loop, 100.0, account.store)
        tasks = [account.start("a") for _ in range(20)]
        await asyncio.sleep(0.05)
        sent = len(account.sent)
        loop.virtual.elapsed += 100
        # The others have met a block meanwhile, which is 2 s old.
        account.limiter.on_response(loop.time() - 2, account.limiter.last_request, True)
        await asyncio.wait(tasks)
        assert account.times[sent] >= 0.05 + 98 + 5
        await other.request("b")

    run_virtually(main)


def test_a_changed_limit_is_taken_up_with_the_next_decision() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 1.0)
        await account.request("a")
        account.rate_limiter.settings = account_settings(100.0)
        await account.request("b")
        assert account.times == [0, pytest.approx(0.01)]

    run_virtually(main)


def test_durations_of_jobs_are_kept_with_the_next_decision_and_cost_none_of_their_own() -> None:
    def job(job_id: str, status: str, seconds: int, url: str | None = "https://cdn.whisul.test/a.mp3") -> WhisulJob:
        times = {
            "started_at": "2026-02-17T12:00:00",
            "finished_at": f"2026-02-17T12:{seconds // 60:02}:{seconds % 60:02}",
        }
        return WhisulJob.from_json(job_id, {"status": status, "result": {"song_url": url}, **times})

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        # A completed job without a URL is polled again.
        for ended in (
            job("a", "completed", 61, url=None),
            job("a", "completed", 61),
            job("b", "completed", 90),
            job("c", "failed", 70),
        ):
            account.rate_limiter.add_job(ended)
        assert account.store.updates == 0
        await account.request("a")
        await account.request("b")
        assert account.limiter.durations.seconds == [61, 90, 70]
        assert account.rate_limiter.durations.seconds == [61, 90, 70]

    run_virtually(main)


def test_an_error_of_the_store_reaches_those_who_wait_and_not_those_who_come_later() -> None:
    class Broken(CountingStore):
        def update(self, decide: Decide[T]) -> T:
            self.updates += 1
            if self.updates == 1:
                raise ZeroDivisionError
            return super().update(decide)

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, store=Broken(loop_clock(loop)))
        results = await asyncio.gather(*(account.request(name) for name in "ab"), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 2
        await account.request("c")
        assert account.names == "c"

    run_virtually(main)


def test_a_rate_limiter_keeps_neither_its_event_loop_nor_its_thread() -> None:
    account: list[Account] = []

    async def main(loop: VirtualLoop) -> weakref.ref[VirtualLoop]:
        account.append(Account(loop))
        await asyncio.gather(*(account[0].request(name) for name in "abc"))
        # Else it would keep the loop, which the test is not about.
        account[0].store, account[0].rate_limiter.store = None, None  # type: ignore[assignment]
        account[0].rate_limiter._clock = SYSTEM_CLOCK
        return weakref.ref(loop)

    loop = run_virtually(main)
    limiters = [account.pop().rate_limiter]
    gc.collect()
    assert loop() is None
    (thread,) = limiters[0]._thread._threads
    limiters.clear()
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


# --- cancellation, with the store in between


class SlowStore(CountingStore):
    """A store in memory that answers when the test says so."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(loop_clock(loop))
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def update(self, decide: Decide[T]) -> T:
        self.asked.set()
        assert self.may_answer.wait(30)
        return super().update(decide)

    async def is_asked(self) -> None:
        while not self.asked.is_set():
            await asyncio.sleep(0)
        self.asked.clear()


def test_an_own_429_while_the_store_is_asked_holds_for_its_answer() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0, store := SlowStore(loop))
        store.may_answer.set()
        permit = await account.rate_limiter.acquire()
        store.may_answer.clear()
        store.asked.clear()
        waiting = account.start("a")
        await store.is_asked()
        report = account.rate_limiter.on_response(permit, throttled=True)
        store.may_answer.set()
        assert await report == pytest.approx(5)
        await waiting
        assert account.times == [pytest.approx(5)]

    run_virtually(main)


def test_a_429_is_reported_although_the_poll_is_cancelled_meanwhile() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 100.0, store := SlowStore(loop))
        store.may_answer.set()
        permit = await account.rate_limiter.acquire()
        store.may_answer.clear()
        store.asked.clear()
        # The thread is busy, so that the report waits for its turn.
        busy = account.start("a")
        await store.is_asked()

        async def report() -> None:
            await account.rate_limiter.on_response(permit, throttled=True)

        reporting = loop.create_task(report())
        await asyncio.sleep(0)
        reporting.cancel()
        await asyncio.wait([reporting])
        store.may_answer.set()
        await busy
        assert account.times == [pytest.approx(5)]

    run_virtually(main)


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("others", [0, 1])
def test_a_permit_whose_poll_is_cancelled_before_it_goes_on_is_not_lost(blocked: bool, others: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 2.0)
        await account.request("x", throttled=blocked)
        waiting = account.start("a")
        rest = [account.start("b") for _ in range(others)]
        pass_on = account.rate_limiter._pass_on

        def cancel_at_once(permit: Permit) -> None:
            pass_on(permit)
            waiting.cancel()

        account.rate_limiter._pass_on = cancel_at_once  # type: ignore[method-assign]
        await asyncio.wait([waiting])
        account.rate_limiter._pass_on = pass_on  # type: ignore[method-assign]
        if rest:
            await asyncio.wait(rest)
            assert account.sent == [(0, "x"), (5 if blocked else 0.5, "b")]
        else:
            asked = account.store.updates
            await account.request("c")
            # The probe is given back, so that another one is sent at once.
            assert account.sent[1:] == [(pytest.approx(5 + 1 / account.limiter.throttle.rate if blocked else 0.5), "c")]
            assert blocked or account.store.updates == asked

    run_virtually(main)


# --- what a poll is told, and who is told what


def test_a_poll_that_must_not_wait_is_permitted_where_nothing_forbids_it() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", max_wait=0.0)
        assert account.times == [0]

    run_virtually(main)


@pytest.mark.parametrize("blocked", [True, False])
def test_only_a_refusal_for_a_block_tells_of_a_cooldown(blocked: bool) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 0.1)
        await account.request("a", throttled=blocked)
        with pytest.raises(WhisulRateLimitError) as raised:
            await account.request("b", max_wait=2.0)
        assert (raised.value.cooldown is not None) == blocked

    run_virtually(main)


def test_a_poll_that_waits_notices_within_a_second_that_another_process_ended_the_block() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        other = Account(loop, store=account.store)
        await account.request("a", throttled=True)
        probe = other.start("b", at=5, takes=3)
        waiting = account.start("c", at=5.5)
        await asyncio.wait([probe, waiting])
        assert other.times == [5]
        assert 8 <= account.times[1] <= 9

    run_virtually(main)


def test_what_the_store_logs_goes_to_the_log_of_the_trigger_that_reports_and_of_no_other() -> None:
    trigger: ContextVar[str] = ContextVar("trigger", default="")
    seen: list[str] = []

    class Store(CountingStore):
        def update(self, decide: Decide[T]) -> T:
            seen.append(trigger.get())
            return super().update(decide)

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, store=Store(loop_clock(loop)))
        trigger.set("one")
        await account.request("a", throttled=True)

    run_virtually(main)
    assert seen == ["", "one"]

"""The rate limiter of an event loop, on a loop whose time is virtual."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_whisul import metrics
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.polling import last_poll_max_wait
from airflow_provider_whisul.rate_limit.async_rate_limiter import AsyncRateLimiter
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.limiter_store import MemoryStore
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from airflow_provider_whisul.sandbox.state import RateLimit
from tests.support.clock import NOON, VirtualLoop, loop_clock, run_virtually
from tests.support.rate_limiter import Account, account_settings

#: Less than the resolution of the loop's clock: what is so far apart happens in the same moment, but in this order.
INSTANT = 1e-10


# --- order and rate


def test_a_single_request_is_permitted_at_once() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a")
        assert account.times == [0]

    run_virtually(main)


def test_requests_are_permitted_first_in_first_out_at_the_rate() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await asyncio.gather(
            *(account.request(name) for name in "abcd"),
            # These ask while others wait.
            account.request("f", at=0.25),
            account.request("e", at=0.15),
        )
        assert account.names == "abcdef"
        assert account.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])

    run_virtually(main)


def test_a_request_that_asks_later_is_not_permitted_before_one_that_waits() -> None:
    """Not even where it asks in the very moment in which the next request is allowed."""

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        moment = loop.create_future()
        # Earlier than the timer of "b" for the same time, so that "d" runs before "b" does.
        loop.call_at(0.1, moment.set_result, None)

        async def ask_in_that_moment() -> None:
            await moment
            await account.request("d")

        await asyncio.gather(ask_in_that_moment(), *(account.request(name) for name in "abc"))
        assert account.names == "abcd"

    run_virtually(main)


@pytest.mark.parametrize("jobs", [1, 3, 10, 30, 100, 1_000])
def test_the_last_polls_of_a_batch_are_all_permitted_where_nothing_is_known_of_the_limit(jobs: int) -> None:
    """As where no triggerer has run until the deadline."""

    async def main(loop: VirtualLoop) -> None:
        account, max_wait = Account(loop, limit=None), last_poll_max_wait(jobs, "timeout")
        await asyncio.gather(*(account.request("a", max_wait=max_wait) for _ in range(jobs)))

    run_virtually(main)


def test_a_slow_response_delays_no_other_request() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await asyncio.gather(*(account.request(name, takes=30) for name in "abc"))
        assert account.times == pytest.approx([0, 0.1, 0.2])

    run_virtually(main)


def test_the_rate_grows_only_while_requests_are_overdue() -> None:
    async def main(loop: VirtualLoop) -> None:
        many, few = Account(loop, None), Account(loop, None)
        await asyncio.gather(*(many.request("a") for _ in range(20)))
        for _ in range(20):
            await few.request("a")
            await asyncio.sleep(5)
        assert many.limiter.throttle.rate > few.limiter.throttle.rate == INITIAL_RATE

    run_virtually(main)


# --- cancellation


@pytest.mark.parametrize("cancelled", ["c", "d", "f", "ce", "cde", "cdef"])
def test_a_cancelled_request_leaves_no_gap_in_the_queue(cancelled: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        tasks = {name: account.start(name) for name in "abcdef"}
        await asyncio.sleep(0.15)
        for name in cancelled:
            tasks[name].cancel()
        await asyncio.wait(tasks.values())
        assert account.names == "".join(name for name in "abcdef" if name not in cancelled)
        assert account.times == pytest.approx([n / 10 for n in range(6 - len(cancelled))])

    run_virtually(main)


def test_a_request_that_is_cancelled_in_the_moment_of_its_permit_passes_it_on() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        tasks = [account.start(name) for name in "abc"]
        await asyncio.sleep(0.05)
        loop.call_at(0.1 + INSTANT, tasks[1].cancel)
        await asyncio.wait(tasks)
        assert account.sent == [(0, "a"), (0.1, "c")]

    run_virtually(main)


def test_a_request_that_is_cancelled_under_way_changes_nothing() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        task = account.start("a", takes=30, throttled=True)
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert not account.blocked
        await account.request("b")
        assert account.times == [0, 1]

    run_virtually(main)


# The second one leaves its permit, which a later one takes beside a new lease.
@example([(0.0, None), (0.0, 0.0), (0.25, None), (0.25, None)])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.none() | st.floats(0, 3)), min_size=1, max_size=40))
def test_each_request_that_is_not_cancelled_is_permitted_as_soon_as_possible(
    plan: list[tuple[float, float | None]],
) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        tasks = [account.start(str(n), at=at) for n, (at, _) in enumerate(plan)]
        for task, (at, cancel_after) in zip(tasks, plan, strict=True):
            if cancel_after is not None:
                loop.call_at(at + cancel_after, task.cancel)
        await asyncio.wait(tasks)
        sent = {int(name): at for at, name in account.sent}
        for n, (_, cancel_after) in enumerate(plan):
            assert n in sent or cancel_after is not None
        assert all(b - a >= 0.1 - 1e-5 for a, b in itertools.pairwise(account.times))
        # No request waits longer than the rate demands.
        for n, (arrived, _) in enumerate(plan):
            for a, b in itertools.pairwise(account.times):
                assert not (n in sent and sent[n] >= b and arrived <= a and b - a > 0.1 + 1e-5)
        assert loop.time() < 60

    run_virtually(main)


# --- blocks


def test_after_a_429_one_probe_is_sent_and_after_its_success_the_others(task_log: Callable[[], list[str]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        assert await account.request("a", throttled=True) == 5
        probe = account.start("b", takes=2, throttled=True)
        others = [account.start(name) for name in "cd"]
        assert await probe == 10
        assert account.names == "ab"
        assert account.allowed_at == pytest.approx(17)
        await asyncio.wait(others)
        assert account.names == "abcd"
        assert account.times[2:] == pytest.approx([17, 17 + 1 / account.limiter.throttle.rate], abs=1e-3)
        assert not account.blocked

    run_virtually(main)
    lines = [line for line in task_log() if "Whisul" in line]
    assert len(lines) == 3
    assert "No request is sent before 2026-02-17 12:00:05 UTC" in lines[0]
    assert "No request is sent before 2026-02-17 12:00:17 UTC" in lines[1]
    assert "block of this API key is over" in lines[2]


def test_while_a_probe_has_no_response_the_next_request_waits_for_it_or_its_timeout() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", throttled=True)
        probe = account.start("b", takes=3)
        await asyncio.sleep(6)
        # The probe was sent after 5 s.
        assert account.allowed_at == 5 + PROBE_TIMEOUT
        await account.request("c")
        assert account.sent[1:] == [(5, "b"), (8, "c")]
        await probe

    run_virtually(main)


def test_retry_after_is_waited_for() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        assert await account.request("a", throttled=True, retry_after=90.0) == 90
        await account.request("b")
        assert account.times == [0, 90]

    run_virtually(main)


def test_a_429_in_the_moment_of_the_next_permit_withholds_it() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        first = await account.rate_limiter.acquire()
        tasks = [account.start(name) for name in "bc"]
        await asyncio.sleep(0.05)
        # Between the timer of the next request and its task.
        loop.call_at(0.1 + INSTANT, account.rate_limiter.on_response, first, True)
        await asyncio.wait(tasks)
        assert account.names == "bc"
        assert account.times == pytest.approx([5.1, 5.1 + 1 / account.limiter.throttle.rate], abs=1e-3)

    run_virtually(main)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_probe_without_a_response_is_followed_by_another(cancelled: bool) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", throttled=True)
        probe = account.start("b", takes=2, throttled=None)
        other = account.start("c")
        await asyncio.sleep(6)
        if cancelled:
            probe.cancel()
        await asyncio.wait([probe, other])
        assert account.sent[2:] == [(11 if cancelled else 12, "c")]

    run_virtually(main)


@pytest.mark.parametrize(("throttled", "cooldown"), [(True, 5), (False, None), (None, None)])
def test_on_response_returns_a_cooldown_only_after_a_429(throttled: bool | None, cooldown: float | None) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        assert await account.request("a", throttled=throttled) == cooldown
        assert account.blocked is bool(throttled)

    run_virtually(main)


# --- a 429 that a worker has met


@pytest.mark.parametrize("clock_ahead", [0, 7200], ids=["", "of a worker whose clock is ahead"])
def test_after_pause_until_one_probe_is_sent_at_that_time(clock_ahead: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.rate_limiter.pause_until(NotBefore(NOON + clock_ahead + 30, 30))
        probe, other = account.start("a", takes=2), account.start("b")
        await asyncio.wait([probe, other])
        assert account.sent == [(30, "a"), (32, "b")]

    run_virtually(main)


@pytest.mark.parametrize("not_before", [NOON - 30, NOON])
def test_pause_until_a_past_time_changes_nothing(not_before: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.rate_limiter.pause_until(NotBefore(not_before, 60))
        assert not account.blocked
        await account.request("a")
        assert account.times == [0]

    run_virtually(main)


def test_pause_until_lengthens_a_block_that_is_there_and_begins_none() -> None:
    """Else each of a thousand jobs that defer after one 429 would begin a block of its own."""

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", throttled=True)
        step = account.limiter.block.step
        await account.rate_limiter.pause_until(NotBefore(NOON + 30, 60))
        await account.rate_limiter.pause_until(NotBefore(NOON + 10, 60))
        assert account.limiter.block.step == step
        await account.request("b")
        assert account.times == [0, 30]

    run_virtually(main)


def refused_worker(store: MemoryStore, loop: VirtualLoop) -> NotBefore:
    """Return what a task that meets a block in a store tells its trigger."""
    worker = WorkerRateLimiter(store, account_settings(), loop_clock(loop))
    with pytest.raises(WhisulRateLimitError) as refused:
        worker.acquire("poll", 0)
    not_before = worker.throttled_until(refused.value)
    assert not_before is not None
    return not_before


@pytest.mark.parametrize("behind", [0.0, 1.0, 3600.0])
def test_a_block_in_a_shared_store_is_not_prolonged_by_the_triggers_of_tasks_that_meet_it(behind: float) -> None:
    """By how much the triggerer's wall clock is behind the worker's, for each generation of tasks."""

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        clock = loop_clock(loop)
        behind_clock = replace(clock, time=lambda: clock.time() - behind)
        triggerer = AsyncRateLimiter(account.store, account_settings(), behind_clock)
        await account.request("a", throttled=True, retry_after=60.0)
        while loop.time() < 56:
            not_before = refused_worker(account.store, loop)
            await asyncio.sleep(2)
            await triggerer.pause_until(not_before)
            assert account.allowed_at == pytest.approx(60)

    run_virtually(main)


@pytest.mark.parametrize("left", [30.0, 2.0])
def test_a_block_that_only_the_store_of_the_worker_knows_pauses_the_triggerer_for_what_is_left_of_it(
    left: float,
) -> None:
    async def main(loop: VirtualLoop) -> None:
        account, workers = Account(loop), Account(loop)
        await workers.request("a", throttled=True, retry_after=60.0)
        await asyncio.sleep(60 - left)
        await account.rate_limiter.pause_until(refused_worker(workers.store, loop))
        assert account.allowed_at == pytest.approx(60)
        await account.request("b")
        assert account.times == [60]

    run_virtually(main)


def test_a_block_that_a_user_has_reset_is_not_begun_again_by_a_trigger_that_starts_then() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", throttled=True, retry_after=60.0)
        not_before = refused_worker(account.store, loop)
        account.store.reset()
        await account.rate_limiter.pause_until(not_before)
        assert not account.blocked

    run_virtually(main)


# --- max_wait


def test_a_request_that_is_not_permitted_in_time_is_refused_and_delays_no_other() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", throttled=True)
        refused = account.start("x", max_wait=3)
        other = account.start("b")
        with pytest.raises(WhisulRateLimitError, match="may be sent at 2026-02-17 12:00:05 UTC, .*Nothing") as raised:
            await refused
        assert loop.time() == 3
        assert (raised.value.cooldown, raised.value.retry_after, raised.value.http_status) == (2, None, None)
        await other
        assert account.sent == [(0, "a"), (5, "b")]

    run_virtually(main)


def test_a_request_behind_others_is_refused_in_time_too() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 1.0)
        others = [account.start(name) for name in "abcd"]
        await asyncio.sleep(0)
        with pytest.raises(WhisulRateLimitError):
            await account.request("x", max_wait=1.5)
        assert loop.time() == 1.5
        await asyncio.wait(others)
        assert account.sent == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]

    run_virtually(main)


@pytest.mark.parametrize(("polls", "crowd_max_wait", "sent"), [(30, 235.0, 30), (30, 10.0, 15), (30, 0.0, 5)])
def test_polls_that_wait_for_each_other_wait_longer_up_to_a_bound(polls: int, crowd_max_wait: float, sent: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 1.0)
        last = [account.start("x", max_wait=5, crowd_max_wait=crowd_max_wait) for _ in range(polls)]
        refused = [one for one in await asyncio.gather(*last, return_exceptions=True) if one is not None]
        assert all(isinstance(error, WhisulRateLimitError) for error in refused)
        assert len(account.sent) == polls - len(refused) == pytest.approx(sent, abs=1)
        assert loop.time() == pytest.approx(min(polls, 5 + crowd_max_wait), abs=1.1)
        assert not account.rate_limiter._waiting

    run_virtually(main)


def test_a_poll_that_waits_alone_or_for_a_block_does_not_wait_longer() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, 0.1)
        await account.request("a")
        with pytest.raises(WhisulRateLimitError):
            await account.request("b", max_wait=5, crowd_max_wait=100)
        assert loop.time() == pytest.approx(5)
        await account.request("c", throttled=True, retry_after=60)
        began = loop.time()
        waiting = [account.start("d", max_wait=5, crowd_max_wait=100) for _ in range(9)]
        assert len([await asyncio.gather(*waiting, return_exceptions=True)]) == 1
        assert loop.time() - began == pytest.approx(5)
        assert account.names == "ac"

    run_virtually(main)


def test_max_wait_is_for_the_permit_and_not_for_the_response() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        # The first is permitted at once, the second after a wait.
        await asyncio.gather(*(account.request(name, takes=2, max_wait=1) for name in "ab"))
        assert account.names == "ab"

    run_virtually(main)


def test_the_wait_for_a_permit_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(metrics, "rate_limit_wait", waits.append)

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await asyncio.gather(*(account.request(name) for name in "abc"))

    run_virtually(main)
    assert waits == pytest.approx([0.1, 0.2])


def test_a_request_that_is_permitted_at_once_has_no_wait_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(metrics, "rate_limit_wait", waits.append)

    async def main(loop: VirtualLoop) -> None:
        limiter = Account(loop).rate_limiter
        # As a real clock: each reading is a little later than the one before.
        readings = itertools.count(1)
        monkeypatch.setattr(loop, "time", lambda: next(readings) * 1e-6)
        await limiter.acquire()

    run_virtually(main)
    assert waits == []


# --- many requests


def test_5000_waiting_requests_need_one_timer_and_no_idle_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    iterations = timers = 0

    async def main(loop: VirtualLoop) -> None:
        nonlocal iterations, timers
        account = Account(loop, 100)
        tasks = [account.start(f"{n} ") for n in range(5000)]
        # Every other one is cancelled while it waits.
        await asyncio.sleep(0.001)
        for task in tasks[1::2]:
            task.cancel()
        run_once = loop._run_once  # type: ignore[attr-defined]

        def counted() -> None:
            nonlocal iterations, timers
            iterations += 1
            timers = max(timers, sum(not handle.cancelled() for handle in loop._scheduled))  # type: ignore[attr-defined]
            run_once()

        monkeypatch.setattr(loop, "_run_once", counted)
        await asyncio.wait(tasks)
        assert [int(name) for _, name in account.sent] == list(range(0, 5000, 2))
        assert account.times[-1] == pytest.approx(2499 / 100, abs=0.01)
        assert not account.rate_limiter._waiting

    run_virtually(main)
    assert timers == 1
    # A few for each request that is sent: the timer, the task that permits, and the request's own.
    assert iterations < 4.5 * 2500


def test_the_queue_does_not_grow_with_requests_that_have_given_up() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("x", throttled=True, retry_after=900.0)
        staying = [account.start(name) for name in "abc"]
        for n in range(800):
            with pytest.raises(TimeoutError if n % 2 else WhisulRateLimitError):
                await asyncio.wait_for(account.request("d", max_wait=None if n % 2 else 1), 2 - n % 2)
            assert len(account.rate_limiter._waiting) == len(account.rate_limiter._queue) == 3
        await asyncio.wait(staying)
        assert account.names == "xabc"

    run_virtually(main)


def test_200_jobs_within_a_limit_that_is_not_known() -> None:
    async def main(loop: VirtualLoop) -> None:
        account, random_numbers = Account(loop, None), random.Random(2)
        limit = RateLimit(8, 1.0, 10.0)
        refused, lags = 0, []

        async def job(ends: float) -> None:
            nonlocal refused
            await asyncio.sleep(10 + 10 * random_numbers.random())
            while True:
                permitted = await account.rate_limiter.acquire()
                await asyncio.sleep(random_numbers.uniform(0.025, 0.15))
                allowed = limit.allows(loop.wall())
                ended = loop.time() >= ends
                await asyncio.sleep(random_numbers.uniform(0.025, 0.15))
                await account.rate_limiter.on_response(permitted, throttled=not allowed)
                refused += not allowed
                if allowed and ended:
                    lags.append(loop.time() - ends)
                    return
                await asyncio.sleep(10)

        await asyncio.gather(*(job(random_numbers.uniform(60, 120)) for _ in range(200)))
        assert refused <= 10
        assert loop.time() <= 120 + 12
        assert sorted(lags)[190] <= 30

    run_virtually(main)

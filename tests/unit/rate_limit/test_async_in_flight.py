"""How many requests of an account an event loop has on their way: so few that none waits once it is permitted."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_whisul import metrics
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit.async_rate_limiter import MAX_IN_FLIGHT
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from airflow_provider_whisul.rate_limit.rate_limiter import Permit
from tests.support.clock import VirtualLoop, run_virtually
from tests.support.rate_limiter import Account

#: Requests per second: so many that the rate keeps nobody waiting for long.
FAST = 1000.0


async def permits(account: Account, count: int = MAX_IN_FLIGHT) -> list[Permit]:
    return await asyncio.gather(*(account.rate_limiter.acquire() for _ in range(count)))


async def assert_that_as_many_as_ever_may_be_sent(account: Account) -> None:
    """Which is so where nothing that has ended still counts, and nothing was counted as ended twice."""
    sent = len(account.sent)
    tasks = [account.start("z", takes=60) for _ in range(MAX_IN_FLIGHT + 20)]
    await asyncio.sleep(30)
    assert len(account.sent) == sent + MAX_IN_FLIGHT
    await asyncio.wait(tasks)


def test_no_request_is_sent_while_as_many_as_may_be_are_on_their_way() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        await asyncio.gather(*(account.request(f"{n} ", takes=60) for n in range(3 * MAX_IN_FLIGHT)))
        assert [int(name) for _, name in account.sent] == list(range(3 * MAX_IN_FLIGHT))
        # Each is sent in the moment in which one has ended.
        assert account.times[MAX_IN_FLIGHT - 1] < 1
        for n, at in enumerate(account.times[MAX_IN_FLIGHT:]):
            assert at == pytest.approx(account.times[n] + 60, abs=0.05)
            assert at >= account.times[n] + 60 - 1e-5

    run_virtually(main)


def test_what_is_left_of_a_lease_is_not_used_either() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        tasks = [account.start("a", takes=60) for _ in range(MAX_IN_FLIGHT + 20)]
        await asyncio.sleep(0.15)
        for task in tasks[MAX_IN_FLIGHT:]:
            task.cancel()
        await asyncio.wait(tasks[MAX_IN_FLIGHT:])
        # Nobody waits, so that this one would be permitted at once.
        await account.request("b")
        assert account.sent[-1] == (pytest.approx(60, abs=0.1), "b")

    run_virtually(main)


def test_the_poll_that_is_most_urgent_is_sent_first_when_one_has_ended() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        out = await permits(account)
        later = loop.create_task(account.rate_limiter.acquire(poll=WaitingPoll(loop.time())))
        await asyncio.sleep(30)
        urgent = loop.create_task(account.rate_limiter.acquire(poll=WaitingPoll(loop.time() - 100)))
        await asyncio.sleep(1)
        account.rate_limiter.on_response(out[0], throttled=False)
        await asyncio.sleep(1)
        assert (urgent.done(), later.done()) == (True, False)
        account.rate_limiter.on_response(out[1], throttled=None)
        await later

    run_virtually(main)


@pytest.mark.parametrize("rate", [50.0, 200.0])
def test_no_more_permits_are_taken_from_other_processes_than_can_be_used(rate: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, rate)
        for number in range(1_500):
            account.start(f"{number}", takes=20 + number * 7_919 % 2_000 / 100)
        await asyncio.sleep(60)
        sent, permitted = len(account.sent), account.limiter.last_request
        await asyncio.sleep(200)
        assert account.limiter.last_request - permitted <= 1.1 * (len(account.sent) - sent)

    run_virtually(main)


def test_a_poll_that_is_refused_for_want_of_room_says_so() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        await permits(account)
        with pytest.raises(WhisulRateLimitError, match="100 requests of this API key have no response") as refused:
            await account.request("late", max_wait=20)
        assert refused.value.cooldown is None

    run_virtually(main)


def test_a_permit_is_not_lost_where_a_metric_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: float) -> None:
        raise OSError("There is no StatsD.")

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        with monkeypatch.context() as patched:
            patched.setattr(metrics, "rate_limit_wait", fail)
            polls = (account.request("a") for _ in range(2 * MAX_IN_FLIGHT))
            failed = [isinstance(end, OSError) for end in await asyncio.gather(*polls, return_exceptions=True)]
        assert sum(failed) > MAX_IN_FLIGHT
        await assert_that_as_many_as_ever_may_be_sent(account)

    run_virtually(main)


def test_a_permit_that_is_given_back_makes_room() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        out = await permits(account)
        waiting = account.start("a")
        await asyncio.sleep(10)
        assert not account.sent
        account.rate_limiter.give_back(out[0])
        await waiting
        assert account.times == [pytest.approx(10, abs=0.1)]

    run_virtually(main)


@pytest.mark.parametrize("after", [0.0, 0.05, 0.15, 30.0, 60.05, 90.0])
def test_a_poll_that_is_cancelled_counts_no_longer(after: float) -> None:
    """While it waits for its turn, while it waits for room, or under way."""

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        tasks = [account.start("a", takes=60) for _ in range(2 * MAX_IN_FLIGHT)]
        await asyncio.sleep(after)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.wait(tasks)
        await assert_that_as_many_as_ever_may_be_sent(account)

    run_virtually(main)


@pytest.mark.parametrize("polls", [30, 2 * MAX_IN_FLIGHT])
def test_a_poll_that_is_cancelled_in_the_moment_of_its_permit_counts_no_longer(polls: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        limiter, tasks = account.rate_limiter, {}
        pass_on, passed_on = limiter._pass_on, 0

        async def request(poll: WaitingPoll) -> None:
            permit = await limiter.acquire(poll=poll)
            await asyncio.sleep(60)
            limiter.on_response(permit, throttled=False)

        def cancel_every_third(permit: Permit) -> None:
            nonlocal passed_on
            waiting = [poll for poll, permitted in limiter._waiting.items() if not permitted.done()]
            pass_on(permit)
            passed_on += 1
            for poll in waiting:
                if limiter._waiting[poll].done() and passed_on % 3 == 0:
                    tasks[poll].cancel()

        limiter._pass_on = cancel_every_third  # type: ignore[method-assign]
        for _ in range(polls):
            poll = WaitingPoll(loop.time())
            tasks[poll] = loop.create_task(request(poll))
        await asyncio.wait(tasks.values())
        assert sum(task.cancelled() for task in tasks.values()) >= polls / 5
        limiter._pass_on = pass_on  # type: ignore[method-assign]
        await assert_that_as_many_as_ever_may_be_sent(account)

    run_virtually(main)


def test_a_permit_of_a_cancelled_poll_is_not_passed_on_while_there_is_no_room() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        out = await permits(account)
        waiting = account.start("a")
        await asyncio.sleep(1)
        # As where a probe was sent beyond the cap, and one of the others has just been cancelled.
        account.rate_limiter._pass_on(Permit(out[-1].number))
        await asyncio.sleep(1)
        assert not account.sent
        account.rate_limiter.on_response(out[0], throttled=False)
        await waiting

    run_virtually(main)


def test_a_poll_that_finds_no_room_in_time_is_refused() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        out = await permits(account)
        began = loop.time()
        with pytest.raises(WhisulRateLimitError) as raised:
            await account.request("a", max_wait=5)
        assert loop.time() == pytest.approx(began + 5)
        # It is no block.
        assert raised.value.cooldown is None
        for permit in out:
            account.rate_limiter.on_response(permit, throttled=False)
        await assert_that_as_many_as_ever_may_be_sent(account)

    run_virtually(main)


def test_a_probe_is_sent_although_as_many_as_may_be_hang() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, FAST)
        out = await permits(account)
        began = loop.time()
        await account.rate_limiter.on_response(out.pop(), throttled=True)
        # The first probe hangs too, so that no other one has room.
        polls = [account.start("a", takes=1000 if n == 0 else 1) for n in range(3)]
        await asyncio.sleep(900)
        assert account.times == [pytest.approx(began + 5, abs=0.1), pytest.approx(began + 5 + PROBE_TIMEOUT, abs=1.1)]
        # Its response has ended the block. Now the others wait for room again.
        assert not account.blocked
        account.rate_limiter.on_response(out.pop(), throttled=None)
        await asyncio.wait(polls)
        assert account.times[2] == pytest.approx(began + 900, abs=0.1)

    run_virtually(main)


def test_polls_that_wait_for_room_do_not_raise_the_rate() -> None:
    """Not even where there is room just as often as the rate permits a request."""

    async def main(loop: VirtualLoop) -> None:
        account = Account(loop, None)
        polls = [loop.create_task(account.rate_limiter.acquire()) for _ in range(4 * MAX_IN_FLIGHT)]
        while sum(poll.done() for poll in polls) < MAX_IN_FLIGHT:
            await asyncio.sleep(1)
        await asyncio.sleep(100)
        rate, asked = account.limiter.throttle.rate, account.store.updates
        for n in range(2 * MAX_IN_FLIGHT):
            out = [poll for poll in polls if poll.done()]
            assert len(out) == MAX_IN_FLIGHT + n
            account.rate_limiter.on_response(out[n].result(), throttled=False)
            await asyncio.sleep(1 / rate)
        assert account.limiter.throttle.rate == rate
        # Nor is the store asked more often than that.
        assert account.store.updates - asked <= 2 * MAX_IN_FLIGHT

    run_virtually(main)

"""The gate of an account, on an event loop whose time is virtual."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.account_pace import PROBE_LOST_AFTER, START_RATE, AccountPace
from airflow_provider_whisul.gate import Gate
from airflow_provider_whisul.sandbox.state import RateLimit
from tests.support import NOON, VirtualLoop, loop_clock, run_virtually

#: Less than the resolution of the loop's clock: what is so far apart happens in the same moment, but in this order.
INSTANT = 1e-10


class Account:
    """An account with a gate, and a note of who went when."""

    def __init__(self, loop: VirtualLoop, most: float | None = 10.0) -> None:
        self.loop = loop
        self.gate = Gate(AccountPace(most), loop_clock(loop))
        self.went: list[tuple[float, str]] = []

    async def request(
        self, name: str, due: float = NOON, takes: float = 0.0, limited: bool | None = False, at: float = 0.0
    ) -> None:
        await asyncio.sleep(at)
        async with self.gate.turn(due) as turn:
            self.went.append((round(self.loop.time(), 6), name))
            if takes:
                await asyncio.sleep(takes)
            turn.limited = limited

    def start(self, name: str, due: float = NOON, **how: float | bool | None) -> asyncio.Task[None]:
        return self.loop.create_task(self.request(name, due, **how))  # type: ignore[arg-type]

    @property
    def names(self) -> str:
        return "".join(name for _, name in self.went)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.went]


# --- order and pace


def test_a_lone_request_goes_at_once() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a")
        assert account.times == [0]

    run_virtually(main)


def test_the_most_overdue_goes_first_and_ties_by_arrival() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await asyncio.gather(
            account.request("a", NOON + 9),
            account.request("e", NOON - 1),
            account.request("f", NOON - 1),
            account.request("b", NOON - 30),
            # Those come later, when some have gone.
            account.request("d", NOON - 2, at=0.15),
            account.request("c", NOON - 20, at=0.15),
        )
        assert account.names == "abcdef"
        assert account.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])

    run_virtually(main)


def test_a_slow_answer_holds_up_nobody() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await asyncio.gather(*(account.request(name, takes=30) for name in "abc"))
        assert account.times == pytest.approx([0, 0.1, 0.2])

    run_virtually(main)


def test_work_that_is_overdue_makes_it_faster() -> None:
    async def main(loop: VirtualLoop) -> None:
        late, early = Account(loop, None), Account(loop, None)
        for _ in range(20):
            await late.request("a", NOON - 60)
            await early.request("a", loop.wall())
        assert late.gate.pace.rate > early.gate.pace.rate == START_RATE

    run_virtually(main)


# --- cancellation


@pytest.mark.parametrize("gone", ["c", "d", "f", "ce", "cde", "cdef"])
def test_who_is_cancelled_while_waiting_leaves_no_gap(gone: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        tasks = {name: account.start(name) for name in "abcdef"}
        await asyncio.sleep(0.15)
        for name in gone:
            tasks[name].cancel()
        await asyncio.wait(tasks.values())
        assert account.names == "".join(name for name in "abcdef" if name not in gone)
        assert account.times == pytest.approx([n / 10 for n in range(6 - len(gone))])

    run_virtually(main)


def test_who_is_cancelled_when_already_called_passes_the_turn_on() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        tasks = [account.start(name) for name in "abc"]
        await asyncio.sleep(0.05)
        loop.call_at(0.1 + INSTANT, tasks[1].cancel)
        await asyncio.wait(tasks)
        assert account.went == [(0, "a"), (0.1, "c")]

    run_virtually(main)


def test_a_request_that_is_cancelled_under_way_teaches_nothing() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        task = account.start("a", takes=30, limited=True)
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert not account.gate.pace.blocked
        await account.request("b")
        assert account.times == [0, 1]

    run_virtually(main)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.none() | st.floats(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_whoever_stays_goes_at_the_first_free_moment(plan: list[tuple[float, float | None, int]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        tasks = [account.start(str(n), NOON - due, at=at) for n, (at, _, due) in enumerate(plan)]
        for task, (at, patience, _) in zip(tasks, plan, strict=True):
            if patience is not None:
                loop.call_at(at + patience, task.cancel)
        await asyncio.wait(tasks)
        went = {int(name): at for at, name in account.went}
        for n, (_, patience, _) in enumerate(plan):
            assert n in went or patience is not None
        assert all(b - a >= 0.1 - 1e-5 for a, b in itertools.pairwise(account.times))
        # No free moment passes while somebody waits.
        for n, (arrived, _, _) in enumerate(plan):
            for a, b in itertools.pairwise(account.times):
                assert not (n in went and went[n] >= b and arrived <= a and b - a > 0.1 + 1e-5)
        assert loop.time() < 60

    run_virtually(main)


# --- blocks


def test_after_a_429_one_probe_goes_and_then_the_rest(task_log: Callable[[], list[str]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", limited=True)
        assert account.gate.blocked_until == NOON + 5
        probe = account.start("b", NOON - 2, takes=2, limited=True)
        rest = [account.start(name) for name in "cd"]
        await probe
        assert account.names == "ab"
        assert account.gate.blocked_until == pytest.approx(NOON + 17)
        await asyncio.wait(rest)
        assert account.went[2:] == [(17, "c"), (17.2, "d")]
        assert account.gate.blocked_until is None

    run_virtually(main)
    lines = [line for line in task_log() if "Whisul" in line]
    assert len(lines) >= 2
    assert "None goes before 2026-02-17 12:00:05 UTC" in lines[0]
    assert "None goes before 2026-02-17 12:00:17 UTC" in lines[1]


def test_a_probe_under_way_is_known_as_such() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", limited=True)
        probe = account.start("b", takes=3)
        await asyncio.sleep(6)
        # The probe went after 5 s.
        assert account.gate.blocked_until == NOON + 5 + PROBE_LOST_AFTER
        await probe

    run_virtually(main)


def test_retry_after_is_heeded() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        async with account.gate.turn(NOON) as turn:
            turn.limited, turn.retry_after = True, 90.0
        await account.request("b")
        assert account.times == [90]

    run_virtually(main)


def test_who_is_called_in_the_moment_of_a_429_does_not_go() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        first = account.gate.turn(NOON)
        turn = await first.__aenter__()
        tasks = [account.start(name) for name in "bc"]

        def answer() -> None:
            # At once, between the call of the next in line and its going.
            turn.limited = True
            with pytest.raises(StopIteration):
                first.__aexit__(None, None, None).send(None)

        await asyncio.sleep(0.05)
        loop.call_at(0.1 + INSTANT, answer)
        await asyncio.wait(tasks)
        assert account.went == [(5.1, "b"), (5.3, "c")]

    run_virtually(main)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_probe_that_brings_no_answer_is_followed_by_another(cancelled: bool) -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", limited=True)
        probe = account.start("b", takes=2, limited=None)
        rest = account.start("c")
        await asyncio.sleep(6)
        if cancelled:
            probe.cancel()
        await asyncio.wait([probe, rest])
        assert account.went[2:] == [(11 if cancelled else 12, "c")]

    run_virtually(main)


def test_an_error_inside_the_turn_comes_through_and_counts_as_no_answer() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        with pytest.raises(OSError, match="broken"):
            async with account.gate.turn(NOON):
                raise OSError("broken")
        assert not account.gate.pace.blocked
        await account.request("b")

    run_virtually(main)


# --- patience


def test_who_waits_too_long_for_its_turn_leaves_and_holds_nobody_up() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        await account.request("a", limited=True)
        others = account.start("b")
        with pytest.raises(TimeoutError):
            async with account.gate.turn(NOON - 1, patience=3):
                raise AssertionError("It was not its turn.")
        assert loop.time() == 3
        await others
        assert account.went == [(0, "a"), (5, "b")]

    run_virtually(main)


def test_patience_is_for_the_turn_and_not_for_the_answer() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        for _ in range(2):  # at once, and after a wait
            async with account.gate.turn(NOON, patience=1):
                await asyncio.sleep(2)

    run_virtually(main)


# --- many


def test_5000_waiters_cost_one_timer_and_no_idle_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = timers = 0

    async def main(loop: VirtualLoop) -> None:
        nonlocal rounds, timers
        account = Account(loop, 100)
        chance = random.Random(1)
        dues = [NOON - chance.random() * 100 for _ in range(5000)]
        tasks = [account.start(f"{due:.9f} ", due) for due in dues]
        # Every other one leaves while it waits.
        await asyncio.sleep(0.001)
        for task in tasks[1::2]:
            task.cancel()
        run_once = loop._run_once  # type: ignore[attr-defined]

        def counted() -> None:
            nonlocal rounds, timers
            rounds += 1
            timers = max(timers, sum(not handle.cancelled() for handle in loop._scheduled))  # type: ignore[attr-defined]
            run_once()

        monkeypatch.setattr(loop, "_run_once", counted)
        await asyncio.wait(tasks)
        went = [float(name) for _, name in account.went]
        # The first in line had gone before the others came.
        assert went[1:] == sorted(went[1:])
        assert len(went) in (2500, 2501)
        assert account.times[-1] == pytest.approx((len(went) - 1) / 100, abs=0.01)
        assert not account.gate._waiting

    run_virtually(main)
    assert timers == 1
    assert rounds < 4 * 2500


def test_the_line_does_not_grow_with_those_who_left() -> None:
    async def main(loop: VirtualLoop) -> None:
        account = Account(loop)
        async with account.gate.turn(NOON) as turn:
            turn.limited, turn.retry_after = True, 1e6
        staying = [account.start(name) for name in "abc"]
        for _ in range(1000):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(account.request("d"), 1)
            assert len(account.gate._waiting) <= 7
        await asyncio.wait(staying)
        assert account.names == "abc"

    run_virtually(main)


def test_200_jobs_on_a_limit_that_nobody_knows() -> None:
    async def main(loop: VirtualLoop) -> None:
        account, chance = Account(loop, None), random.Random(2)
        limit = RateLimit(8, 1.0, 10.0)
        refused, lags = 0, []

        async def job(ends: float) -> None:
            nonlocal refused
            await asyncio.sleep(10 + 10 * chance.random())
            while True:
                async with account.gate.turn(loop.wall()) as turn:
                    await asyncio.sleep(chance.uniform(0.025, 0.15))
                    allowed = limit.allows(loop.wall())
                    over = loop.time() >= ends
                    await asyncio.sleep(chance.uniform(0.025, 0.15))
                    turn.limited = not allowed
                refused += not allowed
                if allowed and over:
                    lags.append(loop.time() - ends)
                    return
                await asyncio.sleep(10)

        await asyncio.gather(*(job(chance.uniform(60, 120)) for _ in range(200)))
        assert refused <= 10
        assert loop.time() <= 120 + 12
        assert sorted(lags)[190] <= 30

    run_virtually(main)

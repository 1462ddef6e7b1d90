"""Time that a test drives: a fake clock, and an event loop whose time is virtual."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from airflow_provider_whisul.clock import Clock

T = TypeVar("T")

#: Noon of some day, Unix seconds.
NOON = 1_771_329_600.0


@dataclass
class FakeClock:
    """
    Time that passes only by sleeping, and jitter that the test sets.

    ``wall_ahead`` is how far somebody has set the wall clock ahead of the machine's monotonic one.
    """

    now: float = NOON
    jitter: float = 0.0
    wall_ahead: float = 0.0
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[float], None] = lambda seconds: None

    def time(self) -> float:
        return self.now + self.wall_ahead

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep(seconds)
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(time=self.time, monotonic=self.monotonic, sleep=self.sleep, random=lambda: self.jitter)


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits: where no socket is ready, the loop's time jumps to the next timer instead."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        # What one end of a loopback connection has sent has arrived: without threads no other event can come.
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.threads or timeout is None:
            return super().select(0.02 if timeout is None else min(timeout, 0.02))
        self.elapsed += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with real sockets and threads, and with virtual time."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        # How many functions each executor has that have not ended.
        self._functions: Counter[Any] = Counter()
        super().__init__(self.virtual)

    def time(self) -> float:
        # From zero on: asyncio distinguishes nanoseconds, which a float of today's Unix seconds cannot.
        return self.virtual.elapsed

    def wall(self) -> float:
        """Return the virtual time as Unix seconds."""
        return NOON + self.virtual.elapsed

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        # One that waits for its executor's only thread does not run: the thread may be waiting for the loop's time.
        threads = getattr(executor, "_max_workers", math.inf)
        self.virtual.threads += self._functions[executor] < threads
        self._functions[executor] += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(partial(self._function_ended, executor, threads))
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        # Since Python 3.12 it has a timeout, which must not pass before its threads have ended.
        self.virtual.threads += 1
        await super().shutdown_default_executor(*args)
        self.virtual.threads -= 1

    def _function_ended(self, executor: Any, threads: float, _: Future[Any] | asyncio.Future[Any]) -> None:
        self._functions[executor] -= 1
        self.virtual.threads -= self._functions[executor] < threads


class LoopTime(FakeClock):
    """The time of a virtual loop, which code outside of the loop lets pass too."""

    def __init__(self, loop: VirtualLoop, on_sleep: Callable[[float], None]) -> None:
        self._loop = loop
        super().__init__(on_sleep=on_sleep)

    @property
    def now(self) -> float:  # type: ignore[override]
        return NOON + self._loop.virtual.elapsed

    @now.setter
    def now(self, now: float) -> None:
        self._loop.virtual.elapsed = now - NOON


def thread_clock(loop: VirtualLoop, jitter: float = 0.0) -> Clock:
    """Return a clock on the loop's time for synchronous code that runs in one of its threads."""

    async def async_sleep(seconds: float) -> None:
        # While the thread only waits for the loop's time, that time may jump.
        loop.virtual.threads -= 1
        await asyncio.sleep(seconds)
        loop.virtual.threads += 1

    def sleep(seconds: float) -> None:
        asyncio.run_coroutine_threadsafe(async_sleep(seconds), loop).result()

    async def on_loops_time(coroutine: Coroutine[Any, Any, T]) -> T:
        loop.virtual.threads -= 1
        try:
            return await coroutine
        finally:
            loop.virtual.threads += 1

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(on_loops_time(coroutine), loop).result()

    return Clock(time=loop.wall, monotonic=loop.time, sleep=sleep, random=lambda: jitter, run=run)


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main(loop)`` to its end on a loop with virtual time, and cancel the tasks that it leaves."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))


def loop_clock(loop: VirtualLoop, jitter: float = 0.0) -> Clock:
    """Return a clock on the loop's time for coroutines in it."""
    return Clock(time=loop.wall, monotonic=loop.time, random=lambda: jitter)

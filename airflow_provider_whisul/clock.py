"""Two clocks, sleep, random numbers and an event loop, injectable for tests."""

from __future__ import annotations

import asyncio
import random
import time as system_time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


def run_in_event_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """
    Run a coroutine to its end, in an event loop of its own, and return what it returns.

    The loop runs in another thread. What a signal raises in this one, as Airflow does where a task's time is over,
    would otherwise end whichever coroutine the loop is just running, and might be lost. So it cancels the coroutine,
    and is raised here.

    :param coroutine: The coroutine. What it raises is raised here.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def cancellable() -> T:
        task = asyncio.ensure_future(coroutine)
        started.set_result((asyncio.get_running_loop(), task))
        return await task

    with ThreadPoolExecutor(1, "whisul-event-loop") as thread:
        # With the caller's context, which Airflow keeps what it knows of the task in.
        result = thread.submit(copy_context().run, asyncio.run, cancellable())
        try:
            return result.result()
        finally:
            if not result.done():
                loop, task = started.result()
                # The loop may have come to its end meanwhile.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(task.cancel)


class RunCoroutine(Protocol):
    """Runs a coroutine to its end, and returns what it returns."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


@dataclass(frozen=True)
class Clock:
    """
    Two clocks, sleep, random numbers and an event loop.

    :param time: Returns the time in Unix seconds. Deadlines are kept on this wall clock, since they outlive a machine.
    :param monotonic: Returns the seconds of a clock that nobody sets. All processes of a machine share it, until the
        machine restarts. On Linux it stands still while the machine is suspended.
    :param sleep: Sleeps for a number of seconds.
    :param async_sleep: Sleeps for a number of seconds without blocking the event loop.
    :param random: Returns a number from 0 up to 1, for jitter.
    :param run: Runs a coroutine to its end, in an event loop on the same time.
    """

    time: Callable[[], float] = field(default=system_time.time)
    monotonic: Callable[[], float] = field(default=system_time.monotonic)
    sleep: Callable[[float], None] = field(default=system_time.sleep)
    async_sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)
    random: Callable[[], float] = field(default=random.random)
    run: RunCoroutine = field(default=run_in_event_loop)


SYSTEM_CLOCK = Clock()


def utc(seconds: float) -> str:
    """
    Return a time as a log line shows it, such as ``2026-02-17 15:39:34 UTC``.

    :param seconds: The time in Unix seconds.
    """
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"

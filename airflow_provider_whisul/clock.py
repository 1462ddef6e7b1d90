"""Two clocks, sleep and random numbers, injectable for tests."""

from __future__ import annotations

import asyncio
import random
import time as system_time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True)
class Clock:
    """
    Two clocks, sleep and random numbers.

    :param time: Returns the time in Unix seconds. Deadlines are kept on this wall clock, since they outlive a machine.
    :param monotonic: Returns the seconds of a clock that nobody sets. All processes of a machine share it, until the
        machine restarts.
    :param sleep: Sleeps for a number of seconds.
    :param async_sleep: Sleeps for a number of seconds without blocking the event loop.
    :param random: Returns a number from 0 up to 1, for jitter.
    """

    time: Callable[[], float] = field(default=system_time.time)
    monotonic: Callable[[], float] = field(default=system_time.monotonic)
    sleep: Callable[[float], None] = field(default=system_time.sleep)
    async_sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)
    random: Callable[[], float] = field(default=random.random)


SYSTEM_CLOCK = Clock()


def utc(seconds: float) -> str:
    """
    Return a time as a log line shows it, such as ``2026-02-17 15:39:34 UTC``.

    :param seconds: The time in Unix seconds.
    """
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"

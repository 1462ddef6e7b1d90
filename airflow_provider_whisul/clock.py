"""The outside world's time and chance, in one object that tests replace."""

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
    What the clients need of time and chance.

    :param time: The wall clock, in Unix seconds. Deadlines are kept on it, since they outlive a process.
    :param sleep: Sleeps for so many seconds.
    :param asleep: The same, without blocking the event loop.
    :param random: A number from 0 up to 1, for spreading requests.
    """

    time: Callable[[], float] = field(default=system_time.time)
    sleep: Callable[[float], None] = field(default=system_time.sleep)
    asleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)
    random: Callable[[], float] = field(default=random.random)


SYSTEM_CLOCK = Clock()


def utc(at: float) -> str:
    """Return a time in Unix seconds as people read it in a log."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"

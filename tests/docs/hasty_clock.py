"""
A clock on which waiting takes next to no time.

As a plugin of pytest it lets the tests of a page wait so too: their sandbox has its own, real time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from airflow_provider_whisul.clock import SYSTEM_CLOCK

#: How many times faster than it says a sleep is over.
FACTOR = 200


class HastyClock:
    """The machine's clock, on which a sleep is over early and has taken its time all the same."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / FACTOR)
        self.ahead += seconds

    async def async_sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / FACTOR)
        self.ahead += seconds


def install(clock: HastyClock) -> dict[str, Any]:
    """Let the provider wait on a clock, and return what :func:`restore` takes."""
    before = {name: getattr(SYSTEM_CLOCK, name) for name in ("time", "monotonic", "sleep", "async_sleep")}
    restore({name: getattr(clock, name) for name in before})
    return before


def restore(functions: dict[str, Any]) -> None:
    """Let the provider wait on these functions of a clock."""
    for name, function in functions.items():
        # It is the default of every argument `clock`, so it cannot be another object.
        object.__setattr__(SYSTEM_CLOCK, name, function)


def pytest_configure() -> None:
    """Let the provider wait so for as long as this process tests."""
    install(HastyClock())

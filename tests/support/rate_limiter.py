"""An account whose polls an event loop sends, with a record of when, and stores that count."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit.async_rate_limiter import AsyncRateLimiter
from airflow_provider_whisul.rate_limit.limiter_store import Decide, MemoryStore, T
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from tests.support.clock import VirtualLoop, loop_clock


def account_settings(limit: float | None = 10.0) -> ConnectionSettings:
    return ConnectionSettings("https://api.whisul.test", "a-secret-key", max_requests_per_second=limit)


class CountingStore(MemoryStore):
    """A store in memory that counts how often it is asked."""

    updates = 0

    def update(self, decide: Decide[T]) -> T:
        self.updates += 1
        return super().update(decide)


class Account:
    """An account with its rate limiter, and a record of which request was sent when."""

    def __init__(self, loop: VirtualLoop, limit: float | None = 10.0, store: CountingStore | None = None) -> None:
        self.loop = loop
        self.store = store or CountingStore(loop_clock(loop))
        self.rate_limiter = AsyncRateLimiter(self.store, account_settings(limit), loop_clock(loop))
        self.sent: list[tuple[float, str]] = []

    async def request(
        self,
        name: str,
        takes: float = 0.0,
        throttled: bool | None = False,
        retry_after: float | None = None,
        at: float = 0.0,
        max_wait: float | None = None,
        crowd_max_wait: float = 0.0,
    ) -> float | None:
        """Send a request as the hook does, and return the cool-down that its response brought."""
        if at:
            await asyncio.sleep(at)
        poll = WaitingPoll(self.loop.time(), crowd_max_wait=crowd_max_wait) if crowd_max_wait else None
        permitted = await self.rate_limiter.acquire(max_wait, poll)
        try:
            self.sent.append((round(self.loop.time(), 6), name))
            if takes:
                await asyncio.sleep(takes)
        except BaseException:
            self.rate_limiter.on_response(permitted, throttled=None)
            raise
        return await self.rate_limiter.on_response(permitted, throttled, retry_after)

    def start(self, name: str, **how: Any) -> asyncio.Task[float | None]:
        return self.loop.create_task(self.request(name, **how))

    @property
    def limiter(self) -> RateLimiter:
        return self.store.limiter

    @property
    def blocked(self) -> bool:
        return self.limiter.block.active

    @property
    def allowed_at(self) -> float:
        """When the next request is allowed, in seconds of the loop."""
        return self.limiter.next_allowed_at(self.loop.time())

    @property
    def names(self) -> str:
        return "".join(name for _, name in self.sent)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.sent]

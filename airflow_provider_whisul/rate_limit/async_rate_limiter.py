"""The rate limiter of one account for all coroutines of an event loop: a queue, first in, first out."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from airflow_provider_whisul import metrics
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter, refusal

log = logging.getLogger(__name__)


class AsyncRateLimiter:
    """
    Permits the requests of one account, in the order in which they ask.

    It belongs to the event loop in which it is made. All waiting is by the loop's own clock, which is never put back.

    :param limiter: The rate limiter's state and rules; nothing else may use it.
    :param clock: The wall clock, and jitter.
    """

    def __init__(self, limiter: RateLimiter, clock: Clock = SYSTEM_CLOCK) -> None:
        self.limiter = limiter
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # Held by the first of those who wait. An asyncio.Lock is fair.
        self._first = asyncio.Lock()
        self._waiting = 0
        # Set when a response may have changed when the next request is allowed.
        self._changed = asyncio.Event()

    async def acquire(self, max_wait: float | None = None) -> int:
        """
        Wait until the next request may be sent, and return its number, for :meth:`on_response`.

        May be cancelled at any moment.

        :param max_wait: Seconds to wait at most; None for as long as it takes.
        :raises WhisulRateLimitError: The request is not permitted in that time. Nothing was sent.
        """
        asked_at = self._loop.time()
        if self._waiting or self._seconds_left() > 0:
            self._waiting += 1
            try:
                async with asyncio.timeout(max_wait), self._first:
                    await self._wait_until_allowed()
                    metrics.rate_limit_wait(self._loop.time() - asked_at)
                    return self._take(asked_at)
            except TimeoutError:
                now = self._clock.time()
                raise refusal(now + max(self._seconds_left(), 0.0), now) from None
            finally:
                self._waiting -= 1
        return self._take(asked_at)

    def on_response(self, request: int, throttled: bool | None, retry_after: float | None = None) -> float | None:
        """
        Learn from how a request ended.

        :param request: The request's number.
        :param throttled: Whether the response was a 429; None where there was no response.
        :param retry_after: The seconds that the 429 asked to wait, if it did.
        :return: The seconds until the next request may be sent, None unless the response was a 429.
        """
        now = self._loop.time()
        if self.limiter.on_response(now, request, throttled, retry_after, self._clock.random()):
            self.limiter.log_block(log, self._clock.time() + max(self._seconds_left(), 0.0))
        self._changed.set()
        return max(self._seconds_left(), 0.0) if throttled else None

    def pause_until(self, not_before: float) -> None:
        """
        Pause for a 429 that a worker has met with the same key. While the key is blocked anyway nothing changes.

        :param not_before: When the next request may be sent, in Unix seconds.
        """
        wait = not_before - self._clock.time()
        if wait > 0 and not self.limiter.block.active:
            self.on_response(self.limiter.on_request(self._loop.time()), throttled=True, retry_after=wait)

    def _take(self, asked_at: float) -> int:
        now = self._loop.time()
        return self.limiter.on_request(now, overdue=now - asked_at)

    async def _wait_until_allowed(self) -> None:
        while (wait := self._seconds_left()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _seconds_left(self) -> float:
        now = self._loop.time()
        return self.limiter.next_allowed_at(now) - now

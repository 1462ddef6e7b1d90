"""The way to one account's API for all coroutines of an event loop: one after the other, at the account's pace."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from airflow_provider_whisul.account_pace import AccountPace
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock, utc

log = logging.getLogger(__name__)


@dataclass
class Turn:
    """
    The leave to make one request. Whoever has it notes here what came of the request.

    :param waited: Seconds that it took until the leave was given.
    :param limited: Whether the answer was a 429; None as long as there is no answer.
    :param retry_after: The seconds that a 429 asked to wait, if it did.
    """

    waited: float = 0.0
    limited: bool | None = None
    retry_after: float | None = None


class Gate:
    """
    Lets the requests of one account go, the most overdue first, when the account's pace says so.

    It belongs to the event loop in which it is made. How overdue a request is comes from the wall clock; all waiting is
    by the loop's own clock, which is never put back.

    :param pace: The account's pace, which nothing else uses.
    :param clock: The wall clock, and chance.
    """

    def __init__(self, pace: AccountPace, clock: Clock = SYSTEM_CLOCK) -> None:
        self.pace = pace
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        # A heap, smallest due time first, ties by arrival. Who was cancelled stays until its place comes up.
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._cancelled = 0
        self._arrivals = 0
        # Who has been called and has not gone yet: nobody else is called meanwhile, so no place is lost on the way.
        self._called: asyncio.Future[None] | None = None

    @property
    def blocked_until(self) -> float | None:
        """When the block that the API has put on the account is probed next, in Unix seconds; None without a block."""
        if not self.pace.blocked:
            return None
        wait = self.pace.next_at(self._loop.time()) - self._loop.time()
        return self._clock.time() + max(wait, 0.0)

    def keep_quiet(self, until: float) -> None:
        """
        Take in a 429 that was met elsewhere with the same key, as by a worker. A block that is on anyway is not news.

        :param until: Until when nobody is to ask, in Unix seconds.
        """
        wait = until - self._clock.time()
        if wait > 0 and not self.pace.blocked:
            turn = Turn(limited=True, retry_after=wait)
            self._learn(self.pace.sent(self._loop.time()), turn)

    @asynccontextmanager
    async def turn(self, due: float, patience: float | None = None) -> AsyncIterator[Turn]:
        """
        Wait for a request's turn; the request is made inside the context, and what came of it noted on the turn.

        May be cancelled at any moment.

        :param due: Since when the request has been due, in Unix seconds. The smallest goes first.
        :param patience: Seconds to wait for the turn at the most; None for as long as it takes.
        :raises TimeoutError: It has not come by then.
        """
        turn = Turn()
        if not self._free():
            came = self._loop.time()
            async with asyncio.timeout(patience):
                await self._wait(due)
            turn.waited = self._loop.time() - came
        ticket = self.pace.sent(self._loop.time(), overdue=self._clock.time() - due)
        self._call_next()
        try:
            yield turn
        finally:
            self._learn(ticket, turn)

    def _free(self) -> bool:
        """Whether a request may go at once, as most may: nobody is before it."""
        now = self._loop.time()
        return not self._waiting and self._called is None and self.pace.next_at(now) <= now

    async def _wait(self, due: float) -> None:
        self._arrivals += 1
        arrival = self._arrivals
        while True:
            called: asyncio.Future[None] = self._loop.create_future()
            heapq.heappush(self._waiting, (due, arrival, called))
            if self._timer is None:
                self._call_next()
            try:
                await called
            except asyncio.CancelledError:
                if self._called is called:
                    self._called = None
                    self._call_next()
                else:
                    self._forget_cancelled()
                raise
            self._called = None
            # Between the call and now a 429 may have come.
            if self.pace.next_at(self._loop.time()) <= self._loop.time():
                return

    def _call_next(self) -> None:
        """Call the first in line if it may go now, or else set the one timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._waiting[0][2].cancelled():
            heapq.heappop(self._waiting)
            self._cancelled -= 1
        if self._called is not None or not self._waiting:
            return
        now = self._loop.time()
        at = self.pace.next_at(now)
        if at <= now:
            _, _, self._called = heapq.heappop(self._waiting)
            self._called.set_result(None)
        else:
            self._timer = self._loop.call_at(at, self._call_next)

    def _forget_cancelled(self) -> None:
        """Keep the line from growing with those who were cancelled in it: they are never more than half of it."""
        self._cancelled += 1
        if self._cancelled * 2 > len(self._waiting):
            self._waiting = [waiter for waiter in self._waiting if not waiter[2].cancelled()]
            heapq.heapify(self._waiting)
            self._cancelled = 0

    def _learn(self, ticket: int, turn: Turn) -> None:
        now = self._loop.time()
        news = self.pace.answered(now, ticket, turn.limited, turn.retry_after, self._clock.random())
        self._call_next()
        if news and self.blocked_until is not None:
            log.warning(
                "Whisul limits the requests of this API key. None goes before %s, so that the block can end.",
                utc(self.blocked_until),
            )
        elif news:
            log.info("Whisul's block of this API key is over. Going on with %.1f requests per second.", self.pace.rate)

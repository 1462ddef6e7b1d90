"""The rate limiter of one account for all coroutines of an event loop, as in the triggerer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import TypeVar

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.block import Block
from airflow_provider_whisul.rate_limit.leased_permits import LeasedPermits
from airflow_provider_whisul.rate_limit.limiter_client import (
    CHECK_INTERVAL,
    LimiterClient,
    is_known,
    must_check,
    refusal,
)
from airflow_provider_whisul.rate_limit.limiter_store import LimiterStore
from airflow_provider_whisul.rate_limit.poll_queue import PollQueue, WaitingPoll
from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, Lease, Permit
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE

T = TypeVar("T")

#: How many requests of an account are on their way in one event loop at most: as many as aiohttp usually has
#: connections. Where the API does not respond, more would use up the file descriptors of the triggerer.
MAX_IN_FLIGHT = 100

#: Seconds that a poll waits at least, however little it may: the store must be asked first.
MIN_WAIT = 1.0

#: Seconds that a poll which may wait for a crowd waits longer for each poll that waits beside it: at the least usual
#: limit all of them are sent.
CROWD_SECONDS_PER_POLL = 1 / INITIAL_RATE

#: How long a lease is at least, as a multiple of the time that an answer of the store takes: nothing is sent while the
#: next one is asked for.
LEASE_PER_ANSWER = 4

#: Seconds in which the demand for permits is measured.
_DEMAND_SECONDS = 1.0

#: Seconds of a wait that is over by the time it has begun.
_NO_WAIT = 1e-6


class AsyncRateLimiter(LimiterClient):
    """
    Permits the polls of one account in an event loop, in the order that :class:`PollQueue` says.

    The event loop never waits for the store: a thread asks it for the permits of many polls at once, ahead of need.
    All waiting is by the loop's own clock, which is never put back.

    A poll that is permitted is sent at once: none waits for a connection, behind which a 429 would not hold it back. So
    polls wait here while :data:`MAX_IN_FLIGHT` requests are on their way. Each permit counts until ``on_response`` or
    ``give_back`` is called for it.

    See :class:`LimiterClient` for the protocol and the parameters.
    """

    def __init__(self, store: LimiterStore, settings: ConnectionSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(store, settings, clock)
        # One thread, so that decisions are made in the order in which they are asked for. It ends with this object.
        self._thread = ThreadPoolExecutor(1, "whisul-rate-limiter")
        self._queue = PollQueue()
        # With each permit, how often there was a wait before it.
        self._waiting: dict[WaitingPoll, asyncio.Future[tuple[Permit, int]]] = {}
        self._permits: LeasedPermits | None = None
        # Of the permits before those.
        self._latest_use = -math.inf
        self._runner: asyncio.Task[None] | None = None
        # Done when a response may have changed when the next request is allowed.
        self._changed: asyncio.Future[None] | None = None
        # How often permits were dropped.
        self._drops = 0
        self._waits = 0
        # How many permits are out, and when there was room for another one again.
        self._in_flight, self._room_since = 0, -math.inf
        # When the next poll may be sent, and the block, as the store had them at the latest question.
        self._not_before, self._block = -math.inf, Block()
        self._demand, self._demand_at = 0.0, -math.inf
        # Whether the latest lease had run out when its answer came.
        self._came_late = False

    async def acquire(self, max_wait: float | None = None, poll: WaitingPoll | None = None) -> Permit:
        """
        Wait until a poll may be sent. May be cancelled at any moment.

        :param max_wait: Seconds to wait at most, or longer where the poll may wait for a crowd; None for as long as it
            takes.
        :param poll: What decides which poll goes first, in seconds of the event loop's clock. None for one that is due
            now, of no DAG.
        :raises WhisulRateLimitError: The poll is not permitted in that time. Nothing was sent.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        self._count_demand(asked_at)
        if not self._queue and (at_hand := self._permit_at(asked_at)) is not None:
            self._in_flight += 1
            return at_hand
        poll = poll or WaitingPoll(due=asked_at)
        waits_before = self._waits
        give_up_at = None if max_wait is None else asked_at + max(max_wait, MIN_WAIT)
        latest = math.inf if give_up_at is None else give_up_at + poll.crowd_max_wait
        permitted: asyncio.Future[tuple[Permit, int]]
        try:
            while True:
                self._waiting[poll] = permitted = loop.create_future()
                self._queue.add(poll)
                self._start_runner(loop)
                try:
                    async with asyncio.timeout_at(give_up_at):
                        await permitted
                except TimeoutError:
                    if permitted.cancelled():
                        give_up_at = self._crowd_is_served_at(latest)
                        continue
                break
        except asyncio.CancelledError:
            if permitted.done() and not permitted.cancelled() and permitted.exception() is None:
                self._leave()
                self._pass_on(permitted.result()[0])
            raise
        finally:
            self._queue.discard(poll)
            del self._waiting[poll]
        permit, waits = permitted.result()
        if waits != waits_before:
            try:
                metrics.rate_limit_wait(loop.time() - asked_at)
            except BaseException:
                # The caller gets no permit, and would report none.
                self.give_back(permit)
                raise
        return permit

    def on_response(
        self, permit: Permit, throttled: bool | None, retry_after: float | None = None
    ) -> asyncio.Future[float | None]:
        """
        Learn from how a request ended, also where nobody awaits what this returns.

        :param permit: The request's permit.
        :param throttled: Whether the response was a 429; None where there was no response.
        :param retry_after: The seconds that the response asked all requests of the account to wait, if it did.
        :return: The seconds until the next request may be sent, None unless the response was a 429.
        """
        self._leave()
        if not self._needs_report(permit, throttled, retry_after):
            nothing: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        if throttled or retry_after:
            self._drop_permits()
        return self._change(partial(self._report, permit.number, throttled, retry_after))

    def give_back(self, permit: Permit) -> None:
        """
        Take back a permit whose request was certainly not sent, without waiting for the store.

        :param permit: The request's permit.
        """
        self._leave()
        self._put_back(permit)

    async def pause_until(self, not_before: NotBefore) -> None:
        """
        Pause for a 429 that a worker has met with the same key. The later of two cool-downs counts.

        Where the worker has met it in the same store, and that has not lost it since, the block is left as it is.

        :param not_before: When the next request may be sent.
        """
        wait = not_before.wait(self._clock.time())
        if wait > 0:
            if not is_known(not_before, self._store_id, self._throttled_at):
                self._drop_permits()
            await self._change(partial(self._pause, wait, not_before))

    def _drop_permits(self) -> None:
        """Let no permit hold that was given before, as the limit is used up."""
        self._drops += 1
        self._permits = None

    def _change(self, change: Callable[[], T]) -> asyncio.Future[T]:
        """Start a change of the store that nothing cancels, and that may permit or forbid a request."""
        done = self._in_thread(change)
        done.add_done_callback(lambda _: self._wake())
        return asyncio.shield(done)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        # With the caller's context: Airflow sends what a trigger logs to the log of its task.
        run = copy_context().run
        return asyncio.get_running_loop().run_in_executor(self._thread, run, function)

    def _count_demand(self, now: float) -> None:
        self._demand = 1 + self._demand * math.exp((self._demand_at - now) / _DEMAND_SECONDS)
        self._demand_at = now

    def _crowd_is_served_at(self, latest: float) -> float:
        """Return until when a poll waits longer, since others wait beside it, or refuse it."""
        now, crowd = asyncio.get_running_loop().time(), len(self._queue)
        if crowd < 2 or self._block.active or now >= latest:
            if not self._has_room(self._block.active):
                raise WhisulRateLimitError(
                    f"{MAX_IN_FLIGHT} requests of this API key have no response yet, and no more are sent at a time. "
                    "Nothing was sent. Whisul may be slow, or cannot be reached."
                )
            wall = self._clock.time()
            raise refusal(wall + max(self._not_before - now, 0.0), wall, self._block)
        return min(now + crowd * CROWD_SECONDS_PER_POLL, latest)

    def _permit_at(self, now: float) -> Permit | None:
        """Return a permit that may be used now, if there is one."""
        permits = self._permits
        if permits is None or permits.is_over(now) or permits.next_at - now > _NO_WAIT:
            return None
        return permits.use(now) if self._has_room(permits.probe) else None

    def _has_room(self, probe: bool) -> bool:
        """
        Return whether one more request may be on its way.

        A probe always may: where the others hang, no response would otherwise end the block. There is one at a time.
        """
        return probe or self._in_flight < MAX_IN_FLIGHT

    def _leave(self) -> None:
        """Count a request as no longer on its way."""
        self._in_flight -= 1
        if self._in_flight == MAX_IN_FLIGHT - 1:
            self._room_since = asyncio.get_running_loop().time()
            self._wake()

    def _pass_on(self, permit: Permit) -> None:
        """Give a permit to the next poll that waits, or keep it for one that comes."""
        while self._queue and self._has_room(permit.probe):
            permitted = self._waiting[self._queue.pop(asyncio.get_running_loop().time(), self.durations)]
            # It may just have been cancelled.
            if not permitted.done():
                self._in_flight += 1
                permitted.set_result((permit, self._waits))
                return
        self._put_back(permit)

    def _put_back(self, permit: Permit) -> None:
        """Keep a permit for a poll that comes. A probe is for all processes: it is given back to the store."""
        if permit.probe:
            self._change(partial(super().give_back, permit))
        elif self._permits is not None:
            self._permits.put_back(permit)

    def _start_runner(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._runner is None or self._runner.done():
            # In a context of its own: it serves all triggers, and outlives the one that starts it.
            self._runner = loop.create_task(self._run(), context=Context())
            self._runner.add_done_callback(self._runner_ended)

    def _runner_ended(self, runner: asyncio.Task[None]) -> None:
        if self._runner is runner:
            self._runner = None
        if not runner.cancelled() and (error := runner.exception()) is not None:
            for permitted in self._waiting.values():
                if not permitted.done():
                    permitted.set_exception(error)

    async def _run(self) -> None:
        """Permit the polls that wait, one after the other, until none waits."""
        loop = asyncio.get_running_loop()
        while self._queue:
            now = loop.time()
            if self._permits is not None and self._permits.is_over(now):
                self._latest_use = self._permits.latest_use
                self._permits = None
            if not self._has_room(self._block.active if self._permits is None else self._permits.probe):
                # The store is not asked meanwhile: permits that cannot be used are taken from other processes.
                await self._wait()
            elif self._permits is None:
                await self._get_permits(loop)
            elif (permit := self._permit_at(now)) is not None:
                self._pass_on(permit)
            else:
                self._not_before = self._permits.next_at
                await self._wait(self._permits.next_at - now)

    async def _get_permits(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask for a lease, and wait until it begins, or until it is worth asking again."""
        asked_at, drops = loop.time(), self._drops
        # By the fastest of the latest answers: a late answer with a long lease would add to the permits of others.
        lease_seconds = max(LEASE_SECONDS, LEASE_PER_ANSWER * min(self._took)) if self._is_timed else LEASE_SECONDS
        wanted = max(len(self._queue), int(self._demand * lease_seconds / _DEMAND_SECONDS))
        # Nor is it asked for more permits than there is room for.
        count = max(min(wanted, MAX_IN_FLIGHT - self._in_flight), 1)
        # What a poll waited for room was not the rate's doing, and must not raise it.
        overdue, urgent = min(self._queue.overdue(asked_at), asked_at - self._room_since), self._queue.urgent(asked_at)
        ask = partial(self._ask, "poll", count, overdue, urgent, lease_seconds=lease_seconds)
        answer, self._block, _ = await self._in_thread(ask)
        usual = self._time_answer(loop.time() - asked_at)
        if not isinstance(answer, Lease):
            self._not_before = loop.time() + answer
            await self._wait(min(answer, CHECK_INTERVAL))
            return
        self._not_before = starts_at = loop.time() + answer.delay
        # The check begins so early that its answer is there when the lease begins.
        early = (usual or 0.0) if must_check(starts_at - asked_at, usual) else 0.0
        holds = await self._wait_for_lease(starts_at - early, drops)
        if holds and must_check(max(starts_at, loop.time()) - asked_at, usual):
            holds = await self._in_thread(partial(self._still_permits, answer.first))
            holds = holds and await self._wait_for_lease(starts_at, drops)
        due = now = loop.time()
        if usual is not None and not self._came_late:
            # The store may have given the lease as early as usual, although its answer came later.
            due = min(now, asked_at + usual + answer.delay)
        # A probe is spaced by the block.
        permits = LeasedPermits(answer, due, -math.inf if answer.probe else self._latest_use)
        # No second lease in a row is given back for that: polls must be sent also where each answer is later.
        self._came_late = holds and permits.have_run_out(now)
        if holds and not self._came_late:
            self._permits = permits
        else:
            await self._in_thread(partial(self._give_back, answer))

    async def _wait_for_lease(self, at: float, drops: int) -> bool:
        """Wait, and return whether a lease may be used then: no permit has been dropped since it was asked for."""
        loop = asyncio.get_running_loop()
        at = max(at, loop.time())
        while self._queue and drops == self._drops and (left := at - loop.time()) > _NO_WAIT:
            await self._wait(left)
        # The process may have been stopped meanwhile. Then the lease has run out.
        return bool(self._queue) and drops == self._drops and loop.time() - at <= LEASE_SECONDS

    async def _wait(self, seconds: float = math.inf) -> None:
        """Wait, or until a response may have changed when the next request is allowed, or has made room for it."""
        self._waits += 1
        loop = asyncio.get_running_loop()
        self._changed = loop.create_future()
        timer = loop.call_later(seconds, self._wake) if seconds < math.inf else None
        try:
            await self._changed
        finally:
            if timer is not None:
                timer.cancel()
            # It refers to the event loop, which this object must not keep alive.
            self._changed = None

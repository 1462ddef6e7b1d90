"""
The clients of the simulated API: processes that submit songs, and triggerers that poll them.

They make the same decisions as :mod:`airflow_provider_whisul.rate_limit.worker_rate_limiter` and
:mod:`airflow_provider_whisul.rate_limit.async_rate_limiter`. The rate limiter, its leases and the queue of polls are
the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from airflow_provider_whisul.rate_limit.async_rate_limiter import _DEMAND_SECONDS as DEMAND_SECONDS
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_ATTEMPTS, MAX_WORKER_WAIT
from airflow_provider_whisul.rate_limit.leased_permits import LeasedPermits
from airflow_provider_whisul.rate_limit.limiter_client import CHECK_INTERVAL, UNCHECKED_WAIT
from airflow_provider_whisul.rate_limit.poll_queue import PollQueue, WaitingPoll
from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, Lease, Permit, RateLimiter
from benchmarks.simulation.events import Events


class Api(Protocol):
    """The API as a client sees it."""

    def request(self, job: int, submits: bool, respond: Callable[[bool], None]) -> None:
        """Send a request. ``respond`` is called with whether the response was a 429."""
        ...


class Store:
    """
    One rate limiter, shared by some processes.

    :param limiter: The rate limiter.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.decisions = 0
        self.submitters = 0


class Submitter:
    """
    A process that submits songs, one after the other.

    :param ended: Called when a song is submitted or given up: with the song, and whether it is submitted.
    """

    def __init__(self, events: Events, api: Api, store: Store, ended: Callable[[int, bool], None]) -> None:
        self._events, self._api, self._store, self._ended = events, api, store, ended
        self._busy_since = -1.0
        store.submitters += 1
        self._number = store.submitters

    def submit(self, job: int) -> None:
        """Submit a song."""
        if self._busy_since < 0:
            self._busy_since = self._events.now
        self._try(job, 1, self._events.now + MAX_WORKER_WAIT)

    def _try(self, job: int, attempt: int, give_up_at: float) -> None:
        events, store, now = self._events, self._store, self._events.now
        store.decisions += 1
        lease = store.limiter.acquire(now, "submission", overdue=now - self._busy_since, client=self._number)
        if not isinstance(lease, Lease):
            too_late = not store.limiter.block.probing and store.limiter.next_allowed_at(now) > give_up_at
            if too_late or now >= give_up_at:
                self._ended(job, False)
            else:
                events.after(min(lease, give_up_at - now), lambda: self._try(job, attempt, give_up_at))
            return
        permit = lease.permit(0)

        def send() -> None:
            if lease.delay > UNCHECKED_WAIT and not store.limiter.is_permitted(permit.number):
                self._try(job, attempt, give_up_at)
            else:
                self._api.request(job, True, respond)

        def respond(throttled: bool) -> None:
            if throttled or permit.probe:
                store.decisions += 1
                store.limiter.on_response(events.now, permit.number, throttled, None, events.random.random())
            if not throttled:
                self._ended(job, True)
            elif attempt < MAX_WORKER_ATTEMPTS:
                self._try(job, attempt + 1, give_up_at)
            else:
                self._ended(job, False)

        events.after(lease.delay, send)


class Triggerer:
    """
    A process that polls jobs, with a queue of those that are due.

    :param polled: Called with a job when it was polled.
    """

    def __init__(self, events: Events, api: Api, store: Store, polled: Callable[[int], None]) -> None:
        self._events, self._api, self.store, self._polled = events, api, store, polled
        self._queue = PollQueue()
        self._jobs: dict[WaitingPoll, int] = {}
        # The lease that has been given, once it has begun its permits, and when it begins.
        self._lease: Lease | None = None
        self._asked_at = self._starts_at = 0.0
        self._permits: LeasedPermits | None = None
        # Of the permits before those.
        self._latest_use = -math.inf
        self._demand, self._demand_at = 0.0, -math.inf
        self._wakes_at = math.inf

    def due(self, job: int, poll: WaitingPoll) -> None:
        """Poll a job as soon as that is permitted."""
        now = self._events.now
        self._demand = 1 + self._demand * math.exp((self._demand_at - now) / DEMAND_SECONDS)
        self._demand_at = now
        self._jobs[poll] = job
        self._queue.add(poll)
        self._serve()

    def _wake(self, seconds: float) -> None:
        at = self._events.now + seconds
        if at < self._wakes_at:
            self._wakes_at = at
            self._events.after(seconds, self._woken)

    def _woken(self) -> None:
        if self._events.now >= self._wakes_at:
            self._wakes_at = math.inf
            self._serve()

    def _serve(self) -> None:
        now, limiter = self._events.now, self.store.limiter
        while self._queue:
            if self._permits is not None and self._permits.is_over(now):
                self._latest_use, self._permits = self._permits.latest_use, None
            if self._permits is not None:
                if self._permits.next_at > now + 1e-6:
                    self._wake(self._permits.next_at - now)
                    return
                permit = self._permits.use(now)
                self._send(self._jobs.pop(self._queue.pop(now, limiter.durations)), permit)
            elif self._lease is None:
                if (wait := self._ask()) > 0:
                    self._wake(min(wait, CHECK_INTERVAL))
                    return
            elif self._starts_at > now + 1e-6:
                self._wake(self._starts_at - now)
                return
            else:
                lease, self._lease = self._lease, None
                if now - self._asked_at <= UNCHECKED_WAIT or limiter.is_permitted(lease.first):
                    self._permits = LeasedPermits(lease, now, self._latest_use)

    def _ask(self) -> float:
        """Ask for a lease, and return the seconds after which to ask again, 0 where there is one."""
        now = self._events.now
        self.store.decisions += 1
        answer = self.store.limiter.acquire(
            now,
            "poll",
            count=max(len(self._queue), int(self._demand * LEASE_SECONDS / DEMAND_SECONDS)),
            overdue=self._queue.overdue(now),
            urgent=self._queue.urgent(now),
        )
        if not isinstance(answer, Lease):
            return answer
        self._lease, self._asked_at, self._starts_at = answer, now, now + answer.delay
        return 0.0

    def _send(self, job: int, permit: Permit) -> None:
        def respond(throttled: bool) -> None:
            if throttled or permit.probe:
                self.store.decisions += 1
                self.store.limiter.on_response(
                    self._events.now, permit.number, throttled, None, self._events.random.random()
                )
            if throttled:
                self._lease = self._permits = None
            self._polled(job)
            self._serve()

        self._api.request(job, False, respond)

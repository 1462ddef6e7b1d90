"""Runs a simulation: events in the order of their times, until the completion of every job was seen."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median_low
from typing import Protocol

from airflow_provider_whisul.rate_limit.backoff import MAX_ATTEMPTS
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.shared_rate_limiter import CHECK_INTERVAL
from benchmarks.simulation.api_limiter import ApiLimiter
from benchmarks.simulation.world import (
    JOB_SECONDS,
    POLL_INTERVAL,
    RETRIES,
    RETRY_DELAY,
    ROUND_TRIP,
    TASK_START,
    Result,
    World,
)

#: Seconds after which a simulation ends, whatever is left.
HORIZON = 3600.0

#: The share of a limit of n requests in any second that evenly sent requests keep to, whatever their round trips are.
SAFE_SHARE = 0.8


class Limiter(Protocol):
    """What decides when a client sends its next request; see :class:`RateLimiter`."""

    def next_allowed_at(self, now: float) -> float: ...
    def on_request(self, now: float, overdue: float = 0.0) -> int: ...
    def on_response(
        self, now: float, request: int, throttled: bool | None, retry_after: float | None = None, jitter: float = 0.0
    ) -> bool: ...


MakeLimiter = Callable[[], Limiter]


class NoRateLimiter:
    """Allows every request at once."""

    def next_allowed_at(self, now: float) -> float:
        return now

    def on_request(self, now: float, overdue: float = 0.0) -> int:
        return 0

    def on_response(
        self, now: float, request: int, throttled: bool | None, retry_after: float | None = None, jitter: float = 0.0
    ) -> bool:
        return False


def simulate(world: World, make_limiter: MakeLimiter = RateLimiter, backoff: Sequence[float] = ()) -> Result:
    """
    Simulate one world until the completion of every job was seen, at most for an hour.

    :param world: What is simulated.
    :param make_limiter: Makes the rate limiter of a triggerer, and of task processes.
    :param backoff: Seconds that each job waits by itself after its first, second, … 429 in a row; empty for none.
    """
    return _Simulation(world, make_limiter, backoff).run()


def over_seeds(
    world: World, seeds: Iterable[int], make_limiter: MakeLimiter = RateLimiter, backoff: Sequence[float] = ()
) -> tuple[Result, Result]:
    """Simulate a world with several seeds. Return the median and the maximum of each number."""
    results = [simulate(replace(world, seed=seed), make_limiter, backoff) for seed in seeds]
    numbers = [[getattr(result, name) for result in results] for name in Result.__dataclass_fields__]
    return Result(*map(median_low, numbers)), Result(*map(max, numbers))


def with_known_limit(limit: float, triggerers: int = 1) -> MakeLimiter:
    """
    Return what makes the rate limiter of a triggerer whose user knows the limit.

    :param limit: The limit of the key, in requests per second.
    :param triggerers: Among how many triggerers the user splits it.
    """
    return lambda: RateLimiter(SAFE_SHARE * limit / triggerers)


@dataclass
class _Triggerer:
    limiter: Limiter
    #: When the poll of each job was due, and of which job, in that order.
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    timer: float = math.inf


class _Simulation:
    def __init__(self, world: World, make_limiter: MakeLimiter, backoff: Sequence[float]) -> None:
        self.random = random.Random(world.seed)
        self.world = world
        #: When each job ends; None until it is submitted.
        self.ends: list[float | None] = [None] * world.jobs
        self.make_limiter = make_limiter
        self.machine = make_limiter()
        #: The tasks that wait for a slot: the job, and the number of the try.
        self.tasks = deque((job, 1) for job in range(world.jobs))
        self.failed = 0
        self.triggerers = [_Triggerer(make_limiter()) for _ in range(world.triggerers)]
        self.api = ApiLimiter(world.limit, world.block)
        self.backoff = backoff
        self.throttled_in_a_row = [0] * world.jobs
        #: When the completion of each job was seen.
        self.seen: dict[int, float] = {}
        self.polls = 0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def run(self) -> Result:
        if not self.world.task_slots:
            for job in range(len(self.ends)):
                self._submitted(job, 0.0)
        for _ in range(self.world.task_slots):
            self._at(0.0, self._start_task)
        now = 0.0
        while self._events and self._events[0][0] <= HORIZON:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        delays = sorted(self.seen.get(job, math.inf) - end for job, end in enumerate(self.ends) if end is not None)
        all_seen = len(self.seen) == len(self.ends)
        last_delay = max(self.seen.values()) - max(end or 0.0 for end in self.ends) if all_seen else math.inf
        duration = now if len(self.seen) + self.failed == len(self.ends) else math.inf
        p50, p95 = (delays[len(delays) // 2], delays[len(delays) * 95 // 100]) if delays else (math.inf, math.inf)
        return Result(last_delay, self.api.throttled, self.polls, p50, p95, duration, self.failed)

    def _at(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), happen))

    def _one_way(self) -> float:
        least, most = ROUND_TRIP
        return self.random.uniform(least / 2, most / 2)

    # A task process submits a job.

    def _start_task(self, now: float) -> None:
        if self.tasks:
            job, try_number = self.tasks.popleft()
            limiter = self.make_limiter() if self.world.separate_tasks else self.machine
            start = now + self.random.uniform(*TASK_START)
            self._at(start, partial(self._submit, job, try_number, limiter, start, 1))

    def _submit(self, job: int, try_number: int, limiter: Limiter, since: float, attempt: int, now: float) -> None:
        again = partial(self._submit, job, try_number, limiter, since)
        allowed_at = limiter.next_allowed_at(now)
        if allowed_at > now:
            self._at(min(allowed_at, now + CHECK_INTERVAL), partial(again, attempt))
            return
        request = limiter.on_request(now, now - since)

        def arrive(now: float) -> None:
            self._at(now + self._one_way(), partial(respond, self.api.allows(now)))

        def respond(allowed: bool, now: float) -> None:
            limiter.on_response(now, request, not allowed, None, self.random.random())
            if not allowed and attempt < MAX_ATTEMPTS:
                again(attempt + 1, now)
                return
            if allowed:
                self._submitted(job, now)
            elif try_number <= RETRIES:
                self._at(now + RETRY_DELAY, partial(self._retry_task, job, try_number + 1))
            else:
                self.failed += 1
            self._start_task(now)

        self._at(now + self._one_way(), arrive)

    def _retry_task(self, job: int, try_number: int, now: float) -> None:
        self.tasks.append((job, try_number))
        self._start_task(now)

    def _submitted(self, job: int, now: float) -> None:
        self.ends[job] = now + self.random.uniform(*JOB_SECONDS)
        self._at(now + POLL_INTERVAL * (1 + self.random.random()), partial(self._due, job))

    # A triggerer polls a job.

    def _due(self, job: int, now: float) -> None:
        triggerer = self.triggerers[job % len(self.triggerers)]
        triggerer.waiting.append((now, job))
        self._send_allowed(triggerer, now)

    def _send_allowed(self, triggerer: _Triggerer, now: float) -> None:
        while triggerer.waiting:
            allowed_at = triggerer.limiter.next_allowed_at(now)
            if allowed_at > now:
                if allowed_at < triggerer.timer:
                    triggerer.timer = allowed_at
                    self._at(allowed_at, partial(self._timer, triggerer))
                return
            due, job = triggerer.waiting.popleft()
            request = triggerer.limiter.on_request(now, now - due)
            self.polls += 1
            self._at(now + self._one_way(), partial(self._poll_arrives, triggerer, job, request))

    def _timer(self, triggerer: _Triggerer, now: float) -> None:
        if triggerer.timer <= now:
            triggerer.timer = math.inf
        self._send_allowed(triggerer, now)

    def _poll_arrives(self, triggerer: _Triggerer, job: int, request: int, now: float) -> None:
        allowed = self.api.allows(now)
        over = now >= (self.ends[job] or math.inf)
        self._at(now + self._one_way(), partial(self._poll_response, triggerer, job, request, allowed, over))

    def _poll_response(
        self, triggerer: _Triggerer, job: int, request: int, allowed: bool, over: bool, now: float
    ) -> None:
        triggerer.limiter.on_response(now, request, not allowed, None, self.random.random())
        wait = POLL_INTERVAL
        if allowed:
            self.throttled_in_a_row[job] = 0
        elif self.backoff:
            self.throttled_in_a_row[job] += 1
            wait = max(wait, self.backoff[min(self.throttled_in_a_row[job], len(self.backoff)) - 1])
        if allowed and over:
            self.seen[job] = now
        else:
            self._at(now + wait, partial(self._due, job))
        self._send_allowed(triggerer, now)

"""
Simulates the pacing of one account, against limits that it does not know: ``python -m benchmarks.pacing``.

500 jobs of 60 to 180 s run from the same second on and are polled every 10 s, first after 10 to 20 s. A limit allows so
many requests in any second and then blocks the key. Nothing runs here but the law itself: time, network and API are
numbers.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from statistics import median_low
from typing import Protocol

from airflow_provider_whisul.account_pace import AccountPace
from airflow_provider_whisul.hooks.whisul import LOOK_AGAIN_AFTER
from airflow_provider_whisul.pace import MAX_ATTEMPTS, RATE_LIMIT_LADDER

POLL_INTERVAL = 10.0
JOB_SECONDS = (60.0, 180.0)
#: Seconds, there and back.
ROUND_TRIP = (0.05, 0.3)
#: Seconds after which a simulation ends, whatever is left.
HORIZON = 3600.0

#: Seconds that a task process takes to start, and that Airflow waits before the next try.
TASK_START = (2.0, 4.0)
RETRY_DELAY = 300.0
RETRIES = 3

LIMITS: tuple[int | None, ...] = (3, 5, 8, 20, 50, None)
TRIGGERERS = (1, 2, 4)

#: The targets: seconds, requests, seconds.
LATE_TARGET, REFUSALS_TARGET, P95_TARGET = 10.0, 10, 30.0

#: The part of a limit of n requests in any second that evenly sent requests keep to, whatever their round trips are.
SAFE_PART = 0.8


class Block(Enum):
    """How a request that is refused prolongs the block."""

    #: It ends once nothing has been asked for 10 s.
    QUIET = "until 10 s of quiet"
    #: It takes 6 s, and 6 s more for each request that is made meanwhile.
    ADDS = "6 s more per request"


@dataclass(frozen=True)
class World:
    """
    What is simulated.

    :param limit: Requests that the API allows in any second; None for no limit.
    :param block: What happens to a key that exceeds it.
    :param triggerers: Among how many processes, which do not see each other, the jobs are split.
    :param jobs: How many there are.
    :param seed: For the times of jobs and network.
    :param slots: In how many places at a time task processes submit the jobs, one each; 0 where all jobs run already.
    :param alone: Whether each of these has a pace of its own, instead of one for all of them on their one machine.
    """

    limit: int | None
    block: Block = Block.QUIET
    triggerers: int = 1
    jobs: int = 500
    seed: int = 0
    slots: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Result:
    """
    What came of it.

    :param late: Seconds from the end of the last job to the moment in which the last completion was seen.
    :param refusals: How many 429s there were.
    :param polls: How many polls, these included.
    :param p50: Seconds from the end of a job to when that was seen, median.
    :param p95: The same, 95th percentile.
    :param took: Seconds until all jobs were over for who waited, or had failed for good.
    :param failed: How many tasks have failed in all their tries.
    """

    late: float
    refusals: int
    polls: int
    p50: float
    p95: float
    took: float
    failed: int

    @property
    def missed(self) -> set[str]:
        """The targets that it misses."""
        held = {
            # A poll interval and a round trip lie between two looks at the last job, so that is what "10 s" can be.
            "late": self.late <= LATE_TARGET + ROUND_TRIP[1],
            "429s": self.refusals <= REFUSALS_TARGET,
            "p95": self.p95 <= P95_TARGET,
        }
        return {name for name, holds in held.items() if not holds}


class Law(Protocol):
    """What paces the requests of one triggerer."""

    def next_at(self, now: float) -> float: ...
    def sent(self, now: float, overdue: float = 0.0) -> int: ...
    def answered(
        self, now: float, ticket: int, limited: bool | None, retry_after: float | None = None, chance: float = 0.0
    ) -> bool: ...


class NoLaw:
    """Everybody asks when it is time to, as if alone."""

    def next_at(self, now: float) -> float:
        return now

    def sent(self, now: float, overdue: float = 0.0) -> int:
        return 0

    def answered(
        self, now: float, ticket: int, limited: bool | None, retry_after: float | None = None, chance: float = 0.0
    ) -> bool:
        return False


@dataclass
class Limiter:
    """The API's limit of one key, as the sandbox has it, and in a second kind."""

    limit: int | None
    block: Block
    refusals: int = 0
    _recent: deque[float] = field(default_factory=deque)
    _blocked_until: float = -math.inf

    def allows(self, now: float) -> bool:
        if self.limit is None:
            return True
        if now < self._blocked_until:
            self._blocked_until = now + 10 if self.block is Block.QUIET else self._blocked_until + 6
            self.refusals += 1
            return False
        while self._recent and now - self._recent[0] >= 1:
            self._recent.popleft()
        if len(self._recent) < self.limit:
            self._recent.append(now)
            return True
        self._recent.clear()
        self._blocked_until = now + (10 if self.block is Block.QUIET else 6)
        self.refusals += 1
        return False


@dataclass
class _Triggerer:
    law: Law
    #: A heap of when a job was due, and which it is.
    waiting: list[tuple[float, int]] = field(default_factory=list)
    timer: float = math.inf


class _Simulation:
    def __init__(self, world: World, law: Callable[[], Law], ladder: Sequence[float]) -> None:
        self.random = random.Random(world.seed)
        self.world = world
        #: When each job is over; None as long as it is not submitted.
        self.ends: list[float | None] = [None] * world.jobs
        self.law = law
        self.machine = law()
        self.queue = deque((job, 1) for job in range(world.jobs))
        self.failed = 0
        self.triggerers = [_Triggerer(law()) for _ in range(world.triggerers)]
        self.limiter = Limiter(world.limit, world.block)
        self.ladder = ladder
        self.refused_in_a_row = [0] * world.jobs
        self.seen: dict[int, float] = {}
        self.polls = 0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def run(self) -> Result:
        if not self.world.slots:
            for job in range(len(self.ends)):
                self._submitted(job, 0.0)
        for _ in range(self.world.slots):
            self._at(0.0, self._start_task)
        now = 0.0
        while self._events and self._events[0][0] <= HORIZON:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        lags = sorted(self.seen.get(job, math.inf) - end for job, end in enumerate(self.ends) if end is not None)
        all_seen = len(self.seen) == len(self.ends)
        late = max(self.seen.values()) - max(end or 0.0 for end in self.ends) if all_seen else math.inf
        took = now if len(self.seen) + self.failed == len(self.ends) else math.inf
        p50, p95 = (lags[len(lags) // 2], lags[len(lags) * 95 // 100]) if lags else (math.inf, math.inf)
        return Result(late, self.limiter.refusals, self.polls, p50, p95, took, self.failed)

    def _at(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), happen))

    def _submitted(self, job: int, now: float) -> None:
        self.ends[job] = now + self.random.uniform(*JOB_SECONDS)
        self._at(now + POLL_INTERVAL * (1 + self.random.random()), partial(self._due, job))

    def _start_task(self, now: float) -> None:
        if self.queue:
            job, number = self.queue.popleft()
            law = self.law() if self.world.alone else self.machine
            start = now + self.random.uniform(*TASK_START)
            self._at(start, partial(self._submit, job, number, law, start, 1))

    def _submit(self, job: int, number: int, law: Law, since: float, attempt: int, now: float) -> None:
        again = partial(self._submit, job, number, law, since)
        at = law.next_at(now)
        if at > now:
            self._at(min(at, now + LOOK_AGAIN_AFTER), partial(again, attempt))
            return
        ticket = law.sent(now, now - since)

        def asked(now: float) -> None:
            self._at(now + self._one_way(), partial(answered, self.limiter.allows(now)))

        def answered(allowed: bool, now: float) -> None:
            law.answered(now, ticket, not allowed, None, self.random.random())
            if not allowed and attempt < MAX_ATTEMPTS:
                again(attempt + 1, now)
                return
            if allowed:
                self._submitted(job, now)
            elif number <= RETRIES:
                self._at(now + RETRY_DELAY, partial(self._try_again, job, number + 1))
            else:
                self.failed += 1
            self._start_task(now)

        self._at(now + self._one_way(), asked)

    def _try_again(self, job: int, number: int, now: float) -> None:
        self.queue.append((job, number))
        self._start_task(now)

    def _due(self, job: int, now: float) -> None:
        triggerer = self.triggerers[job % len(self.triggerers)]
        heapq.heappush(triggerer.waiting, (now, job))
        self._go(triggerer, now)

    def _go(self, triggerer: _Triggerer, now: float) -> None:
        while triggerer.waiting:
            at = triggerer.law.next_at(now)
            if at > now:
                if at < triggerer.timer:
                    triggerer.timer = at
                    self._at(at, partial(self._timer, triggerer))
                return
            due, job = heapq.heappop(triggerer.waiting)
            ticket = triggerer.law.sent(now, now - due)
            self.polls += 1
            self._at(now + self._one_way(), partial(self._asked, triggerer, job, ticket))

    def _timer(self, triggerer: _Triggerer, now: float) -> None:
        if triggerer.timer <= now:
            triggerer.timer = math.inf
        self._go(triggerer, now)

    def _one_way(self) -> float:
        least, most = ROUND_TRIP
        return self.random.uniform(least / 2, most / 2)

    def _asked(self, triggerer: _Triggerer, job: int, ticket: int, now: float) -> None:
        allowed = self.limiter.allows(now)
        over = now >= (self.ends[job] or math.inf)
        self._at(now + self._one_way(), partial(self._answered, triggerer, job, ticket, allowed, over))

    def _answered(self, triggerer: _Triggerer, job: int, ticket: int, allowed: bool, over: bool, now: float) -> None:
        triggerer.law.answered(now, ticket, not allowed, None, self.random.random())
        wait = POLL_INTERVAL
        if allowed:
            self.refused_in_a_row[job] = 0
        elif self.ladder:
            self.refused_in_a_row[job] += 1
            wait = max(wait, self.ladder[min(self.refused_in_a_row[job], len(self.ladder)) - 1])
        if allowed and over:
            self.seen[job] = now
        else:
            self._at(now + wait, partial(self._due, job))
        self._go(triggerer, now)


def simulate(world: World, law: Callable[[], Law] = AccountPace, ladder: Sequence[float] = ()) -> Result:
    """
    Let one world run until all completions are seen, or an hour is over.

    :param world: What is simulated.
    :param law: Makes what paces a triggerer.
    :param ladder: Seconds that each job waits by itself after its first, second, … 429 in a row; empty for the usual.
    """
    return _Simulation(world, law, ladder).run()


def told(limit: float, triggerers: int = 1) -> Callable[[], Law]:
    """Return the law of a triggerer whose user knows the limit, and gives each of several a part of what is safe."""
    return lambda: AccountPace(SAFE_PART * limit / triggerers)


def over_seeds(
    world: World, seeds: Iterable[int], law: Callable[[], Law] = AccountPace, ladder: Sequence[float] = ()
) -> tuple[Result, Result]:
    """Return the median and the worst of each number over the seeds."""
    results = [simulate(replace(world, seed=seed), law, ladder) for seed in seeds]
    numbers = [[getattr(result, name) for result in results] for name in Result.__dataclass_fields__]
    return Result(*map(median_low, numbers)), Result(*map(max, numbers))


def _cells(middle: Result, worst: Result) -> str:
    late = f"{middle.late:.1f} ({worst.late:.1f})" if middle.late < math.inf else "not in an hour"
    lags = (f"{lag:.0f}" if lag < math.inf else "never" for lag in (middle.p50, middle.p95))
    return f"{late} | {middle.refusals:,} ({worst.refusals:,}) | {middle.polls:,} | {' / '.join(lags)}"


def main() -> None:
    """Print what the law and its rivals come to."""
    parser = argparse.ArgumentParser(description="Simulate the pacing of one account against limits it does not know.")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each world; median and (worst) are shown")
    seeds = range(parser.parse_args().seeds)
    began = time.monotonic()
    numbers = "last seen, s after it ended | 429s | polls | lag p50 / p95, s"

    print("Laws, 500 jobs of 60-180 s polled every 10 s, one triggerer; median (worst) of", len(seeds), "runs\n")
    print(f"| limit, block | law | {numbers} |\n|---|---|---|---|---|---|")
    for world in (World(20), World(8, Block.ADDS)):
        assert world.limit is not None
        laws: dict[str, tuple[Callable[[], Law], Sequence[float]]] = {
            "none: polls on": (NoLaw, ()),
            "each job its own ladder": (NoLaw, RATE_LIMIT_LADDER),
            "one pace per account": (AccountPace, ()),
            f"the same, told {SAFE_PART:g} of the limit": (told(world.limit), ()),
        }
        for name, (law, ladder) in laws.items():
            # The first two are far off whatever the seed is, and their many polls take long.
            outcome = over_seeds(world, seeds if law is not NoLaw else seeds[:2], law, ladder)
            print(f"| {world.limit}/s, {world.block.value} | {name} | {_cells(*outcome)} |")

    print("\nOne pace per account, limits unknown; in brackets the worst run\n")
    print(f"| block | limit | triggerers | {numbers} | misses | could be: last, p95 |\n|{'---|' * 9}")
    for block, limit, triggerers in itertools.product(Block, LIMITS, TRIGGERERS):
        world = World(limit, block, triggerers)
        middle, worst = over_seeds(world, seeds)
        rate = f"{limit}/s" if limit else "none"
        best, _ = over_seeds(World(None), seeds, told(limit) if limit else NoLaw)
        missed = ", ".join(f"{name}*" if name in best.missed else name for name in sorted(middle.missed))
        print(
            f"| {block.value} | {rate} | {triggerers} | {_cells(middle, worst)} | {missed} "
            f"| {best.late:.1f}, {best.p95:.0f} |"
        )
    print(
        "\n200 jobs, each submitted by a task of its own with 3 retries, one triggerer; median (worst) of",
        len(seeds),
        "runs\n",
    )
    print(f"| limit, block | task slots | pace of the tasks | all over after, s | failed | 429s |\n{'|---' * 6}|")
    for limit, block, slots in itertools.product((8, 20), Block, (8, 32)):
        for alone in (True, False):
            middle, worst = over_seeds(World(limit, block, jobs=200, slots=slots, alone=alone), seeds)
            took = [f"{result.took:.0f}" if result.took < math.inf else "not in an hour" for result in (middle, worst)]
            pace = "each its own" if alone else "one for the machine"
            print(
                f"| {limit}/s, {block.value} | {slots} | {pace} | {took[0]} ({took[1]}) "
                f"| {middle.failed} ({worst.failed}) | {middle.refusals:,} ({worst.refusals:,}) |"
            )
    print(
        f"\nCould be: one triggerer that is told {SAFE_PART:g} of the limit and is never blocked. "
        f"* It misses this too.\nTook {time.monotonic() - began:.0f} s."
    )


if __name__ == "__main__":
    main()

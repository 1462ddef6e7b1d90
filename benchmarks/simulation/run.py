"""Runs a simulation until the completion of every song was seen."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from airflow_provider_whisul.rate_limit.durations import Durations
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from benchmarks.simulation.api_limiter import ApiLimiter
from benchmarks.simulation.clients import Store, Submitter, Triggerer
from benchmarks.simulation.events import Events
from benchmarks.simulation.oracle import Oracle
from benchmarks.simulation.reference import rate_limiter
from benchmarks.simulation.world import (
    HORIZON,
    JOB_SECONDS,
    POLL_INTERVAL,
    RETRIES,
    RETRY_DELAY,
    TASK_SLOTS,
    TASK_START,
    Law,
    Result,
    Sharing,
    World,
)

ORACLES = (Sharing.ORACLE, Sharing.EVEN_ORACLE)


def simulate(world: World) -> Result:
    """Simulate one world until the completion of every song was seen, for some hours at most."""
    return _Simulation(world).run()


@cache
def oracle_seconds(world: World) -> float:
    """Return how long the better of the oracles takes in a world."""
    return min(simulate(replace(world, sharing=sharing, triggerers=1)).seconds for sharing in ORACLES)


def compare(world: World, seeds: Iterable[int]) -> tuple[list[float], list[Result]]:
    """Simulate a world with several seeds. Return its times relative to the oracle's, and the results."""
    ratios, results = [], []
    for seed in seeds:
        result = simulate(replace(world, seed=seed))
        oracle = oracle_seconds(replace(world, seed=seed, sharing=Sharing.ORACLE, triggerers=1, law=Law.OWN))
        ratios.append(result.seconds / oracle)
        results.append(result)
    return ratios, results


class _Simulation:
    def __init__(self, world: World) -> None:
        self.world = world
        self.events = Events(world.seed)
        self.api = ApiLimiter(world.limit)
        #: When each job was submitted, and when it ends.
        self.submitted: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        # A job takes as long whatever happens to the others.
        self.seconds = [self.events.random.uniform(*JOB_SECONDS) for _ in range(world.songs)]
        self.seen: dict[int, float] = {}
        self.failed = 0
        self.polls = 0
        self.oracle: Oracle | None = None
        self.triggerers: list[Triggerer] = []
        self.stores: list[Store] = []
        if world.sharing in ORACLES:
            even = world.sharing is Sharing.EVEN_ORACLE
            self.oracle = Oracle(self.events, self.api, self.request, self._polled, even)
        else:
            self._make_stores()
        self.tasks = deque((job, 1) for job in range(world.songs))

    def _make_stores(self) -> None:
        world = self.world
        machines = [self._store() for _ in range(world.machines)]
        if world.sharing is Sharing.ALL:
            machines = machines[:1] * world.machines
        self.machines = machines
        self.stores = list(dict.fromkeys(machines))
        for number in range(world.triggerers):
            store = machines[number % world.machines]
            if world.sharing is Sharing.NOTHING:
                store = self._store()
                self.stores.append(store)
            self.triggerers.append(Triggerer(self.events, self, store, self._polled))

    def _store(self) -> Store:
        limiter, changes = rate_limiter(self.world)
        for at, tell in changes:
            self.events.after(at, tell)
        return Store(limiter)

    def run(self) -> Result:
        world = self.world
        if world.mapped:
            for slot in range(world.machines * TASK_SLOTS):
                self._start_task(slot % world.machines)
        else:
            self._start_batch()
        self.events.run(HORIZON, lambda: len(self.seen) + self.failed == world.songs)
        all_seen = len(self.seen) == world.songs
        requests = self.polls + len(self.submitted)
        return Result(
            seconds=max(self.seen.values()) if all_seen else math.inf,
            throttled=self.api.throttled,
            polls=self.polls / world.songs,
            submitted=max(self.submitted.values(), default=math.inf),
            decisions=sum(store.decisions for store in self.stores) / max(requests, 1),
        )

    def request(self, job: int, submits: bool, respond: Callable[[bool], None]) -> None:
        """Send a request to the API."""
        self.polls += not submits

        def arrive() -> None:
            throttled = not self.api.allows(self.events.now)
            if submits and not throttled:
                self.submitted[job] = self.events.now
                self.ends[job] = self.events.now + self.seconds[job]
            over = not submits and not throttled and self.events.now >= self.ends[job]
            self.events.after(self.events.one_way(), lambda: answered(throttled, over))

        def answered(throttled: bool, over: bool) -> None:
            if over:
                self.seen[job] = self.events.now
                for store in self.stores:
                    store.limiter.durations.add([self.seconds[job]])
            respond(throttled)

        if self.oracle:
            arrive()
        else:
            self.events.after(self.events.one_way(), arrive)

    # Task processes, each of which submits one song.

    def _start_task(self, machine: int) -> None:
        if not self.tasks:
            return
        job, try_number = self.tasks.popleft()

        def ended(_: int, submitted: bool) -> None:
            if submitted:
                self._wait_for(job)
            elif try_number <= RETRIES:
                self.events.after(RETRY_DELAY, retry)
            else:
                self.failed += 1
            self._start_task(machine)

        def retry() -> None:
            self.tasks.append((job, try_number + 1))
            self._start_task(machine)

        self.events.after(self.events.random.uniform(*TASK_START), lambda: self._submitter(machine, ended)(job))

    def _submitter(self, machine: int, ended: Callable[[int, bool], None]) -> Callable[[int], None]:
        if self.oracle:
            oracle = self.oracle
            return lambda job: oracle.submit(job, ended)
        return Submitter(self.events, self, self.machines[machine], ended).submit

    # One process that submits all songs.

    def _start_batch(self) -> None:
        def ended(job: int, submitted: bool) -> None:
            if not submitted:
                self.failed = self.world.songs
            elif job + 1 < self.world.songs:
                submit(job + 1)
            else:
                for each in range(self.world.songs):
                    self._wait_for(each)

        submit = self._submitter(0, ended)
        self.events.after(self.events.random.uniform(*TASK_START), lambda: submit(0))

    # Polls.

    def _wait_for(self, job: int) -> None:
        age = self.events.now - self.submitted[job]
        delay = max(POLL_INTERVAL, self._durations(job).first_poll_age() - age)
        delay += self.events.random.random() * POLL_INTERVAL
        self.events.after(delay, lambda: self._due(job, None))

    def _triggerer(self, job: int) -> Triggerer:
        return self.triggerers[job % len(self.triggerers) if self.world.mapped else 0]

    def _durations(self, job: int) -> Durations:
        return self.oracle.durations if self.oracle else self._triggerer(job).store.limiter.durations

    def _due(self, job: int, last_poll: float | None) -> None:
        poll = WaitingPoll(self.events.now, "dag", self.submitted[job], last_poll, POLL_INTERVAL)
        (self.oracle or self._triggerer(job)).due(job, poll)

    def _polled(self, job: int) -> None:
        if job not in self.seen:
            last_poll = self.events.now
            self.events.after(POLL_INTERVAL, lambda: self._due(job, last_poll))

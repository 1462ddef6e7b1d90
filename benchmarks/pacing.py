"""
Simulates the rate limiter of one account against limits that it does not know: ``python -m benchmarks.pacing``.

500 jobs of 60 to 180 s run from the same second on and are polled every 10 s, first after 10 to 20 s. A limit allows so
many requests in any second and then blocks the key. Only the rate limiter runs for real: see benchmarks/simulation.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence

from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from benchmarks.simulation.api_limiter import Block
from benchmarks.simulation.run import SAFE_SHARE, MakeLimiter, NoRateLimiter, over_seeds, with_known_limit
from benchmarks.simulation.world import Result, World

LIMITS: tuple[int | None, ...] = (3, 5, 8, 20, 50, None)
TRIGGERERS = (1, 2, 4)
TASK_JOBS = 200

_NUMBERS = "last seen, s after it ended | 429s | polls | delay p50 / p95, s"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pacing", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each world; median and (worst) are shown")
    seeds = range(parser.parse_args(argv).seeds)
    began = time.monotonic()
    _compare_limiters(seeds)
    _compare_limits(seeds)
    _compare_tasks(seeds)
    print(
        f"\nCould be: one triggerer that knows the limit, keeps to {SAFE_SHARE:g} of it and is never blocked. "
        f"* It misses this too.\nTook {time.monotonic() - began:.0f} s."
    )


def _compare_limiters(seeds: range) -> None:
    print(f"500 jobs of 60-180 s polled every 10 s, one triggerer; median (worst) of {len(seeds)} runs\n")
    print(f"| limit, block | rate limiter | {_NUMBERS} |\n|---|---|---|---|---|---|")
    for limit, block in ((20, Block.UNTIL_IDLE), (8, Block.PENALTY)):
        limiters: dict[str, tuple[MakeLimiter, Sequence[float]]] = {
            "none": (NoRateLimiter, ()),
            "none, each job backs off by itself": (NoRateLimiter, BACKOFF_SCHEDULE),
            "one per account": (RateLimiter, ()),
            f"the same, given {SAFE_SHARE:g} of the limit": (with_known_limit(limit), ()),
        }
        for name, (make_limiter, backoff) in limiters.items():
            # Without a rate limiter the numbers are far off whatever the seed is, and the many polls take long.
            some_seeds = seeds if make_limiter is not NoRateLimiter else seeds[:2]
            outcome = over_seeds(World(limit, block), some_seeds, make_limiter, backoff)
            print(f"| {limit}/s, {block.value} | {name} | {_cells(*outcome)} |")


def _compare_limits(seeds: range) -> None:
    print("\nOne rate limiter per account, limits unknown; in brackets the worst run\n")
    print(f"| block | limit | triggerers | {_NUMBERS} | misses | could be: last, p95 |\n|{'---|' * 9}")
    for block, limit, triggerers in itertools.product(Block, LIMITS, TRIGGERERS):
        median, worst = over_seeds(World(limit, block, triggerers), seeds)
        rate = f"{limit}/s" if limit else "none"
        best, _ = over_seeds(World(None), seeds, with_known_limit(limit) if limit else NoRateLimiter)
        missed = ", ".join(f"{name}*" if name in best.missed else name for name in sorted(median.missed))
        print(
            f"| {block.value} | {rate} | {triggerers} | {_cells(median, worst)} | {missed} "
            f"| {best.last_delay:.1f}, {best.p95:.0f} |"
        )


def _compare_tasks(seeds: range) -> None:
    print(
        f"\n{TASK_JOBS} jobs, each submitted by a task of its own with 3 retries, one triggerer; median (worst) of "
        f"{len(seeds)} runs\n"
    )
    print(
        f"| limit, block | task slots | rate limiter of the tasks | all over after, s | failed | 429s |\n{'|---' * 6}|"
    )
    for limit, block, slots in itertools.product((8, 20), Block, (8, 32)):
        for separate in (True, False):
            world = World(limit, block, jobs=TASK_JOBS, task_slots=slots, separate_tasks=separate)
            median, worst = over_seeds(world, seeds)
            print(
                f"| {limit}/s, {block.value} | {slots} | {'one each' if separate else 'one for the machine'} "
                f"| {_duration(median)} ({_duration(worst)}) | {median.failed} ({worst.failed}) "
                f"| {median.throttled:,} ({worst.throttled:,}) |"
            )


def _cells(median: Result, worst: Result) -> str:
    last = f"{median.last_delay:.1f} ({worst.last_delay:.1f})" if median.last_delay < math.inf else "not in an hour"
    delays = " / ".join(f"{delay:.0f}" if delay < math.inf else "never" for delay in (median.p50, median.p95))
    return f"{last} | {median.throttled:,} ({worst.throttled:,}) | {median.polls:,} | {delays}"


def _duration(result: Result) -> str:
    return f"{result.duration:.0f}" if result.duration < math.inf else "not in an hour"


if __name__ == "__main__":
    main()

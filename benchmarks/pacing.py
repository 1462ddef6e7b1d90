"""
Simulates the processes that share a key whose limit they do not know: ``python -m benchmarks.pacing``.

Songs of 60 to 180 s are submitted, and each is polled every 10 s. Measured is the time until the completion of all is
known, relative to that of an oracle which knows the limit, and the number of 429s. The rate limiter, its leases and the
queue of polls are the real ones: see benchmarks/simulation.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pool
from statistics import geometric_mean, median

from airflow_provider_whisul.rate_limit import block, rate_limiter, throttle
from benchmarks.simulation.api_limiter import Limit, Shape
from benchmarks.simulation.run import compare
from benchmarks.simulation.world import Law, Sharing, World
from benchmarks.tables import say, table, verdict

RATES = (1, 3, 8, 20, 100)
PROCESSES = 2

#: Goals: seconds relative to the oracle's, from which rate on which, and the number of 429s.
MOST_SECONDS, FAST_FROM, MOST_SECONDS_FAST, MOST_429S = 1.3, 8.0, 1.15, 10

#: Which processes share a rate limiter, and how many machines and triggerers there are.
ARRANGEMENTS = (
    (Sharing.NOTHING, 1, 1),
    (Sharing.NOTHING, 2, 4),
    (Sharing.MACHINE, 1, 1),
    (Sharing.MACHINE, 2, 4),
    (Sharing.ALL, 2, 1),
    (Sharing.ALL, 2, 2),
    (Sharing.ALL, 2, 4),
)

#: What a night is like without a constant: the constant, and the value that stands for its absence.
ABLATIONS: tuple[tuple[str, float], ...] = (
    ("INITIAL_RATE", 4.0),
    ("INCREASE", 0.02),
    ("INCREASE", 0.2),
    ("OVERDUE_AFTER", 5.0),
    ("DELAYED", math.inf),
    ("FIRST_DECREASE", 1.0),
    ("FIRST_DECREASE", throttle.SOON_DECREASE),
    ("SOON_DECREASE", throttle.DECREASE),
    ("SOON_DECREASE", 0.5),
    ("SOON", math.inf),
    ("DECREASE", throttle.FIRST_DECREASE),
    ("CEILING_DOUBLES_AFTER", 100.0),
    ("CEILING_DOUBLES_AFTER", throttle.MAX_CEILING_DOUBLES_AFTER),
    ("MAX_CEILING_DOUBLES_AFTER", throttle.CEILING_DOUBLES_AFTER),
    ("STEP_FORGOTTEN_AFTER", 1.0),
    ("POLL_SHARE", 1.0),
    ("URGENT_POLL_SHARE", rate_limiter.POLL_SHARE),
)


@dataclass(frozen=True)
class Case:
    """
    One cell of a table.

    :param world: What is simulated.
    :param seeds: With how many seeds.
    :param constants: The constants of the law that have another value.
    """

    world: World
    seeds: int
    constants: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """
    What a case has come to: medians, and the worst.

    :param ratio: Seconds until all is known, relative to the oracle's.
    :param throttled: Number of 429s.
    """

    ratio: float
    worst_ratio: float
    throttled: float
    worst_throttled: int

    @property
    def cell(self) -> str:
        """The outcome as a table shows it."""
        return f"{_number(self.ratio)} ({_number(self.worst_ratio)}), {self.throttled:.0f} ({self.worst_throttled})"


def outcome(case: Case) -> Outcome:
    """Simulate a case with all its seeds."""
    with _changed(dict(case.constants)):
        ratios, results = compare(case.world, range(case.seeds))
    throttled = [result.throttled for result in results]
    return Outcome(median(ratios), max(ratios), median(throttled), max(throttled))


def most_seconds(limit: Limit) -> float:
    """Return the goal for the seconds relative to the oracle's."""
    return MOST_SECONDS_FAST if limit.requests / limit.window >= FAST_FROM else MOST_SECONDS


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pacing", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each case; median and (worst) are shown")
    parser.add_argument("--quick", action="store_true", help="60 songs only")
    parser.add_argument("--constants", action="store_true", help="what a night is like without each constant")
    parser.add_argument("--laws", action="store_true", help="the provider's law beside others")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    if arguments.constants:
        _without_constants(arguments.seeds)
    elif arguments.laws:
        _laws(arguments.seeds)
    else:
        shared = _arrangements(arguments.seeds)
        shared += _shapes(60, tuple(Shape), arguments.seeds)
        if not arguments.quick:
            shared += _shapes(500, (Shape.PROLONGING, Shape.FIXED_WINDOW, Shape.BUCKET), arguments.seeds)
        _goals(shared)
    say(f"Took {time.monotonic() - began:.0f} s.")


def _arrangements(seeds: int) -> list[tuple[World, Outcome]]:
    found = []
    for mapped in (True, False):
        # One trigger polls all songs of a batch.
        rows = [arrangement for arrangement in ARRANGEMENTS if mapped or arrangement[2] in (1, 4)]
        worlds = [
            World(Limit(rate), sharing, 60, mapped, machines, triggerers)
            for sharing, machines, triggerers in rows
            for rate in RATES
        ]
        outcomes = _all([Case(world, seeds) for world in worlds])
        cells = [one.cell for one in outcomes]
        table(
            f"60 songs, {_how(mapped)}; seconds ÷ the oracle's, 429s; median (worst)",
            ("shared by", "machines", "triggerers", *(f"{rate}/s" for rate in RATES)),
            [
                (sharing.value, str(machines), str(triggerers), *cells[number * len(RATES) :][: len(RATES)])
                for number, (sharing, machines, triggerers) in enumerate(rows)
            ],
        )
        found += [(world, one) for world, one in zip(worlds, outcomes, strict=True) if world.sharing is Sharing.ALL]
    return found


def _limits(shapes: Sequence[Shape]) -> Iterator[tuple[str, Limit]]:
    for shape in shapes:
        for rate in RATES:
            yield f"{rate}/s, {shape.value}", Limit(rate, shape=shape)
    for shape in (Shape.FIXED_WINDOW, Shape.SLIDING, Shape.BUCKET, Shape.PROLONGING):
        yield f"60/min, {shape.value}", Limit(60, 60, shape)
    for rate in (3, 20):
        yield f"{rate}/s, another program uses half from 30 to 200 s", Limit(rate, changes=((30, 0.5), (200, 1.0)))
        yield f"{rate}/s, from 100 s on 0.4 of it", Limit(rate, changes=((100, 0.4),))
        yield f"{rate}/s, from 100 s on three times as much", Limit(rate, changes=((100, 3.0),))


def _shapes(songs: int, shapes: Sequence[Shape], seeds: int) -> list[tuple[World, Outcome]]:
    limits = list(_limits(shapes))
    worlds = [
        World(limit, Sharing.ALL, songs, mapped, 2 if mapped else 1, 4)
        for _, limit in limits
        for mapped in (True, False)
    ]
    outcomes = _all([Case(world, seeds) for world in worlds])
    cells = [one.cell for one in outcomes]
    table(
        f"{songs} songs, all share a rate limiter, 4 triggerers; seconds ÷ the oracle's, 429s; median (worst)",
        ("limit", _how(mapped=True), _how(mapped=False)),
        [(name, cells[2 * number], cells[2 * number + 1]) for number, (name, _) in enumerate(limits)],
    )
    return list(zip(worlds, outcomes, strict=True))


def _laws(seeds: int) -> None:
    worlds = [
        World(limit, Sharing.ALL, 500, mapped, 2 if mapped else 1, 4, law=law)
        for _, limit in _limits((Shape.PROLONGING,))
        for mapped in (True, False)
        for law in Law
    ]
    cells = [one.cell for one in _all([Case(world, seeds) for world in worlds])]
    names = [f"{name}, {_how(mapped)}" for name, _ in _limits((Shape.PROLONGING,)) for mapped in (True, False)]
    table(
        "500 songs, all share a rate limiter, 4 triggerers; seconds ÷ the oracle's, 429s; median (worst)",
        ("limit", *(law.value for law in Law)),
        [(name, *cells[len(Law) * number :][: len(Law)]) for number, name in enumerate(names)],
    )


def _without_constants(seeds: int) -> None:
    limits = [Limit(rate) for rate in RATES]
    limits += [Limit(3, shape=Shape.FIXED_WINDOW)]
    limits += [Limit(60, 60, shape) for shape in (Shape.FIXED_WINDOW, Shape.SLIDING, Shape.BUCKET)]
    limits += [Limit(3, changes=((30, 0.5), (200, 1.0))), Limit(20, changes=((100, 0.4),))]
    worlds = [
        World(limit, Sharing.ALL, songs, mapped, 2 if mapped else 1, 4)
        for limit in limits
        for songs, mapped in ((500, True), (500, False), (60, False))
    ]
    variants: list[tuple[tuple[str, float], ...]] = [(), *(((name, value),) for name, value in ABLATIONS)]
    outcomes = _all([Case(world, seeds, variant) for variant in variants for world in worlds])
    rows = []
    for number, variant in enumerate(variants):
        some = outcomes[number * len(worlds) :][: len(worlds)]
        ratios = [one.ratio for one in some]
        name, value = ("as it is", "") if not variant else (variant[0][0], f"{variant[0][1]:g}")
        missed = sum(
            (one.ratio > most_seconds(world.limit)) + (one.throttled > MOST_429S)
            for world, one in zip(worlds, some, strict=True)
        )
        rows.append(
            (
                name,
                value,
                f"{geometric_mean(ratios):.3f}" if max(ratios) < math.inf else "not in four hours",
                _number(max(ratios)),
                f"{sum(one.throttled for one in some) / len(some):.1f}",
                str(max(one.worst_throttled for one in some)),
                str(missed),
            )
        )
    table(
        f"What a night is like without each constant: {len(worlds)} cases, all processes share a rate limiter",
        ("constant", "instead", "seconds ÷ the oracle's", "worst case", "429s", "worst run", "goals missed"),
        rows,
    )


def _goals(found: Sequence[tuple[World, Outcome]]) -> None:
    say("Goals, where all processes share a rate limiter:\n")
    for name, most in (("below 8/s", MOST_SECONDS), ("from 8/s on", MOST_SECONDS_FAST)):
        some = [(world, one) for world, one in found if most_seconds(world.limit) == most]
        missed = [(world, one) for world, one in some if one.ratio > most]
        say(verdict(f"{name}: at most {most} times the oracle's seconds in {len(some)} cases", not missed))
        _print_missed(missed)
    missed = [(world, one) for world, one in found if one.throttled > MOST_429S]
    say(verdict(f"at most {MOST_429S} 429s in {len(found)} cases", not missed))
    _print_missed(missed)


def _print_missed(missed: Sequence[tuple[World, Outcome]]) -> None:
    for world, one in missed:
        limit = world.limit
        changes = f", {limit.changes}" if limit.changes else ""
        say(
            f"        {world.songs} songs, {_how(world.mapped)}, {limit.requests} in {limit.window:g} s, "
            f"{limit.shape.value}{changes}: {one.cell}"
        )


def _all(cases: Sequence[Case]) -> list[Outcome]:
    with Pool(PROCESSES) as pool:
        return pool.map(outcome, cases, chunksize=1)


@contextmanager
def _changed(constants: Mapping[str, float]) -> Iterator[None]:
    """Give some constants of the law another value."""
    before = [
        (module, name, getattr(module, name))
        for module in (throttle, rate_limiter, block)
        for name in constants
        if hasattr(module, name)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, constants[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _how(mapped: bool) -> str:
    return "mapped" if mapped else "batch"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < math.inf else "never"


if __name__ == "__main__":
    main()

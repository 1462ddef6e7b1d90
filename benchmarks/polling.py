"""
What it costs to poll a thousand jobs, and how evenly they are polled: ``python -m benchmarks.polling``.

Each way of polling runs in a process of its own, one after the other, again and again (A B C A B C …). CPU is the whole
process's, per poll, with that of a process that only sleeps taken off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks.pollers import POLLERS
from benchmarks.runs import Run, bench, warm_up_seconds
from benchmarks.tables import progress, say, spread, table, verdict

NAMES = {
    "sleeper": "only sleeps",
    "hand-written": "hand-written asyncio client",
    "whisul": "WhisulJobTrigger per job",
    "whisul-batch": "one WhisulBatchTrigger",
    "http-event": "http provider: HttpEventTrigger",
    "http-sensor": "http provider: HttpSensorTrigger (404s)",
    "requests": "requests, new session in a thread",
}

#: The TLS contexts that aiohttp makes when it is imported.
AIOHTTP_TLS_CONTEXTS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.polling", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=12.0, help="seconds that are measured of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=POLLERS, default=list(POLLERS))
    parser.add_argument("--https", action="store_true")
    parser.add_argument("--warm-up", type=float, help="seconds before that (default: two intervals and 1 s more)")
    parser.add_argument(
        "--limit",
        type=float,
        help="the account's limit in our connection, in requests per second, 0 for none (default: twice the mean, so "
        "that the rate does not still grow while it is measured)",
    )
    arguments = parser.parse_args(argv)
    names = list(dict.fromkeys(["sleeper", *arguments.only]))
    limit = 2 * arguments.jobs / arguments.interval if arguments.limit is None else arguments.limit
    warm_up = arguments.warm_up or warm_up_seconds(arguments.interval)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with bench(arguments.https) as benched:
        for number in range(arguments.rounds):
            for name in names:
                progress(f"round {number + 1} of {arguments.rounds}: {NAMES[name]}")
                run = benched.run(name, arguments.jobs, arguments.interval, warm_up, arguments.seconds, limit)
                runs[name].append(run)
    report(runs, arguments.jobs, arguments.interval, arguments.https)
    return 0


def cpu_per_poll(run: Run, sleeper: Run) -> float:
    """Return the CPU milliseconds per poll above those of a process that only sleeps."""
    return (run.figures.cpu - sleeper.figures.cpu) * 1000 / max(run.polls, 1)


def report(runs: dict[str, list[Run]], jobs: int, interval: float, https: bool) -> None:
    """Print the tables and the targets."""
    cost = {
        name: [cpu_per_poll(run, sleeper) for run, sleeper in zip(of_name, runs["sleeper"], strict=True)]
        for name, of_name in runs.items()
    }
    floor = cost.get("hand-written")
    wanted = jobs / interval
    scheme = "https" if https else "http"
    table(
        f"{jobs:,} jobs every {interval:g} s over {scheme}: CPU per poll, medians (least-most) of "
        f"{len(runs['sleeper'])} rounds",
        ("", "ms above the sleeper", "x hand-written", "CPU ms per s", "polls per s", "threads", "MB"),
        [
            (
                NAMES[name],
                "-" if name == "sleeper" else spread(cost[name]),
                f"{median(cost[name]) / median(floor):.1f}" if floor and name != "sleeper" else "-",
                f"{median(run.figures.cpu * 1000 / seconds_of(run) for run in of_name):.0f}",
                f"{median(run.polls / seconds_of(run) for run in of_name):.0f} of {wanted:.0f}"
                if name != "sleeper"
                else "0",
                f"{median(run.figures.threads for run in of_name):.0f}",
                f"{median(run.figures.megabytes for run in of_name):.1f}",
            )
            for name, of_name in runs.items()
        ],
    )
    table(
        f"The same: connections, evenness, blocking of the loop ({scheme}; ms: wall clock / CPU)",
        (
            "",
            "connections per poll",
            "TLS contexts used (made)",
            "peak/mean per s",
            "longest block at start",
            "later",
            "longest GC pass",
            "start CPU ms",
        ),
        [
            (
                NAMES[name],
                "-" if name == "sleeper" else f"{median(run.connections_per_poll for run in of_name):.4f}",
                f"{median(run.figures.tls_contexts for run in of_name):.0f}"
                f" ({median(run.figures.tls_contexts_made for run in of_name):.0f})",
                "-" if name == "sleeper" else spread([run.peak_to_mean for run in of_name]),
                block([(run.figures.start_block, run.figures.start_block_cpu) for run in of_name]),
                block([(run.figures.block, run.figures.block_cpu) for run in of_name]),
                f"{median(run.figures.gc_block for run in of_name) * 1000:.0f}",
                f"{median(run.figures.start_cpu for run in of_name) * 1000:.0f}",
            )
            for name, of_name in runs.items()
        ],
    )
    for name in ("whisul", "whisul-batch"):
        if name not in runs:
            continue
        of_name = runs[name]
        say(f"Targets, {NAMES[name]}, {scheme}:")
        own = median(cost[name])
        say(verdict(f"CPU per poll <= 1.0 ms: {own:.2f}", own <= 1.0))
        if floor:
            ratio = own / median(floor)
            say(verdict(f"CPU per poll <= 3 x hand-written: {ratio:.1f}", ratio <= 3))
        connections = median(run.connections_per_poll for run in of_name)
        say(verdict(f"connections per poll <= 0.02: {connections:.4f}", connections <= 0.02))
        if https:
            contexts = max(run.figures.tls_contexts_made for run in of_name) - AIOHTTP_TLS_CONTEXTS
            say(verdict(f"TLS contexts made, but for aiohttp's own two, 1: {contexts}", contexts == 1))
        evenness = median(run.peak_to_mean for run in of_name)
        say(verdict(f"peak/mean requests per second <= 1.3: {evenness:.2f}", evenness <= 1.3))
        blocked = median(max(run.figures.start_block, run.figures.block) for run in of_name) * 1000
        say(verdict(f"longest block < 50 ms: {blocked:.0f}", blocked < 50))
        say("")


def seconds_of(run: Run) -> float:
    """Return how long the measurement lasted."""
    begin, end = run.figures.window
    return end - begin


def block(blocks: Sequence[tuple[float, float]]) -> str:
    """Return the median of blocks, as milliseconds of the wall clock and of CPU."""
    return f"{median(wall for wall, _ in blocks) * 1000:.0f} / {median(cpu for _, cpu in blocks) * 1000:.0f}"


if __name__ == "__main__":
    sys.exit(main())

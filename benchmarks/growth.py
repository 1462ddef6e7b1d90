"""How the triggerer's cost grows with the number of jobs: ``python -m benchmarks.growth``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks.polling import NAMES, block, cpu_per_poll, seconds_of
from benchmarks.runs import Run, bench, warm_up_seconds
from benchmarks.tables import progress, spread, table

COMPARED = ("sleeper", "hand-written", "whisul", "whisul-batch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=12.0, help="seconds that are measured of each run")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args(argv)
    runs: dict[tuple[int, str], list[Run]] = {}
    with bench() as benched:
        for number in range(arguments.rounds):
            for jobs in arguments.jobs:
                for name in COMPARED:
                    progress(f"round {number + 1} of {arguments.rounds}: {jobs:,} jobs, {NAMES[name]}")
                    limit = 2 * jobs / arguments.interval
                    warm_up = warm_up_seconds(arguments.interval)
                    run = benched.run(name, jobs, arguments.interval, warm_up, arguments.seconds, limit)
                    runs.setdefault((jobs, name), []).append(run)
    rows = []
    for (jobs, name), of_name in runs.items():
        cost = [cpu_per_poll(run, sleeper) for run, sleeper in zip(of_name, runs[jobs, "sleeper"], strict=True)]
        grown = [run.figures.megabytes for run in of_name]
        rows.append(
            (
                f"{jobs:,} jobs: {NAMES[name]}",
                "-" if name == "sleeper" else spread(cost),
                f"{median(run.figures.cpu * 1000 / seconds_of(run) for run in of_name):.0f}",
                "0" if name == "sleeper" else f"{median(run.polls / seconds_of(run) for run in of_name):.1f}",
                f"{median(grown):.1f}",
                f"{median(grown) * 1000 / jobs:.1f}",
                f"{median(len(run.received.connections) for run in of_name):.0f}",
                block([(run.figures.block, run.figures.block_cpu) for run in of_name]),
                f"{median(run.figures.start_cpu for run in of_name) * 1000 / jobs:.2f}",
            )
        )
    table(
        f"How cost grows: polls every {arguments.interval:g} s over http "
        f"({arguments.rounds} round{'s' if arguments.rounds > 1 else ''}; memory includes the loaded HTTP client)",
        (
            "",
            "CPU ms per poll above the sleeper",
            "CPU ms per s",
            "polls per s",
            "MB",
            "KB per job",
            "connections",
            "longest block ms, wall / CPU",
            "start CPU ms per job",
        ),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

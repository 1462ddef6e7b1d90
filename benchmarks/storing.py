"""
What it costs to store a thousand songs of 1 MB in a local folder: ``python -m benchmarks.storing``.

The operator is compared with threads that download with ``requests`` and write each file, and check nothing. Each way
runs in a process of its own, one after the other, again and again (A B A B …), against a server that responds at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from statistics import median

from benchmarks.server import RawServer
from benchmarks.storers import STORERS, THREADS
from benchmarks.tables import progress, say, spread, table, verdict

NAMES = {"requests": f"{THREADS} threads with requests", "operator": "WhisulToObjectStorageOperator"}

#: The most that the operator may take, as a multiple of the threads.
TARGET = 1.5

RUN_SECONDS = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storing", description=__doc__)
    parser.add_argument("--songs", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1_000_000, help="bytes of each song")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STORERS}
    with RawServer(None) as server, tempfile.TemporaryDirectory(prefix="whisul-bench-") as home:
        for number in range(arguments.rounds):
            for name, of_name in runs.items():
                progress(f"round {number + 1} of {arguments.rounds}: {NAMES[name]}")
                of_name.append(run(name, server.origin, arguments.songs, arguments.size, home))
            server.take_received()
    baseline = runs["requests"]
    table(
        f"{arguments.songs:,} songs of {arguments.size:,} bytes: medians (least-most) of {arguments.rounds} rounds",
        ("", "seconds", "x threads", "CPU seconds", "x threads"),
        [
            (
                NAMES[name],
                spread([run["wall"] for run in of_name]),
                f"{ratio(of_name, baseline, 'wall'):.2f}",
                spread([run["cpu"] for run in of_name]),
                f"{ratio(of_name, baseline, 'cpu'):.2f}",
            )
            for name, of_name in runs.items()
        ],
    )
    reached = ratio(runs["operator"], baseline, "wall")
    say(verdict(f"seconds <= {TARGET} x threads with requests: {reached:.2f}", reached <= TARGET))
    return 0


def ratio(these: Sequence[dict[str, float]], those: Sequence[dict[str, float]], figure: str) -> float:
    """Return the ratio of the medians of a figure."""
    return median(run[figure] for run in these) / median(run[figure] for run in those)


def run(name: str, origin: str, songs: int, size: int, home: str) -> dict[str, float]:
    """Store the songs in one way, in a new process, and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.storers", name, "--origin", origin]
    command += ["--songs", str(songs), "--size", str(size)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=RUN_SECONDS)
    if done.returncode:
        raise RuntimeError(f"Storing with {name} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())

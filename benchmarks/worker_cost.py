"""
What a song costs Airflow, made in five ways: ``python -m benchmarks.worker_cost``.

A real Airflow (LocalExecutor, 6 slots, SQLite) makes the same songs in each way, one way after the other. First it runs
as many tasks that only defer once, the floor of what a task costs. The sandbox allows 8 requests per second. It blocks
a key that exceeds this until 6 s have passed without a request. On a fast machine the way with Airflow's own HTTP
operators never gets out of that block: ``--rate-limit 0`` shows what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from benchmarks.tables import progress, say, table, verdict
from dev.airflow_runner.client import FINISHED
from dev.airflow_runner.local import LocalAirflow

FLOOR = "floor"
VARIANTS = {
    FLOOR: "no-op operator that defers once, mapped",
    "task": "@task: requests, sleep loop",
    "http": "HttpOperator + HttpSensor",
    "sensor": "submit + WhisulJobSensor, mapped",
    "operator": "WhisulGenerateOperator, mapped",
    "batch": "WhisulGenerateBatchOperator",
}
KEY = "bench-key"
SLOTS = 6
JOB_SECONDS = (60.0, 120.0)
SAMPLE_SECONDS = 0.2
WORKER_SIDE = ("scheduler", "triggerer")
OURS = ("operator", "sensor", "batch")
#: How many task processes a task takes that defers once.
FLOOR_PROCESSES = 2
#: How much CPU one of our task processes may take, as a multiple of the floor's.
MAX_OF_FLOOR = 1.15


@dataclass
class Cost:
    """What one way of making the songs cost."""

    variant: str
    state: str = "not run"
    delivered: int = 0
    posts: int = 0
    throttled: int = 0
    polls: int = 0
    connections: int = 0
    triggerer_connections: int = 0
    seconds: float = 0.0
    #: When the last job ended, in seconds after the start: no way can have all songs sooner.
    last_job_over: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    #: CPU seconds per second of an Airflow with nothing to do, by process.
    idle: dict[str, float] = field(default_factory=dict)
    tasks: int = 0
    rows: int = 0
    kilobytes: float = 0.0

    def work(self, *names: str) -> float:
        """Return the CPU seconds of some processes beyond what they take with nothing to do."""
        return sum(self.cpu[name] - self.idle[name] * self.seconds for name in names)

    @property
    def work_per_task(self) -> float:
        """The CPU seconds of all processes per task process, beyond what they take with nothing to do."""
        return self.work(*WORKER_SIDE, "api-server") / max(self.tasks, 1)


class ProcessWatch(threading.Thread):
    """Counts the task processes that an Airflow starts and the connections that its triggerer opens to a port."""

    def __init__(self, airflow: LocalAirflow, port: int) -> None:
        super().__init__(daemon=True)
        self.tasks: set[int] = set()
        self.triggerer_connections: set[int] = set()
        self._airflow = airflow
        self._port = port
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(SAMPLE_SECONDS):
            for pid in self._airflow.process("scheduler").pids():
                with suppress(psutil.Error):
                    title = " ".join(psutil.Process(pid).cmdline())
                    if title.startswith("airflow worker -- ") and "LocalExecutor" not in title:
                        self.tasks.add(pid)
            for pid in self._airflow.process("triggerer").pids():
                with suppress(psutil.Error):
                    for connection in psutil.Process(pid).net_connections("tcp"):
                        if connection.raddr and connection.raddr.port == self._port:
                            self.triggerer_connections.add(connection.laddr.port)

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_cost", description=__doc__)
    parser.add_argument("--songs", type=int, default=60)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--job-seconds", type=float, nargs=2, default=JOB_SECONDS, metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--rate-limit", type=int, default=8, help="requests per second that are allowed; 0 for all")
    parser.add_argument("--timeout", type=float, default=1500.0, help="seconds that one variant may take")
    parser.add_argument("--idle", type=float, default=15.0, help="seconds in which the idle Airflow is measured")
    parser.add_argument("--json", type=Path, help="append the figures to this file, a line of JSON for each variant")
    arguments = parser.parse_args(argv)
    costs = []
    for variant in arguments.variants:
        cost = measure(
            variant,
            arguments.songs,
            (arguments.job_seconds[0], arguments.job_seconds[1]),
            arguments.rate_limit or None,
            arguments.timeout,
            arguments.idle,
        )
        costs.append(cost)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(vars(cost)) + "\n")
        progress(f"{variant}: {cost.state}, {cost.delivered} songs delivered after {cost.seconds:.0f} s")
    report(costs, arguments.songs)
    return 0


def measure(
    variant: str,
    songs: int,
    job_seconds: tuple[float, float],
    rate_limit: int | None,
    timeout: float,
    idle_seconds: float,
) -> Cost:
    """Make the songs in one way and return what that cost."""
    cost = Cost(variant)
    dag_id = f"bench_{variant}"
    options = SandboxOptions(
        api_key=KEY, job_seconds=job_seconds, rate_limit=rate_limit, rate_window=1.0, block_seconds=6.0
    )
    with Sandbox(options) as sandbox, running_airflow(sandbox, songs) as airflow:
        airflow.wait_for_dags(*(f"bench_{name}" for name in VARIANTS))
        airflow.unpause(dag_id)
        time.sleep(3.0)
        before = cpu_seconds(airflow)
        time.sleep(idle_seconds)
        after = cpu_seconds(airflow)
        cost.idle = {name: (after[name] - before[name]) / idle_seconds for name in after}
        rows, size = database(airflow.home)
        watch = ProcessWatch(airflow, int(sandbox.base_url.split(":")[2].split("/")[0]))
        watch.start()
        before, began, began_wall = cpu_seconds(airflow), time.monotonic(), time.time()
        run_id = airflow.trigger(dag_id)
        while cost.state not in FINISHED and time.monotonic() - began < timeout:
            time.sleep(SAMPLE_SECONDS)
            airflow.check()
            cost.state = run_state(airflow.home, run_id)
        cost.seconds = time.monotonic() - began
        after = cpu_seconds(airflow)
        watch.stop()
        cost.cpu = {name: after[name] - before[name] for name in after}
        # Those of the floor are too short for the watch to see each of them.
        cost.tasks = FLOOR_PROCESSES * songs if variant == FLOOR else len(watch.tasks)
        cost.triggerer_connections = len(watch.triggerer_connections)
        rows_after, size_after = database(airflow.home)
        cost.rows, cost.kilobytes = rows_after - rows, (size_after - size) / 1024
        done = [t for t in airflow.task_instances(dag_id, run_id) if t.task_id == "song" and t.state == "success"]
        cost.delivered = len(done)
        if variant == "batch":
            with suppress(KeyError):
                results = airflow.xcom(dag_id, run_id, "song")
                cost.delivered = sum(result["status"] == "completed" for result in results)
        requests, jobs = sandbox.requests, sandbox.jobs
        cost.posts = sum(request.method == "POST" and request.status == 202 for request in requests)
        cost.throttled = sum(request.status == 429 for request in requests)
        cost.polls = sum(request.method == "GET" for request in requests)
        cost.connections = len({request.connection for request in requests})
        cost.last_job_over = max((job.ends_at for job in jobs.values()), default=began_wall) - began_wall
    return cost


@contextmanager
def running_airflow(sandbox: Sandbox, songs: int) -> Iterator[LocalAirflow]:
    """Run an Airflow that has the sandbox as a Whisul connection, as an HTTP connection, and in plain variables."""
    os.environ["WHISUL_BENCH_SONGS"] = str(songs)
    env = {
        "AIRFLOW_CONN_WHISUL_DEFAULT": sandbox.connection,
        "AIRFLOW_CONN_HTTP_DEFAULT": json.dumps({"conn_type": "http", "host": sandbox.base_url}),
        "AIRFLOW__CORE__PARALLELISM": str(SLOTS),
        "WHISUL_BENCH_SONGS": str(songs),
        "WHISUL_BENCH_URL": sandbox.base_url,
        "WHISUL_BENCH_KEY": KEY,
    }
    with LocalAirflow(Path(__file__).parent / "dags", env=env) as airflow:
        yield airflow


def cpu_seconds(airflow: LocalAirflow) -> dict[str, float]:
    """Return the CPU seconds so far of each of Airflow's processes and of all its children, the ended ones included."""
    totals = {}
    for name in ("scheduler", "triggerer", "api-server", "dag-processor"):
        totals[name] = 0.0
        for pid in airflow.process(name).pids():
            with suppress(psutil.Error):
                # The times of ended children are in those of their parent.
                totals[name] += sum(psutil.Process(pid).cpu_times()[:4])
    return totals


def database(home: Path) -> tuple[int, int]:
    """Return the number of rows in Airflow's database, and its size in bytes with the write-ahead log."""
    path = home / "airflow.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names)
    return rows, sum(file.stat().st_size for file in home.glob("airflow.db*"))


def run_state(home: Path, run_id: str) -> str:
    """Return a run's state from Airflow's database, as a request to the API server would add to what is measured."""
    with closing(sqlite3.connect(f"file:{home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as connection:
        return str(connection.execute("SELECT state FROM dag_run WHERE run_id = ?", (run_id,)).fetchone()[0])


def report(costs: Sequence[Cost], songs: int) -> None:
    """Print the tables and the targets."""
    table(
        f"{songs} songs of {JOB_SECONDS[0]:.0f} to {JOB_SECONDS[1]:.0f} s on a real Airflow: what the API sees",
        (
            "",
            "songs",
            "POSTs",
            "429s",
            "polls",
            "connections",
            "of the triggerer",
            "all delivered after",
            "last job over at",
        ),
        [
            (
                VARIANTS[cost.variant],
                str(cost.delivered),
                str(cost.posts),
                str(cost.throttled),
                str(cost.polls),
                str(cost.connections),
                str(cost.triggerer_connections),
                f"{cost.seconds:.0f} s" if cost.state == "success" else f"{cost.state} at {cost.seconds:.0f} s",
                f"{cost.last_job_over:.0f} s",
            )
            for cost in costs
            if cost.variant != FLOOR
        ],
    )
    table(
        "The same: what Airflow spends (CPU seconds; in brackets beyond what an idle Airflow takes)",
        ("", "scheduler + workers", "triggerer", "API server", "per song", "task processes", "rows added", "database"),
        [
            (
                VARIANTS[cost.variant],
                f"{cost.cpu['scheduler']:.0f} ({cost.work('scheduler'):.0f})",
                f"{cost.cpu['triggerer']:.0f} ({cost.work('triggerer'):.1f})",
                f"{cost.cpu['api-server']:.0f} ({cost.work('api-server'):.0f})",
                f"{cost.work(*WORKER_SIDE, 'api-server') / songs:.2f}",
                str(cost.tasks),
                str(cost.rows),
                f"+{cost.kilobytes:.0f} KB",
            )
            for cost in costs
        ],
    )
    by_variant = {cost.variant: cost for cost in costs}
    floor = by_variant.get(FLOOR)
    if floor:
        table(
            "The same: CPU seconds per task process",
            ("", "CPU", "relative to the floor"),
            [
                (
                    VARIANTS[cost.variant],
                    f"{cost.work_per_task:.2f}",
                    f"{cost.work_per_task / floor.work_per_task:.2f}",
                )
                for cost in costs
            ],
        )
    for name in OURS:
        if name not in by_variant:
            continue
        cost = by_variant[name]
        max_throttled = 5 if name == "batch" else 20
        say(f"Targets, {VARIANTS[name]}:")
        say(verdict(f"every song delivered: {cost.delivered}", cost.delivered == songs))
        say(verdict(f"a POST per song: {cost.posts}", cost.posts == songs))
        say(verdict(f"all delivered <= 150 s: {cost.seconds:.0f} s", cost.state == "success" and cost.seconds <= 150))
        say(verdict(f"429s <= {max_throttled}: {cost.throttled}", cost.throttled <= max_throttled))
        say(verdict(f"triggerer's connections <= 10: {cost.triggerer_connections}", cost.triggerer_connections <= 10))
        if "http" in by_variant:
            part = cost.work(*WORKER_SIDE, "api-server") / by_variant["http"].work(*WORKER_SIDE, "api-server")
            most = 1 / 20 if name == "batch" else 1 / 3
            say(verdict(f"CPU, of HttpSensor's <= 1/{1 / most:.0f}: 1/{1 / part:.1f}", part <= most))
        # The two task processes of the batch do the work of all its songs.
        if floor and name != "batch":
            ratio = cost.work_per_task / floor.work_per_task
            say(verdict(f"CPU per task process, of the floor's <= {MAX_OF_FLOOR}: {ratio:.2f}", ratio <= MAX_OF_FLOOR))
        say("")


def stop(signum: int, frame: object) -> None:
    """End as after Ctrl-C, so that every process is stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main())

"""
What processes cost that wait to submit on one rate limiter in a Redis: ``python -m benchmarks.waiting``.

So many processes as there are pods ask at the same time for the permission to submit one song each. Nothing is sent.
Measured are the round trips to Redis per permit, the CPU of all processes and of the Redis, and the time until the last
one is permitted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_WAIT
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from airflow_provider_whisul.rate_limit.redis_store import RedisStore
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from benchmarks.tables import progress, say, table
from tests.support.redis_server import RedisServer

PROCESSES = 60
RATES = (1.0, 8.0)


@dataclass(frozen=True)
class Cost:
    """
    What the processes have cost.

    :param round_trips: Round trips to Redis per permit.
    :param cpu: Seconds of CPU of the processes, from when all are there.
    :param redis_cpu: Seconds of CPU of the Redis.
    :param seconds: Seconds until the last one is permitted.
    """

    round_trips: float
    cpu: float
    redis_cpu: float
    seconds: float


class CountingStore(RedisStore):
    """A store that counts its round trips."""

    round_trips = 0

    def _call(self, *arguments: Any) -> Any:
        self.round_trips += 1
        return super()._call(*arguments)


def wait_for_permit(settings: ConnectionSettings, redis: RedisSettings, start: int, results: int) -> None:
    """Ask for one permit when all processes are there, and write what it took."""
    os.read(start, 1)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    store = CountingStore(settings, redis)
    WorkerRateLimiter(store, settings).acquire("submission", MAX_WORKER_WAIT)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    os.write(results, f"{json.dumps([store.round_trips, cpu, time.monotonic() - began])}\n".encode())


def measure(processes: int, rate: float, settle: float) -> Cost:
    """
    Let some processes wait for one permit each.

    :param processes: How many.
    :param rate: Requests per second.
    :param settle: Seconds that the processes have to begin.
    """
    settings = ConnectionSettings("https://api.whisul.test", "bench-key", max_requests_per_second=rate)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        # What all processes need is loaded once, before they are forked.
        RedisStore(settings, server.settings).reset()
        start, hold = os.pipe()
        results, write = os.pipe()
        for _ in range(processes):
            if not os.fork():
                os.close(hold)
                try:
                    wait_for_permit(settings, server.settings, start, write)
                finally:
                    os._exit(0)
        os.close(write)
        time.sleep(settle)
        redis = psutil.Process(server.pid)
        redis_began = sum(redis.cpu_times()[:2])
        os.close(hold)
        with os.fdopen(results) as lines:
            found = [json.loads(line) for line in lines]
        for _ in range(processes):
            os.wait()
        redis_cpu = sum(redis.cpu_times()[:2]) - redis_began
        server.kill()
    assert len(found) == processes, "A process has failed."
    round_trips, cpu, seconds = zip(*found, strict=True)
    return Cost(sum(round_trips) / processes, sum(cpu), redis_cpu, max(seconds))


def main(argv: Sequence[str] | None = None) -> None:
    """Print what waiting costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=main.__doc__)
    parser.add_argument("--processes", type=int, default=PROCESSES, help="how many processes wait")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests per second")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds that the processes have to begin")
    arguments = parser.parse_args(argv)
    rows = []
    for rate in arguments.rates:
        progress(f"{arguments.processes} processes, {rate:g} requests per second …")
        cost = measure(arguments.processes, rate, arguments.settle)
        rows.append(
            (
                f"{rate:g}/s",
                f"{cost.round_trips:.1f}",
                f"{cost.cpu:.1f} s",
                f"{cost.redis_cpu:.1f} s",
                f"{cost.seconds:.1f} s",
            )
        )
    table(
        f"{arguments.processes} processes that wait for one permit each",
        ("rate", "round trips per permit", "CPU", "CPU of the Redis", "until the last permit"),
        rows,
    )
    say("A permit takes two round trips at least, and a third one where it was waited for.")


if __name__ == "__main__":
    main()

"""
Runs one way of polling many jobs in the event loop of this process, as the triggerer runs triggers.

``python -m benchmarks.poller_process NAME …`` measures it and prints the figures as JSON. :mod:`benchmarks.polling` and
:mod:`benchmarks.growth` compare them.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pollers import POLLERS, Task, Trigger
from benchmarks.server import pin

HEARTBEAT_SECONDS = 0.005


@dataclass
class Figures:
    """
    What the process measures of itself.

    :param began: When the first trigger was started, in seconds of the machine's monotonic clock.
    :param window: From when to when CPU was measured, likewise.
    :param cpu: CPU seconds of the whole process in the window.
    :param start_cpu: CPU seconds from the first trigger's start until all have started.
    :param start_block: The longest time in seconds that the loop was blocked until all triggers had started.
    :param start_block_cpu: The CPU seconds of the loop's thread in that time. In the rest another process ran.
    :param block: The same after that, until the end of the window.
    :param block_cpu: Likewise.
    :param gc_block: CPU seconds of the longest pass of Python's garbage collector, which blocks the loop like any work.
    :param tls_contexts: TLS contexts that a connection was made with.
    :param tls_contexts_made: TLS contexts made, aiohttp's own two for its import among them. Each reads the CA file.
    :param megabytes: What the process's memory has grown by, from before the first trigger to the end of the window.
    :param threads: Threads at the end of the window.
    :param ended: Triggers that had ended by then, which none should have.
    """

    began: float = 0.0
    window: tuple[float, float] = (0.0, 0.0)
    cpu: float = 0.0
    start_cpu: float = 0.0
    start_block: float = 0.0
    start_block_cpu: float = 0.0
    block: float = 0.0
    block_cpu: float = 0.0
    gc_block: float = 0.0
    tls_contexts: int = 0
    tls_contexts_made: int = 0
    megabytes: float = 0.0
    threads: int = 0
    ended: int = 0


class Heartbeat:
    """Measures by the delay of its own sleep for how long the loop was blocked."""

    def __init__(self) -> None:
        self.worst = (0.0, 0.0)

    async def beat(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(HEARTBEAT_SECONDS)
            late = time.perf_counter() - wall - HEARTBEAT_SECONDS
            self.worst = max(self.worst, (late, time.thread_time() - cpu))

    def take(self) -> tuple[float, float]:
        """Return the longest block since the last call, with the CPU seconds in it."""
        worst, self.worst = self.worst, (0.0, 0.0)
        return worst


class CollectorWatch:
    """Times the passes of Python's garbage collector."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = 0.0
        gc.callbacks.append(self._on_pass)

    def _on_pass(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self.longest = max(self.longest, time.thread_time() - self._began)


async def measure(
    name: str, task: Task, warm_up: float, seconds: float, profile: cProfile.Profile | None = None
) -> Figures:
    """Run the triggers; let them warm up, then measure."""
    import greenback

    figures = Figures()
    used, made = count_tls_contexts()
    heartbeat = Heartbeat()
    heart = asyncio.create_task(heartbeat.beat())
    gc.collect()
    memory = resident_bytes()
    await asyncio.sleep(0.5)
    heartbeat.take()
    collector = CollectorWatch()

    async def run(trigger: Trigger) -> None:
        # As the triggerer does for each.
        await greenback.ensure_portal()
        async for _ in trigger.run():
            pass

    figures.began, cpu = time.monotonic(), time.process_time()
    running = []
    for trigger in POLLERS[name](task):
        running.append(asyncio.create_task(run(trigger)))
        # The triggerer yields to its loop twice for each trigger that it starts.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.sleep(min(1.0, warm_up / 2))
    figures.start_cpu = time.process_time() - cpu
    figures.start_block, figures.start_block_cpu = heartbeat.take()
    await asyncio.sleep(figures.began + warm_up - time.monotonic())

    if profile:
        profile.enable()
    begin, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    figures.cpu = time.process_time() - cpu
    figures.window = (begin, time.monotonic())
    if profile:
        profile.disable()
    figures.block, figures.block_cpu = heartbeat.take()
    figures.gc_block = collector.longest
    figures.tls_contexts = len(used)
    figures.tls_contexts_made = len(made)
    figures.megabytes = (resident_bytes() - memory) / 1e6
    figures.threads = threading.active_count()
    figures.ended = sum(one.done() for one in running)
    heart.cancel()
    return figures


def resident_bytes() -> int:
    """Return how much memory this process takes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def count_tls_contexts() -> tuple[list[ssl.SSLContext], list[None]]:
    """Return two lists that fill: the TLS contexts that connections are made with, and an entry for each one made."""
    used: list[ssl.SSLContext] = []
    made: list[None] = []
    make = ssl.SSLContext.__new__

    def counted_make(cls: type[ssl.SSLContext], *arguments: Any, **options: Any) -> ssl.SSLContext:
        made.append(None)
        return make(cls, *arguments, **options)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrap(self: ssl.SSLContext, *arguments: Any, **options: Any) -> Any:
            if not any(context is self for context in used[-100:]):
                used.append(self)
            return original(self, *arguments, **options)

        return wrap

    context: Any = ssl.SSLContext
    context.__new__ = staticmethod(counted_make)
    context.wrap_bio = counted(context.wrap_bio)
    context.wrap_socket = counted(context.wrap_socket)
    return used, made


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poller_process")
    parser.add_argument("name", choices=POLLERS)
    parser.add_argument("--origin", required=True)
    parser.add_argument("--ca")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=10.5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--profile", help="write a profile of the event loop's thread in that time to this file")
    arguments = parser.parse_args()
    pin(arguments.cpu)
    # A triggerer has loaded this before its first trigger. Only what a trigger itself loads is counted.
    import airflow.jobs.triggerer_job_runner  # noqa: F401

    job_ids = [f"{number:08d}-6197-4c24-8062-c0ff8b62d58d" for number in range(arguments.jobs)]
    task = Task(arguments.origin, arguments.ca, job_ids, arguments.interval)
    profile = cProfile.Profile() if arguments.profile else None
    loop = asyncio.new_event_loop()
    figures = loop.run_until_complete(measure(arguments.name, task, arguments.warm_up, arguments.seconds, profile))
    if profile:
        profile.dump_stats(arguments.profile)
    print(json.dumps(asdict(figures)), flush=True)
    sys.stdout.flush()
    # Do not wait for a thousand triggers or for a queue of threads.
    os._exit(0)


if __name__ == "__main__":
    main()

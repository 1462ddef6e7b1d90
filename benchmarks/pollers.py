"""
One way of looking at many jobs, in the event loop of a process of its own, as the triggerer runs triggers.

``python -m benchmarks.pollers NAME …`` measures it and prints the figures as JSON; :mod:`benchmarks.polling` and
:mod:`benchmarks.growth` compare them.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import random
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.server import ABSENT, pin

KEY = "bench-key"
HEARTBEAT_SECONDS = 0.005
FOREVER = 86_400.0


class Trigger(Protocol):
    """What the triggerer needs of a trigger."""

    def run(self) -> AsyncIterator[object]: ...


@dataclass(frozen=True)
class Task:
    """
    What is to be polled.

    :param origin: The server.
    :param ca: The file of its CA, if it serves https.
    :param job_ids: The jobs.
    :param interval: Seconds between two looks at a job.
    """

    origin: str
    ca: str | None
    job_ids: list[str]
    interval: float

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": "application/json", "Authorization": f"Bearer {KEY}"}


class Sleeper:
    """Waits as the others do, and never looks: what the event loop and its timers cost by themselves."""

    def __init__(self, interval: float) -> None:
        self._interval = interval

    async def run(self) -> AsyncIterator[object]:
        wait = self._interval * (1 + random.random())
        while wait > 0:
            await asyncio.sleep(wait)
            await self.look()
            wait = self._interval
        yield None

    async def look(self) -> None:
        """Look at the job."""


@dataclass(frozen=True)
class Job:
    """What a client wants of an answer."""

    status: str
    prompt: str | None
    result: dict[str, object] | None
    error: str | None
    started_at: str | None
    finished_at: str | None


class _Line(asyncio.Protocol):
    """One connection of the hand-written client; one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.find(b"Content-Length: ", 0, end) + 16
        length = int(self._buffer[at : self._buffer.find(b"\r", at)])
        if len(self._buffer) < end + 4 + length or self._answer is None:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        status = int(self._buffer[9:12])
        self._buffer = b""
        self._answer.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError())


class HandWritten(Sleeper):
    """The least that a client can do in asyncio: own protocol, kept connections, JSON into a dataclass."""

    _idle: list[_Line] = []  # noqa: RUF012
    _tls: ssl.SSLContext | None = None

    def __init__(self, task: Task, job_id: str) -> None:
        super().__init__(task.interval)
        host, _, port = task.origin.partition("://")[2].partition(":")
        self._address = (host, int(port))
        self._request = (
            f"GET /api/jobs/{job_id} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in task.headers.items())
            + "\r\n"
        ).encode()
        if task.ca and HandWritten._tls is None:
            HandWritten._tls = ssl.create_default_context(cafile=task.ca)

    async def look(self) -> None:
        line = self._idle.pop() if self._idle else await self._connect()
        async with asyncio.timeout(30):
            status, body = await line.ask(self._request)
        self._idle.append(line)
        if status != 200:
            raise RuntimeError(f"The server answered {status}.")
        if Job(**json.loads(body)).status != "running":
            raise RuntimeError("The job is over.")

    async def _connect(self) -> _Line:
        _, line = await asyncio.get_running_loop().create_connection(_Line, *self._address, ssl=HandWritten._tls)
        return line


class RequestsInThread(Sleeper):
    """What a provider does that has only a synchronous hook: a new session for each look, in a thread."""

    def __init__(self, task: Task, job_id: str) -> None:
        super().__init__(task.interval)
        self._url = f"{task.origin}/api/jobs/{job_id}"
        self._headers = task.headers
        self._verify = task.ca or True

    async def look(self) -> None:
        job = await asyncio.to_thread(self._look_in_thread)
        if job.status != "running":
            raise RuntimeError("The job is over.")

    def _look_in_thread(self) -> Job:
        import requests

        with requests.Session() as session:
            answer = session.get(self._url, headers=self._headers, timeout=30, verify=self._verify)
            answer.raise_for_status()
            return Job(**answer.json())


def sleepers(task: Task) -> Iterator[Trigger]:
    for _ in task.job_ids:
        yield Sleeper(task.interval)


def hand_written(task: Task) -> Iterator[Trigger]:
    for job_id in task.job_ids:
        yield HandWritten(task, job_id)


def requests_in_threads(task: Task) -> Iterator[Trigger]:
    for job_id in task.job_ids:
        yield RequestsInThread(task, job_id)


def whisul(task: Task) -> Iterator[Trigger]:
    from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger

    now = time.time()
    for job_id in task.job_ids:
        yield WhisulJobTrigger(job_id, "whisul_default", task.interval, now + FOREVER, now)


def whisul_batch(task: Task) -> Iterator[Trigger]:
    from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger

    now = time.time()
    yield WhisulBatchTrigger(task.job_ids, "whisul_default", task.interval, now + FOREVER, now)


def http_event(task: Task) -> Iterator[Trigger]:
    from airflow.providers.http.triggers.http import HttpEventTrigger

    for job_id in task.job_ids:
        yield HttpEventTrigger(
            response_check_path="benchmarks.response_check.is_over",
            endpoint=f"/api/jobs/{job_id}",
            headers=task.headers,
            poll_interval=task.interval,
        )


def http_sensor(task: Task) -> Iterator[Trigger]:
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    for job_id in task.job_ids:
        yield HttpSensorTrigger(
            endpoint=f"{ABSENT.decode()}{job_id}", headers=task.headers, poke_interval=task.interval
        )


POLLERS: dict[str, Callable[[Task], Iterator[Trigger]]] = {
    "sleeper": sleepers,
    "hand-written": hand_written,
    "whisul": whisul,
    "whisul-batch": whisul_batch,
    "http-event": http_event,
    "http-sensor": http_sensor,
    "requests": requests_in_threads,
}


@dataclass
class Figures:
    """
    What one process measures of itself.

    :param began: When the first trigger was started, in seconds of the machine's monotonic clock.
    :param window: From when to when CPU was measured, likewise.
    :param cpu: CPU seconds of the whole process in the window.
    :param start_cpu: CPU seconds from the first trigger's start until all have started.
    :param start_block: The longest time in seconds that the loop was blocked until all triggers had started.
    :param start_block_cpu: The CPU seconds of the loop's thread in that time: the rest was somebody else's.
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
    """A task that tells by its delay for how long the loop was blocked."""

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
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: object) -> None:
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
        # The triggerer goes round its loop twice for each trigger that it starts.
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
    """Return two lists that fill: with the TLS contexts that connections are made with, and one entry for each made."""
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pollers")
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
    # What a triggerer has loaded before its first trigger; only what a trigger itself loads is counted.
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
    # Neither a thousand triggers nor a queue of threads is waited for.
    os._exit(0)


if __name__ == "__main__":
    main()

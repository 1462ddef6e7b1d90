"""
The ways of polling that are compared, as triggers: ours, those of the http provider, and clients without Airflow.

:mod:`benchmarks.poller_process` runs one of them.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from benchmarks.server import ABSENT

KEY = "bench-key"
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
    :param interval: Seconds between two polls of a job.
    """

    origin: str
    ca: str | None
    job_ids: list[str]
    interval: float

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": "application/json", "Authorization": f"Bearer {KEY}"}


class Sleeper:
    """Waits as the others do, and never polls: what the event loop and its timers cost by themselves."""

    def __init__(self, interval: float) -> None:
        self._interval = interval

    async def run(self) -> AsyncIterator[object]:
        wait = self._interval * (1 + random.random())
        while wait > 0:
            await asyncio.sleep(wait)
            await self.poll()
            wait = self._interval
        yield None

    async def poll(self) -> None:
        """Poll the job."""


@dataclass(frozen=True)
class Job:
    """What a client reads from a response."""

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
        self._response: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self.transport is not None
        self._response = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._response

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.find(b"Content-Length: ", 0, end) + 16
        length = int(self._buffer[at : self._buffer.find(b"\r", at)])
        if len(self._buffer) < end + 4 + length or self._response is None:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        status = int(self._buffer[9:12])
        self._buffer = b""
        self._response.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._response is not None and not self._response.done():
            self._response.set_exception(error or ConnectionResetError())


class HandWritten(Sleeper):
    """The least that an asyncio client can do: its own protocol, kept connections, JSON into a dataclass."""

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

    async def poll(self) -> None:
        line = self._idle.pop() if self._idle else await self._connect()
        async with asyncio.timeout(30):
            status, body = await line.send(self._request)
        self._idle.append(line)
        if status != 200:
            raise RuntimeError(f"The server responded with {status}.")
        if Job(**json.loads(body)).status != "running":
            raise RuntimeError("The job is over.")

    async def _connect(self) -> _Line:
        _, line = await asyncio.get_running_loop().create_connection(_Line, *self._address, ssl=HandWritten._tls)
        return line


class RequestsInThread(Sleeper):
    """What a provider does that has only a synchronous hook: a new session for each poll, in a thread."""

    def __init__(self, task: Task, job_id: str) -> None:
        super().__init__(task.interval)
        self._url = f"{task.origin}/api/jobs/{job_id}"
        self._headers = task.headers
        self._verify = task.ca or True

    async def poll(self) -> None:
        job = await asyncio.to_thread(self._poll_in_thread)
        if job.status != "running":
            raise RuntimeError("The job is over.")

    def _poll_in_thread(self) -> Job:
        import requests

        with requests.Session() as session:
            response = session.get(self._url, headers=self._headers, timeout=30, verify=self._verify)
            response.raise_for_status()
            return Job(**response.json())


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
        yield WhisulJobTrigger(job_id, "whisul_default", task.interval, now + FOREVER)


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

"""What several test modules share: time that is driven, the way to a sandbox, and a proxy."""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, TypeVar

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox

T = TypeVar("T")

#: Noon of some day, Unix seconds.
NOON = 1_771_329_600.0


@dataclass
class FakeClock:
    """Time that passes only by sleeping, and chance that is what the test says."""

    now: float = NOON
    chance: float = 0.0
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[float], None] = lambda seconds: None

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep(seconds)
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(time=self.time, sleep=self.sleep, random=lambda: self.chance)


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits: where nothing is ready, the loop's time jumps to the next timer instead."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        # What one end of a loopback connection has sent, the other end has: without threads nothing else can come.
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.threads or timeout is None:
            return super().select(0.02 if timeout is None else min(timeout, 0.02))
        self.elapsed += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with real sockets and threads, whose time costs nothing."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        # From zero on: asyncio tells times a nanosecond apart, which a float of today's Unix seconds cannot.
        return self.virtual.elapsed

    def wall(self) -> float:
        """Return the virtual time as Unix seconds."""
        return NOON + self.virtual.elapsed

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        self.virtual.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, future: Future[Any] | asyncio.Future[Any]) -> None:
        self.virtual.threads -= 1


def thread_clock(loop: VirtualLoop, chance: float = 0.0) -> Clock:
    """Return the time of a loop as the clock of synchronous code that runs in one of its threads."""

    async def asleep(seconds: float) -> None:
        # While the thread only waits for the loop's time, that may jump.
        loop.virtual.threads -= 1
        await asyncio.sleep(seconds)
        loop.virtual.threads += 1

    def sleep(seconds: float) -> None:
        asyncio.run_coroutine_threadsafe(asleep(seconds), loop).result()

    return Clock(time=loop.wall, sleep=sleep, random=lambda: chance)


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main(loop)`` to its end on a loop whose time is virtual, and leave no task behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))


def loop_clock(loop: VirtualLoop, chance: float = 0.0) -> Clock:
    """Return the time of a loop as a client's clock."""
    return Clock(time=loop.wall, random=lambda: chance)


class TaskContext(dict[str, Any]):
    """
    As much of a running task as operators touch: its XComs.

    :param xcoms: What the task has pushed already.
    """

    task_id = "song"
    map_index = -1
    try_number = 1
    max_tries = 0
    dag_id = "songs"
    run_id = "some-run"

    def __init__(self, xcoms: dict[str, Any] | None = None, **context: Any) -> None:
        super().__init__(ti=self, task=SimpleNamespace(retries=0), **context)
        self.xcoms = dict(xcoms or {})

    def run(self, task: Any, next_method: str | None = None, next_kwargs: dict[str, Any] | None = None) -> Any:
        """Execute an operator or a sensor, or resume it, as its task runner would."""
        self["task"] = task
        return task.resume_execution(next_method, next_kwargs, self) if next_method else task.execute(self)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return self.xcoms.get(key)

    def shown(self) -> list[dict[str, Any]]:
        """Return what the Tracks tab shows of the task, each card as often as it is there."""
        return [card for key in sorted(self.xcoms) if key.startswith("whisul_songs_") for card in self.xcoms[key]]

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


class TaskStore(dict[str, Any]):
    """Airflow's task state store, which outlives the tries of a task."""

    def set(self, key: str, value: Any) -> None:
        # As Airflow keeps it.
        self[key] = json.loads(json.dumps(value, allow_nan=False))

    def delete(self, key: str) -> None:
        self.pop(key, None)


def fetched(sandbox: Sandbox) -> list[LoggedRequest]:
    """Return the requests for songs and covers."""
    return [request for request in sandbox.requests if request.path.startswith("/media")]


def outcome_of(process: subprocess.Popen[str]) -> Any:
    """Return what ``tests.land_songs`` has come to, once it has."""
    out, _ = process.communicate(timeout=100)
    return json.loads(out.splitlines()[-1])


#: What the server behind the certificate of the tests has at /song.wav.
A_SONG = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(24)


class Proxy(ThreadingHTTPServer):
    """
    The way out of a company's network: it knows the way to ``whisul.test``, which nobody else does.

    :param port: Where ``whisul.test`` is on this machine.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.port = port
        self.status = 200
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Tunnel(BaseHTTPRequestHandler):
    server: Proxy

    def do_CONNECT(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        if self.server.status != 200:
            self.send_response(self.server.status)
            self.end_headers()
            return
        with socket.create_connection(("127.0.0.1", self.server.port)) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pour, args=(there, self.connection))
            back.start()
            _pour(self.connection, there)
            back.join()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def _pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

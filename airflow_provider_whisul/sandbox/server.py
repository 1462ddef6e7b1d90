"""The sandbox that users hold: started in a thread of its own, or in their event loop."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from airflow_provider_whisul.sandbox.jobs import SandboxJob
from airflow_provider_whisul.sandbox.options import SandboxOptions
from airflow_provider_whisul.sandbox.responses import Response
from airflow_provider_whisul.sandbox.state import API, Call, LoggedRequest, SandboxState

_STOP_SECONDS = 10.0


class Sandbox:
    """A local Whisul: no key, no cost, no network but loopback.

    Use it as a context manager to serve from a thread of its own, or ``async with sandbox.serve()`` to serve in the
    running event loop. What it knows (jobs, log, keys) outlives its serving, and it can be served again.

    :param options: how it behaves.
    :param port: port to listen on; 0 for a free one.
    :param clock: returns Unix seconds. Jobs, rate limit and log follow it; slow responses follow the loop.
    :param host: loopback address to listen on.
    :param on_request: called with each log entry as it is made, in the server's thread; must be quick.
    :raises ValueError: ``host`` is not a loopback address.
    """

    def __init__(
        self,
        options: SandboxOptions | None = None,
        port: int = 0,
        clock: Callable[[], float] = time.time,
        *,
        host: str = "127.0.0.1",
        on_request: Callable[[LoggedRequest], None] | None = None,
    ) -> None:
        self._host = _loopback(host)
        self._wanted_port = port
        self._port: int | None = None
        self._clock = clock
        self._on_request = on_request
        self._state = SandboxState(options or SandboxOptions())
        self._lock = threading.Lock()
        self._serving = False
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] = _nothing

    @property
    def base_url(self) -> str:
        """Base URL of the API, without a slash at the end. Raises RuntimeError before the first start."""
        return f"{self._origin}{API}"

    @property
    def requests(self) -> list[LoggedRequest]:
        """The requests so far, oldest first. A copy; those for ``/_sandbox`` are not among them."""
        with self._lock:
            return list(self._state.requests)

    @property
    def jobs(self) -> dict[str, SandboxJob]:
        """The jobs so far, by id. A copy."""
        with self._lock:
            return dict(self._state.jobs)

    @property
    def connection(self) -> str:
        """The Airflow connection to this sandbox as JSON, for AIRFLOW_CONN_WHISUL_DEFAULT."""
        return json.dumps({"conn_type": "whisul", "password": self._state.key, "host": self.base_url})

    def revoke_key(self) -> None:
        """Make the key invalid from now on: every request is answered 401."""
        with self._lock:
            self._state.revoke_key()

    def restore_key(self, key: str | None = None) -> None:
        """Make a key valid, and any other one invalid.

        :param key: the key; None for the one of the options.
        :raises ValueError: it cannot be a key.
        """
        with self._lock:
            self._state.restore_key(self._state.options.api_key if key is None else key)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Self]:
        """Serve in the running event loop for as long as the context lasts.

        :raises RuntimeError: it is being served already.
        :raises OSError: the port cannot be had.
        """
        from airflow_provider_whisul.sandbox.web import serving

        if self._serving:
            raise RuntimeError("This sandbox is running already; make another one.")
        self._serving = True
        try:
            async with serving(
                self._host, self._wanted_port, self._handle, lambda: self.requests, self.revoke_key
            ) as self._port:
                yield self
        finally:
            self._serving = False

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("This sandbox is running already; make another one.")
        started = threading.Event()
        problem: list[BaseException] = []

        async def run() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()

            def stop_soon() -> None:
                loop.call_soon_threadsafe(stop.set)

            self._stop = stop_soon
            async with self.serve():
                started.set()
                await stop.wait()

        def run_in_thread() -> None:
            try:
                asyncio.run(run())
            except BaseException as error:
                problem.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=run_in_thread, name="whisul-sandbox", daemon=True)
        thread.start()
        started.wait()
        if problem:
            raise problem[0]
        self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is None or not thread.is_alive():
            return
        self._stop()
        thread.join(_STOP_SECONDS)
        if thread.is_alive():
            raise RuntimeError(f"The sandbox did not stop within {_STOP_SECONDS:.0f} s.")

    @property
    def _origin(self) -> str:
        if self._port is None:
            raise RuntimeError("The sandbox has no address yet: start it first.")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def _handle(self, call: Call) -> Response:
        now = self._clock()
        with self._lock:
            response = self._state.handle(call, now, self._origin)
            entry = self._state.requests[-1]
        if self._on_request is not None:
            self._on_request(entry)
        return response


def _loopback(host: str) -> str:
    address = "127.0.0.1" if host == "localhost" else host
    try:
        if ipaddress.ip_address(address).is_loopback:
            return address
    except ValueError:
        pass
    raise ValueError(f"The sandbox listens on loopback only (127.0.0.1, ::1 or localhost), not on {host!r}.")


def _nothing() -> None:
    pass

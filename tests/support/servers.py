"""Servers for tests: a proxy, and readers of the sandbox's request log."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox


def fetched(sandbox: Sandbox) -> list[LoggedRequest]:
    """Return the requests for the audio and the covers of songs."""
    return [request for request in sandbox.requests if request.path.startswith("/media")]


def outcome_of(process: subprocess.Popen[str]) -> Any:
    """Wait until ``tests.integration.storage.store_in_process`` has ended, and return the JSON that it prints last."""
    out, _ = process.communicate(timeout=100)
    return json.loads(out.splitlines()[-1])


#: The audio at /song.wav of the test server with a self-signed certificate.
A_SONG = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(24)


class Proxy(ThreadingHTTPServer):
    """
    A proxy as at the edge of a company's network: ``whisul.test`` can only be reached through it.

    :param port: The port of this machine at which ``whisul.test`` is.
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
        with socket.create_connection(("127.0.0.1", self.server.port)) as upstream:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(upstream, self.connection))
            back.start()
            _copy(self.connection, upstream)
            back.join()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class RawServer:
    """
    A server on loopback that answers each connection with what a test sends, byte by byte where it likes.

    :param answer: Called in a thread of its own with the connection and the first bytes that came on it.
    """

    def __init__(self, answer: Callable[[socket.socket, bytes], None]) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._serving: list[threading.Thread] = []

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def settle(self) -> None:
        """Wait until the connections that have been answered are closed. A client must not use one of them again."""
        for serving in list(self._serving):
            serving.join(60)
            self._serving.remove(serving)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                serving = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._serving.append(serving)
                serving.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(60)
            self.requests.append(connection.recv(1 << 16))
            self._answer(connection, self.requests[-1])


def drip(beginning: bytes, seconds: float = 8.0) -> Callable[[socket.socket, bytes], None]:
    """Return an answer that goes on after its beginning with a byte every tenth of a second."""

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(beginning)
        for _ in range(int(seconds * 10)):
            time.sleep(0.1)
            connection.sendall(b"x")

    return answer

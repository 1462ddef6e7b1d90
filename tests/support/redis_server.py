"""A Redis of a test's own, which the test may kill, stop and fill; and the way to it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from dev.airflow_runner.processes import free_port
from tests.support.servers import RawServer
from tests.support.soon import wait_until

BINARY = shutil.which("redis-server")


class RedisServer:
    """
    A Redis server on loopback, which keeps nothing on the disk.

    :param folder: Its working folder.
    :param options: More of its options, such as ``--requirepass``.
    :param tls_options: Those of TLS, which it speaks at a second port.
    """

    def __init__(self, folder: Path, *options: str, tls_options: tuple[str, ...] = ()) -> None:
        if BINARY is None:
            pytest.skip("There is no redis-server on this machine.")
        self.port = free_port()
        self.tls_port = free_port() if tls_options else 0
        if tls_options:
            options = (*options, "--tls-port", str(self.tls_port), *tls_options)
        self._command = [
            *(BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def settings(self) -> RedisSettings:
        """How to reach it, without a password."""
        return RedisSettings("redis_test", "127.0.0.1", self.port)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._process = process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

        def answers() -> bool:
            assert process.poll() is None, "The Redis has not started."
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return bool(connection.recv(100))
            return False

        wait_until(answers)

    def kill(self) -> None:
        """End it at once, with all that it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop it, so that it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class Firewall(RawServer):
    """
    The way to a Redis. Where it forgets a connection, what is sent on that from then on is lost without a word.

    :param redis: The Redis.
    """

    def __init__(self, redis: RedisSettings) -> None:
        super().__init__(self._forward)
        self._redis = redis
        self._forgotten: set[socket.socket] = set()
        self._known: set[socket.socket] = set()

    @property
    def settings(self) -> RedisSettings:
        """How to reach the Redis behind it."""
        return replace(self._redis, port=self.port)

    def forget(self) -> None:
        """Forget the connections that there are."""
        self._forgotten |= self._known

    def _forward(self, connection: socket.socket, request: bytes) -> None:
        self._known.add(connection)
        with socket.create_connection((self._redis.host, self._redis.port)) as upstream:
            while request:
                if connection not in self._forgotten:
                    upstream.sendall(request)
                    connection.sendall(upstream.recv(1 << 16))
                request = connection.recv(1 << 16)

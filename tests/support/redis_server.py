"""A Redis of a test's own, which the test may kill, stop and fill."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings

BINARY = shutil.which("redis-server")


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


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
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            assert self._process.poll() is None, "The Redis has not started."
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(100):
                    return
            time.sleep(0.01)
        raise AssertionError("The Redis does not answer.")

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

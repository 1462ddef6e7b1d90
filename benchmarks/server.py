"""
A raw HTTP/1.1 server in a process of its own, which responds to every poll of a job, and to every song, at once.

It costs so little that the client is what is measured. ``python -m benchmarks.server`` prints its address, and ends
when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

JOB = json.dumps(
    {
        "status": "running",
        "prompt": "lo-fi hip hop with a mellow piano, vinyl crackle and rain, 80 bpm",
        "result": None,
        "error": None,
        "started_at": "2026-02-17 15:39:34",
        "finished_at": None,
    }
).encode()

#: Where a job that is still running does not exist (404): HttpSensorTrigger can wait for nothing else.
ABSENT = b"/api/absent/"

#: Where songs are, each with the number of its bytes: ``/song/1000000/some-job.mp3``.
SONG = b"/song/"


def _response(status: bytes, body: bytes, content_type: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, content_type, len(body)) + body


@lru_cache(maxsize=4)
def _song(size: int) -> bytes:
    """Return the response with a song: a tag of ID3, and silence."""
    return _response(b"200 OK", b"ID3\x03" + bytes(size - 4), b"audio/mpeg")


_RUNNING = _response(b"200 OK", JOB)
_ABSENT = _response(b"404 Not Found", b'{"error": "Not found"}')


class _Connection(asyncio.Protocol):
    def __init__(self, requests: list[float], connections: list[float]) -> None:
        self._requests = requests
        self._connections = connections
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.append(time.monotonic())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            path = self._buffer.split(b" ", 2)[1]
            self._buffer = self._buffer[end + 4 :]
            if self._transport is None:
                return
            if path == b"/_received":
                received = json.dumps({"requests": self._requests, "connections": self._connections}).encode()
                self._transport.write(_response(b"200 OK", received))
                self._requests.clear()
                self._connections.clear()
                continue
            self._requests.append(time.monotonic())
            if path.startswith(SONG):
                self._transport.write(_song(int(path.split(b"/")[2])))
                continue
            self._transport.write(_ABSENT if path.startswith(ABSENT) else _RUNNING)


@dataclass(frozen=True)
class Received:
    """
    What the server has received since the last question, in seconds of the machine's monotonic clock.

    :param requests: When each request came.
    :param connections: When each connection was made.
    """

    requests: list[float]
    connections: list[float]


class RawServer:
    """
    The server, in a process of its own for as long as the context lasts.

    :param cpu: The number of the processor that it may use; None for any.
    :param certificate: The certificate (with its key in the same file) to serve https with; None for http.
    """

    def __init__(self, cpu: int | None, certificate: Path | None = None) -> None:
        self._certificate = certificate
        self._command = [sys.executable, "-m", "benchmarks.server"]
        if cpu is not None:
            self._command += ["--cpu", str(cpu)]
        if certificate is not None:
            self._command += ["--certificate", str(certificate)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.origin = self._process.stdout.readline().strip()
        if not self.origin:
            raise RuntimeError("The benchmark's server did not start.")
        context = None if self._certificate is None else ssl.create_default_context(cafile=str(self._certificate))
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def take_received(self) -> Received:
        """Return what was received since the last call."""
        with self._opener.open(f"{self.origin}/_received", timeout=30) as response:
            received = json.load(response)
        # The last connection is the one of this request.
        return Received(received["requests"], received["connections"][:-1])


def pin(cpu: int | None) -> None:
    """Keep this process on one processor, where the system can do that."""
    if cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})


async def _serve(certificate: str | None) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    requests: list[float] = []
    connections: list[float] = []
    server = await loop.create_server(
        lambda: _Connection(requests, connections), "127.0.0.1", 0, ssl=context, backlog=2048
    )
    port = server.sockets[0].getsockname()[1]
    print(f"{'https' if context else 'http'}://127.0.0.1:{port}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server")
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--certificate")
    arguments = parser.parse_args()
    pin(arguments.cpu)
    asyncio.run(_serve(arguments.certificate))


if __name__ == "__main__":
    main()

"""Ends downloads from outside: what is inside a socket read hears of no time-out, signal or exception."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: A download that receives fewer than so many bytes in so many seconds has stalled. Looking up the host, connecting,
#: TLS, headers and the framing of the body count as time without bytes.
STALL_BYTES = 1 << 18
STALL_SECONDS = 60.0

#: Seconds between two checks.
INTERVAL = 0.2


class Attempt:
    """
    One attempt to download a file, as the watchdog sees it.

    :param deadline: When it must have ended, by ``time.monotonic``.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        #: Bytes of the file that were received.
        self.received = 0
        #: Why the attempt was ended from outside, None while it may go on.
        self.ended: str | None = None
        self._window = (time.monotonic(), 0)
        # Reentrant, as a signal handler may end an attempt while the same thread does.
        self._lock = threading.RLock()
        self._sockets: list[socket.socket] = []

    def add(self, connection: socket.socket) -> None:
        """
        Shut this connection down when the attempt is ended, or at once if it has been.

        :param connection: The socket. Its owner may wrap or close it: the attempt has a handle of its own.
        """
        handle = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            self._sockets.append(handle)
            if self.ended is not None:
                _shut_down(handle)

    def end(self, reason: str) -> None:
        """
        End the attempt: its thread gets an error from its next, or present, read.

        :param reason: Why, to continue a sentence.
        """
        with self._lock:
            if self.ended is None:
                self.ended = reason
            for handle in self._sockets:
                _shut_down(handle)

    def release(self) -> None:
        """Close the handles, after the last byte."""
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def check(self, now: float) -> None:
        """
        End the attempt if it is too late or too slow.

        :param now: The time, by ``time.monotonic``.
        """
        since, received = self._window
        if now >= self.deadline:
            self.end("one file may take no longer")
        elif now - since >= STALL_SECONDS:
            if self.received - received < STALL_BYTES:
                self.end(f"only {self.received - received:,} bytes in {now - since:.0f} s")
            self._window = (now, self.received)


class Watchdog:
    """Watches attempts, in a thread of its own from the first attempt on."""

    def __init__(self) -> None:
        #: Set when all attempts have been ended for good.
        self.stopped = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.RLock()
        self._attempts: set[Attempt] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, deadline: float) -> Iterator[Attempt]:
        """
        Watch an attempt for as long as the context lasts.

        :param deadline: When it must have ended, by ``time.monotonic``.
        """
        attempt = Attempt(deadline)
        with self._lock:
            self._attempts.add(attempt)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="whisul-watchdog", daemon=True)
                self._thread.start()
        if self.stopped.is_set():
            attempt.end("stopped")
        try:
            yield attempt
        finally:
            with self._lock:
                self._attempts.discard(attempt)
            attempt.release()

    def stop(self) -> None:
        """End all attempts, also those that begin later."""
        self.stopped.set()
        for attempt in self._current():
            attempt.end("stopped")

    def close(self) -> None:
        """End the watchdog's thread."""
        self._closed.set()

    def _current(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts)

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL):
            now = time.monotonic()
            for attempt in self._current():
                attempt.check(now)


def _shut_down(handle: socket.socket) -> None:
    # Not connected yet, or no longer.
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)

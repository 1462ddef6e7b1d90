"""
The rate limiter of one account for all task processes of a machine, in a small file that they share.

A task process lives for seconds. Alone, each would begin without knowing the limit, and send requests although the key
is blocked, which prolongs the block: a few dozen of them never come out of it. Together they keep one rate, and while
the key is blocked one of them probes. The file holds the numbers of :class:`RateLimiter` and nothing else.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter, refusal

log = logging.getLogger(__name__)

#: Seconds to wait for the file, which others hold for much less than a millisecond; and between two tries.
LOCK_TIMEOUT = 1.0
_LOCK_RETRY_DELAY = 0.005

#: Seconds after which a waiting request checks again: another process may have found that the block is over.
CHECK_INTERVAL = 1.0

#: Seconds without a request after which a worker counts as idle.
_IDLE_SECONDS = 3.0


class SharedRateLimiter:
    """
    Permits the requests of one account, in step with the other processes of this user on this machine.

    Where the file cannot be used, as in a container with a read-only disk, the rate limiter is this process's own.

    :param settings: The connection's settings.
    :param clock: The time, sleep and jitter.
    """

    def __init__(self, settings: ConnectionSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._limit = settings.max_requests_per_second
        self._clock = clock
        self._name = f"{settings.fingerprint[:32]}.json"
        self._own = RateLimiter(self._limit)
        self._file_usable = True
        # The time since which the worker has sent requests without a break, and the end of the last one.
        self._busy_since = self._busy_until = -_IDLE_SECONDS

    def acquire(self, max_wait: float) -> int:
        """
        Wait until the next request may be sent, and return its number, for :meth:`on_response`.

        :param max_wait: Seconds to wait at most.
        :raises WhisulRateLimitError: The request is not permitted in that time. Nothing was sent.
        """
        asked_at = now = self._clock.time()
        if asked_at - self._busy_until > _IDLE_SECONDS:
            self._busy_since = asked_at
        while True:
            with self.locked() as limiter:
                allowed_at = limiter.next_allowed_at(now)
                # A shorter wait is over by the time it has begun.
                if allowed_at - now <= 0.001:
                    request = limiter.on_request(now, overdue=now - self._busy_since)
                    break
                probing = limiter.block.probing
            # The response to a probe may permit the next request at any moment.
            if (now if probing else allowed_at) - asked_at > max_wait:
                raise refusal(allowed_at, now)
            self._clock.sleep(min(allowed_at - now, CHECK_INTERVAL))
            now = self._clock.time()
        self._busy_until = now
        if now > asked_at:
            metrics.rate_limit_wait(now - asked_at)
        return request

    def is_permitted(self, request: int) -> bool:
        """
        Return whether a request that was permitted may still be sent: no block has begun since.

        :param request: The request's number.
        """
        with self.locked() as limiter:
            return limiter.is_permitted(request)

    def on_response(self, request: int, throttled: bool | None, retry_after: float | None = None) -> float | None:
        """
        Learn from how a request ended.

        :param request: The request's number.
        :param throttled: Whether the response was a 429; None where there was no response.
        :param retry_after: The seconds that the 429 asked to wait, if it did.
        :return: The seconds until the next request may be sent, None unless the response was a 429.
        """
        now = self._clock.time()
        if throttled is not None:
            self._busy_until = now
        with self.locked() as limiter:
            block_changed = limiter.on_response(now, request, throttled, retry_after, self._clock.random())
            cooldown = max(limiter.next_allowed_at(now) - now, 0.0)
        if block_changed:
            limiter.log_block(log, now + cooldown)
        return cooldown if throttled else None

    @contextmanager
    def locked(self) -> Iterator[RateLimiter]:
        """Hold the machine's rate limiter for as long as a decision takes. No other process reads or changes it."""
        with ExitStack() as stack:
            file = None
            # Whatever is wrong with the file, it must not end a task that may just have paid for a song.
            with self._own_on_error():
                if self._file_usable:
                    file = self._locked_file()
                    # This also gives the lock back, as the end of the process does.
                    stack.callback(os.close, file)
                    self._own = RateLimiter.from_dict(_read(file), self._limit)
            yield self._own
            if file is not None:
                with self._own_on_error():
                    _write(file, self._own.as_dict())

    @contextmanager
    def _own_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file_usable = False
            log.info(
                "The shared file of the rate limiter cannot be used, so this task finds the rate limit by itself: %s",
                error,
            )

    def _locked_file(self) -> int:
        file = os.open(_folder() / self._name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + LOCK_TIMEOUT
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return file
                except BlockingIOError:
                    # The process that holds it may have been stopped.
                    if time.monotonic() > give_up_at:
                        raise
                    time.sleep(_LOCK_RETRY_DELAY)
        except BaseException:
            os.close(file)
            raise


def _folder() -> Path:
    """Return the folder of this user's files. Nobody else can write to it: the temporary folder is everybody's."""
    folder = Path(tempfile.gettempdir()) / f"airflow-provider-whisul-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's own.")
    return folder


def _read(file: int) -> object:
    try:
        return json.loads(os.pread(file, 1 << 16, 0) or b"null")
    except ValueError:
        # A process was killed while it wrote.
        return None


def _write(file: int, state: dict[str, float]) -> None:
    text = json.dumps(state).encode()
    os.pwrite(file, text, 0)
    os.ftruncate(file, len(text))

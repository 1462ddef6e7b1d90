"""
The rate limiter of one account for all processes of one user on one machine, in a small file that they share.

A task process lives for seconds. Alone, each would begin without knowing the limit, and send requests although the key
is blocked, which prolongs the block. Together with the triggerer they keep one rate, and while the key is blocked one
of them probes. The file holds the numbers of :class:`RateLimiter` and nothing else. Its times are those of the
machine's monotonic clock: a wall clock that somebody sets delays no request and ends no block.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.limiter_store import Decide, StoreUnavailableError, T, state_name
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter

#: Seconds to wait for the file, which others hold for much less than a millisecond; and between two tries.
LOCK_TIMEOUT = 1.0
_LOCK_RETRY_DELAY = 0.005


class FileStore:
    """
    Keeps the rate limiter in a file of this user in the machine's temporary folder.

    Its methods raise :class:`StoreUnavailableError` where the file cannot be used, as with a read-only disk.

    :param settings: The connection's settings, which name the account.
    :param clock: Its monotonic time is the store's time.
    """

    def __init__(self, settings: ConnectionSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._name = f"{state_name(settings).replace(':', '-')}-{_boot_id()}.json"

    @property
    def path(self) -> Path:
        """The file. Its folder may not be there yet."""
        return _folder() / self._name

    @property
    def where(self) -> str:
        """The file, as messages say it."""
        return f"the file {self.path} of this machine"

    def update(self, decide: Decide[T]) -> T:
        """
        Make a decision, as :class:`LimiterStore` says.

        :raises StoreUnavailableError: The file cannot be used.
        """
        with self._locked() as file:
            state = _read(file)
            limiter = RateLimiter.from_dict(state)
            # Not before the file is held: another process may have decided meanwhile.
            result = decide(limiter, self._clock.monotonic())
            if (changed := limiter.as_dict()) != state:
                _write(file, changed)
        return result

    def reset(self) -> None:
        """
        Forget all that is known of the account.

        :raises StoreUnavailableError: The file cannot be used.
        """
        self.update(lambda limiter, _: limiter.forget())

    def count_submission(self, ceiling: int) -> None:
        """Count nothing: the ledger does, for the machine."""

    def uncount_submission(self, day: str) -> None:
        """Do nothing, as nothing is counted."""

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            file = self._open()
            try:
                yield file
            finally:
                # This also gives the lock back, as the end of the process does.
                os.close(file)
        except OSError as error:
            raise StoreUnavailableError(f"{error.strerror or error}.") from error

    def _open(self) -> int:
        _make_folder()
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + LOCK_TIMEOUT
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return file
                except BlockingIOError:
                    # The process that holds it may have been stopped.
                    if time.monotonic() > give_up_at:
                        raise TimeoutError(f"another process has held it for {LOCK_TIMEOUT:g} s") from None
                    time.sleep(_LOCK_RETRY_DELAY)
        except BaseException:
            os.close(file)
            raise


@cache
def _boot_id() -> str:
    """Return what tells the starts of machines apart: others that share the temporary folder have another clock."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return "0"


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"airflow-provider-whisul-{os.getuid()}"


def _make_folder() -> None:
    """Make the folder of this user's files. Nobody else can write to it: the temporary folder is everybody's."""
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's own")


def _read(file: int) -> object:
    try:
        return json.loads(os.pread(file, 1 << 16, 0) or b"null")
    except (ValueError, RecursionError):
        # A process was killed while it wrote.
        return None


def _write(file: int, state: dict[str, object]) -> None:
    text = json.dumps(state).encode()
    # Over all that is there: a task that is ended between the two steps leaves a state that can be read.
    padded = text.ljust(os.fstat(file).st_size)
    if os.pwrite(file, padded, 0) < len(padded):
        # Without this a full disk would make each process forget a block.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(file, len(text))

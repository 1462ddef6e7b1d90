"""
The pace of one account for all the task processes of a machine, in a small file that they share.

A task process lives for seconds. Alone, each would begin without knowing the limit, and ask although the key is
blocked, which prolongs the block: a few dozen of them never come out of it. Together they ask at one pace, and while
the key is blocked one of them probes. The file holds the numbers of :class:`AccountPace` and nothing else.
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

from airflow_provider_whisul.account import WhisulAccount
from airflow_provider_whisul.account_pace import AccountPace

log = logging.getLogger(__name__)

#: Seconds to wait for the file, which others hold for much less than a millisecond; and between two tries.
LOCK_PATIENCE = 1.0
_LOCK_PAUSE = 0.005


class SharedPace:
    """
    One account's pace, shared with the other processes of this user on this machine.

    Where the file cannot be had, as in a container with a read-only disk, the pace is from then on this process's own.

    :param account: The account.
    """

    def __init__(self, account: WhisulAccount) -> None:
        self._most = account.max_requests_per_second
        self._own = AccountPace(self._most)
        self._name = f"{account.fingerprint[:32]}.json"
        self._alone = False

    @contextmanager
    def held(self) -> Iterator[AccountPace]:
        """Hold the pace, for as long as a decision takes: nobody else reads or changes it meanwhile."""
        with ExitStack() as stack:
            file = None
            # Whatever is wrong with the file, it must not end a task that may just have paid for a song.
            with self._or_alone():
                if not self._alone:
                    file = self._locked()
                    # Which also gives the lock back, as the end of the process does.
                    stack.callback(os.close, file)
                    self._own = AccountPace.learnt(_read(file), self._most)
            yield self._own
            if file is not None:
                with self._or_alone():
                    _write(file, self._own.as_dict())

    @contextmanager
    def _or_alone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._alone = True
            log.info("This task finds the rate limit of its API key for itself: no file to share it. %s", error)

    def _locked(self) -> int:
        file = os.open(_folder() / self._name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + LOCK_PATIENCE
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return file
                except BlockingIOError:
                    # Whoever holds it may have been stopped in the middle.
                    if time.monotonic() > give_up_at:
                        raise
                    time.sleep(_LOCK_PAUSE)
        except BaseException:
            os.close(file)
            raise


def _folder() -> Path:
    """Return the folder of this user's files, which nobody else can write to: the temporary one is everybody's."""
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

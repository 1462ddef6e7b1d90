"""The processes of a running Airflow, and the ports of this machine."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

#: Seconds that a command of Airflow's may take, and that Airflow may take to start.
START_SECONDS = 180.0


class LocalAirflowError(RuntimeError):
    """Airflow did not start, or ended, or did not do something in time. The message has the end of the logs."""


class AirflowProcess:
    """
    One long-running Airflow command, and every process that it starts.

    :param name: Its name in messages.
    :param arguments: The arguments of the ``airflow`` command.
    :param env: Its whole environment.
    :param log: The file that its output is appended to.
    """

    def __init__(self, name: str, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", "airflow", *arguments]
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        # Airflow gives its children process groups of their own, but they stay in our session, as orphans too.
        self._sessions: set[int] = set()

    @property
    def pid(self) -> int:
        """
        The process id of the main process.

        :raises LocalAirflowError: It has not been started.
        """
        if self._process is None:
            raise LocalAirflowError(f"The {self.name} has not been started.")
        return self._process.pid

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches only us."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.add(self._process.pid)

    def check(self) -> None:
        """
        Check that the process still runs.

        :raises LocalAirflowError: It has ended by itself.
        """
        if self._process is not None and self._process.poll() is not None:
            raise LocalAirflowError(
                f"Airflow's {self.name} ended with status {self._process.returncode}. The end of its log:\n"
                + tail(self.log.read_text(errors="replace"))
            )

    def pids(self) -> list[int]:
        """Return the process ids of all its starts that are still alive."""
        return [pid for pid in psutil.pids() if _session_of(pid) in self._sessions and _is_alive(pid)]

    def terminate(self) -> None:
        """Send SIGTERM to the main process."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill9(self) -> None:
        """Send SIGKILL to it and to every process that it has started, as a power failure would end them."""
        # A process may be starting another one at this moment, which then is in the next list.
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process is not None:
                self._process.wait()
            time.sleep(0.05)
        self._process = None

    def wait(self, seconds: float) -> bool:
        """
        Wait until the main process has ended.

        :param seconds: Seconds to wait at most.
        :return: Whether it has ended.
        """
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, 0.0))
            return True
        return False

    def restart(self) -> None:
        """Kill what is left of the last start, and start it again."""
        self.kill9()
        self.start()


def run_python(name: str, arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """
    Run a short command of this Python.

    :param name: Its name in the error.
    :param arguments: The arguments of ``python``.
    :param env: Its whole environment.
    :return: Its output.
    :raises LocalAirflowError: It failed.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=START_SECONDS,
    )
    if done.returncode != 0:
        raise LocalAirflowError(f"`{name}` failed:\n{tail(done.stdout)}")
    return done.stdout


def free_port() -> int:
    """
    Return a TCP port on loopback that nothing listens on.

    It is none of those that the system gives to connections: until it is listened on, any process could be given it.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Return whether a TCP port on loopback can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def tail(text: str, lines: int = 30) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

"""moto's server in a process of its own, so that what a test kills or forks does not touch it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dev.airflow_runner.processes import free_port, is_free

START_SECONDS = 60.0


@contextmanager
def moto_server() -> Iterator[str]:
    """Serve S3 on a free port, and yield the endpoint's URL."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while is_free(port):
            assert process.poll() is None, "moto's server has ended"
            assert time.monotonic() < deadline, "moto's server does not respond"
            time.sleep(0.2)
        yield endpoint
    finally:
        process.terminate()
        process.wait(60)

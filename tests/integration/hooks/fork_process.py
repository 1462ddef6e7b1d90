"""
A process that uses a hook, forks, and uses it in its child.

``python -m tests.integration.hooks.fork_process`` prints a line for each use of the asynchronous hook.
With the argument ``worker`` it uses the other one, and prints over how many connections each process has sent. With
``locked`` the fork comes while the rate limiter's lock is held.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys

from airflow_provider_whisul.hooks import bounded_session, whisul
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.rate_limit.fallback_store import FallbackStore


def use(hook: WhisulAsyncHook, who: str) -> None:
    """Submit a song, and poll it."""
    job_id = asyncio.run(hook.generate(f"a song of the {who}"))
    job = asyncio.run(hook.get_job(job_id))
    os.write(1, f"{who}: {job.prompt}\n".encode())


def use_on_worker() -> None:
    """Submit two songs before a fork, and two after it in each of the processes."""
    connections = 0

    class Counted(bounded_session._Bounded):
        def _new_conn(self) -> socket.socket:
            nonlocal connections
            connections += 1
            return super()._new_conn()

    bounded_session._Pool.ConnectionCls = Counted
    # A connection is also replaced after some seconds.
    whisul.IDLE_SECONDS = math.inf
    hook = WhisulHook()

    def use(who: str) -> None:
        nonlocal connections
        connections = 0
        for part in "ab":
            hook.generate(f"song {part} of the {who}")
        os.write(1, f"{who}: {connections}\n".encode())

    use("parent")
    if pid := os.fork():
        os.waitpid(pid, 0)
        use("parent after the fork")
    else:
        signal.alarm(40)
        try:
            use("child")
        finally:
            os._exit(0)


def use_while_locked() -> None:
    """Fork while another thread is in the middle of a decision of the rate limiter, and submit in the child."""
    hook = WhisulHook()
    hook.generate("a song of the parent")
    store = hook._rate_limiter.store
    assert isinstance(store, FallbackStore)
    with store._lock:
        pid = os.fork()
        if not pid:
            signal.alarm(40)
            try:
                hook.generate("a song of the child")
                os.write(1, b"child: submitted\n")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


def main() -> None:
    """Use a hook before and after a fork, and a new one after it."""
    hook = WhisulAsyncHook()
    use(hook, "parent")
    pid = os.fork()
    if not pid:
        # It must not outlive the test that it hangs in.
        signal.alarm(40)
        try:
            use(hook, "child")
            use(WhisulAsyncHook(), "child's hook")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    use(hook, "parent after the fork")


if __name__ == "__main__":
    {"worker": use_on_worker, "locked": use_while_locked}.get(sys.argv[-1], main)()

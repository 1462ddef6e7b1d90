"""
The process of an async task whose ``execution_timeout`` passes while it submits, as Airflow 3.2 and later end it.

``python -m tests.integration.hooks.async_task_process``: SIGALRM is the timeout. It leaves the event loop at once, and
the process ends without joining its threads, after the functions that the task has registered for its exit.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal

from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook


class OverTime(BaseException):
    """What the timeout raises."""


def _alarm(*_: object) -> None:
    raise OverTime


def main() -> None:
    """Submit a song, until the timeout."""
    # Airflow forks the process: only what is registered in it is run.
    atexit._clear()
    signal.signal(signal.SIGALRM, _alarm)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(WhisulAsyncHook().generate("a song"))
    except OverTime:
        loop.close()
        print("over time", flush=True)
    atexit._run_exitfuncs()


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)

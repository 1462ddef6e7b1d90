"""An event loop for code that blocks: what it returns and raises, and how a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from concurrent.futures import Future
from contextvars import ContextVar
from types import FrameType

import pytest

from airflow_provider_whisul.clock import run_in_event_loop

#: Seconds of real time after which a coroutine that is not cancelled ends by itself.
FOR_EVER = 60.0


class OverTime(BaseException):
    """What a signal raises, as Airflow does where a task's time is over."""


def test_a_coroutine_is_run_to_its_end() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert run_in_event_loop(double(21)) == 42


def test_what_a_coroutine_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("no such song")

    with pytest.raises(ValueError, match="no such song"):
        run_in_event_loop(fail())


def test_a_coroutine_has_the_context_of_its_caller() -> None:
    song: ContextVar[str] = ContextVar("song")
    song.set("a waltz")

    async def read() -> str:
        return song.get()

    assert run_in_event_loop(read()) == "a waltz"


def test_what_a_signal_raises_cancels_the_coroutine_and_is_raised_whatever_runs_at_the_time() -> None:
    cancelled = []

    async def wait() -> None:
        while not main_thread_waits():
            await asyncio.sleep(0)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            # Other coroutines run when the signal comes. It must end none of them in place of this one.
            await asyncio.gather(*(asyncio.sleep(FOR_EVER) for _ in range(100)), run_often())
        except asyncio.CancelledError:
            cancelled.append(threading.current_thread())
            raise

    def main_thread_waits() -> bool:
        frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
        while frame is not None and frame.f_code is not Future.result.__code__:
            frame = frame.f_back
        return frame is not None

    async def run_often() -> None:
        while True:
            await asyncio.sleep(0)

    def raise_over_time(*_: object) -> None:
        raise OverTime

    before = signal.signal(signal.SIGALRM, raise_over_time)
    threads = set(threading.enumerate())
    try:
        with pytest.raises(OverTime):
            run_in_event_loop(wait())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(cancelled) == 1
    assert cancelled[0] is not threading.main_thread()
    assert set(threading.enumerate()) <= threads

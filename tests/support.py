"""What several test modules share: time that is driven, and the way to a sandbox."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_provider_whisul.clock import Clock

T = TypeVar("T")

#: Noon of some day, Unix seconds.
NOON = 1_771_329_600.0


@dataclass
class FakeClock:
    """Time that passes only by sleeping, and chance that is what the test says."""

    now: float = NOON
    chance: float = 0.0
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[float], None] = lambda seconds: None

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep(seconds)
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(time=self.time, sleep=self.sleep, random=lambda: self.chance)


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits: where nothing is ready, the loop's time jumps to the next timer instead."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        # What one end of a loopback connection has sent, the other end has: without threads nothing else can come.
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.threads or timeout is None:
            return super().select(0.02 if timeout is None else min(timeout, 0.02))
        self.elapsed += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with real sockets and threads, whose time costs nothing."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        # From zero on: asyncio tells times a nanosecond apart, which a float of today's Unix seconds cannot.
        return self.virtual.elapsed

    def wall(self) -> float:
        """Return the virtual time as Unix seconds."""
        return NOON + self.virtual.elapsed

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        self.virtual.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, future: Future[Any] | asyncio.Future[Any]) -> None:
        self.virtual.threads -= 1


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main(loop)`` to its end on a loop whose time is virtual, and leave no task behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))


def loop_clock(loop: VirtualLoop, chance: float = 0.0) -> Clock:
    """Return the time of a loop as a client's clock."""
    return Clock(time=loop.wall, random=lambda: chance)


class TaskContext(dict[str, Any]):
    """
    As much of a running task as operators touch: its XComs.

    :param xcoms: What the task has pushed already.
    """

    task_id = "song"
    map_index = -1
    try_number = 1
    max_tries = 0
    dag_id = "songs"
    run_id = "some-run"

    def __init__(self, xcoms: dict[str, Any] | None = None, **context: Any) -> None:
        super().__init__(ti=self, **context)
        self.xcoms = dict(xcoms or {})

    def run(self, task: Any) -> Any:
        """Execute an operator or a sensor as its task runner would."""
        return task.execute(self)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return self.xcoms[key]

    def get_first_reschedule_date(self, context: Any) -> None:
        return None

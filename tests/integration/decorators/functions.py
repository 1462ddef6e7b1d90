"""Tasks whose prompts come from functions that return another one in each call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from airflow_provider_whisul.decorators.whisul import whisul_task
from airflow_provider_whisul.decorators.whisul_batch import whisul_batch_task
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.operators.batch_task import BatchTask
from tests.integration.operators.song_task import SongTask
from tests.support.airflow import TaskStore
from tests.support.clock import FakeClock, VirtualLoop, thread_clock


class Returns:
    """
    A function that returns the next of some values in each call.

    :param values: The values; of an exception, it is raised.
    """

    __name__ = "song"
    __annotations__: dict[str, Any] = {}

    def __init__(self, *values: Any) -> None:
        self._values = iter(values)
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        value = next(self._values)
        if isinstance(value, Exception):
            raise value
        return value


def random_prompts(text: str = "song") -> Returns:
    """Return a function whose prompt is another one in each call."""
    return Returns(*(f"{text} number {number}" for number in range(100)))


def random_lists(songs: int = 3) -> Returns:
    """Return a function whose list of prompts is another one in each call."""
    numbers = itertools.count()
    return Returns(*([f"song {next(numbers)}" for _ in range(songs)] for _ in range(20)))


class DecoratedSongTask(SongTask):
    """
    A task of ``@task.whisul``.

    :param function: The decorated function.
    :param arguments: The decorator's arguments.
    """

    def __init__(
        self, clock: FakeClock, store: TaskStore | None, function: Callable[..., Any], **arguments: Any
    ) -> None:
        super().__init__(clock, store)
        self.function, self.arguments = function, arguments

    def operator(self) -> WhisulGenerateOperator:
        decorated = whisul_task(task_id="song", retries=self.retries, **self.arguments)(self.function)
        operator = decorated().operator
        assert isinstance(operator, WhisulGenerateOperator)
        operator.clock = self.clock.clock
        return operator


class DecoratedBatchTask(BatchTask):
    """
    A task of ``@task.whisul_batch``.

    :param function: The decorated function.
    :param arguments: The decorator's arguments.
    """

    def __init__(self, sandbox: Sandbox, loop: VirtualLoop, function: Callable[..., Any], **arguments: Any) -> None:
        super().__init__(sandbox, loop, [], **arguments)
        self.function = function
        del self.arguments["prompts"]

    def operator(self) -> WhisulGenerateBatchOperator:
        decorated = whisul_batch_task(task_id="songs", retries=self.retries, **self.arguments)(self.function)
        operator = decorated().operator
        assert isinstance(operator, WhisulGenerateBatchOperator)
        operator.clock = thread_clock(self.loop)
        return operator

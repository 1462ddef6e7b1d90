"""
As much of Airflow as a task touches: its context, its XComs, its task state store, its tries and its deferrals.

Tests of all that outlives a task process share this: several tries of one task, a trigger that runs in another process
than the task that defers to it, and workers that are killed.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.ledger.submitting import Submitting
from airflow_provider_whisul.state.batch_state import BatchState

C = TypeVar("C", bound="TaskContext")

#: What Airflow calls in place of a task's own method, when it ends a deferral by itself.
FAIL_METHOD = "__fail__"


class Killed(BaseException):
    """The process is killed: no ``except Exception`` of a task, hook or trigger handles it."""


@contextmanager
def mortal_batch() -> Iterator[Callable[..., NoReturn]]:
    """Yield what kills the worker of a batch while it submits: until the block ends it writes nothing more."""
    with pytest.MonkeyPatch.context() as patch:

        def die(*why: object) -> NoReturn:
            patch.setattr(BatchState, "save", lambda *_: None)
            patch.setattr(Submitting, "end", lambda *_: None)
            raise Killed(*why)

        yield die


class TaskContext(dict[str, Any]):
    """
    As much of a running task as operators touch: its number of tries and its XComs.

    :param xcoms: What the task has pushed already.
    """

    task_id = "song"
    map_index = -1
    try_number = 1
    max_tries = 0
    dag_id = "songs"
    run_id = "some-run"

    def __init__(self, xcoms: dict[str, Any] | None = None, **context: Any) -> None:
        super().__init__(ti=self, task=SimpleNamespace(retries=0), **context)
        self.xcoms = dict(xcoms or {})

    def run(self, task: Any, next_method: str | None = None, next_kwargs: dict[str, Any] | None = None) -> Any:
        """Execute an operator or a sensor, or resume it, as its task runner would."""
        self["task"] = task
        return task.resume_execution(next_method, next_kwargs, self) if next_method else task.execute(self)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return self.xcoms.get(key)

    def shown(self) -> list[dict[str, Any]]:
        """Return what the Tracks tab shows of the task, each card as often as it is there."""
        return [card for key in sorted(self.xcoms) if key.startswith("whisul_songs_") for card in self.xcoms[key]]

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


class TaskStore(dict[str, Any]):
    """
    Airflow's task state store, which outlives the tries of a task.

    :param forgets_on_clear: Whether a user who clears the task empties it, as from Airflow 3.4 on.
    :param values: What is in it.
    """

    def __init__(self, *, forgets_on_clear: bool = False, **values: Any) -> None:
        super().__init__(values)
        self.forgets_on_clear = forgets_on_clear

    def location(self, key: str) -> str:
        return f"the key {key} in the test's store"

    def set(self, key: str, value: Any) -> None:
        self[key] = through_json(value)

    def delete(self, key: str) -> None:
        self.pop(key, None)


class AirflowTask:
    """
    One task in Airflow: its tries, and the task state store that outlives them.

    :param retries: The task's retries.
    :param store: The store; None where Airflow has none.
    """

    #: Each task is of a run of its own, so that none finds the record of another.
    _runs = itertools.count(1)

    def __init__(self, retries: int = 2, store: TaskStore | None = None) -> None:
        self.retries = retries
        self.store = store
        self.tries = 0
        self.max_tries = retries
        self.run_id = f"run-{next(self._runs)}"

    def start_try(self, context: C) -> C:
        """Turn a context into that of the next try, and return it."""
        self.tries += 1
        return self.same_try(context)

    def same_try(self, context: C) -> C:
        """Turn a context into another one of this try, and return it."""
        if self.store is not None:
            context["task_state_store"] = self.store
        context.try_number, context.max_tries, context.run_id = self.tries, self.max_tries, self.run_id
        return context

    def clear(self) -> None:
        """Do what Airflow does when a user clears the task: it grants all retries anew."""
        self.max_tries = self.tries + self.retries
        if self.store is not None and self.store.forgets_on_clear:
            self.store.clear()


@dataclass(frozen=True)
class Deferral:
    """
    What Airflow stores of a task that has deferred.

    :param trigger_class: The trigger's class, as a dotted path.
    :param trigger_kwargs: The trigger's arguments, after a round trip through JSON.
    :param method_name: The method that the task continues with.
    :param kwargs: Its arguments, after a round trip through JSON.
    :param timeout: When Airflow ends the deferral by itself.
    """

    trigger_class: str
    trigger_kwargs: dict[str, Any]
    method_name: str
    kwargs: dict[str, Any]
    timeout: timedelta | None

    @classmethod
    def from_exception(cls, deferred: TaskDeferred) -> Deferral:
        """Return what Airflow stores when a task raises this."""
        trigger_class, trigger_kwargs = deferred.trigger.serialize()
        return cls(
            trigger_class,
            through_json(trigger_kwargs),
            deferred.method_name,
            through_json(deferred.kwargs or {}),
            deferred.timeout,
        )

    def trigger(self, clock: Clock | None = None) -> Any:
        """Create the trigger as the triggerer does, from what is stored alone."""
        module, _, name = self.trigger_class.rpartition(".")
        trigger = getattr(importlib.import_module(module), name)(**self.trigger_kwargs)
        if clock is not None:
            trigger.clock = clock
        return trigger

    def resume_with(self, event: object) -> tuple[str, dict[str, Any]]:
        """Return the method that the task continues with and its arguments, for :meth:`TaskContext.run`."""
        return self.method_name, {**self.kwargs, "event": event}


async def event_of(trigger: Any) -> Any:
    """Run a trigger to its one event, and return what Airflow stores of that."""
    (event,) = [event.payload async for event in trigger.run()]
    return through_json(event)


def through_json(value: Any) -> Any:
    """Return a value as it comes back from Airflow's database."""
    return json.loads(json.dumps(value, allow_nan=False))


def allow_tasks_in_threads() -> None:
    """Let tasks run in this thread: Airflow 2 expects them in the main thread only."""
    if airflow_version.startswith("2."):
        from airflow.models.baseoperator import ExecutorSafeguard

        ExecutorSafeguard._sentinel.callers = {}

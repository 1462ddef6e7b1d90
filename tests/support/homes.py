"""The places where a task's record can be kept: what survives a try must survive it in each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.state import state_store
from airflow_provider_whisul.state.state_store import StateStore, task_state_store
from tests.support.airflow import AirflowTask, TaskContext, TaskStore

#: Airflow's task state store, one that forgets when a user clears the task (Airflow 3.4), the folder of
#: ``[whisul] state_path``, and the machine's own.
HOMES = ("airflow", "mirrored", "folder", "machine")


@dataclass(frozen=True)
class Home:
    """
    One of :data:`HOMES`.

    :param name: Its name.
    """

    name: str

    @classmethod
    def set_up(cls, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Home:
        """
        Make a home the one that tasks use.

        :param name: Its name.
        :param monkeypatch: The test's.
        :param folder: An empty folder.
        """
        monkeypatch.setattr(state_store, "CLEARING_EMPTIES_TASK_STATE", name == "mirrored")
        if name == "folder":
            monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(folder))
        return cls(name)

    def task_store(self) -> TaskStore | None:
        """Return the store that Airflow gives to one task, None where it has none."""
        return TaskStore(forgets_on_clear=self.name == "mirrored") if self.name in ("airflow", "mirrored") else None


def store_of(task: AirflowTask, **names: Any) -> StateStore:
    """
    Return the store that a task finds.

    :param task: The task.
    :param names: Other attributes of its context, such as ``task_id``.
    """
    context = task.same_try(TaskContext())
    for name, value in names.items():
        setattr(context, name, value)
    store = task_state_store(context)  # type: ignore[arg-type]
    assert store is not None
    return store


def keep_no_record(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """
    Let this machine have no folder for records.

    :param monkeypatch: The test's.
    :param folder: An empty folder.
    """
    file = folder / "a file"
    file.touch()
    monkeypatch.setenv("AIRFLOW_HOME", str(file))


class FailingStore:
    """
    A store around a task's own, which a test lets fail.

    :param store: The task's own store.
    :param before_set: Called with each key and value before it is stored.
    """

    def __init__(self, store: StateStore, before_set: Callable[[str, Any], None]) -> None:
        self._store = store
        self._before_set = before_set

    def get(self, key: str) -> object:
        return self._store.get(key)

    def set(self, key: str, value: Any) -> None:
        self._before_set(key, value)
        self._store.set(key, value)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def location(self, key: str) -> str:
        return self._store.location(key)


def fail_before_set(monkeypatch: pytest.MonkeyPatch, module: Any, before_set: Callable[[str, Any], None]) -> None:
    """
    Let the stores that a module finds fail.

    :param monkeypatch: The test's.
    :param module: The module, which has imported ``task_state_store``.
    :param before_set: As in :class:`FailingStore`.
    """

    def failing(context: Any, durable: bool = True) -> StateStore | None:
        store = task_state_store(context, durable)
        return None if store is None else FailingStore(store, before_set)

    monkeypatch.setattr(module, "task_state_store", failing)

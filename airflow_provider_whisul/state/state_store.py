"""
Where a task keeps what its later tries must know, and the form of what is kept.

That is the folder that ``[whisul] state_path`` names. Without one it is the task state store of Airflow, from 3.3 on,
or else a folder of this machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from airflow_provider_whisul.exceptions import WhisulError, WhisulStateError, WhisulStateUnreadableError
from airflow_provider_whisul.state.unreadable import unreadable_record
from airflow_provider_whisul.text import quote
from airflow_provider_whisul.version_compat import CLEARING_EMPTIES_TASK_STATE

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Bytes that one value in a store, one event or one trigger's arguments may take: half of what MySQL keeps in a column.
MAX_ENTRY_BYTES = 32_000

#: The version of the form of all that is kept in a store.
STATE_VERSION = 1

_DEADLINE_KEY = "whisul_deadline"


class StateStore(Protocol):
    """
    A store of JSON values by key.

    Every method raises a :class:`WhisulStateError` where the store cannot be used.
    """

    def get(self, key: str) -> object:
        """
        Return a value, None where there is none.

        :param key: The key: letters, digits and underscores.
        :raises WhisulStateUnreadableError: There is something that cannot be read.
        """

    def set(self, key: str, value: Mapping[str, object]) -> None:
        """
        Store a value whole, and replace an earlier one.

        :param key: The key.
        :param value: The value.
        """

    def delete(self, key: str) -> None:
        """
        Remove a value, if there is one.

        :param key: The key.
        """

    def location(self, key: str) -> str:
        """
        Return where a value is kept, for messages.

        :param key: The key.
        """


class NoStateStore:
    """Keeps nothing, as where ``durable`` is false."""

    def get(self, key: str) -> object:
        return None

    def set(self, key: str, value: Mapping[str, object]) -> None:
        pass

    def delete(self, key: str) -> None:
        pass

    def location(self, key: str) -> str:
        return "nowhere"


@dataclass
class XComStateStore:
    """Keeps values in the task's own XComs. They outlive a deferral, but not a try."""

    context: Context

    def get(self, key: str) -> object:
        ti = self.context["ti"]
        with _airflow_errors("read", "XComs"):
            return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=ti.map_index)

    def set(self, key: str, value: Mapping[str, object]) -> None:
        with _airflow_errors("write", "XComs"):
            self.context["ti"].xcom_push(key=key, value=value)

    def delete(self, key: str) -> None:
        with _airflow_errors("remove", "XComs"):
            self.context["ti"].xcom_push(key=key, value=None)

    def location(self, key: str) -> str:
        return f"the task's XCom {key}"


@dataclass
class AirflowStateStore:
    """
    Keeps values in Airflow's task state store.

    :param store: The store, as the task's context has it.
    """

    store: Any

    def get(self, key: str) -> object:
        with _airflow_errors("read"):
            return self.store.get(key)

    def set(self, key: str, value: Mapping[str, object]) -> None:
        with _airflow_errors("write"):
            self.store.set(key, value)

    def delete(self, key: str) -> None:
        with _airflow_errors("remove"):
            self.store.delete(key)

    def location(self, key: str) -> str:
        return f"the key {key} in Airflow's task state store"


@contextmanager
def _airflow_errors(action: str, store: str = "task state store") -> Iterator[None]:
    """Turn what Airflow's store raises into a :class:`WhisulStateError`."""
    try:
        yield
    except WhisulError:
        raise
    except Exception as error:
        raise WhisulStateError(
            f"Could not {action} this task's record in Airflow's {store}: {quote(str(error))} "
            f"({type(error).__name__}). It says what the task has submitted, and without it a song could be paid for "
            "twice. If this task was cleared or marked while it ran, Airflow refuses what its old try still writes. If "
            "not, see whether Airflow's API server responds."
        ) from error


@dataclass
class MirroredStateStore:
    """
    Keeps values in two stores, of which the first may forget: Airflow's, which a user who clears a task empties, or
    the task's XComs, which each try begins without.

    :param first: The store that is read first.
    :param second: The store that is read where the first has no such value.
    """

    first: StateStore
    second: StateStore

    def get(self, key: str) -> object:
        value = self.first.get(key)
        return self.second.get(key) if value is None else value

    def set(self, key: str, value: Mapping[str, object]) -> None:
        try:
            self.first.set(key, value)
        except Exception:
            # A job's id must be in one of them.
            self.second.set(key, value)
            raise
        self.second.set(key, value)

    def delete(self, key: str) -> None:
        # In this order: what is left where the first cannot be reached is the one that is read first.
        self.second.delete(key)
        self.first.delete(key)

    def location(self, key: str) -> str:
        return f"{self.first.location(key)}, or {self.second.location(key)}"


def task_state_store(context: Context, durable: bool = True) -> StateStore | None:
    """
    Return the store that outlives the tries of a task; None where there is none.

    :param context: The task's context.
    :param durable: Whether the task is to use one.
    :raises WhisulConfigurationError: ``[whisul] state_path`` names no folder.
    :raises WhisulStateError: The folder that it names cannot be used.
    """
    if not durable:
        return None
    # Here, so that reading a DAG file does not load them.
    from airflow_provider_whisul.state.folder_state_store import FolderStateStore, TaskInstanceKey
    from airflow_provider_whisul.state.state_path import configured_path, machine_folder, state_folder

    task = TaskInstanceKey.from_context(context)
    if configured_path() is not None:
        folder = state_folder()
        return None if folder is None else FolderStateStore(folder, task)
    store = context.get("task_state_store")
    if store is not None and not CLEARING_EMPTIES_TASK_STATE:
        return AirflowStateStore(store)
    folder = machine_folder()
    if store is not None:
        first = AirflowStateStore(store)
        return first if folder is None else MirroredStateStore(first, FolderStateStore(folder, task))
    if folder is None:
        return None
    notice = (
        f"What a retry of this task must know, such as a job that is paid for, is kept in {folder.url}. That folder is "
        "this machine's own. Where tasks run on several machines, set [whisul] state_path in Airflow's configuration "
        "to a folder that all of them reach, or else a retry on another machine knows nothing: one that submits pays "
        "again."
    )
    return FolderStateStore(folder, task, notice)


def with_xcoms(store: StateStore | None, context: Context) -> StateStore:
    """
    Return a store that a task finds again after a deferral, on whichever machine Airflow resumes it.

    :param store: The store that outlives the tries of the task, as :func:`task_state_store` returns it.
    :param context: The task's context.
    """
    from airflow_provider_whisul.state.folder_state_store import FolderStateStore
    from airflow_provider_whisul.state.state_path import configured_path

    xcoms = XComStateStore(context)
    if store is None:
        return xcoms
    is_of_this_machine = isinstance(store, FolderStateStore) and configured_path() is None
    return MirroredStateStore(xcoms, store) if is_of_this_machine else store


def versioned(value: Mapping[str, object]) -> dict[str, object]:
    """
    Return a value with the version of its form, as all that is kept in a store has it.

    :param value: The value.
    """
    return {"version": STATE_VERSION, **value}


def read_versioned(store: StateStore, key: str) -> Mapping[str, object] | None:
    """
    Return the value that :func:`versioned` has marked, with its version; None where there is none.

    :param store: The store.
    :param key: The value's key.
    :raises WhisulStateUnreadableError: There is one, but it is no such value, or is of another version.
    """
    value = store.get(key)
    match value:
        case None:
            return None
        case {"version": int(version)} if version == STATE_VERSION:
            return cast("Mapping[str, object]", value)
        case {"version": version}:
            problem = f"it is of version {quote(str(version))}, and this provider reads version {STATE_VERSION}"
            raise unreadable_record(store.location(key), problem)
    raise unreadable(store, key)


def unreadable(store: StateStore, key: str) -> WhisulStateUnreadableError:
    """
    Return the error for a value that is there and makes no sense to this version.

    :param store: The store.
    :param key: The value's key.
    """
    return unreadable_record(store.location(key), "its form is not the one that this version writes")


def prompt_fingerprint(prompt: object) -> str:
    """
    Return a short digest of a prompt: enough to tell whether it has changed.

    :param prompt: The prompt.
    """
    return hashlib.sha256(str(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def clear_count(context: Context) -> int:
    """
    Return a number that changes only when a user clears the task, and not with a retry.

    Clearing a task sets ``max_tries`` to the tries so far plus its ``retries``.

    :param context: The task's context.
    """
    return (context["ti"].max_tries or 0) - (context["task"].retries or 0)


def total_deadline(context: Context, deadline: float) -> float:
    """
    Return the deadline for all tries of a task together, so that a retry does not begin to wait anew.

    :param context: The task's context.
    :param deadline: The deadline if this is the first try, in Unix seconds.
    :return: Unix seconds.
    """
    store = task_state_store(context)
    if store is None or not context["task"].retries:
        return deadline
    match read_versioned(store, _DEADLINE_KEY):
        case None:
            pass
        case {"clear_count": int(cleared), "deadline": int() | float() as earlier}:
            if cleared == clear_count(context):
                return earlier
        case _:
            raise unreadable(store, _DEADLINE_KEY)
    store.set(_DEADLINE_KEY, versioned({"clear_count": clear_count(context), "deadline": deadline}))
    return deadline

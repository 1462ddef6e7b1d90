"""
Where a task keeps what its later tries must know.

From Airflow 3.3 on that is the task state store, which outlives a worker that is killed at any moment. Before, nothing
outlives a try.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Bytes that one value in a store, one event or one trigger's arguments may take: half of what MySQL keeps in a column.
MAX_ENTRY_BYTES = 32_000

_DEADLINE_KEY = "whisul_deadline"


class StateStore(Protocol):
    """A store of JSON values by key. Airflow's ``task_state_store`` is one."""

    def get(self, key: str) -> object: ...

    def set(self, key: str, value: Mapping[str, object]) -> None: ...

    def delete(self, key: str) -> None: ...


class NoStateStore:
    """Keeps nothing, as where Airflow has no task state store or ``durable`` is false."""

    def get(self, key: str) -> object:
        return None

    def set(self, key: str, value: Mapping[str, object]) -> None:
        pass

    def delete(self, key: str) -> None:
        pass


@dataclass
class XComStateStore:
    """Keeps values in the task's own XComs. They outlive a deferral, but not a try."""

    context: Context

    def get(self, key: str) -> object:
        ti = self.context["ti"]
        return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=ti.map_index)

    def set(self, key: str, value: Mapping[str, object]) -> None:
        self.context["ti"].xcom_push(key=key, value=value)

    def delete(self, key: str) -> None:
        self.context["ti"].xcom_push(key=key, value=None)


def task_state_store(context: Context, durable: bool = True) -> StateStore | None:
    """
    Return the store that outlives the tries of a task; None where there is none.

    :param context: The task's context.
    :param durable: Whether the task is to use one.
    """
    return cast("StateStore | None", context.get("task_state_store")) if durable else None


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
    match store.get(_DEADLINE_KEY):
        case {"clear_count": int(cleared), "deadline": int() | float() as earlier} if cleared == clear_count(context):
            return earlier
    store.set(_DEADLINE_KEY, {"clear_count": clear_count(context), "deadline": deadline})
    return deadline

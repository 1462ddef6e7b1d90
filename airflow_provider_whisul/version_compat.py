"""The differences between the supported versions of Airflow (2.11 and later) that common-compat does not cover."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow import __version__
from packaging.version import Version

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection, Context
    from fsspec import AbstractFileSystem

if TYPE_CHECKING:
    from airflow.sdk.definitions.asset import AssetRef
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError, TaskDeferralTimeout
else:
    try:  # 3.0 and later
        from airflow.sdk.definitions.asset import AssetRef
    except ImportError:

        class AssetRef:
            """Airflow 2 has no references to assets."""

    try:  # 3.3 and later
        from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
    except ImportError:
        RetryDecision = RetryPolicy = object

    try:  # 3.2 and later
        from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError, TaskDeferralTimeout
    except ImportError:
        from airflow.exceptions import AirflowRescheduleException, TaskDeferralError

        try:  # 3.0 and 3.1
            from airflow.exceptions import TaskDeferralTimeout
        except ImportError:
            TaskDeferralTimeout = TaskDeferralError

#: Whether Airflow has retry policies.
HAS_RETRY_POLICY = RetryPolicy is not object

#: Whether a task can say which partitions of an asset it has made.
HAS_ASSET_PARTITIONS = Version(__version__) >= Version("3.3")

#: Whether a plugin can add a page to the UI.
HAS_EXTERNAL_VIEWS = Version(__version__) >= Version("3.1")

#: Whether a task can ask a person in the UI.
HAS_REQUIRED_ACTIONS = Version(__version__) >= Version("3.1")
#: Whether the function of a ``@task`` may be a coroutine.
HAS_ASYNC_TASKS = Version(__version__) >= Version("3.2")

#: Whether the UI computes an extra link each time it shows it. Later versions have the worker do it when the task ends.
UI_COMPUTES_LINKS = Version(__version__) < Version("3.0")

#: Whether Airflow ends a deferral at the task's execution_timeout, counted from the start of the try.
ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT = Version(__version__) < Version("3.0")

#: Whether a user who clears a task empties its task state store too, unless told otherwise (apache/airflow#72100).
CLEARING_EMPTIES_TASK_STATE = Version(__version__) >= Version("3.4.0.dev0")

#: What Airflow raises in place of the event where it ended a deferral by itself.
DEFERRAL_ERRORS = (TaskDeferralError, TaskDeferralTimeout)


def deferral_ends_at(trigger: object) -> float:
    """
    Return when Airflow ends a deferral by itself, in Unix seconds; infinite where it has said no time.

    :param trigger: A trigger that runs in the triggerer.
    """
    # The first is of 3.0 and later, the second of 2.11, which counts the execution_timeout in.
    times = (
        getattr(trigger, "timeout_after", None),
        getattr(getattr(trigger, "task_instance", None), "trigger_timeout", None),
    )
    for at in times:
        if isinstance(at, datetime):
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return math.inf


def is_deferral_timeout(error: Exception) -> bool:
    """
    Return whether one of :data:`DEFERRAL_ERRORS` means that the trigger did not report in time.

    2.11 has no class for it, but every version gives the same reason.

    :param error: The error.
    """
    return str(error) == "Trigger timeout"


def is_from_earlier_try(next_kwargs: dict[str, Any] | None, context: Context) -> bool:
    """
    Return whether a task is resumed with what an earlier one of its tries waited for.

    Airflow 3.0 and 3.1.0 keep a deferral over a retry (apache/airflow#56704): the retry would be handed the event
    that failed the try before it, and so fail again, each time.

    :param next_kwargs: What the task is resumed with; ``try_number`` is the try that deferred.
    :param context: The task's context.
    """
    return (
        Version("3.0") <= Version(__version__) < Version("3.1.1")
        and "try_number" in (next_kwargs or {})
        and (next_kwargs or {})["try_number"] != context["ti"].try_number
    )


def region(ti: object) -> str | None:
    """
    Return which iteration of a loop a task instance belongs to, None where it belongs to none.

    From 3.4 on a task can run several times in one DAG run, with one map index.

    :param ti: The task instance, as the task's context has it.
    """
    region_id = getattr(ti, "region_id", None)
    if region_id is None or str(region_id) == str(UUID(int=0)):
        return None
    return f"{region_id}/{getattr(ti, 'region_index', None)}"


class MissingPackageError(Exception):
    """
    No package that is installed knows a protocol of ``ObjectStoragePath``.

    :param protocol: Such as ``s3``.
    """

    def __init__(self, protocol: str) -> None:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "adl": "azure"}
        if protocol in extra:
            remedy = f"Install airflow-provider-whisul[{extra[protocol]}] where the tasks run."
        else:
            remedy = "Check how it is spelt, or install the Airflow provider that knows it where the tasks run."
        super().__init__(f"no installed package knows {protocol}:// addresses. {remedy}")


def filesystem(protocol: str, conn_id: str | None) -> AbstractFileSystem:
    """
    Return the filesystem that Airflow's ``ObjectStoragePath`` uses for a protocol.

    Not by way of that class, which with universal-pathlib 0.3 cannot be made on Airflow 3.0.

    :param protocol: Such as ``file`` or ``s3``.
    :param conn_id: The Airflow connection that it uses, None for what the environment says.
    :raises MissingPackageError: No installed package knows the protocol.
    """
    if TYPE_CHECKING:
        from airflow.sdk.io import attach
    else:
        try:
            from airflow.sdk.io import attach
        except ImportError:  # before 3.0
            from airflow.io.store import attach
    try:
        return attach(protocol, conn_id).fs
    except ValueError as error:
        if str(error).startswith("No filesystem registered"):
            raise MissingPackageError(protocol) from None
        raise


def task_decorator_class() -> type[Any]:
    """Return Airflow's class of a decorated function. Imported on demand: only DAGs with such functions need it."""
    if TYPE_CHECKING:
        from airflow.sdk.bases.decorator import _TaskDecorator
    else:
        try:
            from airflow.sdk.bases.decorator import _TaskDecorator
        except ImportError:  # before 3.0
            from airflow.decorators.base import _TaskDecorator
    return _TaskDecorator


def server_connection(conn_id: str) -> Connection:
    """
    Return an Airflow connection outside of a task, on a machine that reaches Airflow's database.

    From 3.0 on the hooks' own look-up does not read the database there.

    :param conn_id: The connection's id.
    :raises AirflowNotFoundException: There is none.
    """
    from airflow.models.connection import Connection

    return Connection.get_connection_from_secrets(conn_id)


__all__ = [
    "CLEARING_EMPTIES_TASK_STATE",
    "DEFERRAL_ERRORS",
    "ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT",
    "HAS_ASSET_PARTITIONS",
    "HAS_ASYNC_TASKS",
    "HAS_EXTERNAL_VIEWS",
    "HAS_REQUIRED_ACTIONS",
    "HAS_RETRY_POLICY",
    "UI_COMPUTES_LINKS",
    "AirflowRescheduleException",
    "AssetRef",
    "RetryDecision",
    "RetryPolicy",
    "deferral_ends_at",
    "filesystem",
    "is_deferral_timeout",
    "is_from_earlier_try",
    "region",
    "server_connection",
    "task_decorator_class",
]

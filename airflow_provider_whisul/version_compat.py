"""The differences between the supported versions of Airflow (2.11 to 3.3) that common-compat does not cover."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow import __version__
from packaging.version import Version

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from fsspec import AbstractFileSystem

if TYPE_CHECKING:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
    from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout
else:
    try:  # 3.3 and later
        from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
    except ImportError:
        RetryDecision = RetryPolicy = object

    try:  # 3.2 and later
        from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout
    except ImportError:
        from airflow.exceptions import TaskDeferralError

        try:  # 3.0 and 3.1
            from airflow.exceptions import TaskDeferralTimeout
        except ImportError:
            TaskDeferralTimeout = TaskDeferralError

#: Whether Airflow has retry policies.
HAS_RETRY_POLICY = RetryPolicy is not object

#: Whether a plugin can add a page to the UI.
HAS_EXTERNAL_VIEWS = Version(__version__) >= Version("3.1")

#: Whether the UI computes an extra link each time it shows it. Later versions have the worker do it when the task ends.
UI_COMPUTES_LINKS = Version(__version__) < Version("3.0")

#: What Airflow raises in place of the event where it ended a deferral by itself.
DEFERRAL_ERRORS = (TaskDeferralError, TaskDeferralTimeout)


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


def filesystem(protocol: str, conn_id: str | None) -> AbstractFileSystem:
    """
    Return the filesystem that Airflow's ``ObjectStoragePath`` uses for a protocol.

    Not by way of that class, which with universal-pathlib 0.3 cannot be made on Airflow 3.0.

    :param protocol: Such as ``file`` or ``s3``.
    :param conn_id: The Airflow connection that it uses, None for what the environment says.
    :raises ValueError: No installed provider knows the protocol.
    """
    if TYPE_CHECKING:
        from airflow.sdk.io import attach
    else:
        try:
            from airflow.sdk.io import attach
        except ImportError:  # before 3.0
            from airflow.io.store import attach
    return attach(protocol, conn_id).fs


__all__ = [
    "DEFERRAL_ERRORS",
    "HAS_EXTERNAL_VIEWS",
    "HAS_RETRY_POLICY",
    "UI_COMPUTES_LINKS",
    "RetryDecision",
    "RetryPolicy",
    "filesystem",
    "is_deferral_timeout",
    "is_from_earlier_try",
]

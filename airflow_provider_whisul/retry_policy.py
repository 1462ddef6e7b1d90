"""When Airflow tries a task again after one of our errors (3.3 and later)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_whisul.clock import SYSTEM_CLOCK
from airflow_provider_whisul.exceptions import TaskRetry, WhisulError
from airflow_provider_whisul.rate_limit.backoff import retry_delay
from airflow_provider_whisul.version_compat import HAS_RETRY_POLICY, RetryDecision, RetryPolicy

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class WhisulRetryPolicy(RetryPolicy):
    """
    Retries as the error asks: see ``task_retry`` of each class in :mod:`airflow_provider_whisul.exceptions`.

    It decides when, never how often: that stays with the task's ``retries``.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """
        Return whether and when to try again.

        :param exception: The error that failed the task.
        :param try_number: The number of the failed try, from 1 on.
        :param max_tries: How many tries the task has.
        :param context: The task's context.
        """
        if not isinstance(exception, WhisulError) or exception.task_retry is TaskRetry.TASK_DEFAULT:
            return RetryDecision.default()
        if exception.task_retry is TaskRetry.NEVER:
            return RetryDecision.fail(reason=str(exception))
        delay = 0.0
        if exception.task_retry is not TaskRetry.IMMEDIATE:
            delay = retry_delay(exception, try_number - 1, SYSTEM_CLOCK.random())
        return RetryDecision.retry(delay=timedelta(seconds=delay), reason=str(exception))

    def serialize(self) -> dict[str, str]:
        """Return what the serialised DAG holds of the policy. Airflow never creates the policy from it."""
        return {"__type": f"{type(self).__module__}.{type(self).__qualname__}"}


#: The operators' retry policy unless the user sets one; None where Airflow has no retry policies.
WHISUL_RETRY_POLICY = WhisulRetryPolicy() if HAS_RETRY_POLICY else None


def set_default_retry_policy(kwargs: dict[str, Any]) -> None:
    """
    Set our retry policy in an operator's arguments where they set none.

    :param kwargs: The arguments.
    """
    if WHISUL_RETRY_POLICY is not None and kwargs.get("retry_policy") is None:
        kwargs["retry_policy"] = WHISUL_RETRY_POLICY

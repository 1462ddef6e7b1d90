"""When Airflow tries a task again after one of our errors (3.3 and later)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.clock import SYSTEM_CLOCK
from airflow_provider_whisul.exceptions import TaskRetry, WhisulError
from airflow_provider_whisul.polling import MAX_SECONDS
from airflow_provider_whisul.rate_limit.backoff import retry_delay
from airflow_provider_whisul.version_compat import HAS_RETRY_POLICY, RetryDecision, RetryPolicy

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: The ``retry_delay`` of a task where neither the user nor the deployment sets one.
AIRFLOW_RETRY_DELAY = timedelta(minutes=5)


class WhisulRetryPolicy(RetryPolicy):
    """
    Retries as the error asks: see ``task_retry`` of each class in :mod:`airflow_provider_whisul.exceptions`.

    It decides when, never how often: that stays with the task's ``retries``. A ``retry_delay`` or a
    ``retry_exponential_backoff`` that the user has set is never shortened: the task waits for the longer one of that
    and what the error asks.
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
        seconds = 0.0
        if exception.task_retry is not TaskRetry.IMMEDIATE:
            seconds = retry_delay(exception, try_number - 1, SYSTEM_CLOCK.random())
        delay: timedelta | None = timedelta(seconds=seconds)
        least, most = _users_delay(context, try_number)
        if least:
            # Without a delay of ours Airflow computes the task's own.
            delay = None if seconds <= least else timedelta(seconds=max(seconds, most))
        return RetryDecision.retry(delay=delay, reason=str(exception))

    def serialize(self) -> dict[str, str]:
        """Return what the serialised DAG holds of the policy. Airflow never creates the policy from it."""
        return {"__type": f"{type(self).__module__}.{type(self).__qualname__}"}


#: The operators' retry policy unless the user sets one; None where Airflow has no retry policies.
WHISUL_RETRY_POLICY = WhisulRetryPolicy() if HAS_RETRY_POLICY else None


def set_default_retry_policy(kwargs: dict[str, Any]) -> None:
    """
    Set our retry policy in an operator's arguments, unless these or the DAG's ``default_args`` set one.

    :param kwargs: The arguments, as Airflow hands them to ``__init__``: with the ``default_args`` that apply.
    """
    own = kwargs.get("retry_policy") or (kwargs.get("default_args") or {}).get("retry_policy")
    if WHISUL_RETRY_POLICY is not None and own is None:
        kwargs["retry_policy"] = WHISUL_RETRY_POLICY


def _users_delay(context: Context | None, try_number: int) -> tuple[float, float]:
    """Return the seconds, least and most, that Airflow waits by what the user has set; zeros where that is nothing."""
    task = context and context.get("task")
    delay, multiplier = getattr(task, "retry_delay", None), getattr(task, "retry_exponential_backoff", 0)
    if not isinstance(delay, timedelta):
        return 0.0, 0.0
    # Airflow's default is one object, which no delay of a user is. Its value differs where the deployment sets one.
    is_default = delay is BaseOperator.retry_delay and delay == AIRFLOW_RETRY_DELAY
    if is_default and not multiplier:
        return 0.0, 0.0
    least = most = delay.total_seconds()
    if multiplier and multiplier != 1:
        try:
            least = min(least * multiplier ** (try_number - 1), MAX_SECONDS)
        except OverflowError:
            least = MAX_SECONDS
        longest = getattr(task, "max_retry_delay", None)
        limit = longest.total_seconds() if isinstance(longest, timedelta) else MAX_SECONDS
        # Airflow adds up to as much again.
        least, most = min(least, limit), min(2 * least, limit)
    return least, most

"""``@task.whisul_batch``: a function returns prompts, and its task all of their songs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, overload

from airflow_provider_whisul.decorators.base import WhisulDecoratedOperator, decorate
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.state.kept_prompts import kept_prompts
from airflow_provider_whisul.state.state_store import clear_count

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.bases.decorator import Task

Arguments = ParamSpec("Arguments")


class _WhisulBatchDecoratedOperator(WhisulDecoratedOperator, WhisulGenerateBatchOperator):
    custom_operator_name = "@task.whisul_batch"
    from_function = "prompts"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(prompts=(), **kwargs)

    def prepare(self, context: Context) -> None:
        """Set the prompts: those of an earlier try, or what the function returns."""
        kept = kept_prompts(self._store(context), clear_count(context))
        if kept:
            self.log_kept(kept[0])
        self.prompts = self.call_function(context) if kept is None else kept


@overload
def whisul_batch_task(python_callable: Callable[Arguments, Sequence[str]]) -> Task[Arguments, Sequence[str]]: ...


@overload
def whisul_batch_task(
    python_callable: None = None, **kwargs: Any
) -> Callable[[Callable[Arguments, Sequence[str]]], Task[Arguments, Sequence[str]]]: ...


def whisul_batch_task(
    python_callable: Callable[..., Sequence[str]] | None = None,
    *,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> Any:
    """
    Decorate a function that returns a list of prompts: its task submits them and returns the list of the songs.

    Airflow's ``@task.whisul_batch`` is this function. What holds of
    :func:`~airflow_provider_whisul.decorators.whisul.whisul_task` holds here, but for one: a retry goes on with the
    list of the first try, also for the songs that have failed.

    :param python_callable: The function.
    :param multiple_outputs: Refused when true: the result is a list.
    :param kwargs: The arguments of
        :class:`~airflow_provider_whisul.operators.whisul_batch.WhisulGenerateBatchOperator` but for ``prompts``, and
        those of any task.
    :return: The decorated function, or a decorator where it is called with arguments.
    :raises TypeError: When the DAG file is read: the function is async, or there is no such argument.
    :raises ValueError: When the DAG file is read: an argument makes no sense.
    :raises WhisulInvalidInputError: When the task runs: the function has returned no list of texts, or one of them is
        empty. Nothing was sent, and the task is not retried.
    """
    return decorate(_WhisulBatchDecoratedOperator, python_callable, multiple_outputs, kwargs)

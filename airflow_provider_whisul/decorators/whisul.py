"""``@task.whisul``: a function returns a prompt, and its task the song."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, overload

from airflow_provider_whisul.decorators.base import WhisulDecoratedOperator, decorate
from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.operators.labels import map_index_template
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.state.kept_prompts import kept_prompt
from airflow_provider_whisul.state.state_store import clear_count, task_state_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.bases.decorator import Task

Arguments = ParamSpec("Arguments")


class _WhisulDecoratedOperator(WhisulDecoratedOperator, WhisulGenerateOperator):
    custom_operator_name = "@task.whisul"
    from_function = "prompt"
    # Before the function is called there is no prompt.
    default_label = map_index_template("task.prompt or ti.map_index")
    keep_prompt = True

    def __init__(self, *, wait_for_completion: bool = True, **kwargs: Any) -> None:
        super().__init__(prompt="", wait_for_completion=wait_for_completion, **kwargs)

    @classmethod
    def returns_dict(cls, arguments: Mapping[str, Any]) -> bool:
        return bool(arguments.get("wait_for_completion", True))

    def prepare(self, context: Context) -> None:
        """Set the prompt: that of an earlier try, or what the function returns."""
        kept = kept_prompt(task_state_store(context, self.durable), clear_count(context))
        if kept is not None:
            self.log_kept(kept)
            self.prompt = kept
            return
        returned = self.call_function(context)
        if not isinstance(returned, str):
            raise WhisulInvalidInputError(
                f"The function {self.python_callable.__name__} of {self.custom_operator_name} must return a prompt as "
                f"str, not {type(returned).__name__}. Nothing was sent."
            )
        self.prompt = returned


@overload
def whisul_task(python_callable: Callable[Arguments, str]) -> Task[Arguments, str]: ...


@overload
def whisul_task(
    python_callable: None = None, *, multiple_outputs: bool | None = None, **kwargs: Any
) -> Callable[[Callable[Arguments, str]], Task[Arguments, str]]: ...


def whisul_task(
    python_callable: Callable[..., str] | None = None, *, multiple_outputs: bool | None = None, **kwargs: Any
) -> Any:
    """
    Decorate a function that returns a prompt: its task submits the prompt and returns the song.

    Airflow's ``@task.whisul`` is this function. The function gets its arguments, and what it names of the task's
    context, when the task runs. What it returns is submitted as it is: Jinja in it is not rendered. A retry goes on
    with the prompt that an earlier try has begun to submit, and does not call the function. It is called again where
    that prompt made no song, once a user has cleared the task, and with ``durable=False``.

    :param python_callable: The function.
    :param multiple_outputs: Whether each key of the song is an XCom of its own too, so that a task downstream can take
        ``song()["song_url"]``. Needs ``wait_for_completion``.
    :param kwargs: The arguments of :class:`~airflow_provider_whisul.operators.whisul.WhisulGenerateOperator` but for
        ``prompt``, and those of any task. ``wait_for_completion`` is true unless set.
    :return: The decorated function, or a decorator where it is called with arguments.
    :raises TypeError: When the DAG file is read: the function is async, or there is no such argument.
    :raises ValueError: When the DAG file is read: an argument makes no sense.
    :raises WhisulInvalidInputError: When the task runs: the function has returned no text, or an empty one. Nothing was
        sent, and the task is not retried.
    """
    return decorate(_WhisulDecoratedOperator, python_callable, multiple_outputs, kwargs)

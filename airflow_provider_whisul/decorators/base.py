"""What both decorators have in common: what is refused when the DAG file is read, and the call of the function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import DecoratedOperator, context_merge, determine_kwargs

from airflow_provider_whisul.text import excerpt
from airflow_provider_whisul.version_compat import task_decorator_class

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.bases.decorator import _TaskDecorator as TaskDecoratorClass
else:
    TaskDecoratorClass = task_decorator_class()


class WhisulDecoratedOperator(DecoratedOperator):
    """A task whose prompts a function returns; before one of the operators as a base class."""

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, "whisul_conn_id")
    #: No argument of the function is the name of a file.
    template_ext: Sequence[str] = ()

    #: The decorator's name.
    custom_operator_name: ClassVar[str]

    #: The argument that the function's result takes the place of.
    from_function: ClassVar[str]

    #: The label of a mapped task unless the user sets one, as a template; None for none.
    default_label: ClassVar[str | None] = None

    @classmethod
    def returns_dict(cls, arguments: Mapping[str, Any]) -> bool:
        """
        Return whether the task's result is a dict, which ``multiple_outputs`` needs.

        :param arguments: The decorator's arguments.
        """
        return False

    def execute(self, context: Context) -> Any:
        """Execute the operator. Airflow's method in between handles assets only, and fails on 3.0 after the POST."""
        return super(DecoratedOperator, self).execute(context)

    def call_function(self, context: Context) -> Any:
        """
        Return what the function returns.

        :param context: The task's context, which the function may take arguments from.
        """
        context_merge(context, self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        return self.python_callable(*self.op_args, **arguments)

    def log_kept(self, prompt: str) -> None:
        """
        Log why the function is not called.

        :param prompt: The first prompt of the earlier try.
        """
        self.log.info(
            "An earlier try has begun to submit what %s() returned. The function is not called again, so that nothing "
            "is paid for twice. Its prompt was %r. Clearing the task calls it anew.",
            self.python_callable.__name__,
            excerpt(prompt),
        )


class WhisulTaskDecorator(TaskDecoratorClass[..., Any, Any]):
    """A decorated function. What makes no sense is refused when the DAG file is read, also where the task is mapped."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()  # type: ignore[no-untyped-call]
        function = inspect.unwrap(self.function)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"@{self.decorator_name} takes no async function, which {self.function.__name__} is. A function that "
                "has to await something can do that in asyncio.run()."
            )
        if self.multiple_outputs and not self.operator_class.returns_dict(self.kwargs):
            raise ValueError(
                f"@{self.decorator_name} got multiple_outputs=True, and the result of {self.function.__name__} is no "
                "dict whose keys could be XComs."
            )
        self.operator_class.check_arguments(self.kwargs)

    def _expand(self, expand_input: Any, *, strict: bool) -> Any:
        # Airflow creates a mapped task's operator, which refuses such a name, only when the task runs.
        unknown = self.kwargs.keys() - _argument_names(self.operator_class)
        if unknown:
            raise TypeError(f"@{self.decorator_name} got unexpected arguments: {', '.join(sorted(unknown))}.")
        label = self.kwargs.get("map_index_template", self.operator_class.default_label)
        return TaskDecoratorClass._expand(self.override(map_index_template=label), expand_input, strict=strict)


def decorate(
    operator_class: type[WhisulDecoratedOperator],
    python_callable: Callable[..., Any] | None,
    multiple_outputs: bool | None,
    arguments: Mapping[str, Any],
) -> Any:
    """
    Return a decorated function, or a decorator where there is none yet.

    :param operator_class: The class of the function's task.
    :param python_callable: The function; None in ``@decorator(...)``.
    :param multiple_outputs: As in Airflow's ``@task``. Unlike there, nothing is inferred from the function's own return
        type, which is not that of the task's result.
    :param arguments: The operator's arguments.
    """

    def decorate_function(function: Callable[..., Any]) -> WhisulTaskDecorator:
        return WhisulTaskDecorator(
            function=function,
            operator_class=operator_class,
            multiple_outputs=bool(multiple_outputs),
            # A dict for each function: Airflow adds the function's name as the task's id.
            kwargs=dict(arguments),
            decorator_name=operator_class.custom_operator_name.removeprefix("@"),
        )

    return decorate_function if python_callable is None else decorate_function(python_callable)


def _argument_names(operator_class: type[WhisulDecoratedOperator]) -> set[str]:
    signatures = [inspect.signature(vars(cls)["__init__"]) for cls in operator_class.__mro__ if "__init__" in vars(cls)]
    names = {name for signature in signatures for name in signature.parameters}
    return {*names, "on_failure_fail_dagrun"} - {"python_callable", "op_args", operator_class.from_function}

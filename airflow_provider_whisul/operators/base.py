"""What all tasks of the provider have in common: the connection, the client and the checks of arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.operators.arguments import ArgumentChecks

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul import WhisulHook


class WhisulTaskMixin:
    """A task that talks to Whisul; a mixin before Airflow's own base class."""

    whisul_conn_id: str

    #: Time, sleep and jitter; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    #: The checks of this class's arguments.
    argument_checks: ClassVar[ArgumentChecks] = {}

    @classmethod
    def checked(cls, name: str, value: Any) -> Any:
        """
        Return an argument as the task keeps it.

        :param name: The argument's name.
        :param value: The argument.
        :raises ValueError: The argument makes no sense.
        """
        return cls.argument_checks[name](value)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """
        Take the arguments that all mapped tasks share.

        What makes no sense is refused here, when the DAG file is read. Airflow creates a mapped task's operator only
        when the task runs, so that ``__init__`` would refuse it too late.
        """
        cls.check_arguments(kwargs)
        return super().partial(**kwargs)  # type: ignore[misc]

    @classmethod
    def check_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """
        Refuse arguments that make no sense.

        :param arguments: Some of the task's arguments, by name.
        :raises ValueError: One of them makes no sense.
        """
        for name in arguments.keys() & cls.argument_checks.keys():
            cls.checked(name, arguments[name])

    @cached_property
    def hook(self) -> WhisulHook:
        """The client. Imported when the task runs, so that reading a DAG file imports no HTTP client."""
        from airflow_provider_whisul.hooks.whisul import WhisulHook

        return WhisulHook(self.whisul_conn_id, clock=self.clock)

    def account(self) -> str:
        """Return the account that the Airflow connection leads to: a digest of its base URL and API key."""
        from airflow_provider_whisul.ledger.account_ledger import account_of

        return account_of(self.hook.settings)

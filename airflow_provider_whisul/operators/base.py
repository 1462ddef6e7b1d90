"""What the provider's operators and sensors have in common."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.polling import check_poll_interval
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS, is_from_earlier_try

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.hooks.whisul import WhisulHook


class WhisulTaskMixin:
    """A task that talks to Whisul; a mixin before Airflow's own base class."""

    whisul_conn_id: str

    #: Time, sleep and jitter; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """
        Take the arguments that all mapped tasks share.

        A poll interval that is too short is refused here, when the DAG file is read. Airflow creates a mapped task's
        operator only when the task runs, so that ``__init__`` would refuse it too late.
        """
        for name in ("poll_interval", "poke_interval"):
            if name in kwargs:
                check_poll_interval(kwargs[name], name)
        return super().partial(**kwargs)  # type: ignore[misc]

    @cached_property
    def hook(self) -> WhisulHook:
        """The client. Imported when the task runs, so that reading a DAG file imports no HTTP client."""
        from airflow_provider_whisul.hooks.whisul import WhisulHook

        return WhisulHook(self.whisul_conn_id, clock=self.clock)


class WhisulDeferrableMixin(WhisulTaskMixin):
    """A task that can wait in the triggerer."""

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """
        Continue after a deferral.

        :param next_method: The method that the task deferred to.
        :param next_kwargs: Its arguments.
        :param context: The task's context.
        :raises WhisulError: Airflow ended the deferral by itself. The message says what happens to the job.
        """
        if is_from_earlier_try(next_kwargs, context):
            return self.execute(context)
        try:
            # BaseOperator's method, not the sensor's, which on some versions skips softly and names no job.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)  # type: ignore[arg-type]
        except DEFERRAL_ERRORS as error:
            raise self.on_deferral_error(error, context) from error

    def on_deferral_error(self, error: Exception, context: Context) -> Exception:
        """
        Keep what there is, and return the error that the task fails with.

        :param error: Why Airflow ended the deferral by itself.
        :param context: The task's context.
        """
        raise NotImplementedError

    if TYPE_CHECKING:

        def execute(self, context: Context) -> Any: ...

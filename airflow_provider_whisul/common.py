"""What our operators and sensors have in common."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.pace import check_poll_interval

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul import WhisulHook


class WhisulTask:
    """A task that talks to Whisul; a mixin before Airflow's own base class."""

    whisul_conn_id: str

    #: Time and chance; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """
        Take the arguments that all mapped tasks share.

        A poll interval that is too short is refused here, when the DAG file is read: Airflow makes a mapped task's
        operator only when it runs, so that what ``__init__`` refuses would come too late.
        """
        for name in ("poll_interval", "poke_interval"):
            if name in kwargs:
                check_poll_interval(kwargs[name], name)
        return super().partial(**kwargs)  # type: ignore[misc]

    @cached_property
    def hook(self) -> WhisulHook:
        """The client. Loaded when the task runs, so that reading a DAG file loads none."""
        from airflow_provider_whisul.hooks.whisul import WhisulHook

        return WhisulHook(self.whisul_conn_id, clock=self.clock)

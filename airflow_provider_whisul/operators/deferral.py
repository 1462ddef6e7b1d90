"""What tasks that can wait in the triggerer have in common: when a wait ends, and what follows it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import WhisulJobFailedError, WhisulJobNotFoundError
from airflow_provider_whisul.operators.base import WhisulTaskMixin
from airflow_provider_whisul.polling import EXECUTION_TIMEOUT_MARGIN, MIN_POLL_INTERVAL, DeadlineSource
from airflow_provider_whisul.triggers.events import song_from_event
from airflow_provider_whisul.version_compat import (
    DEFERRAL_ERRORS,
    ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT,
    is_from_earlier_try,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.api.models import Song


class WhisulDeferrableMixin(WhisulTaskMixin):
    """A task that can wait in the triggerer."""

    deferrable: bool
    execution_timeout: timedelta | None

    def prepare(self, context: Context) -> None:
        """
        Set the arguments that are known only when a try begins. Here all are known before.

        :param context: The task's context.
        """

    def end_of_wait(self, context: Context, deadline: float) -> tuple[float, DeadlineSource]:
        """
        Return when a wait ends, and by what: its own deadline, or the task's ``execution_timeout``.

        Airflow 3 ignores the latter while a task is deferred. Airflow 2 ends the task at it, and every Airflow ends a
        task on a worker, without our message: there the wait ends a little earlier.

        :param context: The task's context.
        :param deadline: The wait's own deadline, in Unix seconds.
        :return: Unix seconds, and the name of the timeout.
        """
        if self.execution_timeout is not None:
            started = getattr(context["ti"], "start_date", None)
            limit = self.execution_timeout.total_seconds()
            by_task = (started.timestamp() if started else self.clock.time()) + limit
            if ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT or not self.deferrable:
                by_task -= min(EXECUTION_TIMEOUT_MARGIN, limit / 10)
            if by_task < deadline:
                return by_task, "execution_timeout"
        return deadline, "timeout"

    def execution_timeout_is_over(self, context: Context) -> bool:
        """
        Return whether the task's ``execution_timeout`` is over, or will be before a job can be polled.

        What is submitted then is paid for and not waited for.

        :param context: The task's context.
        """
        return self.end_of_wait(context, self.clock.time() + MIN_POLL_INTERVAL)[1] == "execution_timeout"

    def log_wait(self, waited_for: str, deadline: float, source: DeadlineSource) -> None:
        """
        Log where a task waits: one that defers says nothing more until its trigger does.

        :param waited_for: What it waits for.
        :param deadline: When waiting ends, in Unix seconds.
        :param source: The name of the timeout.
        """
        place = "in the triggerer" if self.deferrable else "on the worker"
        needs = " `airflow triggerer` must run." if self.deferrable else ""
        until = utc(deadline)
        self.hook.log.info("Waiting for %s %s until %s at most (%s).%s", waited_for, place, until, source, needs)

    def song_of(self, event: object, job_id: str) -> Song:
        """
        Return the song in the event of a trigger that has waited for one job, and record how the job ended.

        :param event: The trigger's event.
        :param job_id: The job that it waited for.
        :raises WhisulError: As :func:`~airflow_provider_whisul.triggers.events.song_from_event`.
        """
        try:
            song = song_from_event(event, job_id)
        # By the id in the event: `airflow dags test` of Airflow 2.11 loses the arguments of the deferral.
        except WhisulJobFailedError as error:
            self.hook.record_outcome(error.job_id or job_id, "failed")
            raise
        except WhisulJobNotFoundError as error:
            self.hook.record_outcome(error.job_id or job_id, "not_found")
            raise
        self.hook.record_outcome(song["job_id"], "delivered")
        return song

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

"""Waiting for one job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.models import Song, WhisulJob
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobFailedError,
    WhisulJobFailedFinalError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.operators.base import WhisulDeferrableMixin
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FIRST_POLL_MAX_WAIT,
    FRAMEWORK_TIMEOUT_MARGIN,
    MIN_POLL_INTERVAL,
    check_poll_interval,
    check_timeout,
)
from airflow_provider_whisul.rate_limit.backoff import not_before
from airflow_provider_whisul.state.state_store import total_deadline
from airflow_provider_whisul.tracks.cards import PROMPT_VARIABLE, push_failed_card, pushes_card
from airflow_provider_whisul.triggers.events import deferral_error, song_from_event
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class WhisulJobSensor(WhisulDeferrableMixin, BaseSensorOperator):
    """
    Waits for a Whisul job and returns its song.

    Waits in the triggerer by default, and then holds no worker slot. A failed or an expired job fails the task at once
    and without a retry, since its outcome cannot change.

    :param job_id: The job, as :class:`~airflow_provider_whisul.operators.whisul.WhisulGenerateOperator` returns it
        (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param deferrable: Whether to wait in the triggerer. If not, ``mode`` says how the worker waits.
    :param poke_interval: Seconds (or a ``timedelta``) between two polls of the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) to wait in all tries together (deferred: from Airflow 3.3 on;
        rescheduled: always).
    :return: The song: a dict of ``job_id, prompt, title, bpm, duration_seconds, song_url, image_url, tags`` (a
        list), ``started_at`` and ``finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, or the timeout not positive.
    :raises AirflowSensorTimeout: The job did not end in time; it may still be running.
    :raises WhisulJobFailedError: The job failed.
    :raises WhisulJobNotFoundError: There is no such job, or no longer.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.

    All other parameters are those of Airflow's sensors; ``soft_fail`` and ``never_fail`` skip the task in every mode.
    """

    template_fields: Sequence[str] = ("job_id", "whisul_conn_id")
    operator_extra_links = (WhisulSongLink(),)
    ui_color = "#d7e8f7"

    def __init__(
        self,
        *,
        job_id: str,
        whisul_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = True,
        poke_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            poke_interval=check_poll_interval(poke_interval, "poke_interval"), timeout=check_timeout(timeout), **kwargs
        )
        self.job_id = job_id
        self.whisul_conn_id = whisul_conn_id
        self.deferrable = deferrable

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take the arguments that all mapped tasks share."""
        # Labelled by the prompt, as the operator's tasks. It is known only once the song is there.
        kwargs.setdefault(
            "map_index_template",
            "{{ %s | default(task.job_id, true) | string | truncate(60) }}" % PROMPT_VARIABLE,  # noqa: UP031
        )
        return super().partial(**kwargs)

    @pushes_card
    def execute(self, context: Context) -> Any:
        if self.deferrable:
            with self._skipping_softly():
                return self._poll_once_then_defer(context)
        try:
            return super().execute(context)
        except AirflowSkipException as skip:
            # Airflow's own skip names no job, and has no cause where the time ran out.
            ended = skip.__cause__ or self._timed_out()
            raise self._skip(ended) from ended
        except AirflowSensorTimeout as error:
            with self._skipping_softly():
                raise self._timed_out() from error
        except WhisulError:
            with self._skipping_softly():
                raise

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Poll the job from the worker, retrying transient errors.

        :param context: The task's context.
        :return: Whether the job is completed, and its song.
        """
        song = _song_if_completed(self.hook.get_job(self.job_id))
        return PokeReturnValue(is_done=song is not None, xcom_value=song)

    @pushes_card
    def execute_complete(self, context: Context, event: object, try_number: int | None = None) -> Song:
        """
        Continue after the trigger has waited.

        :param event: The trigger's event.
        :param try_number: The try that deferred.
        :return: The song, as :meth:`execute` returns it.
        """
        try:
            song = song_from_event(event, self.job_id)
        except WhisulJobTimeoutError as error:
            raise AirflowSensorTimeout(str(error)) from None
        except WhisulJobFailedError as error:
            raise _final(error) from None
        self.log.info("Whisul job %s is completed: %r", self.job_id, song["title"])
        return song

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after a deferral, skipping softly on every version of Airflow."""
        with self._skipping_softly():
            return super().resume_execution(next_method, next_kwargs, context)

    def on_deferral_error(self, error: Exception, context: Context) -> Exception:
        """Name the job, and push its card."""
        outlook = "The job may still be running, and may still complete: clearing this task waits again."
        ended = deferral_error(error, f"Whisul job {self.job_id}", outlook, self.job_id)
        push_failed_card(self, context, ended)
        return AirflowSensorTimeout(str(ended)) if isinstance(ended, WhisulJobTimeoutError) else ended

    def _poll_once_then_defer(self, context: Context) -> Song:
        now = self.clock.time()
        deadline = total_deadline(context, now + self.timeout)
        blocked_until = None
        try:
            song = _song_if_completed(self.hook.get_job(self.job_id, retry=False, max_wait=FIRST_POLL_MAX_WAIT))
        except WhisulError as error:
            if not error.transient:
                raise
            self.log.warning("%s The triggerer continues to poll job %s.", error, self.job_id)
            blocked_until = not_before(error, self.clock.time())
        else:
            if song is not None:
                return song
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=self.job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poke_interval,
                deadline=deadline,
                not_before=blocked_until,
            ),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number},
            timeout=timedelta(seconds=max(0.0, deadline - now) + FRAMEWORK_TIMEOUT_MARGIN),
        )

    @contextmanager
    def _skipping_softly(self) -> Iterator[None]:
        """Turn an error into a skip where the user asked for it, as Airflow's own sensor modes do."""
        try:
            yield
        except AirflowSkipException:
            raise
        except AirflowException as error:
            if not (self.soft_fail or self.never_fail):
                raise
            raise self._skip(error) from error

    def _skip(self, ended: BaseException) -> AirflowSkipException:
        asked = "soft_fail" if self.soft_fail else "never_fail"
        return AirflowSkipException(f"Skipped, since {asked} is set: {ended}")

    def _timed_out(self) -> AirflowSensorTimeout:
        return AirflowSensorTimeout(
            f"Whisul job {self.job_id} had not ended after {self.timeout:g} s, and waiting for it ended. It may "
            "still be running, and may still complete: clearing this task waits again."
        )

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Keep ``exponential_backoff`` from starting faster than the API allows."""
        return max(MIN_POLL_INTERVAL, super()._get_next_poke_interval(*args, **kwargs))


def _song_if_completed(job: WhisulJob) -> Song | None:
    if job.failed:
        raise _final(job.failed_error())
    return job.song


def _final(error: WhisulJobFailedError) -> WhisulJobFailedFinalError:
    return WhisulJobFailedFinalError(
        f"{error} To submit the prompt again, clear the task that submitted the job.",
        job_id=error.job_id,
        http_status=error.http_status,
    )

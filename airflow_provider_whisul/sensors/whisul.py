"""Waiting for songs."""

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

from airflow_provider_whisul.account import DEFAULT_CONN_ID
from airflow_provider_whisul.api import Song, WhisulJob
from airflow_provider_whisul.common import WhisulTask
from airflow_provider_whisul.durable import lasting_deadline
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobFailedError,
    WhisulJobFailedFinalError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.pace import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FIRST_LOOK_PATIENCE,
    FRAMEWORK_TIMEOUT_MARGIN,
    MIN_POLL_INTERVAL,
    check_poll_interval,
    check_timeout,
    quiet_until,
)
from airflow_provider_whisul.tracks import PROMPT_VARIABLE, show_failure, shows_song
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger, deferral_error, song_from_event
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS, is_of_earlier_try

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class WhisulJobSensor(WhisulTask, BaseSensorOperator):
    """
    Waits for a Whisul job and returns its song.

    Waits in the triggerer unless told otherwise, and then holds no worker. A failed or an expired job fails the task
    at once and without a retry: the same job cannot come out otherwise.

    :param job_id: The job, as :class:`~airflow_provider_whisul.operators.whisul.WhisulGenerateOperator` returns it
        (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param deferrable: Whether to wait in the triggerer; if not, ``mode`` says how the worker waits.
    :param poke_interval: Seconds (or a ``timedelta``) between two looks at the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) to wait, all in all: a retry does not begin anew (deferred: from
        Airflow 3.3 on; rescheduled: always).
    :return: The song: a dict of ``job_id, prompt, title, bpm, duration_seconds, song_url, image_url, tags`` (list)``,
        started_at, finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, or the timeout not positive.
    :raises AirflowSensorTimeout: The job was not over in time; it may still be running.
    :raises WhisulJobFailedError: The job failed.
    :raises WhisulJobNotFoundError: There is no such job, or no longer.
    :raises WhisulError: Anything else; see :mod:`airflow_provider_whisul.exceptions`.

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
        # By the prompt, as the operator's, but the song must be there to know it.
        kwargs.setdefault(
            "map_index_template",
            "{{ %s | default(task.job_id, true) | string | truncate(60) }}" % PROMPT_VARIABLE,  # noqa: UP031
        )
        return super().partial(**kwargs)

    @shows_song
    def execute(self, context: Context) -> Any:
        if self.deferrable:
            with self._skipping_softly():
                return self._look_once_then_defer(context)
        try:
            return super().execute(context)
        except AirflowSkipException as skip:
            # The sensors' own, which names no job, and has no cause where the time ran out.
            ended = skip.__cause__ or self._timed_out()
            raise self._skip(ended) from ended
        except AirflowSensorTimeout as error:
            with self._skipping_softly():
                raise self._timed_out() from error
        except WhisulError:
            with self._skipping_softly():
                raise

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the job from the worker, living through what is transient."""
        song = _song_if_over(self.hook.get_job(self.job_id))
        return PokeReturnValue(is_done=song is not None, xcom_value=song)

    @shows_song
    def execute_complete(self, context: Context, event: object, try_number: int | None = None) -> Song:
        """
        Go on after the trigger has waited.

        :param event: What it reports.
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
        """Go on after a deferral: skipping softly on every version of Airflow, and naming the job in what failed."""
        if is_of_earlier_try(next_kwargs, context):
            return self.execute(context)
        with self._skipping_softly():
            try:
                # Not the sensors' own: it skips softly on some versions only, and knows of no job.
                return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
            except DEFERRAL_ERRORS as ended:
                error = deferral_error(ended, self.job_id)
                show_failure(self, context, error)
                if isinstance(error, WhisulJobTimeoutError):
                    raise AirflowSensorTimeout(str(error)) from ended
                raise error from ended

    def _look_once_then_defer(self, context: Context) -> Song:
        now = self.clock.time()
        deadline = lasting_deadline(context, now + self.timeout)
        not_before = None
        try:
            song = _song_if_over(self.hook.get_job(self.job_id, retry=False, patience=FIRST_LOOK_PATIENCE))
        except WhisulError as error:
            if not error.transient:
                raise
            self.log.warning("%s The triggerer goes on looking at job %s.", error, self.job_id)
            not_before = quiet_until(error, self.clock.time())
        else:
            if song is not None:
                return song
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=self.job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poke_interval,
                deadline=deadline,
                not_before=not_before,
            ),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number},
            timeout=timedelta(seconds=max(0.0, deadline - now) + FRAMEWORK_TIMEOUT_MARGIN),
        )

    @contextmanager
    def _skipping_softly(self) -> Iterator[None]:
        """Turn an error into a skip where the user asked for it, as the sensors' own modes do."""
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
            f"Whisul job {self.job_id} was not over after {self.timeout:g} s, and waiting for it ended. It may "
            "still be running, and may still complete: clearing this task waits again."
        )

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Keep ``exponential_backoff`` from starting faster than the API allows."""
        return max(MIN_POLL_INTERVAL, super()._get_next_poke_interval(*args, **kwargs))


def _song_if_over(job: WhisulJob) -> Song | None:
    if job.failed:
        raise _final(job.failure())
    return job.song() if job.completed else None


def _final(error: WhisulJobFailedError) -> WhisulJobFailedFinalError:
    return WhisulJobFailedFinalError(
        f"{error} To do that, clear the task that submitted it.", job_id=error.job_id, http_status=error.http_status
    )

"""Waiting for one job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.models import PollResult, Song, WhisulJob, describe_job
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobFailedError,
    WhisulJobFailedFinalError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
)
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.operators.arguments import SENSOR_CHECKS
from airflow_provider_whisul.operators.deferral import WhisulDeferrableMixin
from airflow_provider_whisul.operators.labels import map_index_template
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FIRST_POLL_MAX_WAIT,
    FRAMEWORK_TIMEOUT_MARGIN,
    MIN_POLL_INTERVAL,
    DeadlineSource,
    JobPoller,
)
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_WAIT
from airflow_provider_whisul.state.state_store import total_deadline
from airflow_provider_whisul.tracks.cards import (
    PROMPT_VARIABLE,
    pending_card,
    push_expected,
    push_failed_card,
    pushes_card,
)
from airflow_provider_whisul.triggers.events import deferral_error
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from airflow_provider_whisul.version_compat import AirflowRescheduleException

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
    :param deferrable: Whether to wait in the triggerer. If not, ``mode`` says how the worker waits. None leaves it to
        ``[operators] default_deferrable`` of Airflow's configuration where that is set, else it is the triggerer.
    :param poke_interval: Seconds (or a ``timedelta``) between two polls of the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) to wait. In the triggerer that is in all tries together. (Before
        Airflow 3.3 that takes a folder in which the provider can keep the deadline.) On the worker it is as Airflow
        counts it: each try by itself, but for ``mode="reschedule"`` on Airflow 2.
    :return: The song: a dict of ``job_id, prompt, title, bpm, duration_seconds, song_url, image_url, tags`` (a
        list), ``started_at`` and ``finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, or the timeout not positive.
    :raises AirflowSensorTimeout: The job did not end in time; it may still be running.
    :raises WhisulJobTimeoutError: The same by the task's ``execution_timeout``, after a deferral.
    :raises WhisulSongMissingError: The job is completed, but has no URL of its song.
    :raises WhisulJobFailedError: The job failed.
    :raises WhisulJobNotFoundError: There is no such job, or no longer.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.

    All other parameters are those of Airflow's sensors; ``soft_fail`` and ``never_fail`` skip the task in every mode.
    """

    argument_checks = SENSOR_CHECKS
    template_fields: Sequence[str] = ("job_id", "whisul_conn_id")
    operator_extra_links = (WhisulSongLink(),)
    ui_color = "#d7e8f7"

    def __init__(
        self,
        *,
        job_id: str,
        whisul_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool | None = None,
        poke_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            poke_interval=self.checked("poke_interval", poke_interval),
            timeout=self.checked("timeout", timeout),
            **kwargs,
        )
        self.job_id = job_id
        self.whisul_conn_id = whisul_conn_id
        self.deferrable = self.checked("deferrable", deferrable)
        self._poller: JobPoller | None = None
        #: The job that the Tracks tab shows as being made.
        self._pending_job: str | None = None

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take the arguments that all mapped tasks share."""
        # Labelled by the prompt, as the operator's tasks. It is known only once the song is there.
        kwargs.setdefault("map_index_template", map_index_template(f"{PROMPT_VARIABLE} | default(task.job_id, true)"))
        return super().partial(**kwargs)

    @pushes_card
    def execute(self, context: Context) -> Any:
        if self.deferrable:
            with self._skipping_softly():
                return self._poll_once_then_defer(context)
        self._poller = None
        try:
            return super().execute(context)
        except AirflowSkipException as skip:
            # Airflow's own skip names no job, and has no cause where the time ran out.
            ended = skip.__cause__ or self._timed_out()
            raise self._skip(ended) from ended
        except AirflowSensorTimeout:
            with self._skipping_softly():
                raise self._timed_out() from None
        except WhisulError:
            with self._skipping_softly():
                raise

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Poll the job from the worker.

        Where the poll fails in a way that may pass, or Whisul does not find the job, it polls again on the worker: a
        sensor that is rescheduled would not know for how long that has been so.

        :param context: The task's context.
        :return: Whether the job is completed, and its song.
        """
        poller = self._poller = self._poller or JobPoller(
            self.job_id, self.poke_interval, self._started_at(context) + self.timeout
        )
        while True:
            result: PollResult
            try:
                max_wait = min(poller.max_wait(self.clock.time()), MAX_WORKER_WAIT)
                result = job = self.hook.get_job(self.job_id, retry=False, max_wait=max_wait)
            except WhisulError as error:
                result = error
            else:
                self._push_pending_card(job, context)
            try:
                delay = poller.next_delay(result, self.clock.time(), self.clock.random())
            except WhisulJobTimeoutError:
                raise self._timed_out() from None
            except WhisulJobFailedError as error:
                raise _final(error) from None
            if delay is None:
                return PokeReturnValue(is_done=True, xcom_value=cast(WhisulJob, result).song)
            throttled = isinstance(result, WhisulRateLimitError)
            if not isinstance(result, WhisulError) or (throttled and not poller.job_is_missing):
                return PokeReturnValue(is_done=False)
            self.clock.sleep(delay)

    def _started_at(self, context: Context) -> float:
        """Return when the first poke of this try was, in Unix seconds."""
        # Airflow 2 does not tell. There Airflow alone counts the time of the pokes before this one.
        first = getattr(context["ti"], "get_first_reschedule_date", None) if self.reschedule else None
        started = first(context) if first else None
        return started.timestamp() if started else self.clock.time()

    @pushes_card
    def execute_complete(
        self,
        context: Context,
        event: object,
        try_number: int | None = None,
        deadline_source: DeadlineSource = "timeout",
    ) -> Song:
        """
        Continue after the trigger has waited.

        :param event: The trigger's event.
        :param try_number: The try that deferred.
        :param deadline_source: What the trigger's deadline came from.
        :return: The song, as :meth:`execute` returns it.
        """
        try:
            song = self.song_of(event, self.job_id)
        except WhisulJobTimeoutError as error:
            if deadline_source == "execution_timeout":
                # It is each try's own, and Airflow retries a task that meets it.
                raise
            raise AirflowSensorTimeout(str(error)) from None
        except WhisulJobFailedError as error:
            raise _final(error) from None
        self.log.info("Whisul %s is completed: %r", describe_job(self.job_id, song.get("prompt")), song["title"])
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
        deadline, source = self.end_of_wait(context, total_deadline(context, now + self.timeout))
        blocked_until, submitted_at = None, None
        waited_for = f"Whisul job {self.job_id}"
        try:
            job = self.hook.get_job(self.job_id, retry=False, max_wait=FIRST_POLL_MAX_WAIT)
        except WhisulError as error:
            if not error.transient and not isinstance(error, WhisulJobNotFoundError):
                raise
            self.log.warning("%s The triggerer continues to poll job %s.", error, self.job_id)
            blocked_until = self.hook.throttled_until(error)
        else:
            self._push_pending_card(job, context)
            if job.failed:
                raise _final(job.failed_error())
            if job.has_song_url:
                return cast(Song, job.song)
            waited_for = f"Whisul {describe_job(self.job_id, job.prompt)}"
            submitted_at = _started_at(job)
        self.log_wait(waited_for, deadline, source)
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=self.job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poke_interval,
                deadline=deadline,
                deadline_source=source,
                not_before=blocked_until,
                submitted_at=submitted_at,
                dag_id=self.dag_id,
            ),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number, "deadline_source": source},
            timeout=timedelta(seconds=max(0.0, deadline - now) + FRAMEWORK_TIMEOUT_MARGIN),
        )

    def _push_pending_card(self, job: WhisulJob, context: Context) -> None:
        if not job.completed and self._pending_job != job.job_id:
            # Also of a failed job: the card of the failure takes the prompt from here.
            self._pending_job = job.job_id
            push_expected(context, 1, [pending_card(job.prompt, job.job_id, _started_at(job))])

    @contextmanager
    def _skipping_softly(self) -> Iterator[None]:
        """Turn an error into a skip where the user asked for it, as Airflow's own sensor modes do."""
        try:
            yield
        except (AirflowSkipException, AirflowRescheduleException):
            raise
        except AirflowException as error:
            if not (self.soft_fail or self.never_fail):
                raise
            raise self._skip(error) from error

    def _skip(self, ended: BaseException) -> AirflowSkipException:
        asked = "soft_fail" if self.soft_fail else "never_fail"
        return AirflowSkipException(f"Skipped, since {asked} is set: {ended}")

    def _timed_out(self) -> AirflowSensorTimeout:
        job, last_failure = f"job {self.job_id}", ""
        if self._poller is not None:
            job, last_failure = self._poller.job, self._poller.last_failure
        return AirflowSensorTimeout(
            f"Whisul {job} had not ended after {self.timeout:g} s, and waiting for it ended. It may still be running, "
            f"and may still complete: clearing this task waits again.{last_failure}"
        )

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Keep ``exponential_backoff`` from starting faster than the API allows, and poke last at the deadline."""
        interval: float = super()._get_next_poke_interval(*args, **kwargs)
        if self._poller is not None:
            interval = min(interval, self._poller.deadline - self.clock.time())
        return max(MIN_POLL_INTERVAL, interval)


def _started_at(job: WhisulJob) -> float | None:
    return job.started_at.timestamp() if job.started_at else None


def _final(error: WhisulJobFailedError) -> WhisulJobFailedFinalError:
    final = WhisulJobFailedFinalError(
        f"{error} To submit the prompt again, clear the task that submitted the job.",
        job_id=error.job_id,
        http_status=error.http_status,
    )
    final.prompt = error.prompt
    return final

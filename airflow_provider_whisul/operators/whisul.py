"""Generating one song."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.models import PollResult, Song, WhisulJob
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
)
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.operators.base import WhisulDeferrableMixin
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FIRST_POLL_MAX_WAIT,
    FRAMEWORK_TIMEOUT_MARGIN,
    check_poll_interval,
    check_timeout,
    within_not_found_grace,
)
from airflow_provider_whisul.rate_limit.backoff import not_before
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.state.song_state import (
    OnAmbiguousSubmit,
    SongState,
    Submission,
    check_on_ambiguous_submit,
)
from airflow_provider_whisul.tracks.cards import push_failed_card, pushes_card
from airflow_provider_whisul.triggers.events import deferral_error, song_from_event
from airflow_provider_whisul.triggers.whisul import NOT_CANCELLED, WhisulJobTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


_UNTIL_CLEARED = 'Since on_ambiguous_submit is "fail", nothing is submitted until you clear this task.'

#: The XCom that holds the job's id from the moment the job exists.
XCOM_JOB_ID = "job_id"


class WhisulGenerateOperator(WhisulDeferrableMixin, BaseOperator):
    """
    Submits a prompt to Whisul and, if asked to, waits for the song.

    Each submission costs credits. Pushes the XCom ``job_id`` the moment the job exists. From Airflow 3.3 on a later try
    of the task re-attaches to the job of an earlier one instead of submitting again.

    :param prompt: The description of the song, in plain language (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param wait_for_completion: Whether the task waits for the song, or ends when the job is accepted.
    :param deferrable: Whether to wait in the triggerer, which holds no worker slot, or on the worker.
    :param poll_interval: Seconds (or a ``timedelta``) between two polls of the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) that one try waits for the song.
    :param durable: Whether a later try re-attaches to the job of an earlier one (Airflow 3.3 and later).
    :param on_ambiguous_submit: What to do where the response to a submission was lost, so that the job may exist:
        ``"retry"`` leaves it to Airflow's retries to submit again, ``"fail"`` ends the task until a user clears it.
    :return: The job's id without ``wait_for_completion``. With it the song: a dict of ``job_id, prompt, title, bpm,
        duration_seconds, song_url, image_url, tags`` (a list), ``started_at`` and ``finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, the timeout not positive, or
        ``on_ambiguous_submit`` another word.
    :raises WhisulInvalidInputError: The prompt is empty or refused; ends the task without a retry.
    :raises WhisulUnauthorizedError: The key is not accepted; likewise.
    :raises WhisulAmbiguousSubmitError: The response to the submission was lost.
    :raises WhisulJobFailedError: The job failed; a retry of the task makes a new song.
    :raises WhisulJobTimeoutError: The job did not end in time; it may still be running.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.
    """

    template_fields: Sequence[str] = ("prompt", "whisul_conn_id")
    operator_extra_links = (WhisulSongLink(),)
    ui_color = "#e9dcf7"

    def __init__(
        self,
        *,
        prompt: str,
        whisul_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool = True,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        durable: bool = True,
        on_ambiguous_submit: OnAmbiguousSubmit = "retry",
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.prompt = prompt
        self.whisul_conn_id = whisul_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = check_poll_interval(poll_interval, "poll_interval")
        self.timeout = check_timeout(timeout)
        self.durable = durable
        self.on_ambiguous_submit = check_on_ambiguous_submit(on_ambiguous_submit)
        self._job_id: str | None = None

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take the arguments that all mapped tasks share."""
        # The UI's rows are labelled by their prompts.
        kwargs.setdefault("map_index_template", "{{ task.prompt | string | truncate(60) }}")
        return super().partial(**kwargs)

    @pushes_card
    def execute(self, context: Context) -> str | Song:
        """Submit the prompt, or re-attach to the job that an earlier try submitted."""
        state = SongState.from_context(context, self.prompt, self.durable)
        submission, last_poll = self._reattach(state) or self._submit(state)
        job_id = self._job_id = submission.job_id
        context["ti"].xcom_push(key=XCOM_JOB_ID, value=job_id)
        if not self.wait_for_completion:
            return job_id
        if isinstance(last_poll, WhisulJob) and last_poll.completed:
            return self._deliver(state, last_poll.song)
        if not self.deferrable:
            return self._wait_on_worker(state, submission, last_poll)
        now = self.clock.time()
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=now + self.timeout,
                submitted_at=submission.submitted_at,
                not_before=not_before(last_poll, now) if isinstance(last_poll, WhisulError) else None,
            ),
            method_name="execute_complete",
            kwargs={"job_id": job_id, "try_number": context["ti"].try_number},
            timeout=timedelta(seconds=self.timeout + FRAMEWORK_TIMEOUT_MARGIN),
        )

    @pushes_card
    def execute_complete(
        self, context: Context, event: object, job_id: str = "(unknown)", try_number: int | None = None
    ) -> Song:
        """
        Continue after the trigger has waited.

        :param event: The trigger's event.
        :param job_id: The job that it waited for.
        :param try_number: The try that deferred.
        :return: The song, as :meth:`execute` returns it.
        """
        state = SongState.from_context(context, self.prompt, self.durable)
        try:
            song = song_from_event(event, job_id)
        except (WhisulJobFailedError, WhisulJobNotFoundError):
            state.clear()
            raise
        return self._deliver(state, song)

    def on_deferral_error(self, error: Exception, context: Context) -> WhisulError:
        """Name the job, and push its card."""
        ti = context["ti"]
        job_id = str(ti.xcom_pull(task_ids=ti.task_id, key=XCOM_JOB_ID, map_indexes=ti.map_index))
        outlook = "The job may still be running, and may still complete: a WhisulJobSensor with this job id finds it."
        ended = deferral_error(error, f"Whisul job {job_id}", outlook, job_id)
        push_failed_card(self, context, ended)
        return ended

    def on_kill(self) -> None:
        """Log what happens to the job when the task is ended from outside."""
        if self._job_id is not None:
            self.log.warning(NOT_CANCELLED, self._job_id)

    def _reattach(self, state: SongState) -> tuple[Submission, PollResult] | None:
        """Return the job of an earlier try and the result of polling it, None if there is none to re-attach to."""
        record = state.earlier
        submission = record and record.submission
        if not submission:
            return None
        result: PollResult
        try:
            result = self.hook.get_job(submission.job_id, retry=False, max_wait=FIRST_POLL_MAX_WAIT)
        except WhisulError as error:
            result = error
        not_found = isinstance(result, WhisulJobNotFoundError)
        if not_found and within_not_found_grace(submission.submitted_at, self.clock.time()):
            pass
        elif not_found or (isinstance(result, WhisulJob) and result.failed):
            ended = result.failed_error() if isinstance(result, WhisulJob) else result
            self.log.warning("An earlier try got %s. %s This try submits the prompt again.", submission, ended)
            return None
        elif isinstance(result, WhisulError) and not result.transient:
            raise result
        found = f"It is {result.status}." if isinstance(result, WhisulJob) else str(result)
        self.log.info("Re-attaching to an earlier try's %s; nothing is submitted. %s", submission, found)
        return submission, result

    def _submit(self, state: SongState) -> tuple[Submission, WhisulJob]:
        """Submit the prompt. Return the submission, and a running job in place of a poll result."""
        self._check_ambiguous_submission(state)
        try:
            job_id = self.hook.generate(self.prompt, before_send=lambda: state.record_intent(self.clock.time()))
        except WhisulAmbiguousSubmitError as error:
            if self.on_ambiguous_submit == "retry":
                raise
            raise WhisulAmbiguousSubmitFinalError(f"{error} {_UNTIL_CLEARED}", http_status=error.http_status) from error
        except WhisulError:
            # Certainly no job was made: the next try has nothing to warn of.
            state.discard_intent()
            raise
        # Logged before it is recorded: should that fail, the log still names the job.
        self.log.info("Whisul accepted the prompt as job %s", job_id)
        # The time of the response: before it, the rate limiter may have waited for minutes.
        submission = Submission(job_id, self.clock.time())
        # A task that does not wait has all that it is asked for.
        state.record_submission(submission, delivered=not self.wait_for_completion)
        return submission, WhisulJob(submission.job_id, "running")

    def _check_ambiguous_submission(self, state: SongState) -> None:
        """Warn where an earlier try may have submitted the prompt without recording the job, or end the task."""
        record = state.earlier
        if record is None or record.submission is not None:
            return
        warning = (
            f"An earlier try began to submit this prompt at {utc(record.submitted_at)} and did not record which job it "
            "got. A song may already have been paid for, and the API cannot tell: look at your Whisul dashboard if in "
            "doubt."
        )
        if self.on_ambiguous_submit == "fail" and not state.cleared_since(record):
            raise WhisulAmbiguousSubmitFinalError(f"{warning} {_UNTIL_CLEARED}")
        self.log.warning("%s Submitting it again.", warning)

    def _wait_on_worker(self, state: SongState, submission: Submission, last_poll: PollResult) -> Song:
        try:
            job = self.hook.wait_for_job(
                submission.job_id, self.poll_interval, self.timeout, submission.submitted_at, last_poll
            )
        except (WhisulJobFailedError, WhisulJobNotFoundError):
            state.clear()
            raise
        return self._deliver(state, job.song)

    def _deliver(self, state: SongState, song: Song | None) -> Song:
        song = cast(Song, song)
        state.record_delivery()
        self.log.info("Whisul job %s is completed: %r", song["job_id"], song["title"])
        return song

"""Making songs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.account import DEFAULT_CONN_ID
from airflow_provider_whisul.api import Song, WhisulJob, generate_request
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.common import WhisulTask
from airflow_provider_whisul.durable import OnAmbiguousSubmit, SongMemory, Submission, check_on_ambiguous_submit
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
)
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.pace import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FIRST_LOOK_PATIENCE,
    FRAMEWORK_TIMEOUT_MARGIN,
    check_poll_interval,
    check_timeout,
    may_yet_appear,
    quiet_until,
)
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.tracks import show_failure, shows_song
from airflow_provider_whisul.triggers.whisul import (
    NOT_CANCELLED,
    WhisulJobTrigger,
    deferral_error,
    song_from_event,
)
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS, is_of_earlier_try

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


_UNTIL_CLEARED = 'Since on_ambiguous_submit is "fail", nothing is submitted until you clear this task.'

#: The XCom that holds the job's id from the moment the job exists.
XCOM_JOB_ID = "job_id"


class WhisulGenerateOperator(WhisulTask, BaseOperator):
    """
    Submits a prompt to Whisul and, if asked to, waits for the song.

    Each submission costs credits. Pushes the XCom ``job_id`` the moment the job exists. From Airflow 3.3 on a later
    try of the task goes on with the job of an earlier one instead of submitting again.

    :param prompt: What the song should be, in plain language (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param wait_for_completion: Whether the task is done when the song is, and not already when the job is accepted.
    :param deferrable: Whether to wait in the triggerer, holding no worker, or else in the worker.
    :param poll_interval: Seconds (or a ``timedelta``) between two looks at the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) that one try waits for the song.
    :param durable: Whether a later try goes on with the job of an earlier one (Airflow 3.3 and later).
    :param on_ambiguous_submit: What to do where the answer to a submission was lost, so that the job may exist:
        ``"retry"`` leaves it to Airflow's retries to submit again, ``"fail"`` ends the task until a user clears it.
    :return: Without waiting the job's id; waiting, the song: a dict of ``job_id, prompt, title, bpm,
        duration_seconds, song_url, image_url, tags`` (list)``, started_at, finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, the timeout not positive, or
        ``on_ambiguous_submit`` another word.
    :raises WhisulInvalidInputError: The prompt is empty or refused; ends the task without a retry.
    :raises WhisulUnauthorizedError: The key is not accepted; likewise.
    :raises WhisulAmbiguousSubmitError: The answer to the submission was lost.
    :raises WhisulJobFailedError: The job failed; a retry of the task makes a new song.
    :raises WhisulJobTimeoutError: The job was not over in time; it may still be running.
    :raises WhisulError: Anything else; see :mod:`airflow_provider_whisul.exceptions`.
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
        # So that the UI's rows are told apart by what they make.
        kwargs.setdefault("map_index_template", "{{ task.prompt | string | truncate(60) }}")
        return super().partial(**kwargs)

    @shows_song
    def execute(self, context: Context) -> str | Song:
        """Submit the prompt, or go on with the job that an earlier try submitted."""
        # Refused before anything else: a prompt that is no text makes no job and leaves no note.
        generate_request(self.prompt)
        memory = SongMemory.of(context, self.prompt, self.durable)
        submission, seen = self._go_on(memory) or self._submit(memory)
        job_id = self._job_id = submission.job_id
        context["ti"].xcom_push(key=XCOM_JOB_ID, value=job_id)
        if not self.wait_for_completion:
            return job_id
        if isinstance(seen, WhisulJob) and seen.completed:
            return self._deliver(memory, seen.song())
        if not self.deferrable:
            return self._wait_here(memory, submission, seen)
        now = self.clock.time()
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=now + self.timeout,
                submitted_at=submission.at,
                not_before=quiet_until(seen, now) if isinstance(seen, WhisulError) else None,
            ),
            method_name="execute_complete",
            kwargs={"job_id": job_id, "try_number": context["ti"].try_number},
            timeout=timedelta(seconds=self.timeout + FRAMEWORK_TIMEOUT_MARGIN),
        )

    @shows_song
    def execute_complete(
        self, context: Context, event: object, job_id: str = "(unknown)", try_number: int | None = None
    ) -> Song:
        """
        Go on after the trigger has waited.

        :param event: What it reports.
        :param job_id: The job it waited for.
        :param try_number: The try that deferred.
        :return: The song, as :meth:`execute` returns it.
        """
        memory = SongMemory.of(context, self.prompt, self.durable)
        try:
            song = song_from_event(event, job_id)
        except (WhisulJobFailedError, WhisulJobNotFoundError):
            memory.forget()
            raise
        return self._deliver(memory, song)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral, naming the job where Airflow ended it by itself."""
        if is_of_earlier_try(next_kwargs, context):
            return self.execute(context)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except DEFERRAL_ERRORS as error:
            ti = context["ti"]
            job_id = ti.xcom_pull(task_ids=ti.task_id, key=XCOM_JOB_ID, map_indexes=ti.map_index)
            ended = deferral_error(error, str(job_id))
            show_failure(self, context, ended)
            raise ended from error

    def on_kill(self) -> None:
        """Say what becomes of the job where the task is ended from outside."""
        if self._job_id is not None:
            self.log.warning(NOT_CANCELLED, self._job_id)

    def _go_on(self, memory: SongMemory) -> tuple[Submission, WhisulJob | WhisulError] | None:
        """Return the job of an earlier try and what a look at it brings, None if there is none to go on with."""
        note = memory.earlier
        submission = note and note.submission
        if not submission:
            return None
        seen: WhisulJob | WhisulError
        try:
            seen = self.hook.get_job(submission.job_id, retry=False, patience=FIRST_LOOK_PATIENCE)
        except WhisulError as error:
            seen = error
        if isinstance(seen, WhisulJobNotFoundError) and may_yet_appear(submission.at, self.clock.time()):
            pass
        elif isinstance(seen, WhisulJobNotFoundError) or (isinstance(seen, WhisulJob) and seen.failed):
            ended = seen.failure() if isinstance(seen, WhisulJob) else seen
            self.log.warning("An earlier try got %s. %s This try submits the prompt anew.", submission, ended)
            return None
        elif isinstance(seen, WhisulError) and not seen.transient:
            raise seen
        found = f"It is {seen.status}." if isinstance(seen, WhisulJob) else str(seen)
        self.log.info("Going on with an earlier try's %s; nothing is submitted. %s", submission, found)
        return submission, seen

    def _submit(self, memory: SongMemory) -> tuple[Submission, WhisulJob]:
        """Submit the prompt, and return the job as it must stand then."""
        self._face_a_lost_submission(memory)
        self.hook.wait_for_turn()
        memory.intend(self.clock.time())
        try:
            job_id = self.hook.generate(self.prompt)
        except WhisulAmbiguousSubmitError as error:
            if self.on_ambiguous_submit == "retry":
                raise
            raise WhisulAmbiguousSubmitFinalError(f"{error} {_UNTIL_CLEARED}", http_status=error.http_status) from error
        except WhisulError:
            # Certainly no job was made, so that the next try has nothing to wonder about.
            memory.withdraw()
            raise
        # Said before it is noted: should that fail, the log still knows the job.
        self.log.info("Whisul accepted the prompt as job %s", job_id)
        # The time of the answer: before it, a rate limit may have been waited out for minutes.
        submission = Submission(job_id, self.clock.time())
        # A task that does not wait has all it is asked for.
        memory.submitted(submission, delivered=not self.wait_for_completion)
        return submission, WhisulJob(submission.job_id, "running")

    def _face_a_lost_submission(self, memory: SongMemory) -> None:
        """Warn where an earlier try may have submitted the prompt without learning of the job, or end the task."""
        note = memory.earlier
        if note is None or note.submission is not None:
            return
        lost = (
            f"An earlier try began to submit this prompt at {utc(note.submitted_at)} and did not learn or note which "
            "job it got. A song may already have been paid for, and the API cannot tell: look at your Whisul dashboard "
            "if in doubt."
        )
        if self.on_ambiguous_submit == "fail" and not memory.cleared_since(note):
            raise WhisulAmbiguousSubmitFinalError(f"{lost} {_UNTIL_CLEARED}")
        self.log.warning("%s Submitting it again.", lost)

    def _wait_here(self, memory: SongMemory, submission: Submission, seen: WhisulJob | WhisulError) -> Song:
        try:
            job = self.hook.wait_for_job(submission.job_id, self.poll_interval, self.timeout, submission.at, seen)
        except (WhisulJobFailedError, WhisulJobNotFoundError):
            memory.forget()
            raise
        return self._deliver(memory, job.song())

    def _deliver(self, memory: SongMemory, song: Song) -> Song:
        memory.delivered()
        self.log.info("Whisul job %s is completed: %r", song["job_id"], song["title"])
        return song

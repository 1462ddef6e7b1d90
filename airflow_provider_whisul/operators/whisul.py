"""Generating one song."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.messages import generate_request
from airflow_provider_whisul.api.models import PollResult, Song, WhisulJob
from airflow_provider_whisul.api.price import format_price
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulStateError,
)
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.operators.arguments import SONG_CHECKS
from airflow_provider_whisul.operators.deferral import WhisulDeferrableMixin
from airflow_provider_whisul.operators.job_finder import JobFinder
from airflow_provider_whisul.operators.labels import map_index_template
from airflow_provider_whisul.operators.lineage import LineageMixin, lineage_of_jobs
from airflow_provider_whisul.operators.run_date import check_run_date
from airflow_provider_whisul.operators.submission import submission_id
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FIRST_POLL_MAX_WAIT,
    FRAMEWORK_TIMEOUT_MARGIN,
)
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.state.song_state import (
    OnAmbiguousSubmit,
    SongRecord,
    SongState,
    Submission,
)
from airflow_provider_whisul.text import excerpt, mask, storable, truncate
from airflow_provider_whisul.tracks.cards import MAX_TEXT, pending_card, push_expected, push_failed_card, pushes_card
from airflow_provider_whisul.tracks.submissions import push_submitted
from airflow_provider_whisul.triggers.events import deferral_error
from airflow_provider_whisul.triggers.whisul import NOT_CANCELLED, WhisulJobTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


#: The XCom that holds the job's id from the moment the job exists.
XCOM_JOB_ID = "job_id"


class WhisulGenerateOperator(LineageMixin, WhisulDeferrableMixin, BaseOperator):
    """
    Submits a prompt to Whisul and, if asked to, waits for the song.

    Each submission costs credits. Pushes the XCom ``job_id`` the moment the job exists. A later try of the task
    re-attaches to the job of an earlier one instead of submitting again.

    :param prompt: The description of the song, in plain language (templated). Or the name of a file that ends with
        ``.prompt``, which holds it.
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param wait_for_completion: Whether the task waits for the song, or ends when the job is accepted.
    :param deferrable: Whether to wait in the triggerer, which holds no worker slot, or on the worker. None leaves it to
        ``[operators] default_deferrable`` of Airflow's configuration where that is set, else it is the triggerer.
    :param poll_interval: Seconds (or a ``timedelta``) between two polls of the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) that one try waits for the song.
    :param durable: Whether a later try re-attaches to the job of an earlier one.
    :param on_ambiguous_submit: What to do where the response to a submission was lost, so that the job may exist:
        ``"retry"`` leaves it to Airflow's retries to submit again, ``"fail"`` ends the task until a user clears it.
    :param skip_if_older_than: How far back the date of the run may be (a ``timedelta``). For an older one the task is
        skipped, unless an earlier try has submitted the prompt. None for no limit.
    :return: The job's id without ``wait_for_completion``. With it the song: a dict of ``job_id, prompt, title, bpm,
        duration_seconds, song_url, image_url, tags`` (a list), ``started_at`` and ``finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, the timeout not positive, or
        ``on_ambiguous_submit`` another word.
    :raises AirflowSkipException: The run's date is further back than ``skip_if_older_than``.
    :raises WhisulInvalidInputError: The prompt is empty or refused; ends the task without a retry.
    :raises WhisulUnauthorizedError: The key is not accepted; likewise.
    :raises WhisulOutOfCreditsError: The account has no credits left; likewise.
    :raises WhisulAmbiguousSubmitError: The response to the submission was lost.
    :raises WhisulJobFailedError: The job failed; a retry of the task makes a new song.
    :raises WhisulJobTimeoutError: The job did not end in time; it may still be running.
    :raises WhisulBudgetExceededError: The connection's ``max_submissions_per_day`` is used up; ends the task.
    :raises WhisulStateUnreadableError: What an earlier try has recorded cannot be read; ends the task. Nothing was
        submitted.
    :raises WhisulStateError: The store of the records is away. Nothing was submitted.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.
    """

    #: Whether the record has the prompt's text too, for a later try that is not told it.
    keep_prompt: ClassVar[bool] = False

    argument_checks = SONG_CHECKS
    template_fields: Sequence[str] = ("prompt", "whisul_conn_id")
    template_ext: Sequence[str] = (".prompt",)
    operator_extra_links = (WhisulSongLink(),)
    ui_color = "#e9dcf7"

    def __init__(
        self,
        *,
        prompt: str,
        whisul_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool | None = None,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        durable: bool = True,
        on_ambiguous_submit: OnAmbiguousSubmit = "retry",
        skip_if_older_than: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.prompt = prompt
        self.whisul_conn_id = whisul_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = self.checked("deferrable", deferrable)
        self.poll_interval = self.checked("poll_interval", poll_interval)
        self.timeout = self.checked("timeout", timeout)
        self.durable = durable
        self.on_ambiguous_submit = self.checked("on_ambiguous_submit", on_ambiguous_submit)
        self.skip_if_older_than = self.checked("skip_if_older_than", skip_if_older_than)
        self._job_id: str | None = None

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take the arguments that all mapped tasks share."""
        # The UI's rows are labelled by their prompts.
        kwargs.setdefault("map_index_template", map_index_template("task.prompt"))
        return super().partial(**kwargs)

    @pushes_card
    def execute(self, context: Context) -> str | Song:
        """Submit the prompt, or re-attach to the job that an earlier try submitted."""
        try:
            self.prepare(context)
            # Before the record of an earlier try is read: a prompt that is refused is not a song of its own.
            generate_request(self.prompt)
            state = self._state(context)
        except WhisulStateError as error:
            raise error.before_sending() from error.__cause__
        if not state.submitted_before:
            check_run_date(context, self.skip_if_older_than, self.clock.time())
        try:
            submission, result = self._reattach(context, state) or (self._submit(context, state), None)
        finally:
            push_submitted(context, state.submitted, self.hook)
        job_id = self._job_id = submission.job_id
        self._lineage = lineage_of_jobs([(job_id, self.prompt)])
        context["ti"].xcom_push(key=XCOM_JOB_ID, value=job_id)
        if not self.wait_for_completion:
            return job_id
        if isinstance(result, WhisulJob) and result.has_song_url:
            return self._deliver(result.song, lambda: state.record_delivery(job_id))
        push_expected(context, 1, [pending_card(self.prompt, job_id, submission.submitted_at)])
        if not self.deferrable:
            return self._wait_on_worker(state, submission)
        now = self.clock.time()
        deadline, source = self.end_of_wait(context, now + self.timeout)
        self.log_wait(f"Whisul job {job_id}", deadline, source)
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                deadline_source=source,
                not_before=self.hook.throttled_until(result) if isinstance(result, WhisulError) else None,
                submitted_at=submission.submitted_at,
                dag_id=self.dag_id,
            ),
            method_name="execute_complete",
            kwargs={
                "job_id": job_id,
                "try_number": context["ti"].try_number,
                "prompt": truncate(storable(self.prompt), MAX_TEXT),
            },
            timeout=timedelta(seconds=self.timeout + FRAMEWORK_TIMEOUT_MARGIN),
        )

    @pushes_card
    def execute_complete(
        self,
        context: Context,
        event: object,
        job_id: str = "(unknown)",
        try_number: int | None = None,
        prompt: str | None = None,
    ) -> Song:
        """
        Continue after the trigger has waited.

        :param event: The trigger's event.
        :param job_id: The job that it waited for.
        :param try_number: The try that deferred.
        :param prompt: The prompt that was submitted, or the beginning of a long one.
        :return: The song, as :meth:`execute` returns it.
        """
        # Airflow has rendered the prompt again, perhaps to another text, which no label or card must show.
        self.prompt = prompt or self.prompt
        # Without the prompt, of which there is perhaps the beginning only.
        self._lineage = lineage_of_jobs([(job_id, None)])
        try:
            song = self.song_of(event, job_id)
        except WhisulJobFailedError:
            self._record(lambda: self._state(context).record_end(job_id))
            raise
        return self._deliver(song, lambda: self._state(context).record_delivery(job_id))

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

    def _state(self, context: Context) -> SongState:
        return SongState.from_context(context, self.prompt, self.durable, self.account, self.keep_prompt)

    def _reattach(self, context: Context, state: SongState) -> tuple[Submission, PollResult] | None:
        """Return the job of an earlier try and the result of polling it, None if there is none to re-attach to."""
        record = state.earlier
        submission = record and (record.submission or self._find_submission(context, state, record))
        if not record or not submission:
            return None
        # Only Whisul can tell whether another key is of another account, or the account's new one.
        other_account = state.is_of_another_account(record)
        if other_account:
            self.log.warning(
                "An earlier try got %s with another API key, or from another host, than Airflow connection %r has now. "
                "Whisul is asked for the job with this key. If it does not find the job, this try submits the prompt, "
                "and pays for one more song.",
                submission,
                self.whisul_conn_id,
            )
        result: PollResult
        try:
            result = JobFinder(self.hook).get_job(submission.job_id, max_wait=FIRST_POLL_MAX_WAIT)
        except WhisulError as error:
            result = error
        if isinstance(result, WhisulJobNotFoundError) or (isinstance(result, WhisulJob) and result.failed):
            ended = result.failed_error() if isinstance(result, WhisulJob) else result
            if isinstance(ended, WhisulJobNotFoundError):
                self.hook.record_outcome(submission.job_id, "not_found")
            self.log.warning("An earlier try got %s. %s This try submits the prompt again.", submission, ended)
            return None
        if isinstance(result, WhisulError) and not result.transient:
            raise result
        # Only now that the task has what it is asked for: one that fails here and is cleared must find the job again.
        delivered = record.status == "delivered" or not self.wait_for_completion
        account = self.account() if isinstance(result, WhisulJob) else record.account
        if (account, delivered) != (record.account, record.status == "delivered"):
            state.record_found_job(record, submission.job_id, account=account, delivered=delivered)
        found = f"It is {result.status}." if isinstance(result, WhisulJob) else str(result)
        self.log.info("Re-attaching to an earlier try's %s; nothing is submitted. %s", submission, found)
        return submission, result

    def _find_submission(self, context: Context, state: SongState, record: SongRecord) -> Submission | None:
        """Return the job of an earlier try that ended before it had recorded it, None if nobody knows it."""
        called = submission_id(context, number=record.number)
        entry = self.hook.find_submission(called, self.prompt, since=record.submitted_at)
        if entry is None:
            # It was refused, and its try may live and send it again: with the same number only one of the two does.
            state.number = record.number
            return None
        if entry.job_id is None:
            return None
        self.log.info("An earlier try ended before it had recorded its job. The ledger has it: job %s", entry.job_id)
        return state.record_found_job(record, entry.job_id, account=record.account, delivered=False)

    def _submit(self, context: Context, state: SongState) -> Submission:
        self._check_ambiguous_submission(state)
        # Without a record all tries would have the same number, and a try that is to submit would find an earlier job.
        called = submission_id(context, number=state.number) if state.durable else None
        try:
            job_id = self.hook.generate(
                self.prompt,
                before_send=lambda: state.record_intent(self.clock.time()),
                on_refused=state.discard_intent,
                submission=called,
            )
        except WhisulInvalidInputError as error:
            raise WhisulInvalidInputError(f"{error} {self._named}", http_status=error.http_status) from None
        except WhisulAmbiguousSubmitError as error:
            final = self.on_ambiguous_submit == "fail"
            cls = WhisulAmbiguousSubmitFinalError if final else WhisulAmbiguousSubmitError
            raise cls(f"{error} {self._named}{self._price} {cls.outlook}", http_status=error.http_status) from None
        # The time of the response: before it, the rate limiter may have waited for minutes.
        submission = Submission(job_id, self.clock.time())
        # A task that does not wait has all that it is asked for.
        state.record_submission(submission, delivered=not self.wait_for_completion)
        return submission

    @property
    def _named(self) -> str:
        return f'The prompt was "{excerpt(mask(self.prompt, self.hook.settings.api_key))}".'

    @property
    def _price(self) -> str:
        price = format_price(self.hook.settings.price_per_song, 1)
        return f" A song costs {price}." if price else ""

    def _check_ambiguous_submission(self, state: SongState) -> None:
        """Warn where an earlier try may have submitted the prompt without recording the job, or end the task."""
        record = state.earlier
        if record is None or record.submission is not None:
            return
        warning = (
            f"An earlier try began to submit this prompt at {utc(record.submitted_at)} and did not record which job it "
            "got. A song may already have been paid for, and the API cannot tell: look at your Whisul dashboard if in "
            f"doubt. {self._named}{self._price}"
        )
        if self.on_ambiguous_submit == "fail" and not state.cleared_since(record):
            raise WhisulAmbiguousSubmitFinalError(f"{warning} {WhisulAmbiguousSubmitFinalError.outlook}")
        self.log.warning("%s Submitting it again.", warning)

    def _wait_on_worker(self, state: SongState, submission: Submission) -> Song:
        job_id, interval = submission.job_id, self.poll_interval
        try:
            # The job was submitted or polled just now.
            job = self.hook.wait_for_job(
                job_id, interval, self.timeout, delay=interval, submitted_at=submission.submitted_at
            )
        except WhisulJobFailedError:
            self._record(lambda: state.record_end(job_id))
            raise
        return self._deliver(job.song, lambda: state.record_delivery(job_id))

    def _deliver(self, song: Song | None, record: Callable[[], None]) -> Song:
        song = cast(Song, song)
        # The prompt as a task that stores the song has it, which knows no other.
        self._lineage = lineage_of_jobs([(song["job_id"], song.get("prompt"))])
        self._record(record)
        self.log.info("Whisul job %s is completed: %r", song["job_id"], excerpt(song["title"] or "Untitled"))
        return song

    def _record(self, record: Callable[[], None]) -> None:
        """Record how the job ended. Where that fails no song is lost, nor paid twice: a later try polls the job."""
        try:
            record()
        except WhisulError as error:
            # Also where this machine's configuration names no folder: the song is there.
            self.log.warning(
                "%s How the job ended is not recorded. A later try of this task polls the job again.", error
            )

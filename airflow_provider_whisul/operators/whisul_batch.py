"""Generating many songs in one task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.price import count_songs
from airflow_provider_whisul.exceptions import WhisulConfigurationError, WhisulError, WhisulStateError
from airflow_provider_whisul.operators.arguments import (
    BATCH_CHECKS,
    OnEmpty,
    check_new_takes,
    check_not_empty,
    checked_prompts,
    no_songs_where_skipped,
)
from airflow_provider_whisul.operators.batch_outcome import BatchOutcome, fetch_large_songs, retry_left
from airflow_provider_whisul.operators.batch_wait import BatchWait, TrySoFar
from airflow_provider_whisul.operators.deferral import WhisulDeferrableMixin
from airflow_provider_whisul.operators.lineage import LineageMixin, lineage_of_jobs
from airflow_provider_whisul.operators.prompts_file import PromptsFileMixin
from airflow_provider_whisul.operators.run_date import check_run_date
from airflow_provider_whisul.polling import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, FRAMEWORK_TIMEOUT_MARGIN
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.state.batch_song import PENDING, UNSUCCESSFUL, BatchResult, BatchSong
from airflow_provider_whisul.state.batch_state import BatchState, ResultChunk
from airflow_provider_whisul.state.song_state import OnAmbiguousSubmit
from airflow_provider_whisul.state.state_store import StateStore, clear_count, task_state_store, with_xcoms
from airflow_provider_whisul.text import count, excerpt
from airflow_provider_whisul.tracks.cards import BatchCards
from airflow_provider_whisul.tracks.submissions import push_submitted
from airflow_provider_whisul.triggers.events import chunk_from_event, deferral_error
from airflow_provider_whisul.triggers.whisul_batch import PROGRESS_SECONDS, WhisulBatchTrigger, progress, seconds_before

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.operators.batch_submission import BatchSubmitter


class WhisulGenerateBatchOperator(PromptsFileMixin, LineageMixin, WhisulDeferrableMixin, BaseOperator):
    """
    Generates many songs in one task: submits each prompt, and waits for all jobs with one trigger.

    Each submission costs credits. A later try continues where an earlier one stopped: it submits only what was not
    submitted yet and what failed.

    :param prompts: The descriptions of the songs, each in plain language (templated). Or the name of a file that ends
        with ``.prompts.jsonl``: of its lines each is a JSON string, or an object with a ``prompt``.
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param attempts: How often one song may be submitted within a try of the task, where its job fails. A song whose job
        Whisul no longer finds is submitted again by a later try only, once that has polled the job again.
    :param max_submissions: How often the task may submit, over all of its tries and attempts, and also after it was
        cleared. None for no limit. Then it submits nothing more, and waits for the jobs that run; a song that is
        missing counts as failed.
    :param max_failures: How many songs may fail before the task does; a float of less than 1 is a share of the prompts.
    :param poll_interval: Seconds (or a ``timedelta``) between two polls of one job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) that one try waits for songs, from its last submission on.
    :param deferrable: Whether to wait in the triggerer, which holds no worker slot, or on the worker. None leaves it to
        ``[operators] default_deferrable`` of Airflow's configuration where that is set, else it is the triggerer.
    :param durable: Whether a later try continues where an earlier one stopped.
    :param on_ambiguous_submit: What a later try does about a song whose submission's response was lost, so that the job
        may exist: ``"retry"`` submits it again, ``"fail"`` leaves it failed until a user clears the task.
    :param skip_if_older_than: How far back the date of the run may be (a ``timedelta``). For an older one the task is
        skipped, unless an earlier try has submitted a prompt. None for no limit.
    :param on_empty: What to do where ``prompts`` is an empty list: ``"fail"``, ``"skip"`` the task, or ``"succeed"``
        with an empty result.
    :return: The songs in the order of the prompts, each a dict of ``prompt, job_id, status`` (``completed`` or
        ``failed``), ``song`` (as the single operator returns it, None if it failed) and ``error`` (None unless it
        failed). Where the task fails once it has begun to submit, the same list is in its XCom.
    :raises ValueError: When the DAG file is read: an argument makes no sense.
    :raises WhisulInvalidInputError: A prompt is empty or no text, a line of the file is no prompt, or there is no
        prompt. Nothing is submitted then.
    :raises AirflowSkipException: There is no prompt, and ``on_empty`` is ``"skip"``; or the run's date is further back
        than ``skip_if_older_than``.
    :raises WhisulUnauthorizedError: The key is not accepted; ends the task without a retry.
    :raises WhisulOutOfCreditsError: The account has no credits left for some of the songs; likewise, once the jobs that
        run have ended.
    :raises WhisulBudgetExceededError: The connection's ``max_submissions_per_day`` is used up; or ``max_submissions``
        is, and more songs failed than ``max_failures``; likewise.
    :raises WhisulStateUnreadableError: What an earlier try has recorded cannot be read; ends the task. Nothing is
        submitted.
    :raises WhisulStateError: The store of the records is away. Nothing was submitted.
    :raises WhisulAmbiguousSubmitError: More songs failed than ``max_failures``, and the response to the submission of
        some was lost. After three lost in a row the try submits nothing more.
    :raises WhisulJobFailedError: More songs failed than ``max_failures``; a retry submits those again.
    :raises WhisulJobTimeoutError: The same, where all of them may still complete: their jobs did not end in time, or
        polling them failed too often. Such a song is not submitted again: a retry waits for its job again.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.
    """

    argument_checks = BATCH_CHECKS
    template_fields: Sequence[str] = ("prompts", "whisul_conn_id")
    ui_color = "#e9dcf7"

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        whisul_conn_id: str = DEFAULT_CONN_ID,
        attempts: int = 2,
        max_submissions: int | None = None,
        max_failures: float = 0,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        deferrable: bool | None = None,
        durable: bool = True,
        on_ambiguous_submit: OnAmbiguousSubmit = "retry",
        skip_if_older_than: timedelta | None = None,
        on_empty: OnEmpty = "fail",
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.prompts = prompts
        self.whisul_conn_id = whisul_conn_id
        self.attempts = self.checked("attempts", attempts)
        self.max_submissions = self.checked("max_submissions", max_submissions)
        self.max_failures = self.checked("max_failures", max_failures)
        self.poll_interval = self.checked("poll_interval", poll_interval)
        self.timeout = self.checked("timeout", timeout)
        self.deferrable = self.checked("deferrable", deferrable)
        self.durable = durable
        self.on_ambiguous_submit = self.checked("on_ambiguous_submit", on_ambiguous_submit)
        self.skip_if_older_than = self.checked("skip_if_older_than", skip_if_older_than)
        self.on_empty = self.checked("on_empty", on_empty)
        #: What waits on this worker, None unless something does.
        self._trigger: WhisulBatchTrigger | None = None

    def execute(self, context: Context) -> list[BatchResult]:
        """Submit what is not submitted yet, and wait for all songs."""
        self.check_file()
        return self._wait_for_all(context, self._begin(context))

    def _begin(self, context: Context) -> list[BatchResult] | BatchWait:
        try:
            self.prepare(context)
            prompts = checked_prompts(self.prompts)
            state = BatchState.load(prompts, self._store(context), clear_count(context), self.account())
        except WhisulStateError as error:
            raise error.before_sending() from error.__cause__
        if state.orphaned:
            self.log.warning(
                "An earlier try has submitted %s for prompts that are no longer in the list: it was edited, or the "
                "prompts are others each time they are rendered. This try submits, and pays for, the prompts as they "
                "are now. Prompts that every try renders alike avoid that, such as ones with {{ ds }} or a fixed seed. "
                "A WhisulJobSensor finds each song by its job id: %s",
                count(len(state.orphaned), "job"),
                ", ".join(state.orphaned),
            )
        with no_songs_where_skipped(context):
            check_not_empty(prompts, self.on_empty)
            if prompts and not state.submitted_before:
                check_run_date(context, self.skip_if_older_than, self.clock.time())
        if not prompts:
            self.log.info("prompts is an empty list: nothing is submitted.")
            return []
        if self.max_submissions is not None and not state.durable:
            raise WhisulConfigurationError(
                "max_submissions counts the submissions of all tries, and nothing is kept for a later try here: that "
                "takes durable=True, and a folder that can be written ([whisul] state_path). Nothing was sent."
            )
        if state.earlier is not None and state.earlier.delivered and state.cleared:
            check_new_takes(len(prompts), state.submitted, self.max_submissions)
            self.log.info("This task has had its songs, and was cleared since: this try pays for new ones.")
        self._submitter(context, state).resolve_ambiguous_submissions(self.on_ambiguous_submit)
        state.begin_try(self.clock.time())
        kept = len(state.with_status(*PENDING, "completed"))
        if kept:
            self.log.info("Re-attaching to %s that an earlier try has submitted.", count(kept, "song"))
        rechecked = state.with_status("recheck")
        if rechecked and state.other_account:
            self.log.warning(
                "An earlier try has submitted %s with another API key, or to another host, than Airflow connection %r "
                "has now. Whisul is asked for their jobs with this key. A song whose job it does not find is submitted "
                "again, and paid for again: %s",
                count(len(rechecked), "song"),
                self.whisul_conn_id,
                ", ".join(str(state.songs[index].job_id) for index in rechecked),
            )
        elif context["ti"].try_number > 1 and not state.durable:
            self.log.warning(
                "What an earlier try has submitted is not known here: durable is False, or no record can be kept. This "
                "try submits, and pays for, all of %s.",
                count(len(state.songs), "song"),
            )
        return self._submit(context, state, BatchCards(context, state, self.attempts), TrySoFar())

    def execute_complete(
        self,
        context: Context,
        event: object,
        deadline: float | None = None,
        progress_logged_at: float | None = None,
        try_number: int | None = None,
        ambiguous_in_a_row: int = 0,
    ) -> list[BatchResult]:
        """
        Apply the chunk of results that the trigger reports, and continue with the other songs.

        :param event: The trigger's event.
        :param deadline: When waiting ends, in Unix seconds.
        :param progress_logged_at: When the last line of progress was logged, in Unix seconds.
        :param try_number: The try that deferred.
        :param ambiguous_in_a_row: How many submissions of this try, the last ones, were ambiguous.
        :return: The songs, as :meth:`execute` returns them.
        """
        so_far = TrySoFar(deadline, progress_logged_at, ambiguous_in_a_row)
        return self._wait_for_all(context, self._apply(context, event, so_far))

    def _wait_for_all(self, context: Context, step: list[BatchResult] | BatchWait) -> list[BatchResult]:
        """Wait until all songs have ended: in the triggerer, after which Airflow resumes the task, or here."""
        while isinstance(step, BatchWait):
            if self.deferrable:
                return self.defer(
                    trigger=step.trigger,
                    method_name="execute_complete",
                    kwargs={**step.so_far._asdict(), "try_number": context["ti"].try_number},
                    timeout=step.timeout,
                )
            self._trigger = step.trigger
            try:
                event, so_far = step.on_worker(self.hook)
            except Exception:
                self._keep_results(context)
                raise
            self._trigger = None
            step = self._apply(context, event, so_far)
        return step

    def _apply(self, context: Context, event: object, so_far: TrySoFar) -> list[BatchResult] | BatchWait:
        chunk, error = chunk_from_event(event)
        state = self._resume(context)
        if state is None:
            # To submit the prompts again would pay for every song again.
            raise WhisulError(
                "The record of what this try has submitted is not there: it was deleted while the task waited, or the "
                "folder of [whisul] state_path is not one that all machines share. Nothing is submitted again in this "
                "try. The ledger and the log above name the jobs, and a WhisulJobSensor finds each song by its job id. "
                "A retry submits, and pays for, what has no record."
            )
        cards = BatchCards(context, state, self.attempts, resumed=True)
        changed = state.apply(chunk)
        # Before they are stored: a try that is killed in between polls these jobs again, and records how they ended.
        self._record_outcomes([state.songs[index] for index in changed], chunk)
        state.save(changed)
        cards.push(ended=error is not None)
        if error is not None:
            self._push_results(context, state)
            raise error
        return self._submit(context, state, cards, so_far)

    def on_deferral_error(self, error: Exception, context: Context) -> WhisulError:
        """Push partial results to XCom."""
        self._keep_results(context)
        outlook = "The jobs are not affected: a retry of this task waits for them again, where a record is kept."
        return deferral_error(error, "the batch", outlook)

    def on_kill(self) -> None:
        """Log what happens to the jobs when the task is ended while it waits on the worker."""
        if self._trigger is not None:
            self._trigger.log_not_cancelled()

    def _keep_results(self, context: Context) -> None:
        state = self._resume(context)
        if state is not None:
            BatchCards(context, state, self.attempts, resumed=True).push(ended=True)
            self._push_results(context, state)

    def _resume(self, context: Context) -> BatchState | None:
        return BatchState.resume(self._store(context), clear_count(context))

    def _store(self, context: Context) -> StateStore:
        return with_xcoms(task_state_store(context, self.durable), context)

    def _submitter(self, context: Context, state: BatchState) -> BatchSubmitter:
        # Here, so that reading a DAG file does not load it.
        from airflow_provider_whisul.operators.batch_submission import BatchSubmitter

        return BatchSubmitter(self.hook, context, state, self.attempts, self.max_submissions)

    def _record_outcomes(self, songs: Sequence[BatchSong], chunk: ResultChunk) -> None:
        """Record in the ledger how jobs have ended, but not of those that a later try polls again."""
        for song in songs:
            job_id = song.job_id or ""
            if job_id in chunk["completed"]:
                self.hook.record_outcome(job_id, "delivered")
            elif job_id in chunk["failed"]:
                self.hook.record_outcome(job_id, "failed")
            elif song.status == "failed":
                self.hook.record_outcome(job_id, "not_found")

    def _submit(
        self, context: Context, state: BatchState, cards: BatchCards, so_far: TrySoFar
    ) -> list[BatchResult] | BatchWait:
        """Submit what is to be submitted, and return the wait for the jobs that run, or the results if none does."""
        deadline, progress_logged_at, ambiguous_in_a_row = so_far
        resumed = deadline is not None
        cards.push()
        too_late = resumed and self.execution_timeout_is_over(context)
        try:
            submissions = self._submitter(context, state).submit_all(
                ambiguous_in_a_row, cards.push_progress, too_late=too_late
            )
        except Exception:
            cards.push(ended=True)
            self._push_results(context, state)
            raise
        finally:
            push_submitted(context, state.submitted, self.hook)
        if submissions.submitted or deadline is None:
            deadline, resumed = self.clock.time() + self.timeout, False
        cards.push()
        if not state.with_status(*PENDING):
            return self._finish(context, state, cards)
        cards.push_pending()
        now = self.clock.time()
        delivered, failed = len(state.with_status("completed")), len(state.with_status(*UNSUCCESSFUL))
        # Logged here too: Airflow keeps the log of a try's last trigger only.
        if delivered and now - (progress_logged_at or 0.0) >= PROGRESS_SECONDS:
            progress_logged_at = now
            self.log.info("%s", progress(delivered, len(state.songs), failed))
        ends_at, source = self.end_of_wait(context, deadline)
        if not resumed:
            self.log_wait(count(len(state.with_status(*PENDING)), "Whisul job"), ends_at, source)
        songs, submitted_at = state.to_poll(), deadline - self.timeout
        return BatchWait(
            WhisulBatchTrigger(
                job_ids=[str(song.job_id) for song in songs],
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=ends_at,
                deadline_source=source,
                submitted_at=submitted_at,
                total=len(state.songs),
                delivered=delivered,
                failed=failed,
                resumed=resumed,
                progress_logged_at=progress_logged_at,
                not_before=submissions.blocked_until,
                dag_id=self.dag_id,
                submitted_before=seconds_before(submitted_at, [song.submitted_at for song in songs]),
            ),
            TrySoFar(deadline, progress_logged_at, submissions.ambiguous_in_a_row),
            timedelta(seconds=max(0.0, deadline - now) + FRAMEWORK_TIMEOUT_MARGIN),
        )

    def _finish(self, context: Context, state: BatchState, cards: BatchCards) -> list[BatchResult]:
        try:
            fetch_large_songs(state, self.hook)
        except Exception:
            self._push_results(context, state)
            raise
        finally:
            cards.push(ended=True)
        results = list(state.results())
        self._lineage = lineage_of_jobs((result["job_id"], result["prompt"]) for result in results if result["job_id"])
        failed = [result for result in results if result["status"] == "failed"]
        settings = self.hook.settings
        self.log.info(
            "%d of %s delivered, %d failed; submitted %s in %s",
            len(results) - len(failed),
            count(len(results), "song"),
            len(failed),
            count_songs(state.submitted, settings.price_per_song),
            state.counted_tries,
        )
        outcome = BatchOutcome(
            state, self.max_failures, self.on_ambiguous_submit, retry_left(context), self.max_submissions, settings
        )
        ended = outcome.error(failed)
        # A failed song that the user allows for is no error of the task.
        level = logging.ERROR if ended else logging.WARNING
        for song, result in zip(state.songs, results, strict=True):
            if result["status"] == "failed" and song.status != "new":
                self.log.log(level, "Failed: %r: %s", excerpt(song.prompt), result["error"])
        if ended is None:
            if failed:
                self.log.warning(
                    "max_failures allows for that. Clearing this task submits all of its prompts again, and pays for "
                    "them: put those that are missing into another task."
                )
            try:
                state.record_delivery()
            except WhisulStateError as error:
                self.log.warning("%s That the songs are delivered is not recorded.", error)
            return results
        self._push_results(context, state)
        raise ended

    @staticmethod
    def _push_results(context: Context, state: BatchState) -> None:
        context["ti"].xcom_push(key="return_value", value=list(state.results()))

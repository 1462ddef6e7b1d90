"""Generating many songs in one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.messages import generate_request
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.operators.base import WhisulDeferrableMixin
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FRAMEWORK_TIMEOUT_MARGIN,
    check_poll_interval,
    check_timeout,
)
from airflow_provider_whisul.rate_limit.backoff import not_before
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.state.batch_state import PENDING, UNSUCCESSFUL, BatchResult, BatchState
from airflow_provider_whisul.state.song_state import OnAmbiguousSubmit, check_on_ambiguous_submit
from airflow_provider_whisul.state.state_store import XComStateStore, clear_count, task_state_store
from airflow_provider_whisul.text import quote
from airflow_provider_whisul.tracks.cards import BatchCards
from airflow_provider_whisul.triggers.events import chunk_from_event, deferral_error
from airflow_provider_whisul.triggers.whisul_batch import (
    ACCOUNT_ERRORS,
    PROGRESS_SECONDS,
    WhisulBatchTrigger,
    progress,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


#: Undocumented statuses that are about one prompt alone: too long, not processable, refused for legal reasons.
_PROMPT_REFUSED = (413, 422, 451)

#: How many failed songs an error names. The task's log names all of them.
_MAX_NAMED = 20


class WhisulGenerateBatchOperator(WhisulDeferrableMixin, BaseOperator):
    """
    Generates many songs in one task: submits each prompt, and waits for all jobs with one trigger.

    Each submission costs credits. From Airflow 3.3 on a later try continues where an earlier one stopped: it submits
    only what was not submitted yet and what failed.

    :param prompts: The descriptions of the songs, each in plain language (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param attempts: How often one song may be submitted within a try of the task, where its job fails. A song whose job
        Whisul no longer finds is submitted again by a later try only, once that has polled the job again.
    :param max_failures: How many songs may fail before the task does.
    :param poll_interval: Seconds (or a ``timedelta``) between two polls of one job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) that one try waits for songs, from its last submission on.
    :param durable: Whether a later try continues where an earlier one stopped (Airflow 3.3 and later).
    :param on_ambiguous_submit: What a later try does about a song whose submission's response was lost, so that the job
        may exist: ``"retry"`` submits it again, ``"fail"`` leaves it failed until a user clears the task.
    :return: The songs in the order of the prompts, each a dict of ``prompt, job_id, status`` (``completed`` or
        ``failed``), ``song`` (as the single operator returns it, None if it failed) and ``error`` (None unless it
        failed). Where the task fails once it has begun to submit, the same list is in its XCom.
    :raises ValueError: When the DAG file is read: an argument makes no sense.
    :raises WhisulInvalidInputError: A prompt is empty or no text. Nothing is submitted then.
    :raises WhisulUnauthorizedError: The key is not accepted; ends the task without a retry.
    :raises WhisulJobFailedError: More songs failed than ``max_failures``; a retry submits those again.
    :raises WhisulJobTimeoutError: The same, where all of them may still complete: their jobs did not end in time, or
        polling them failed too often. Such a song is not submitted again: a retry waits for its job again.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.
    """

    template_fields: Sequence[str] = ("prompts", "whisul_conn_id")
    ui_color = "#e9dcf7"

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        whisul_conn_id: str = DEFAULT_CONN_ID,
        attempts: int = 2,
        max_failures: int = 0,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        durable: bool = True,
        on_ambiguous_submit: OnAmbiguousSubmit = "retry",
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.prompts = prompts
        self.whisul_conn_id = whisul_conn_id
        if attempts < 1 or max_failures < 0:
            raise ValueError(f"attempts must be 1 or more, max_failures 0 or more, not {attempts} and {max_failures}.")
        self.attempts = attempts
        self.max_failures = max_failures
        self.poll_interval = check_poll_interval(poll_interval, "poll_interval")
        self.timeout = check_timeout(timeout)
        self.durable = durable
        self.on_ambiguous_submit = check_on_ambiguous_submit(on_ambiguous_submit)

    def execute(self, context: Context) -> list[BatchResult]:
        """Submit what is not submitted yet, and wait for all songs."""
        state = self._load(context)
        self._check_ambiguous_submissions(state)
        state.begin_try()
        kept = len(state.with_status(*PENDING, "completed"))
        if kept:
            self.log.info("Re-attaching to %d songs that an earlier try has submitted.", kept)
        elif context["ti"].try_number > 1 and not state.durable:
            self.log.warning(
                "What an earlier try has submitted is not known here (that takes Airflow 3.3 and durable=True): this "
                "try submits, and pays for, all %d songs.",
                len(state.songs),
            )
        return self._submit_and_wait(context, state, BatchCards(context, state, self.attempts))

    def execute_complete(
        self,
        context: Context,
        event: object,
        deadline: float | None = None,
        progress_logged_at: float | None = None,
        try_number: int | None = None,
    ) -> list[BatchResult]:
        """
        Apply the chunk of results that the trigger reports, and continue with the other songs.

        :param event: The trigger's event.
        :param deadline: When waiting ends, in Unix seconds.
        :param progress_logged_at: When the last line of progress was logged, in Unix seconds.
        :param try_number: The try that deferred.
        :return: The songs, as :meth:`execute` returns them.
        """
        state = self._load(context)
        if state.edited:
            state.rewrite()
        cards = BatchCards(context, state, self.attempts, resumed=True)
        chunk, error = chunk_from_event(event)
        state.apply(chunk)
        cards.push(ended=error is not None)
        if error is not None:
            self._push_results(context, state)
            raise error
        return self._submit_and_wait(context, state, cards, deadline, progress_logged_at)

    def on_deferral_error(self, error: Exception, context: Context) -> WhisulError:
        """Push partial results to XCom."""
        self._push_results(context, self._load(context))
        outlook = "The jobs are not affected: from Airflow 3.3 on a retry of this task waits for them again."
        return deferral_error(error, "the batch", outlook)

    def _load(self, context: Context) -> BatchState:
        prompts = self.prompts
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise WhisulInvalidInputError(
                f"prompts must be a list of texts that is not empty, not {type(prompts).__name__}. Nothing was sent."
            )
        for prompt in prompts:
            # Before any is submitted: one bad prompt must not cost the others.
            generate_request(prompt)
        store = task_state_store(context, self.durable)
        if store is None:
            store = XComStateStore(context)
        state = BatchState.load(prompts, store, clear_count(context))
        if state.orphaned:
            self.log.warning(
                "The prompts of %d jobs that this task has submitted are no longer among its prompts. They cost what "
                "they cost; a WhisulJobSensor finds each by its id: %s",
                len(state.orphaned),
                ", ".join(state.orphaned),
            )
        return state

    def _check_ambiguous_submissions(self, state: BatchState) -> None:
        """Warn of ambiguous submissions of earlier tries, and mark them for submission where that is allowed."""
        for index in state.with_status("submitting"):
            song = state.songs[index]
            again = self.on_ambiguous_submit == "retry" or state.cleared
            self.log.warning(
                "An earlier try did not record which job it got for %r. A song may already have been paid for, and the "
                "API cannot tell. %s",
                quote(song.prompt)[:60],
                "Submitting it again." if again else "It is not submitted again until you clear this task.",
            )
            if again:
                song.status = "new"

    def _submit_and_wait(
        self,
        context: Context,
        state: BatchState,
        cards: BatchCards,
        deadline: float | None = None,
        progress_logged_at: float | None = None,
    ) -> list[BatchResult]:
        """Submit what there is to submit, then defer while jobs run, and finish when none does."""
        resumed = deadline is not None
        cards.push()
        try:
            submitted, blocked_until = self._submit_all(state)
        except Exception:
            cards.push(ended=True)
            self._push_results(context, state)
            raise
        if submitted or deadline is None:
            deadline, resumed = self.clock.time() + self.timeout, False
        cards.push()
        if not state.with_status(*PENDING):
            return self._finish(context, state, cards)
        now = self.clock.time()
        delivered, failed = len(state.with_status("completed")), len(state.with_status(*UNSUCCESSFUL))
        # Logged here too: Airflow keeps the log of a try's last trigger only.
        if delivered and now - (progress_logged_at or 0.0) >= PROGRESS_SECONDS:
            progress_logged_at = now
            self.log.info("%s", progress(delivered, len(state.songs), failed))
        return self.defer(
            trigger=WhisulBatchTrigger(
                job_ids=state.to_poll(),
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                submitted_at=deadline - self.timeout,
                total=len(state.songs),
                delivered=delivered,
                failed=failed,
                resumed=resumed,
                progress_logged_at=progress_logged_at,
                not_before=blocked_until,
            ),
            method_name="execute_complete",
            kwargs={
                "deadline": deadline,
                "progress_logged_at": progress_logged_at,
                "try_number": context["ti"].try_number,
            },
            timeout=timedelta(seconds=max(0.0, deadline - now) + FRAMEWORK_TIMEOUT_MARGIN),
        )

    def _submit_all(self, state: BatchState) -> tuple[int, float | None]:
        """
        Submit each song that is new, or whose job failed and that has attempts left.

        Return how many were submitted, and when the next request may be sent (Unix seconds) where a cool-down stopped
        the submissions. Songs that are not submitted stay as they are. Raise if no job is running, or if
        the error would fail every poll too.
        """
        waiting = state.to_submit(self.attempts)
        progress_logged_at = self.clock.time()
        for done, index in enumerate(waiting, start=1):
            song = state.songs[index]
            before = replace(song)
            if song.status == "failed":
                self.log.warning("Submitting %r again. %s", quote(song.prompt)[:60], song.error)
            try:
                job_id = self.hook.generate(song.prompt, before_send=partial(state.record_intent, index))
            except WhisulAmbiguousSubmitError as error:
                # Left as it is: the next try of the task finds it so, and this one continues with the others.
                song.error = f"It may have been paid for, but which job it got was lost. {error}"
                self.log.error("%r: %s", quote(song.prompt)[:60], error)
            except WhisulError as error:
                if isinstance(error, WhisulInvalidInputError) or error.http_status in _PROMPT_REFUSED:
                    song.status, song.error = "failed", str(error)
                    song.submissions = self.attempts
                else:
                    state.songs[index] = before
                    state.save([index])
                    if isinstance(error, ACCOUNT_ERRORS) or not state.with_status(*PENDING):
                        raise
                    self.log.warning(
                        "%s So %d of %d songs are not submitted yet: the jobs that run are waited for first.",
                        error,
                        len(waiting) - done + 1,
                        len(state.songs),
                    )
                    return done - 1, not_before(error, self.clock.time())
            else:
                state.submitted(index, job_id)
            self._save_submission(state, index)
            if self.clock.time() - progress_logged_at >= PROGRESS_SECONDS:
                progress_logged_at = self.clock.time()
                self.log.info("%s of %s submitted", f"{done:,}", f"{len(waiting):,}")
        if waiting:
            self.log.info("Submitted %d songs", len(waiting))
        return len(waiting), None

    def _save_submission(self, state: BatchState, index: int) -> None:
        song = state.songs[index]
        try:
            state.save([index])
        except BaseException:
            # Also where the task is just being ended: nothing else knows of the job.
            if song.status == "running":
                self.log.error(
                    "%r became job %s, which is paid for, but that could not be recorded: a later try will not know "
                    "it. A WhisulJobSensor with this job id finds the song.",
                    quote(song.prompt)[:60],
                    song.job_id,
                )
            raise

    def _finish(self, context: Context, state: BatchState, cards: BatchCards) -> list[BatchResult]:
        try:
            self._fetch_large_songs(state)
        except Exception:
            self._push_results(context, state)
            raise
        finally:
            cards.push(ended=True)
        results = list(state.results())
        failed = [result for result in results if result["status"] == "failed"]
        self.log.info("%d of %d songs delivered, %d failed", len(results) - len(failed), len(results), len(failed))
        for result in failed:
            self.log.error("Failed: %r: %s", quote(result["prompt"])[:60], result["error"])
        if len(failed) <= self.max_failures:
            state.record_delivery()
            return results
        self._push_results(context, state)
        named = "; ".join(
            f"{quote(result['prompt'])[:60]!r}: {quote(result['error'] or '')[:120]}" for result in failed[:_MAX_NAMED]
        )
        more = f"; and {len(failed) - _MAX_NAMED} more, see the log" if len(failed) > _MAX_NAMED else ""
        # A retry that only waits longer need not begin at once.
        all_timed_out = len(state.with_status("timed_out")) == len(failed)
        raise (WhisulJobTimeoutError if all_timed_out else WhisulJobFailedError)(
            f"{len(failed)} of {len(results)} songs failed, more than max_failures={self.max_failures}: {named}{more}. "
            "The others are in this task's XCom; from Airflow 3.3 on a retry submits only the failed ones again, and "
            "waits again for jobs that may still complete."
        )

    @staticmethod
    def _push_results(context: Context, state: BatchState) -> None:
        """Push partial results to XCom before failing."""
        context["ti"].xcom_push(key="return_value", value=list(state.results()))

    def _fetch_large_songs(self, state: BatchState) -> None:
        """Poll the jobs again whose data was too large to keep."""
        for index in state.with_status("completed"):
            song = state.songs[index]
            if song.song is not None or song.job_id is None:
                continue
            try:
                job = self.hook.get_job(song.job_id)
            except WhisulJobNotFoundError as error:
                song.status, song.error = "not_found", str(error)
                state.save([index])
            else:
                song.song = job.song

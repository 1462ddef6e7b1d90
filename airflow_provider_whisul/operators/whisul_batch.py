"""Making many songs in one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.account import DEFAULT_CONN_ID
from airflow_provider_whisul.api import generate_request, quote
from airflow_provider_whisul.batch import (
    NOT_MADE,
    WAITED_FOR,
    Batch,
    BatchResult,
    Notebook,
    XComNotebook,
)
from airflow_provider_whisul.common import WhisulTask
from airflow_provider_whisul.durable import OnAmbiguousSubmit, check_on_ambiguous_submit, task_round
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.pace import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FRAMEWORK_TIMEOUT_MARGIN,
    check_poll_interval,
    check_timeout,
    quiet_until,
)
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.tracks import BatchShow
from airflow_provider_whisul.triggers.whisul_batch import (
    ABOUT_ALL,
    PROGRESS_SECONDS,
    WhisulBatchTrigger,
    batch_deferral_error,
    part_from_event,
    progress,
)
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS, is_of_earlier_try

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


#: Answers that are about the one prompt, though the API's documentation does not know them: too long, not to be
#: processed, not to be made for legal reasons.
_PROMPT_REFUSED = (413, 422, 451)

#: How many failed songs an error names; the task's log names all of them.
_MOST_NAMED = 20


class WhisulGenerateBatchOperator(WhisulTask, BaseOperator):
    """
    Makes many songs in one task: submits each prompt, and waits for all of them with one trigger.

    Each submission costs credits. From Airflow 3.3 on a later try goes on where an earlier one has got to: it submits
    only what was not submitted yet and what failed.

    :param prompts: What the songs should be, each in plain language (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param attempts: How often one song may be submitted within a try of the task, where its job fails. One that Whisul
        no longer finds is submitted again by a later try only, once that has looked at it.
    :param max_failures: How many songs may fail before the task does.
    :param poll_interval: Seconds (or a ``timedelta``) between two looks at one job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) that one try waits for songs, from its last submission on.
    :param durable: Whether a later try goes on where an earlier one has got to (Airflow 3.3 and later).
    :param on_ambiguous_submit: What a later try does about a song whose submission's answer was lost, so that the job
        may exist: ``"retry"`` submits it again, ``"fail"`` leaves it failed until a user clears the task.
    :return: The songs in the order of the prompts, each a dict of ``prompt, job_id, status`` (``completed`` or
        ``failed``)``, track`` (the song as the single operator returns it, None if it failed) and ``error`` (None
        unless it failed). Where the task fails once it has begun to submit, the same is in its XCom all the same.
    :raises ValueError: When the DAG file is read: an argument makes no sense.
    :raises WhisulInvalidInputError: A prompt is empty or no text. Nothing is submitted then.
    :raises WhisulUnauthorizedError: The key is not accepted; ends the task without a retry.
    :raises WhisulJobFailedError: More songs failed than ``max_failures``; a retry submits those again.
    :raises WhisulJobTimeoutError: The same, where all of them may still complete: they were not over in time, or
        looking at them failed too often. Such a song is not submitted again: a retry goes on looking at its job.
    :raises WhisulError: Anything else; see :mod:`airflow_provider_whisul.exceptions`.
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
        """Submit what is not submitted yet, and wait for all of it."""
        batch = self._load(context)
        self._face_lost_submissions(batch)
        batch.begin_try()
        kept = len(batch.with_status(*WAITED_FOR, "completed"))
        if kept:
            self.log.info("Going on with %d songs that an earlier try has submitted.", kept)
        elif context["ti"].try_number > 1 and not batch.outlasts_a_try:
            self.log.warning(
                "What an earlier try has submitted is not known here (that takes Airflow 3.3 and durable=True): this "
                "try submits, and pays for, all %d songs.",
                len(batch.songs),
            )
        return self._go_on(context, batch, BatchShow(context, batch, self.attempts))

    def execute_part(
        self,
        context: Context,
        event: object,
        deadline: float | None = None,
        said_at: float | None = None,
        try_number: int | None = None,
    ) -> list[BatchResult]:
        """
        Take the songs that the trigger reports, and go on with the others.

        :param event: What it reports.
        :param deadline: When waiting ends, in Unix seconds.
        :param said_at: When the last line of progress was written, in Unix seconds.
        :param try_number: The try that deferred.
        """
        batch = self._load(context)
        if batch.edited:
            batch.save_anew()
        tab = BatchShow(context, batch, self.attempts, resumed=True)
        part, error = part_from_event(event)
        batch.take(part)
        tab.show(ended=error is not None)
        if error is not None:
            self._give(context, list(batch.results()))
            raise error
        return self._go_on(context, batch, tab, deadline, said_at)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral."""
        if is_of_earlier_try(next_kwargs, context):
            return self.execute(context)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except DEFERRAL_ERRORS as error:
            self._give(context, list(self._load(context).results()))
            raise batch_deferral_error(error) from error

    def _load(self, context: Context) -> Batch:
        prompts = self.prompts
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise WhisulInvalidInputError(
                f"prompts must be a list of texts that is not empty, not {type(prompts).__name__}. Nothing was sent."
            )
        for prompt in prompts:
            generate_request(prompt)
        store = context.get("task_state_store") if self.durable else None
        notebook = cast(Notebook, store) if store is not None else XComNotebook(context)
        batch = Batch.load(prompts, notebook, task_round(context))
        if batch.left_over:
            self.log.warning(
                "The prompts of %d jobs that this task has submitted are no longer among its prompts. They cost what "
                "they cost; a WhisulJobSensor finds each by its id: %s",
                len(batch.left_over),
                ", ".join(batch.left_over),
            )
        return batch

    def _face_lost_submissions(self, batch: Batch) -> None:
        """Warn of the songs that earlier tries may have submitted without learning of the job."""
        for index in batch.with_status("submitting"):
            song = batch.songs[index]
            again = self.on_ambiguous_submit == "retry" or batch.cleared
            self.log.warning(
                "An earlier try did not learn which job it got for %r. A song may already have been paid for, and the "
                "API cannot tell. %s",
                quote(song.prompt)[:60],
                "Submitting it again." if again else "It is not submitted again until you clear this task.",
            )
            if again:
                song.status = "new"

    def _go_on(
        self,
        context: Context,
        batch: Batch,
        tab: BatchShow,
        deadline: float | None = None,
        said_at: float | None = None,
    ) -> list[BatchResult]:
        """Submit what there is to submit, then defer while jobs run, and end when none does."""
        resumed = deadline is not None
        tab.show()
        try:
            submitted, not_before = self._submit_all(batch)
        except Exception:
            tab.show(ended=True)
            self._give(context, list(batch.results()))
            raise
        if submitted or deadline is None:
            deadline, resumed = self.clock.time() + self.timeout, False
        tab.show()
        if not batch.with_status(*WAITED_FOR):
            return self._finish(context, batch, tab)
        now = self.clock.time()
        delivered, failed = len(batch.with_status("completed")), len(batch.with_status(*NOT_MADE))
        # Said here too: Airflow keeps of a try's triggers the last one's log only.
        if delivered and now - (said_at or 0.0) >= PROGRESS_SECONDS:
            said_at = now
            self.log.info("%s", progress(delivered, len(batch.songs), failed))
        return self.defer(
            trigger=WhisulBatchTrigger(
                job_ids=batch.to_watch(),
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=deadline,
                submitted_at=deadline - self.timeout,
                total=len(batch.songs),
                delivered=delivered,
                failed=failed,
                resumed=resumed,
                said_at=said_at,
                not_before=not_before,
            ),
            method_name="execute_part",
            kwargs={"deadline": deadline, "said_at": said_at, "try_number": context["ti"].try_number},
            timeout=timedelta(seconds=max(0.0, deadline - now) + FRAMEWORK_TIMEOUT_MARGIN),
        )

    def _submit_all(self, batch: Batch) -> tuple[int, float | None]:
        """
        Submit each song that is new, or whose job failed and that has attempts left.

        :param batch: The batch.
        :return: How many were submitted, and when Whisul may be asked again, in Unix seconds, where it has said so.
            Where submitting has to wait and jobs run the rest is left as it is.
        :raises WhisulError: Submitting has to wait, and no job runs; or no job can be looked at either.
        """
        waiting = batch.to_submit(self.attempts)
        said = self.clock.time()
        for done, index in enumerate(waiting, start=1):
            song = batch.songs[index]
            before = replace(song)
            if song.status == "failed":
                self.log.warning("Submitting %r again. %s", quote(song.prompt)[:60], song.error)
            try:
                self.hook.wait_for_turn()
                batch.submitting(index)
                batch.save([index])
                job_id = self.hook.generate(song.prompt)
            except WhisulAmbiguousSubmitError as error:
                # Left as it is: the next try of the task finds it so, and this one goes on with the others.
                song.error = f"It may have been paid for, but which job it got was lost. {error}"
                self.log.error("%r: %s", quote(song.prompt)[:60], error)
            except WhisulInvalidInputError as error:
                song.status, song.error = "failed", str(error)
                song.submissions = self.attempts
            except WhisulError as error:
                if error.http_status in _PROMPT_REFUSED:
                    song.status, song.error = "failed", str(error)
                    song.submissions = self.attempts
                else:
                    batch.songs[index] = before
                    batch.save([index])
                    if isinstance(error, ABOUT_ALL) or not batch.with_status(*WAITED_FOR):
                        raise
                    self.log.warning(
                        "%s So %d of %d songs are not submitted yet: those that run are waited for first.",
                        error,
                        len(waiting) - done + 1,
                        len(batch.songs),
                    )
                    return done - 1, quiet_until(error, self.clock.time())
            else:
                batch.submitted(index, job_id)
            self._note_submission(batch, index)
            if self.clock.time() - said >= PROGRESS_SECONDS:
                said = self.clock.time()
                self.log.info("%s of %s submitted", f"{done:,}", f"{len(waiting):,}")
        if waiting:
            self.log.info("Submitted %d songs", len(waiting))
        return len(waiting), None

    def _note_submission(self, batch: Batch, index: int) -> None:
        song = batch.songs[index]
        try:
            batch.save([index])
        except BaseException:
            # Also where the task is just being ended: nothing else knows of the job.
            if song.status == "running":
                self.log.error(
                    "%r became job %s, which is paid for, but that could not be noted: a later try will not know it. "
                    "A WhisulJobSensor with this job id finds the song.",
                    quote(song.prompt)[:60],
                    song.job_id,
                )
            raise

    def _finish(self, context: Context, batch: Batch, tab: BatchShow) -> list[BatchResult]:
        try:
            self._fetch_large(batch)
        except Exception:
            self._give(context, list(batch.results()))
            raise
        finally:
            tab.show(ended=True)
        results = list(batch.results())
        failed = [result for result in results if result["status"] == "failed"]
        self.log.info("%d of %d songs delivered, %d failed", len(results) - len(failed), len(results), len(failed))
        for result in failed:
            self.log.error("Failed: %r: %s", quote(result["prompt"])[:60], result["error"])
        if len(failed) <= self.max_failures:
            batch.deliver()
            return results
        self._give(context, results)
        named = "; ".join(
            f"{quote(result['prompt'])[:60]!r}: {quote(result['error'] or '')[:120]}" for result in failed[:_MOST_NAMED]
        )
        more = f"; and {len(failed) - _MOST_NAMED} more, see the log" if len(failed) > _MOST_NAMED else ""
        # Where a retry only has to wait longer it need not begin at once.
        late = len(batch.with_status("late")) == len(failed)
        raise (WhisulJobTimeoutError if late else WhisulJobFailedError)(
            f"{len(failed)} of {len(results)} songs failed, more than max_failures={self.max_failures}: {named}{more}. "
            "The others are in this task's XCom; from Airflow 3.3 on a retry submits only the failed ones again, and "
            "goes on waiting for jobs that may still complete."
        )

    @staticmethod
    def _give(context: Context, results: list[BatchResult]) -> None:
        """Hand over what there is though the task fails: it is paid for, and wanted all the same."""
        context["ti"].xcom_push(key="return_value", value=results)

    def _fetch_large(self, batch: Batch) -> None:
        """Look once more at the jobs whose data was too much to be kept."""
        for index in batch.with_status("completed"):
            song = batch.songs[index]
            if song.song is not None or song.job_id is None:
                continue
            try:
                job = self.hook.get_job(song.job_id)
            except WhisulJobNotFoundError as error:
                song.status, song.error = "gone", str(error)
                batch.save([index])
            else:
                if job.completed:
                    song.song = job.song()

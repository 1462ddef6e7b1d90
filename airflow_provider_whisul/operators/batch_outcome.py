"""How a batch ends: whether its failed songs fail the task, with which error, and what a retry then does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.price import in_brackets
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulBudgetExceededError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.operators.arguments import allowed_failures
from airflow_provider_whisul.polling import FIRST_POLL_MAX_WAIT
from airflow_provider_whisul.state.batch_song import BatchResult
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.song_state import OnAmbiguousSubmit
from airflow_provider_whisul.text import count, excerpt, mask, quote, truncate_to_sentence

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.hooks.whisul import WhisulHook

#: How many failed songs an error names. The task's log names all of them.
_MAX_NAMED = 20

#: Characters of a failed song's reason in an error.
_MAX_REASON = 160


@dataclass(frozen=True)
class BatchOutcome:
    """
    What a batch is when none of its jobs runs any longer.

    :param state: The songs.
    :param max_failures: The operator's argument.
    :param on_ambiguous_submit: The operator's argument.
    :param retry_left: Whether Airflow tries the task again if it fails.
    :param max_submissions: The operator's argument.
    :param settings: The connection's settings.
    """

    state: BatchState
    max_failures: float
    on_ambiguous_submit: OnAmbiguousSubmit
    retry_left: bool
    max_submissions: int | None
    settings: ConnectionSettings

    def error(self, failed: Sequence[BatchResult]) -> WhisulError | None:
        """
        Return the error that the task fails with, None if it succeeds.

        :param failed: The songs that failed.
        """
        allowed = allowed_failures(self.max_failures, len(self.state.songs))
        unsubmitted = len(self.state.with_status("new"))
        # Within max_failures a song is given up only if it was tried, or cannot be tried again.
        if len(failed) <= allowed and not (unsubmitted and self._continues):
            return None
        named = "; ".join(self._named(result) for result in failed[:_MAX_NAMED])
        more = f" And {len(failed) - _MAX_NAMED} more, see the log." if len(failed) > _MAX_NAMED else ""
        share = f" ({count(allowed, 'song')})" if isinstance(self.max_failures, float) else ""
        limit = f", more than max_failures={self.max_failures}{share}" if len(failed) > allowed else ""
        cls = self._class(len(failed))
        cost = "" if self._used_up else f" {self._submitted}."
        return cls(
            f"{len(failed)} of {count(len(self.state.songs), 'song')} failed{limit}: {named}{more}{cost} "
            f"{self._outlook(cls)}"
        )

    def _named(self, result: BatchResult) -> str:
        reason = truncate_to_sentence(quote(result["error"] or ""), _MAX_REASON)
        job = f" (job {result['job_id']})" if result["job_id"] and result["job_id"] not in reason else ""
        return f"{excerpt(mask(result['prompt'], self.settings.api_key))!r}{job}: {reason}"

    @property
    def _submitted(self) -> str:
        state, times = self.state, self.state.submitted
        cost = in_brackets(self.settings.price_per_song, times)
        return f"This task has submitted {count(times, 'time')} in {state.counted_tries}{cost}"

    @property
    def _continues(self) -> bool:
        return self.retry_left and self.state.durable and not self._used_up

    @property
    def _used_up(self) -> bool:
        """Whether the task may submit nothing more, in this try and in any later one."""
        return self.max_submissions is not None and self.state.submitted >= self.max_submissions

    def _class(self, failed: int) -> type[WhisulError]:
        """The next try must wait after a lost response, and need not begin at once only to wait longer for a job."""
        # A later try may still get the songs of these jobs, without a submission.
        if self._used_up and not self.state.with_status("timed_out", "not_found"):
            return WhisulBudgetExceededError
        ambiguous = len(self.state.with_status("submitting"))
        if ambiguous == failed and self.on_ambiguous_submit == "fail":
            return WhisulAmbiguousSubmitFinalError
        if ambiguous:
            return WhisulAmbiguousSubmitError
        all_timed_out = len(self.state.with_status("timed_out")) == failed
        return WhisulJobTimeoutError if all_timed_out else WhisulJobFailedError

    def _outlook(self, cls: type[WhisulError]) -> str:
        delivered = "The result of every song is in this task's XCom."
        again = "A retry" if self.retry_left else "Clearing this task"
        if cls is WhisulAmbiguousSubmitFinalError:
            delivered, again = f"{delivered} {WhisulAmbiguousSubmitFinalError.outlook}", "That"
        if not self.state.durable:
            songs = count(len(self.state.songs), "song")
            return f"{delivered} {again} submits, and pays for, all {songs} again: nothing is kept for a later try."
        if cls is WhisulAmbiguousSubmitFinalError:
            return delivered
        if self._used_up:
            waits = (
                f" {again} waits again for jobs that may still complete."
                if cls is not WhisulBudgetExceededError
                else ""
            )
            return (
                f"{delivered}{waits} {self._submitted}, and max_submissions={self.max_submissions} permits no more. "
                "Raise max_submissions, then clear the task: it submits only the songs that failed."
            )
        ambiguous = bool(self.state.with_status("submitting"))
        left_alone = ambiguous and self.on_ambiguous_submit == "fail" and self.retry_left
        pieces = []
        if self.state.with_status("new", "failed", "not_found") or (ambiguous and not left_alone):
            pieces.append("submits only the songs that failed")
        if self.state.with_status("timed_out"):
            pieces.append("waits again for jobs that may still complete")
        outlook = f"{delivered} {again} {' and '.join(pieces)}." if pieces else delivered
        if left_alone:
            outlook += (
                ' Since on_ambiguous_submit is "fail", a song whose submission was ambiguous is submitted only once '
                "you clear this task."
            )
        return outlook


def retry_left(context: Context) -> bool:
    """
    Return whether Airflow tries a task again if this try fails.

    :param context: The task's context.
    """
    return context["ti"].try_number <= (context["ti"].max_tries or 0)


def fetch_large_songs(state: BatchState, hook: WhisulHook) -> None:
    """
    Poll the jobs again whose data was too large to keep.

    :param state: The songs. One that cannot be fetched is recorded as failed.
    :param hook: The client.
    :raises WhisulError: An error that every other poll would meet too.
    """
    failing = False
    for index in state.with_status("completed"):
        song = state.songs[index]
        if song.song is not None or song.job_id is None:
            continue
        try:
            # Where one song's job could not be polled in six attempts, the others get one attempt each.
            max_wait = FIRST_POLL_MAX_WAIT if failing else None
            song.song = hook.get_job(song.job_id, retry=not failing, max_wait=max_wait).song
        except WhisulJobNotFoundError as error:
            song.status, song.error = "not_found", str(error)
            state.save([index])
        except WhisulError as error:
            if not error.transient:
                raise
            failing = True
            # A later try polls the job again, and does not submit the song.
            song.status, song.error = "timed_out", f"The song is completed, but could not be fetched. {error}"
            state.save([index])

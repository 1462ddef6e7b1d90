"""How a batch submits its songs: which, in which order, and when it stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_whisul.api.price import count_songs, in_brackets
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulStateError,
)
from airflow_provider_whisul.operators.submission import submission_id
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.state.batch_song import PENDING, BatchSong
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.song_state import OnAmbiguousSubmit
from airflow_provider_whisul.text import count, excerpt
from airflow_provider_whisul.triggers.whisul_batch import ACCOUNT_ERRORS, PROGRESS_SECONDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.hooks.whisul import WhisulHook

#: After this many ambiguous submissions in a row nothing more is submitted in this try: each may cost a song.
MAX_CONSECUTIVE_AMBIGUOUS = 3


class Submissions(NamedTuple):
    """What the submitting of songs came to."""

    submitted: int
    #: When the next request may be sent, where a cool-down stopped the submissions.
    blocked_until: NotBefore | None = None
    #: How many submissions of this try, the last ones, were ambiguous.
    ambiguous_in_a_row: int = 0


@dataclass(frozen=True)
class BatchSubmitter:
    """
    Submits the songs of a batch.

    :param hook: The client.
    :param context: The task's context.
    :param state: The songs.
    :param attempts: How often a song may be submitted in a try.
    :param max_submissions: How often the task may submit in all of its tries, None for as often as it likes.
    """

    hook: WhisulHook
    context: Context
    state: BatchState
    attempts: int
    max_submissions: int | None = None

    def resolve_ambiguous_submissions(self, on_ambiguous_submit: OnAmbiguousSubmit) -> None:
        """
        Find the jobs that an earlier try did not record. Warn of those that nobody knows, and let them be submitted.

        :param on_ambiguous_submit: Whether those are submitted again, or only once a user has cleared the task.
        """
        state, head = self.state, self.state.earlier
        for index in state.with_status("submitting"):
            song, entry = state.songs[index], None
            if head is not None:
                called = submission_id(self.context, number=song.number, index=song.place)
                entry = self.hook.find_submission(called, song.prompt, since=head.began_at)
                if entry is not None and entry.job_id is not None:
                    self.hook.log.info(
                        "An earlier try ended before it had recorded the job of %r. The ledger has it: job %s",
                        excerpt(song.prompt),
                        entry.job_id,
                    )
                    state.set_job(index, entry.job_id)
                    continue
            again = on_ambiguous_submit == "retry" or state.cleared
            self.hook.log.warning(
                "An earlier try did not record which job it got for %r. A song may already have been paid for, and the "
                "API cannot tell. %s",
                excerpt(song.prompt),
                "Submitting it again." if again else "It is not submitted again until you clear this task.",
            )
            if again:
                song.status = "new"
                if entry is None:
                    state.reuse_number(index)

    def submit_all(
        self, ambiguous: int, on_progress: Callable[[float], None], *, too_late: bool = False
    ) -> Submissions:
        """
        Submit each song that may be.

        The job of a song is stored with the intent of the next one, in one write, where that is submitted within 0.1 s.
        Until then only the ledger has it.

        :param ambiguous: How many submissions of this try, the last ones, were ambiguous.
        :param on_progress: Called from time to time after a submission, with the time in Unix seconds.
        :param too_late: Whether the task has no time left to wait for a song, so that none is submitted.
        :raises WhisulError: No job is running, or the error would fail every poll too.
        """
        try:
            submissions = self._submit_all(ambiguous, on_progress, too_late=too_late)
        except BaseException:
            try:
                self._save_unsaved()
            except WhisulStateError as error:
                # What ended the submitting says more.
                self.hook.log.warning("%s", error)
            raise
        self._save_unsaved()
        return submissions

    def _submit_all(self, ambiguous: int, on_progress: Callable[[float], None], *, too_late: bool) -> Submissions:
        state, log, clock = self.state, self.hook.log, self.hook.clock
        stops = too_late or ambiguous >= MAX_CONSECUTIVE_AMBIGUOUS
        waiting = [] if stops else state.to_submit(self.attempts)
        began_with, price = state.submitted, self.hook.settings.price_per_song
        progress_at = clock.time()
        for done, index in enumerate(waiting, start=1):
            if self.max_submissions is not None and state.submitted >= self.max_submissions:
                self._stop_at_max_submissions(waiting[done - 1 :], submitted=done - 1)
                return Submissions(done - 1, None, ambiguous)
            song = state.songs[index]
            before = replace(song)
            if song.status == "failed":
                log.warning("Submitting %r again. %s", excerpt(song.prompt), song.error)
            try:
                job_id = self._generate(index, before)
            except WhisulAmbiguousSubmitError as error:
                # Left as it is: the next try of the task finds it so, and this one continues with the others.
                state.songs[index].error = str(error)
                log.warning("prompts[%d], %r: %s", index, excerpt(song.prompt), error)
                ambiguous += 1
            except WhisulInvalidInputError as error:
                state.songs[index] = replace(
                    before, status="failed", job_id=None, song=None, error=str(error), submissions=self.attempts
                )
            except WhisulError as error:
                state.songs[index] = before
                state.save_later(index)
                if isinstance(error, ACCOUNT_ERRORS) or not state.with_status(*PENDING):
                    raise
                log.warning(
                    "%s So %d of %s must wait to be submitted: the jobs that run are waited for first.",
                    error,
                    len(waiting) - done + 1,
                    count(len(state.songs), "song"),
                )
                return Submissions(done - 1, self.hook.throttled_until(error), ambiguous)
            else:
                ambiguous = 0
                state.set_job(index, job_id)
                state.songs[index].submitted_at = clock.time()
            state.save_later(index)
            is_due = clock.time() - progress_at >= PROGRESS_SECONDS
            if done == 1 or is_due:
                # First what is worth money: to tell of the progress may take long.
                state.save_unsaved()
                on_progress(clock.time())
            if ambiguous == MAX_CONSECUTIVE_AMBIGUOUS:
                log.warning(
                    "The responses to %d submissions in a row were lost, and each song may have been paid for. So this "
                    "try submits nothing more, and leaves %s to the next one.",
                    ambiguous,
                    count(len(waiting) - done, "song"),
                )
                return Submissions(done, None, ambiguous)
            if is_due:
                progress_at = clock.time()
                cost = in_brackets(price, state.submitted - began_with)
                log.info("%s of %s submitted%s", f"{done:,}", f"{len(waiting):,}", cost)
        if waiting:
            log.info("Submitted %s", count_songs(state.submitted - began_with, price))
        return Submissions(len(waiting), None, ambiguous)

    def _generate(self, index: int, before: BatchSong) -> str:
        state, song = self.state, self.state.songs[index]
        # Without a record all tries would have the same numbers, and a try that is to submit would find earlier jobs.
        called = submission_id(self.context, number=song.number + 1, index=index) if state.durable else None
        return self.hook.generate(
            song.prompt,
            before_send=partial(state.record_intent, index),
            before_wait=state.save_unsaved,
            on_refused=partial(state.discard_intent, index, before),
            submission=called,
        )

    def _stop_at_max_submissions(self, left: list[int], submitted: int) -> None:
        state = self.state
        for index in left:
            if state.songs[index].status == "new":
                song = state.songs[index]
                again = " again" if song.number else ""
                song.error = (
                    f"The song was not submitted{again}, since max_submissions={self.max_submissions} is used up."
                )
        if not submitted:
            # Said when the limit was reached, and in the task's error.
            return
        self.hook.log.warning(
            "max_submissions=%s is used up: this task has submitted %d times in all of its tries%s. %s not submitted.",
            self.max_submissions,
            state.submitted,
            in_brackets(self.hook.settings.price_per_song, state.submitted),
            f"{count(len(left), 'song')} {'is' if len(left) == 1 else 'are'}",
        )

    def _save_unsaved(self) -> None:
        try:
            self.state.save_unsaved()
        except BaseException:
            # Also where the task is just being ended: this try's log is where a person looks for the job.
            for song in (self.state.songs[index] for index in sorted(self.state.unsaved)):
                if song.status == "running":
                    self.hook.log.error(
                        "%r became job %s, which is paid for, but that could not be recorded. A later try knows it "
                        "only where the ledger has it. A WhisulJobSensor with this job id finds the song.",
                        excerpt(song.prompt),
                        song.job_id,
                    )
            raise

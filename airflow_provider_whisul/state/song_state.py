"""
What a task that makes one song knows about it over its tries.

A submission costs credits, and the API can neither be asked whether one arrived nor be told to make a song only once.
So a task records that it is about to submit, then which job it got. A later try reads that first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast, get_args

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.state.prompt_store import save_prompts
from airflow_provider_whisul.state.state_store import (
    NoStateStore,
    StateStore,
    clear_count,
    prompt_fingerprint,
    read_versioned,
    task_state_store,
    unreadable,
    versioned,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: The key in the state store.
SONG_KEY = "whisul_song"

#: What a later try does about an ambiguous submission: submit again, or fail until a user clears the task.
OnAmbiguousSubmit = Literal["retry", "fail"]

#: ``submitting``: from the intent to submit until the response, or for good where that was lost. ``running``: there is
#: a job. ``delivered``: the task had the result that it was asked for, and only had to return it to Airflow.
#: ``ended``: the job made no song, so that the next try submits again.
SongStatus = Literal["submitting", "running", "delivered", "ended"]


def check_on_ambiguous_submit(value: OnAmbiguousSubmit) -> OnAmbiguousSubmit:
    """
    Return the argument of an operator.

    :param value: The argument.
    :raises ValueError: It is another word.
    """
    if value not in ("retry", "fail"):
        raise ValueError(f'on_ambiguous_submit is {value!r}; it must be "retry" or "fail".')
    return value


@dataclass(frozen=True)
class Submission:
    """
    A job, as the task that submitted it knows it.

    :param job_id: The job's id.
    :param submitted_at: When the job was submitted, in Unix seconds.
    """

    job_id: str
    submitted_at: float

    def __str__(self) -> str:
        return f"job {self.job_id}, submitted at {utc(self.submitted_at)}"


@dataclass(frozen=True)
class SongRecord:
    """
    What one try records for the next.

    :param prompt: The prompt's fingerprint.
    :param account: The account that the prompt was submitted with.
    :param submitted_at: When the prompt was submitted, or was about to be; Unix seconds.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` at that time.
    :param number: How many submissions the task instance has made, whatever their prompts, this one included.
    :param status: How far the song is.
    :param job_id: The job; None while the status is ``submitting``.
    :param prompt_pieces: In how many values the prompt's text is stored; 0 where no later try needs it.
    """

    prompt: str
    account: str
    submitted_at: float
    clear_count: int
    number: int
    status: SongStatus
    job_id: str | None = None
    prompt_pieces: int = 0

    @property
    def prompt_generation(self) -> int:
        """The generation of the stored text: two in turn, so that the one of an earlier record stays as it is."""
        return self.number % 2

    @property
    def submission(self) -> Submission | None:
        """The job, None if the record holds only the intent."""
        return None if self.job_id is None else Submission(self.job_id, self.submitted_at)

    @classmethod
    def read(cls, store: StateStore) -> SongRecord | None:
        """
        Return the stored record, None if there is none.

        :param store: The store.
        :raises WhisulStateUnreadableError: There is a record that this version does not understand.
        """
        match value := read_versioned(store, SONG_KEY):
            case None:
                return None
            case {
                "prompt": str(prompt),
                "account": str(account),
                "submitted_at": int() | float() as submitted_at,
                "clear_count": int(cleared),
                "number": int(number),
                "status": str(status),
                "job_id": str() | None as job_id,
                "prompt_pieces": int(pieces),
            } if status in get_args(SongStatus) and (status == "submitting") == (value["job_id"] is None):
                return cls(prompt, account, submitted_at, cleared, number, cast(SongStatus, status), job_id, pieces)
        raise unreadable(store, SONG_KEY)


class SongState:
    """
    The record of one task.

    :param store: Where it is kept; None for nowhere.
    :param prompt: The prompt of this try.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
    :param account: Returns the account that the task's Airflow connection leads to.
    :param keep_prompt: Whether to store the prompt's text too, for a later try that is not told it.
    :raises WhisulStateUnreadableError: There is a record that this version does not understand.
    """

    def __init__(
        self,
        store: StateStore | None,
        prompt: str,
        clear_count: int,
        account: Callable[[], str],
        keep_prompt: bool = False,
    ) -> None:
        #: Whether a later try finds the record.
        self.durable = store is not None
        self.clear_count = clear_count
        self._store = NoStateStore() if store is None else store
        self._prompt = prompt_fingerprint(prompt)
        self._prompt_to_keep = [prompt] if keep_prompt else None
        self._prompt_pieces = 0
        self._account = account
        self._record = SongRecord.read(self._store)
        #: The number of the submission that this try makes, if it makes one.
        self.number = (self._record.number if self._record else 0) + 1
        self._intent_recorded = False
        self._before_intent: SongRecord | None = None

    @classmethod
    def from_context(
        cls, context: Context, prompt: str, durable: bool, account: Callable[[], str], keep_prompt: bool = False
    ) -> SongState:
        """
        Return the state of the running task.

        :param context: The task's context.
        :param prompt: The prompt of this try.
        :param durable: Whether to keep anything for later tries.
        :param account: Returns the account that the task's Airflow connection leads to.
        :param keep_prompt: Whether to store the prompt's text too, for a later try that is not told it.
        :raises WhisulStateError: The store is away, or what it holds cannot be read.
        """
        return cls(task_state_store(context, durable), prompt, clear_count(context), account, keep_prompt)

    @cached_property
    def earlier(self) -> SongRecord | None:
        """
        The record of an earlier try, None if it is not about the song that this try is to make.

        That is so where its job made no song, where the task had its song and a user has cleared it since, which asks
        for a new take, and where the prompt has changed.
        """
        record = self._record
        if record is None:
            return None
        if record.status == "ended":
            log.info(
                "Job %s of an earlier try made no song: this try submits, and pays for, one more song.", record.job_id
            )
            return None
        if record.status == "delivered" and self.cleared_since(record):
            log.info("This task has had job %s, and was cleared since: this try pays for a new song.", record.job_id)
            return None
        if record.prompt != self._prompt:
            log.warning(
                "An earlier try %s, but for another prompt: the template or the DAG has changed since, or the prompt "
                "is another one each time it is rendered. This try submits its own prompt, and pays for one more song. "
                "A prompt that every try renders alike avoids that, such as one with {{ ds }} or a fixed seed.",
                f"submitted job {record.job_id}" if record.job_id else "may have submitted a job",
            )
            return None
        return record

    @property
    def submitted(self) -> int:
        """How many submissions the task has made in all of its tries."""
        return self._record.number if self._record else 0

    @property
    def submitted_before(self) -> bool:
        """Whether an earlier try has submitted, and was not cleared once its song had been delivered or had failed."""
        record = self._record
        return record is not None and not (record.status in ("delivered", "ended") and self.cleared_since(record))

    def cleared_since(self, record: SongRecord) -> bool:
        """
        Return whether a user has cleared the task since a record was made.

        :param record: The record.
        """
        return record.clear_count != self.clear_count

    def is_of_another_account(self, record: SongRecord) -> bool:
        """
        Return whether a record's job was submitted with another API key, or to another host, than this try uses.

        :param record: The record.
        """
        return record.account != self._account()

    def record_intent(self, now: float) -> None:
        """
        Record that the prompt is about to be submitted.

        :param now: The time, in Unix seconds.
        """
        self._before_intent, self._intent_recorded = self._record, True
        record = SongRecord(self._prompt, self._account(), now, self.clear_count, self.number, "submitting")
        self._save_prompt(record.prompt_generation)
        self._save(replace(record, prompt_pieces=self._prompt_pieces))

    def discard_intent(self) -> None:
        """Discard this try's intent, which certainly made no job. What was recorded before it is recorded again."""
        if not self._intent_recorded:
            return
        if self._before_intent is not None:
            self._save(self._before_intent)
        else:
            self._record = None
            self._store.delete(SONG_KEY)
        self._intent_recorded = False

    def record_submission(self, submission: Submission, *, delivered: bool) -> None:
        """
        Record the job that the submission made.

        :param submission: The job.
        :param delivered: Whether the job is all that the task is asked for.
        """
        record = SongRecord(
            self._prompt,
            # Read again: the API key may have been replaced while the prompt was submitted.
            self._account(),
            submission.submitted_at,
            self.clear_count,
            self.number,
            "delivered" if delivered else "running",
            submission.job_id,
        )
        if not self._prompt_pieces:
            # There was no intent: another try, which runs at the same time, has submitted the prompt.
            self._save_prompt(record.prompt_generation)
        self._save(replace(record, prompt_pieces=self._prompt_pieces))

    def record_found_job(self, record: SongRecord, job_id: str, *, account: str, delivered: bool) -> Submission:
        """
        Record the job of an earlier try's submission.

        :param record: The record of the earlier try.
        :param job_id: The job's id.
        :param account: The account that the job is known to be of.
        :param delivered: Whether the job is all that the task is asked for.
        :return: The job.
        """
        status: SongStatus = "delivered" if delivered else "running"
        # A delivery that counts as one of before the clear would ask for a new take in this try's retry.
        self.earlier = replace(record, account=account, clear_count=self.clear_count, job_id=job_id, status=status)
        self._save(self.earlier)
        return Submission(job_id, record.submitted_at)

    def record_delivery(self, job_id: str) -> None:
        """
        Record that the song is there. The record stays, since returning the song to Airflow can still fail.

        :param job_id: Its job. Nothing is recorded where this machine's own record is of another one.
        """
        if self._record is not None and self._record.job_id == job_id:
            self._save(replace(self._record, status="delivered", clear_count=self.clear_count))

    def record_end(self, job_id: str) -> None:
        """
        Record that the job made no song, so that the next try submits again.

        :param job_id: The job, as in :meth:`record_delivery`.
        """
        if self._record is not None and self._record.job_id == job_id:
            self._save(replace(self._record, status="ended"))

    def _save_prompt(self, generation: int) -> None:
        """Store the prompt's text, before the record which says that it is there."""
        if self._prompt_to_keep is not None:
            self._prompt_pieces = save_prompts(self._store, generation, self._prompt_to_keep)

    def _save(self, record: SongRecord) -> None:
        self._record = record
        self._store.set(SONG_KEY, versioned(asdict(record)))

"""
What a task that makes one song knows about it over its tries (Airflow 3.3 and later).

A submission costs credits, and the API can neither be asked whether one arrived nor be told to make a song only once.
So a task records that it is about to submit, then which job it got. A later try reads that first.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.state.state_store import (
    NoStateStore,
    StateStore,
    clear_count,
    prompt_fingerprint,
    task_state_store,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: The key in the state store.
SONG_KEY = "whisul_song"

#: What a later try does about an ambiguous submission: submit again, or fail until a user clears the task.
OnAmbiguousSubmit = Literal["retry", "fail"]


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
    :param submitted_at: When the prompt was submitted, or was about to be; Unix seconds.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` at that time.
    :param job_id: The job; None from the intent to submit until the response.
    :param delivered: Whether the task had the result that it was asked for, and only had to return it to Airflow.
    """

    prompt: str
    submitted_at: float
    clear_count: int
    job_id: str | None = None
    delivered: bool = False

    @property
    def submission(self) -> Submission | None:
        """The job, None if the record holds only the intent."""
        return None if self.job_id is None else Submission(self.job_id, self.submitted_at)

    @classmethod
    def from_stored(cls, value: object) -> SongRecord | None:
        """
        Read a stored record; None if there is none, or none that this version understands.

        :param value: The stored value.
        """
        match value:
            case {
                "prompt": str(prompt),
                "submitted_at": int() | float() as submitted_at,
                "clear_count": int(cleared),
                "job_id": str() | None as job_id,
                "delivered": bool(delivered),
            }:
                return cls(prompt, submitted_at, cleared, job_id, delivered)
        return None


class SongState:
    """
    The record of one task.

    :param store: Where it is kept.
    :param prompt: The prompt of this try.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
    """

    def __init__(self, store: StateStore, prompt: str, clear_count: int) -> None:
        self._store = store
        self._prompt = prompt_fingerprint(prompt)
        self._clear_count = clear_count
        self._record = SongRecord.from_stored(store.get(SONG_KEY))
        self._intent_recorded = False
        self._before_intent: SongRecord | None = None

    @classmethod
    def from_context(cls, context: Context, prompt: str, durable: bool) -> SongState:
        """
        Return the state of the running task.

        :param context: The task's context.
        :param prompt: The prompt of this try.
        :param durable: Whether to keep anything for later tries.
        """
        store = task_state_store(context, durable)
        return cls(NoStateStore() if store is None else store, prompt, clear_count(context))

    @cached_property
    def earlier(self) -> SongRecord | None:
        """
        The record of an earlier try, None if it is not about the song that this try is to make.

        That is so where the task had its song and a user has cleared it since, which asks for a new take, and where
        the prompt has changed.
        """
        record = self._record
        if record is None or (record.delivered and record.clear_count != self._clear_count):
            return None
        if record.prompt != self._prompt:
            log.warning(
                "An earlier try %s, but for another prompt: the template or the DAG has changed since, or the prompt "
                "is another one each time it is rendered. This try submits its own.",
                f"submitted job {record.job_id}" if record.job_id else "may have submitted a job",
            )
            return None
        return record

    def cleared_since(self, record: SongRecord) -> bool:
        """
        Return whether a user has cleared the task since a record was made.

        :param record: The record.
        """
        return record.clear_count != self._clear_count

    def record_intent(self, now: float) -> None:
        """
        Record that the prompt is about to be submitted.

        :param now: The time, in Unix seconds.
        """
        self._before_intent, self._intent_recorded = self._record, True
        self._save(SongRecord(self._prompt, now, self._clear_count))

    def discard_intent(self) -> None:
        """Discard this try's intent, which certainly made no job. An ambiguous submission before it stays recorded."""
        if not self._intent_recorded:
            return
        self._intent_recorded = False
        if self._before_intent is not None and self._before_intent.submission is None:
            self._save(self._before_intent)
        else:
            self.clear()

    def record_submission(self, submission: Submission, *, delivered: bool) -> None:
        """
        Record the job that the submission made.

        :param submission: The job.
        :param delivered: Whether the job is all that the task is asked for.
        """
        record = SongRecord(
            self._prompt, submission.submitted_at, self._clear_count, submission.job_id, delivered=delivered
        )
        self._save(record)

    def record_delivery(self) -> None:
        """Record that the song is there. The record stays, since returning the song to Airflow can still fail."""
        if self._record is not None:
            self._save(replace(self._record, delivered=True, clear_count=self._clear_count))

    def clear(self) -> None:
        """Forget the job: it made no song, and the next try must submit again."""
        self._record = None
        self._store.delete(SONG_KEY)

    def _save(self, record: SongRecord) -> None:
        self._record = record
        self._store.set(SONG_KEY, asdict(record))

"""
What a task remembers of the song it is making, from one of its tries to the next (Airflow 3.3 and later).

A submission costs credits, and the API can neither be asked whether one arrived nor be told to make a song only once.
So a task notes that it is about to submit, then which job it got, and a later try reads that first. Airflow keeps the
note in its task state store, which outlives a worker that is killed at any moment.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, cast

from airflow_provider_whisul.clock import utc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: The keys in the task state store.
NOTE_KEY = "whisul_song"
DEADLINE_KEY = "whisul_deadline"


#: What a later try does about a submission whose answer was lost: submit again, or fail until a user clears the task.
OnAmbiguousSubmit = Literal["retry", "fail"]


def check_on_ambiguous_submit(value: OnAmbiguousSubmit) -> OnAmbiguousSubmit:
    """
    Return what an operator's user has set.

    :param value: The value.
    :raises ValueError: It is another word.
    """
    if value not in ("retry", "fail"):
        raise ValueError(f'on_ambiguous_submit is {value!r}; it must be "retry" or "fail".')
    return value


class TaskStateStore(Protocol):
    """As much of Airflow's ``task_state_store`` as is used here."""

    def get(self, key: str) -> object: ...

    def set(self, key: str, value: Mapping[str, str | float | bool | None]) -> None: ...

    def delete(self, key: str) -> None: ...


@dataclass(frozen=True)
class Submission:
    """
    A job, as the task that submitted it knows it.

    :param job_id: Its id.
    :param at: When it was submitted, in Unix seconds.
    """

    job_id: str
    at: float

    def __str__(self) -> str:
        return f"job {self.job_id}, submitted at {utc(self.at)}"


@dataclass(frozen=True)
class SongNote:
    """
    What one try tells the next.

    :param prompt: The prompt's digest: enough to see that it has changed, and as short for any prompt.
    :param submitted_at: When the prompt was submitted, or was about to be; Unix seconds.
    :param round: Which round of tries this is; a user who clears the task begins another.
    :param job_id: The job; None from the intent to submit until the answer.
    :param delivered: Whether the task had what it was asked for, and only had to hand it to Airflow.
    """

    prompt: str
    submitted_at: float
    round: int
    job_id: str | None = None
    delivered: bool = False

    @property
    def submission(self) -> Submission | None:
        """The job, if the note has got that far."""
        return None if self.job_id is None else Submission(self.job_id, self.submitted_at)

    @classmethod
    def read(cls, value: object) -> SongNote | None:
        """Read a stored note; None if there is none, or none that this version understands."""
        match value:
            case {
                "prompt": str(prompt),
                "submitted_at": int() | float() as submitted_at,
                "round": int(round_),
                "job_id": str() | None as job_id,
                "delivered": bool(delivered),
            }:
                return cls(prompt, submitted_at, round_, job_id, delivered)
        return None


class SongMemory:
    """
    The note of one task. Without a store it remembers nothing, as every Airflow before 3.3.

    :param store: Airflow's task state store, None for none.
    :param prompt: The prompt of this try.
    :param round: Which round of tries this one belongs to.
    """

    def __init__(self, store: TaskStateStore | None, prompt: str, round: int) -> None:
        self._store = store
        self._prompt = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        self._round = round
        self._note = None if store is None else SongNote.read(store.get(NOTE_KEY))
        self._before: SongNote | None = None

    @classmethod
    def of(cls, context: Context, prompt: str, durable: bool) -> SongMemory:
        """
        Return the memory of the task that runs in a context.

        :param context: The task's context.
        :param prompt: The prompt of this try.
        :param durable: Whether to remember at all.
        """
        return cls(_store(context) if durable else None, prompt, task_round(context))

    @cached_property
    def earlier(self) -> SongNote | None:
        """
        The note of an earlier try, if it is about the song that this try is to make.

        It is not where the task had its song and a user has cleared it since, which asks for a new take, nor where
        the prompt is another one by now.
        """
        note = self._note
        if note is None or (note.delivered and note.round != self._round):
            return None
        if note.prompt != self._prompt:
            log.warning(
                "An earlier try %s, but for another prompt: the template or the DAG has changed since, or the prompt "
                "is another one each time it is rendered. This try submits its own.",
                f"submitted job {note.job_id}" if note.job_id else "may have submitted a job",
            )
            return None
        return note

    def cleared_since(self, note: SongNote) -> bool:
        """Return whether a user has cleared the task since a note was made."""
        return note.round != self._round

    def intend(self, now: float) -> None:
        """Note that the prompt is about to be submitted."""
        self._before = self._note
        self._keep(SongNote(self._prompt, now, self._round))

    def withdraw(self) -> None:
        """Take the intent back, since it certainly made no job. A submission that was lost before it stays lost."""
        if self._before is not None and self._before.submission is None:
            self._keep(self._before)
        else:
            self.forget()

    def submitted(self, submission: Submission, *, delivered: bool) -> None:
        """Note the job that the submission made, and whether the job is all that the task is asked for."""
        self._keep(SongNote(self._prompt, submission.at, self._round, submission.job_id, delivered))

    def delivered(self) -> None:
        """Note that the song is there. The note stays, since handing the song over to Airflow can still fail."""
        if self._note is not None:
            self._keep(replace(self._note, delivered=True, round=self._round))

    def forget(self) -> None:
        """Forget the job: it came to nothing, and the next try must begin anew."""
        self._note = None
        if self._store is not None:
            self._store.delete(NOTE_KEY)

    def _keep(self, note: SongNote) -> None:
        self._note = note
        if self._store is not None:
            self._store.set(NOTE_KEY, asdict(note))


def lasting_deadline(context: Context, deadline: float) -> float:
    """
    Return when the tries of a task have all together waited long enough, so that a retry does not begin to wait anew.

    :param context: The task's context.
    :param deadline: When that is if this is the first try, in Unix seconds.
    """
    store = _store(context)
    if store is None or not context["task"].retries:
        return deadline
    match store.get(DEADLINE_KEY):
        case {"round": int(round_), "deadline": int() | float() as earlier} if round_ == task_round(context):
            return earlier
    store.set(DEADLINE_KEY, {"round": task_round(context), "deadline": deadline})
    return deadline


def _store(context: Context) -> TaskStateStore | None:
    return cast("TaskStateStore | None", context.get("task_state_store"))


def task_round(context: Context) -> int:
    """Return which round of tries this is: clearing a task raises the most tries it may have by its retries."""
    return (context["ti"].max_tries or 0) - (context["task"].retries or 0)

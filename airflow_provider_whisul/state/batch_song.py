"""What a task that makes many songs knows about one of them, and how a stored song reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict, cast, get_args

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.state.state_store import prompt_fingerprint
from airflow_provider_whisul.text import storable, truncate_json

#: Bytes of JSON that the data of a song, or its error, may take where it is stored.
MAX_SONG_BYTES = 1_200
MAX_ERROR_BYTES = 600

#: ``not_found``: Whisul no longer finds the job, which a gateway's 404 can pretend. Only a later try may submit the
#: song again, once it has polled the job again (``recheck``). ``timed_out``: the job is no longer waited for but may
#: yet complete. The song is never submitted again, a later try waits for its job again.
Status = Literal["new", "submitting", "running", "recheck", "completed", "failed", "not_found", "timed_out"]

#: Songs whose job a trigger polls, and songs that failed.
PENDING: tuple[Status, ...] = ("running", "recheck")
UNSUCCESSFUL: tuple[Status, ...] = ("failed", "submitting", "not_found", "timed_out")

#: Songs that are nothing without a job.
_WITH_JOB: tuple[Status, ...] = (*PENDING, "completed", "not_found", "timed_out")

#: Why there is no song where the task ends before all songs have ended.
_REASONS: dict[Status, str] = {
    "new": "The song was not submitted.",
    "completed": "The song is completed, but could not be fetched. A retry fetches it, where a record is kept.",
    "running": "The task ended before the song's job. A retry waits for it again, where a record is kept.",
}


class BatchResult(TypedDict):
    """One song of a batch, as the operator returns it."""

    prompt: str
    job_id: str | None
    #: ``completed`` or ``failed``.
    status: str
    #: The song as the single operator returns it, None if it failed.
    song: Song | None
    #: Why it failed, None if it completed.
    error: str | None


class StoredSong(NamedTuple):
    """A song as it is stored: the fields of :class:`BatchSong`, with a fingerprint in place of the prompt."""

    fingerprint: str
    status: Status
    job_id: str | None
    submissions: int
    song: dict[str, object] | None
    error: str | None
    number: int
    place: int

    @classmethod
    def from_json(cls, value: object) -> StoredSong | None:
        """
        Read a stored song; None if the value is none.

        :param value: The stored value.
        """
        match value:
            case [
                str(fingerprint),
                str(status),
                str() | None as job_id,
                int(submissions),
                dict() | None as song,
                str() | None as error,
                int(number),
                int(place),
            ] if status in get_args(Status) and (job_id is not None or status not in _WITH_JOB):
                return cls(fingerprint, cast(Status, status), job_id, submissions, song, error, number, place)
        return None


@dataclass
class BatchSong:
    """
    One song of a batch.

    :param prompt: The prompt.
    :param status: How far the song is. ``submitting`` while a response is awaited, or where it was lost.
    :param job_id: The latest job that was made for the song.
    :param submissions: How often the song has been submitted in this try.
    :param song: The song's data once completed; None if it was too large to keep and has to be fetched again.
    :param error: Why the latest job, or submission, failed.
    :param number: How often the song has been submitted in all tries.
    :param place: The song's index when it was submitted last.
    :param submitted_at: When this process submitted it last, in Unix seconds; None where another one did. Not stored.
    """

    prompt: str
    status: Status = "new"
    job_id: str | None = None
    submissions: int = 0
    song: Song | None = None
    error: str | None = None
    number: int = 0
    place: int = 0
    submitted_at: float | None = None

    def stored(self) -> StoredSong:
        """Return the song as it is stored."""
        song = None
        if self.song is not None:
            # The prompt is stored by itself.
            song = {key: value for key, value in self.song.items() if key not in ("prompt", "job_id")}
            if len(json.dumps(song)) > MAX_SONG_BYTES:
                song = None
        error = truncate_json(self.error, MAX_ERROR_BYTES) if self.error else None
        return StoredSong(
            prompt_fingerprint(self.prompt),
            self.status,
            self.job_id,
            self.submissions,
            song,
            error,
            self.number,
            self.place,
        )

    @classmethod
    def from_stored(cls, prompt: str, stored: StoredSong) -> BatchSong:
        """
        Return a stored song.

        :param prompt: Its prompt.
        :param stored: The stored song.
        """
        _, status, job_id, submissions, song, error, number, place = stored
        found = cls(prompt, status, job_id, submissions, None, error, number, place)
        found.song = None if song is None else found._with_names(song)
        return found

    def count_submission(self, index: int) -> None:
        """
        Count a submission.

        :param index: The song's index.
        """
        self.submissions += 1
        self.number += 1
        self.place = index

    def complete(self, data: dict[str, object] | None) -> None:
        """
        Set the data of the song, which is completed.

        :param data: The data without prompt and job, None where it is too large to keep.
        """
        self.status, self.error = "completed", None
        self.song = None if data is None else self._with_names(data)

    def _with_names(self, data: dict[str, object]) -> Song:
        return cast(Song, {"job_id": self.job_id, "prompt": storable(self.prompt), **data})

    def result(self) -> BatchResult:
        """Return the song as the operator does."""
        completed = self.status == "completed" and self.song is not None
        return {
            "prompt": storable(self.prompt),
            "job_id": self.job_id,
            "status": "completed" if completed else "failed",
            "song": self.song if completed else None,
            "error": None if completed else self.error or _REASONS.get(self.status),
        }

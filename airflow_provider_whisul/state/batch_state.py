"""
What a task that makes many songs knows about each of them, and how that is kept.

The state is kept in segments, each small enough for any database that Airflow runs on, after each submission and each
chunk of results. Nothing here sends requests, waits or logs.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, cast, get_args

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.state.state_store import (
    MAX_ENTRY_BYTES,
    StateStore,
    XComStateStore,
    prompt_fingerprint,
)
from airflow_provider_whisul.text import truncate_json

#: Songs in one segment, and the bytes of JSON that the data of each song, or its error, may take in it.
SEGMENT_SONGS = 20
MAX_SONG_BYTES = 1_200
MAX_ERROR_BYTES = 600

#: Jobs that one trigger polls at most. The others are polled when some of these have ended.
MAX_POLLED_JOBS = 600

#: ``not_found``: Whisul no longer finds the job, which a gateway's 404 can pretend. Only a later try may submit the
#: song again, once it has polled the job again (``recheck``). ``timed_out``: the job is no longer waited for but may
#: yet complete. The song is never submitted again, a later try waits for its job again.
Status = Literal["new", "submitting", "running", "recheck", "completed", "failed", "not_found", "timed_out"]

_STATUSES: tuple[Status, ...] = get_args(Status)

#: Songs whose job a trigger polls, and songs that failed.
PENDING: tuple[Status, ...] = ("running", "recheck")
UNSUCCESSFUL: tuple[Status, ...] = ("failed", "submitting", "not_found", "timed_out")


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


class ResultChunk(TypedDict):
    """Some of the jobs of a batch that have ended, by job id."""

    #: The songs' data, None where it is too large for an event.
    completed: dict[str, dict[str, object] | None]
    #: Why each job failed.
    failed: dict[str, str]
    #: Whisul's error for each job that it does not find.
    not_found: dict[str, str]
    #: For each job that may yet complete: why it is no longer waited for.
    timed_out: dict[str, str]


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
    """

    prompt: str
    status: Status = "new"
    job_id: str | None = None
    submissions: int = 0
    song: Song | None = None
    error: str | None = None

    def as_list(self) -> list[object]:
        """Return the song as a segment holds it; :meth:`from_list` reads it."""
        song = None
        if self.song is not None:
            # The prompt is known from the task's arguments.
            song = {key: value for key, value in self.song.items() if key not in ("prompt", "job_id")}
            if len(json.dumps(song)) > MAX_SONG_BYTES:
                song = None
        error = truncate_json(self.error, MAX_ERROR_BYTES) if self.error else None
        return [prompt_fingerprint(self.prompt), self.status, self.job_id, self.submissions, song, error]

    @classmethod
    def from_list(cls, prompt: str, stored: object) -> BatchSong:
        """
        Read a song in a segment; a new one if the stored one is about another prompt, or makes no sense.

        :param prompt: The prompt.
        :param stored: The stored value.
        """
        match stored:
            case [
                str(fingerprint),
                str(status),
                str() | None as job_id,
                int(submissions),
                dict() | None as song,
                str() | None as error,
            ] if fingerprint == prompt_fingerprint(prompt) and status in _STATUSES:
                data = None if song is None else cast(Song, {"job_id": job_id, "prompt": prompt, **song})
                return cls(prompt, status, job_id, submissions, data, error)
        return cls(prompt)

    def result(self) -> BatchResult:
        """Return the song as the operator does."""
        completed = self.status == "completed" and self.song is not None
        return {
            "prompt": self.prompt,
            "job_id": self.job_id,
            "status": "completed" if completed else "failed",
            "song": self.song if completed else None,
            "error": None if completed else self.error or _REASONS.get(self.status),
        }


@dataclass
class BatchState:
    """
    The songs of one task.

    :param songs: The songs, in the order of the prompts.
    :param store: Where their state is kept.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
    :param cleared: Whether a user has cleared the task since the last try.
    :param edited: Whether the prompts are not those of the stored state, or in another order.
    :param orphaned: The jobs whose prompts are no longer among the task's prompts.
    :param generation: Under which of two sets of keys the state is kept, so that it can be rewritten without losing
        what is there.
    """

    songs: list[BatchSong]
    store: StateStore
    clear_count: int
    cleared: bool = False
    edited: bool = False
    orphaned: list[str] = field(default_factory=list)
    generation: int = 0

    @classmethod
    def load(cls, prompts: Sequence[str], store: StateStore, clear_count: int) -> BatchState:
        """
        Read the state that earlier tries, or this one before its last deferral, have stored.

        :param prompts: The prompts of this try.
        :param store: Where the state is kept.
        :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
        """
        match store.get(_HEAD_KEY):
            case {
                "clear_count": int(last_clear_count),
                "delivered": bool(delivered),
                "songs": int(count),
                "generation": int(generation),
            }:
                pass
            case _:
                return cls([BatchSong(prompt) for prompt in prompts], store, clear_count)
        if delivered and last_clear_count != clear_count:
            # A user has cleared a task that had succeeded, and wants new takes.
            return cls([BatchSong(prompt) for prompt in prompts], store, clear_count, generation=generation)
        stored: list[list[object]] = []
        for first in range(0, count, SEGMENT_SONGS):
            match store.get(_segment_key(generation, first)):
                case {"songs": list(segment)}:
                    stored += [song for song in segment if isinstance(song, list) and song]
        # By their prompts, not their places: a list that was edited must not pay again for what is there.
        by_prompt: defaultdict[object, deque[list[object]]] = defaultdict(deque)
        for song in stored:
            by_prompt[song[0]].append(song)
        songs = []
        for prompt in prompts:
            same = by_prompt[prompt_fingerprint(prompt)]
            songs.append(BatchSong.from_list(prompt, same.popleft()) if same else BatchSong(prompt))
        orphaned = [song[2] for remaining in by_prompt.values() for song in remaining if len(song) > 2]
        return cls(
            songs,
            store,
            clear_count,
            cleared=last_clear_count != clear_count,
            edited=[song[0] for song in stored] != [prompt_fingerprint(prompt) for prompt in prompts],
            orphaned=[job_id for job_id in orphaned if isinstance(job_id, str)],
            generation=generation,
        )

    @property
    def durable(self) -> bool:
        """Whether a later try of the task finds the state."""
        return not isinstance(self.store, XComStateStore)

    def begin_try(self) -> None:
        """Reset what failed and the count of submissions, and store that."""
        for song in self.songs:
            song.submissions = 0
            if song.status == "failed":
                song.status = "new"
            elif song.status == "not_found":
                song.status = "recheck"
            elif song.status == "timed_out":
                song.status, song.error = "running", None
        self.rewrite()

    def rewrite(self) -> None:
        """Replace the stored state. If this is interrupted, the old state stays valid."""
        self.generation = 1 - self.generation
        # The segments first: they are read only once the head names them.
        self.save(range(len(self.songs)))
        self._save_head(delivered=False)

    def record_delivery(self) -> None:
        """Record that the task has the result that it was asked for."""
        self._save_head(delivered=True)

    def with_status(self, *status: Status) -> list[int]:
        """
        Return the indexes of the songs with one of these statuses.

        :param status: The statuses.
        """
        return [index for index, song in enumerate(self.songs) if song.status in status]

    def to_submit(self, attempts: int) -> list[int]:
        """
        Return the indexes of the songs that are new, or failed and may be submitted once more.

        :param attempts: How often a song may be submitted in a try.
        """
        return [
            index
            for index, song in enumerate(self.songs)
            if song.status == "new" or (song.status == "failed" and song.submissions < attempts)
        ]

    def to_poll(self) -> list[str]:
        """Return the jobs that the next trigger polls: as many as it may, and as fit into its arguments."""
        job_ids: list[str] = []
        room = MAX_ENTRY_BYTES - 2_000
        for index in self.with_status(*PENDING)[:MAX_POLLED_JOBS]:
            job_id = self.songs[index].job_id or ""
            room -= len(job_id) + 4
            if room < 0:
                break
            job_ids.append(job_id)
        return job_ids

    def record_intent(self, index: int) -> None:
        """
        Record that a song is about to be submitted.

        :param index: The song's index.
        """
        song = self.songs[index]
        song.status, song.job_id, song.song = "submitting", None, None
        song.error = "The response to its submission was lost, so it may have been paid for."
        song.submissions += 1
        self.save([index])

    def submitted(self, index: int, job_id: str) -> None:
        """
        Set a song's job, without storing it; :meth:`save` does that.

        :param index: The song's index.
        :param job_id: The job.
        """
        song = self.songs[index]
        song.status, song.job_id, song.song, song.error = "running", job_id, None, None

    def apply(self, chunk: ResultChunk) -> None:
        """
        Set the results of the jobs that have ended, and store them. A job that no song waits for is ignored.

        :param chunk: The jobs.
        """
        pending = {self.songs[index].job_id: index for index in self.with_status(*PENDING)}
        ended = (*chunk["completed"], *chunk["failed"], *chunk["not_found"], *chunk["timed_out"])
        changed = [pending[job_id] for job_id in ended if job_id in pending]
        for index in changed:
            song = self.songs[index]
            job_id = song.job_id or ""
            if job_id in chunk["failed"]:
                song.status, song.error = "failed", chunk["failed"][job_id]
            elif job_id in chunk["not_found"]:
                song.status = "failed" if song.status == "recheck" else "not_found"
                song.error = chunk["not_found"][job_id]
            elif job_id in chunk["timed_out"]:
                song.status, song.error = "timed_out", chunk["timed_out"][job_id]
            else:
                data = chunk["completed"][job_id]
                song.status, song.error = "completed", None
                song.song = None if data is None else cast(Song, {"job_id": job_id, "prompt": song.prompt, **data})
        self.save(changed)

    def save(self, indexes: Iterable[int]) -> None:
        """
        Store the state of some songs, and of those in the same segments.

        :param indexes: Their indexes.
        """
        for first in sorted({index - index % SEGMENT_SONGS for index in indexes}):
            segment = [song.as_list() for song in self.songs[first : first + SEGMENT_SONGS]]
            self.store.set(_segment_key(self.generation, first), {"songs": segment})

    def results(self) -> Iterator[BatchResult]:
        """Yield each song as the operator returns it, in the order of the prompts."""
        return (song.result() for song in self.songs)

    def _save_head(self, *, delivered: bool) -> None:
        self.store.set(
            _HEAD_KEY,
            {
                "clear_count": self.clear_count,
                "delivered": delivered,
                "songs": len(self.songs),
                "generation": self.generation,
            },
        )


_HEAD_KEY = "whisul_batch"

#: Why there is no song where the task ends before all songs have ended.
_REASONS: dict[Status, str] = {
    "new": "The song was not submitted.",
    "completed": "The song is completed, but could not be fetched. From Airflow 3.3 on a retry fetches it.",
    "running": "The task ended before the song's job. From Airflow 3.3 on a retry waits for it again.",
}


def _segment_key(generation: int, first: int) -> str:
    return f"whisul_batch_{generation}_{first // SEGMENT_SONGS:04d}"

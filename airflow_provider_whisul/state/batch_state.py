"""
What a task that makes many songs knows about each of them, and how that is kept.

The state is kept in segments, each small enough for any database that Airflow runs on, before each submission and after
each chunk of results. Nothing here sends requests, waits or logs.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from airflow_provider_whisul.state.batch_head import HEAD_KEY, SEGMENT_SONGS, BatchHead, segment_key
from airflow_provider_whisul.state.batch_song import PENDING, BatchResult, BatchSong, Status, StoredSong
from airflow_provider_whisul.state.prompt_store import load_prompts, save_prompts
from airflow_provider_whisul.state.state_store import (
    MAX_ENTRY_BYTES,
    StateStore,
    XComStateStore,
    prompt_fingerprint,
    unreadable,
    versioned,
)

#: Jobs that one trigger polls at most. The others are polled when some of these have ended.
MAX_POLLED_JOBS = 600


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
class BatchState:
    """
    The songs of one task.

    :param songs: The songs, in the order of the prompts.
    :param store: Where their state is kept.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
    :param account: The account that the songs are submitted with.
    :param earlier: What the earlier try has said of itself, None where there was none.
    :param orphaned: The jobs whose prompts are no longer among the task's prompts.
    :param generation: Under which of two sets of keys the state is kept, so that it can be rewritten without losing
        what is there.
    :param prompt_pieces: In how many values the prompts are stored.
    :param dropped: How many of the task's submissions no song's ``number`` counts.
    :param began_at: When the try began, in Unix seconds.
    :param unsaved: The indexes of the songs whose state the next :meth:`save` stores too.
    """

    songs: list[BatchSong]
    store: StateStore
    clear_count: int
    account: str = ""
    earlier: BatchHead | None = None
    orphaned: list[str] = field(default_factory=list)
    generation: int = 0
    prompt_pieces: int = 0
    dropped: int = 0
    began_at: float = 0.0
    unsaved: set[int] = field(default_factory=set)

    @classmethod
    def load(cls, prompts: Sequence[str], store: StateStore, clear_count: int, account: str) -> BatchState:
        """
        Read the state that earlier tries have stored, for the prompts of a try that begins.

        :param prompts: The prompts of this try.
        :param store: Where the state is kept.
        :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
        :param account: The account that the task's Airflow connection leads to.
        :raises WhisulStateUnreadableError: There is a state that this version does not understand.
        """
        head = BatchHead.read(store)
        if head is None:
            return cls([BatchSong(prompt) for prompt in prompts], store, clear_count, account)
        # A user has cleared a task that had succeeded, and wants new takes.
        new_takes = head.delivered and head.clear_count != clear_count
        # By their prompts, not their places: a list that was edited must not pay again for what is there.
        by_prompt: defaultdict[str, deque[StoredSong]] = defaultdict(deque)
        for stored in head.stored_songs(store):
            by_prompt[stored.fingerprint].append(stored)
        songs = []
        for prompt in prompts:
            same = by_prompt[prompt_fingerprint(prompt)]
            song = BatchSong.from_stored(prompt, same.popleft()) if same else BatchSong(prompt)
            songs.append(BatchSong(prompt, number=song.number) if new_takes else song)
        left = [stored for remaining in by_prompt.values() for stored in remaining]
        return cls(
            songs,
            store,
            clear_count,
            account,
            earlier=head,
            orphaned=[] if new_takes else [stored.job_id for stored in left if stored.job_id is not None],
            generation=head.generation,
            dropped=head.dropped + sum(stored.number for stored in left),
        )

    @classmethod
    def resume(cls, store: StateStore, clear_count: int) -> BatchState | None:
        """
        Read the state that this try has stored before it deferred, None if it is not there.

        The prompts are those that the try began with. Airflow renders the task's arguments anew after each deferral,
        and what a template then says must neither drop a job nor submit another song.

        :param store: Where the state is kept.
        :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
        :raises WhisulStateUnreadableError: There is a state that this version does not understand.
        """
        head = BatchHead.read(store)
        if head is None:
            return None
        prompts = load_prompts(store, head.generation, head.prompt_pieces)
        stored = head.stored_songs(store)
        if [prompt_fingerprint(prompt) for prompt in prompts] != [song.fingerprint for song in stored]:
            raise unreadable(store, HEAD_KEY)
        return cls(
            [BatchSong.from_stored(prompt, song) for prompt, song in zip(prompts, stored, strict=True)],
            store,
            clear_count,
            head.account,
            generation=head.generation,
            prompt_pieces=head.prompt_pieces,
            dropped=head.dropped,
            began_at=head.began_at,
        )

    @property
    def durable(self) -> bool:
        """Whether a later try of the task finds the state."""
        return not isinstance(self.store, XComStateStore)

    @property
    def cleared(self) -> bool:
        """Whether a user has cleared the task since the last try."""
        return self.earlier is not None and self.earlier.clear_count != self.clear_count

    @property
    def other_account(self) -> bool:
        """Whether the earlier try has submitted with another API key, or to another host."""
        return self.earlier is not None and self.earlier.account != self.account

    @property
    def submitted(self) -> int:
        """How many submissions the task has made in its :attr:`counted_tries`."""
        return self.dropped + sum(song.number for song in self.songs)

    @property
    def counted_tries(self) -> str:
        """Which tries' submissions are counted, in words."""
        return "all of its tries" if self.durable else "this try"

    @property
    def submitted_before(self) -> bool:
        """Whether an earlier try has submitted, and was not cleared once it had delivered."""
        return bool(self.orphaned) or any(song.number and song.status != "new" for song in self.songs)

    def begin_try(self, now: float) -> None:
        """
        Reset what failed and the count of submissions, and store that.

        :param now: The time, in Unix seconds.
        """
        self.began_at = now
        for song in self.songs:
            song.submissions = 0
            if song.status == "failed":
                song.status = "new"
            elif song.status == "not_found":
                song.status = "recheck"
            elif song.status == "timed_out":
                song.status, song.error = "running", None
            # Only Whisul can tell whether another key is of another account, or the account's new one.
            if self.other_account and (song.status == "running" or (song.status == "completed" and song.song is None)):
                song.status = "recheck"
        self.rewrite()

    def rewrite(self) -> None:
        """Replace the stored state. If this is interrupted, the old state stays valid."""
        self.generation = 1 - self.generation
        # These first: they are read only once the head names them.
        self.prompt_pieces = save_prompts(self.store, self.generation, [song.prompt for song in self.songs])
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

    def to_poll(self) -> list[BatchSong]:
        """Return the songs whose jobs the next trigger polls: as many as it may, and as fit into its arguments."""
        songs: list[BatchSong] = []
        room = MAX_ENTRY_BYTES - 2_000
        for index in self.with_status(*PENDING)[:MAX_POLLED_JOBS]:
            # The job's id, and when it was submitted.
            room -= len(self.songs[index].job_id or "") + 12
            if room < 0:
                break
            songs.append(self.songs[index])
        return songs

    def record_intent(self, index: int) -> None:
        """
        Record that a song is about to be submitted.

        :param index: The song's index.
        """
        song = self.songs[index]
        song.status, song.job_id, song.song = "submitting", None, None
        song.error = "The response to its submission was lost, so it may have been paid for."
        song.count_submission(index)
        self.save([index])

    def discard_intent(self, index: int, before: BatchSong) -> None:
        """
        Store a song as it was before :meth:`record_intent`: the submission has certainly made no job.

        :param index: The song's index.
        :param before: The song as it was.
        """
        self.songs[index] = replace(before)
        self.save([index])

    def reuse_number(self, index: int) -> None:
        """
        Let a song's next submission have the number of the last one, which was refused and may yet be sent again.

        :param index: The song's index.
        """
        self.songs[index].number -= 1
        # It may be in the ledger of another machine, so that it counts.
        self.dropped += 1

    def set_job(self, index: int, job_id: str) -> None:
        """
        Set the job that a song's submission has got, without storing it; :meth:`save` does that.

        :param index: The song's index.
        :param job_id: The job.
        """
        song = self.songs[index]
        if song.status != "submitting":
            # Another try of the task, which runs at the same time, has submitted the song.
            song.count_submission(index)
        song.status, song.job_id, song.song, song.error = "running", job_id, None, None

    def apply(self, chunk: ResultChunk) -> list[int]:
        """
        Set the results of the jobs that have ended, without storing them; :meth:`save` does that.

        A job that no song waits for is ignored.

        :param chunk: The jobs.
        :return: The indexes of the songs that have changed.
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
                song.complete(chunk["completed"][job_id])
        return changed

    def save(self, indexes: Iterable[int]) -> None:
        """
        Store the state of some songs, of those in the same segments, and of those that :meth:`save_later` has named.

        :param indexes: Their indexes.
        """
        for first in sorted({index - index % SEGMENT_SONGS for index in (*indexes, *self.unsaved)}):
            segment = [list(song.stored()) for song in self.songs[first : first + SEGMENT_SONGS]]
            self.store.set(segment_key(self.generation, first), versioned({"songs": segment}))
            self.unsaved.difference_update(range(first, first + SEGMENT_SONGS))

    def save_later(self, index: int) -> None:
        """
        Let the next :meth:`save` store the state of a song too, so that one write does for two.

        :param index: The song's index.
        """
        self.unsaved.add(index)

    def save_unsaved(self) -> None:
        """Store what :meth:`save_later` has named, if anything."""
        if self.unsaved:
            self.save(self.unsaved)

    def results(self) -> Iterator[BatchResult]:
        """Yield each song as the operator returns it, in the order of the prompts."""
        return (song.result() for song in self.songs)

    def _save_head(self, *, delivered: bool) -> None:
        self.store.set(
            HEAD_KEY,
            versioned(
                {
                    "account": self.account,
                    "clear_count": self.clear_count,
                    "status": "delivered" if delivered else "running",
                    "began_at": self.began_at,
                    "songs": len(self.songs),
                    "generation": self.generation,
                    "prompt_pieces": self.prompt_pieces,
                    "dropped": self.dropped,
                }
            ),
        )

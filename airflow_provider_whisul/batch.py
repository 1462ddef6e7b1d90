"""
Many songs made by one task: where each of them stands, and how that is kept.

The state is written down in chunks, each small enough for any database that Airflow runs on, after each submission and
each part of the songs that comes in. Nothing here sends, waits or logs.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, cast, get_args

from airflow_provider_whisul.api import Song

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Bytes that one event, one chunk of state or one trigger's arguments may take: half of what MySQL keeps in a column.
LARGEST_ENTRY = 32_000

#: Songs in one chunk of state, and the bytes of JSON that the data of each, or why it failed, may take in it.
CHUNK_SONGS = 20
LARGEST_SONG = 1_200
LARGEST_ERROR = 600

#: Jobs that one trigger looks at, at the most: the others are looked at when some of them are over.
MOST_WATCHED = 600

#: Bytes that the songs of one part may be when they are decompressed: as many as one trigger looks at, and their ids.
_LARGEST_UNPACKED = MOST_WATCHED * LARGEST_SONG + 2 * LARGEST_ENTRY

#: ``gone`` where Whisul no longer finds the job, which a gateway's 404 can pretend: only a later try may submit it
#: again, once it has looked again, ``doubted`` while it does. ``late`` where the job is no longer waited for but may
#: yet complete: it is never submitted again, a later try goes on looking at it.
Status = Literal["new", "submitting", "running", "doubted", "completed", "failed", "gone", "late"]

_STATUSES: tuple[Status, ...] = get_args(Status)

#: Songs that a trigger waits for, and songs there will not be.
WAITED_FOR: tuple[Status, ...] = ("running", "doubted")
NOT_MADE: tuple[Status, ...] = ("failed", "submitting", "gone", "late")


class BatchResult(TypedDict):
    """One song of a batch, as the operator returns it."""

    prompt: str
    job_id: str | None
    #: ``completed`` or ``failed``.
    status: str
    #: The song as the single operator returns it, None if it failed.
    track: Song | None
    #: Why it failed.
    error: str | None


class BatchPart(TypedDict):
    """Some of the jobs of a batch that are over."""

    #: The songs' data by job, None where it is too much for an event.
    completed: dict[str, dict[str, object] | None]
    #: Why each job failed.
    failed: dict[str, str]
    #: What Whisul said of each job that it does not find.
    gone: dict[str, str]
    #: Why each job is no longer waited for that may yet complete.
    late: dict[str, str]


class PackedPart(TypedDict):
    """A :class:`BatchPart` as an event carries it."""

    #: The songs' data by job, compressed.
    completed: str
    failed: dict[str, str]
    gone: dict[str, str]
    late: dict[str, str]


class PartPacker:
    """
    Some of the jobs of a batch that are over, packed for an event as they come in.

    Most of a song's data is repeated in the next one's: compressed, an event holds some 400 songs instead of 65, and
    each event costs a task process. Each song is compressed once, and how long all of them are is learnt from a copy of
    the compressor that is brought to its end, in 0.2 ms however many there are. Flushing the compressor itself would
    begin a new block with each song, and cost a third of the room.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.gone: dict[str, str] = {}
        self.late: dict[str, str] = {}
        #: How many songs are in it.
        self.songs = 0
        self._compressor = zlib.compressobj()
        self._compressed = b""

    def add(self, job_id: str, song: Mapping[str, object] | None) -> None:
        """Take in a completed job: its song's data, None where that is too much for an event."""
        self.songs += 1
        self._compressed += self._compressor.compress(json.dumps([job_id, song]).encode() + b"\n")

    def size(self) -> int:
        """Return the bytes of JSON that it takes in an event."""
        return len(json.dumps(self.packed()))

    def packed(self) -> PackedPart:
        """Return it for an event; :func:`unpack_part` reads it."""
        completed = b64encode(self._compressed + self._compressor.copy().flush()).decode()
        return {"completed": completed, "failed": self.failed, "gone": self.gone, "late": self.late}


def unpack_part(packed: PackedPart) -> BatchPart:
    """
    Return what a :class:`PartPacker` has packed.

    :param packed: Its plain data, of which the songs are not to be trusted to be ours.
    :raises ValueError: They are not.
    """
    completed: dict[str, dict[str, object] | None] = {}
    try:
        decompressor = zlib.decompressobj()
        lines = decompressor.decompress(b64decode(packed["completed"], validate=True), _LARGEST_UNPACKED)
        if not decompressor.eof:
            raise ValueError("The songs are cut off, or too large to be those of one part.")
        for line in lines.splitlines():
            match json.loads(line):
                case [str(job_id), dict() | None as song]:
                    completed[job_id] = song
                case _:
                    raise ValueError("One of the songs is none.")
    except (zlib.error, RecursionError) as error:
        raise ValueError(f"The songs cannot be read: {error}") from error
    return {"completed": completed, "failed": packed["failed"], "gone": packed["gone"], "late": packed["late"]}


class Notebook(Protocol):
    """Where the state is kept: Airflow's task state store, or the task's own XComs, which last for one try."""

    def get(self, key: str) -> object: ...

    def set(self, key: str, value: Mapping[str, object]) -> None: ...


@dataclass
class XComNotebook:
    """The task's own XComs: they outlive a deferral, not a try."""

    context: Context

    def get(self, key: str) -> object:
        ti = self.context["ti"]
        return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=ti.map_index)

    def set(self, key: str, value: Mapping[str, object]) -> None:
        self.context["ti"].xcom_push(key=key, value=value)


@dataclass
class BatchSong:
    """
    One song of a batch.

    :param prompt: Its prompt.
    :param status: Where it stands. ``submitting`` where an answer is awaited, or was lost.
    :param job_id: The latest job that was made for it.
    :param submissions: How often it has been submitted in this try.
    :param song: Its data once completed; None if that was too much to keep, so that it has to be fetched again.
    :param error: Why the latest job, or submission, failed.
    """

    prompt: str
    status: Status = "new"
    job_id: str | None = None
    submissions: int = 0
    song: Song | None = None
    error: str | None = None

    def packed(self) -> list[object]:
        """Return it as the list that a chunk holds; :meth:`unpacked` reads it."""
        song = None
        if self.song is not None:
            # The prompt is known from the task's arguments.
            song = {key: value for key, value in self.song.items() if key not in ("prompt", "job_id")}
            if len(json.dumps(song)) > LARGEST_SONG:
                song = None
        error = cut(self.error, LARGEST_ERROR) if self.error else None
        return [digest(self.prompt), self.status, self.job_id, self.submissions, song, error]

    @classmethod
    def unpacked(cls, prompt: str, packed: object) -> BatchSong:
        """Read what a chunk holds of a song; a new one if that is about another prompt, or makes no sense."""
        match packed:
            case [
                str(of),
                str(status),
                str() | None as job_id,
                int(submissions),
                dict() | None as song,
                str() | None as error,
            ] if of == digest(prompt) and status in _STATUSES:
                data = None if song is None else cast(Song, {"job_id": job_id, "prompt": prompt, **song})
                return cls(prompt, status, job_id, submissions, data, error)
        return cls(prompt)

    def result(self) -> BatchResult:
        """Return it as the operator does."""
        completed = self.status == "completed" and self.song is not None
        return {
            "prompt": self.prompt,
            "job_id": self.job_id,
            "status": "completed" if completed else "failed",
            "track": self.song if completed else None,
            "error": None if completed else self.error or _REASONS.get(self.status),
        }


@dataclass
class Batch:
    """
    The songs of one task, and where their state is kept.

    :param songs: The songs, in the order of the prompts.
    :param notebook: Where their state is kept.
    :param round: Which round of tries this one belongs to; a user who clears the task begins another.
    :param cleared: Whether a user has cleared the task since the last try.
    :param edited: Whether the prompts are not those that the state was kept of, or stand in another order.
    :param left_over: The jobs of prompts that are no longer there.
    :param generation: Under which keys the state is kept. There are two sets of them, so that it can be written anew
        without losing what is there.
    """

    songs: list[BatchSong]
    notebook: Notebook
    round: int
    cleared: bool = False
    edited: bool = False
    left_over: list[str] = field(default_factory=list)
    generation: int = 0

    @classmethod
    def load(cls, prompts: Sequence[str], notebook: Notebook, round: int) -> Batch:
        """
        Read how far earlier tries, or this one before its last deferral, have got.

        :param prompts: The prompts of this try.
        :param notebook: Where the state is kept.
        :param round: The round of tries that this one belongs to.
        """
        match notebook.get(_HEAD):
            case {
                "round": int(last_round),
                "delivered": bool(delivered),
                "songs": int(count),
                "generation": int(generation),
            }:
                pass
            case _:
                return cls([BatchSong(prompt) for prompt in prompts], notebook, round)
        if delivered and last_round != round:
            # A user has cleared a task that had succeeded, and wants new takes.
            return cls([BatchSong(prompt) for prompt in prompts], notebook, round, generation=generation)
        stored: list[list[object]] = []
        for start in range(0, count, CHUNK_SONGS):
            match notebook.get(_key(generation, start)):
                case {"songs": list(packed)}:
                    stored += [song for song in packed if isinstance(song, list) and song]
        # By their prompts, not their places: a list that was edited must not pay again for what is there.
        by_prompt: defaultdict[object, deque[list[object]]] = defaultdict(deque)
        for song in stored:
            by_prompt[song[0]].append(song)
        songs = []
        for prompt in prompts:
            same = by_prompt[digest(prompt)]
            songs.append(BatchSong.unpacked(prompt, same.popleft()) if same else BatchSong(prompt))
        left_over = [song[2] for songs_left in by_prompt.values() for song in songs_left if len(song) > 2]
        return cls(
            songs,
            notebook,
            round,
            cleared=last_round != round,
            edited=[song[0] for song in stored] != [digest(prompt) for prompt in prompts],
            left_over=[job_id for job_id in left_over if isinstance(job_id, str)],
            generation=generation,
        )

    @property
    def outlasts_a_try(self) -> bool:
        """Whether a later try of the task finds the state."""
        return not isinstance(self.notebook, XComNotebook)

    def begin_try(self) -> None:
        """Give what failed another chance, count the submissions of this try alone, and keep all of that."""
        for song in self.songs:
            song.submissions = 0
            if song.status == "failed":
                song.status = "new"
            elif song.status == "gone":
                song.status = "doubted"
            elif song.status == "late":
                song.status, song.error = "running", None
        self.save_anew()

    def save_anew(self) -> None:
        """Keep all of it, in place of what is kept: at once or, if this is cut short, not at all."""
        self.generation = 1 - self.generation
        # The chunks first: only with the head are they read.
        self.save(range(len(self.songs)))
        self._save_head(delivered=False)

    def deliver(self) -> None:
        """Take down that the task has all that it was asked for."""
        self._save_head(delivered=True)

    def with_status(self, *status: Status) -> list[int]:
        """Return the indexes of the songs that stand so."""
        return [index for index, song in enumerate(self.songs) if song.status in status]

    def to_submit(self, attempts: int) -> list[int]:
        """Return the indexes of the songs that are new, or failed and may be submitted once more."""
        return [
            index
            for index, song in enumerate(self.songs)
            if song.status == "new" or (song.status == "failed" and song.submissions < attempts)
        ]

    def to_watch(self) -> list[str]:
        """Return the jobs that the next trigger looks at: as many as it may, and as its arguments have room for."""
        job_ids: list[str] = []
        room = LARGEST_ENTRY - 2_000
        for index in self.with_status(*WAITED_FOR)[:MOST_WATCHED]:
            job_id = self.songs[index].job_id or ""
            room -= len(job_id) + 4
            if room < 0:
                break
            job_ids.append(job_id)
        return job_ids

    def submitting(self, index: int) -> None:
        """Take in that a song is about to be submitted."""
        song = self.songs[index]
        song.status, song.job_id, song.song = "submitting", None, None
        song.error = "The answer to its submission was not learnt, so it may have been paid for."
        song.submissions += 1

    def submitted(self, index: int, job_id: str) -> None:
        """Take in which job a song got."""
        song = self.songs[index]
        song.status, song.job_id, song.song, song.error = "running", job_id, None, None

    def take(self, part: BatchPart) -> None:
        """Take in the jobs that are over, and keep that. A job that none of the songs waits for is passed over."""
        running = {self.songs[index].job_id: index for index in self.with_status(*WAITED_FOR)}
        ended = (*part["completed"], *part["failed"], *part["gone"], *part["late"])
        over = [running[job_id] for job_id in ended if job_id in running]
        for index in over:
            song = self.songs[index]
            job_id = song.job_id or ""
            if job_id in part["failed"]:
                song.status, song.error = "failed", part["failed"][job_id]
            elif job_id in part["gone"]:
                song.status, song.error = "failed" if song.status == "doubted" else "gone", part["gone"][job_id]
            elif job_id in part["late"]:
                song.status, song.error = "late", part["late"][job_id]
            else:
                data = part["completed"][job_id]
                song.status, song.error = "completed", None
                song.song = None if data is None else cast(Song, {"job_id": job_id, "prompt": song.prompt, **data})
        self.save(over)

    def save(self, indexes: Iterable[int]) -> None:
        """Keep the state of these songs, and of those in the same chunks."""
        for start in sorted({index - index % CHUNK_SONGS for index in indexes}):
            packed = [song.packed() for song in self.songs[start : start + CHUNK_SONGS]]
            self.notebook.set(_key(self.generation, start), {"songs": packed})

    def results(self) -> Iterator[BatchResult]:
        """Yield each song as the operator returns it, in the order of the prompts."""
        return (song.result() for song in self.songs)

    def _save_head(self, *, delivered: bool) -> None:
        self.notebook.set(
            _HEAD,
            {
                "round": self.round,
                "delivered": delivered,
                "songs": len(self.songs),
                "generation": self.generation,
            },
        )


_HEAD = "whisul_batch"

#: Why there is no song where the task ends before all of them are over.
_REASONS: dict[Status, str] = {
    "new": "It was not submitted.",
    "completed": "It is there, but could not be fetched. From Airflow 3.3 on a retry fetches it.",
    "running": "The task ended before its job. From Airflow 3.3 on a retry goes on with it.",
}


def _key(generation: int, start: int) -> str:
    return f"whisul_batch_{generation}_{start // CHUNK_SONGS:04d}"


def cut(text: str, most: int) -> str:
    """
    Return a text, or as much of its beginning as there is room for.

    :param text: The text.
    :param most: Bytes that it may take as JSON, which escapes all that is not ASCII.
    """
    if len(json.dumps(text)) <= most:
        return text
    mark = "…"
    # Of the JSON of each character and of the mark the quotes do not count, but once.
    room = most - len(json.dumps(mark))
    lengths = accumulate(len(json.dumps(character)) - 2 for character in text[:most])
    return text[: sum(length <= room for length in lengths)] + mark


def digest(prompt: str) -> str:
    """Return enough of a prompt's digest to tell whether it has changed."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]

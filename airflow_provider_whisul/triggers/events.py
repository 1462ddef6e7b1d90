"""
The event protocol: what triggers report, and operators and sensors read.

An event is JSON in Airflow's database, so each is bounded in size, and none is trusted to be one of ours.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TypedDict, cast

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import SerializedError, WhisulError, WhisulJobTimeoutError, error_from_dict
from airflow_provider_whisul.state.batch_song import MAX_SONG_BYTES
from airflow_provider_whisul.state.batch_state import MAX_POLLED_JOBS, ResultChunk
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.version_compat import is_deferral_timeout

#: Bytes that the songs of one chunk may be when they are decompressed: all that one trigger polls, and their ids.
_MAX_UNPACKED_BYTES = MAX_POLLED_JOBS * MAX_SONG_BYTES + 2 * MAX_ENTRY_BYTES


class CompletedEvent(TypedDict):
    """The event of a completed job."""

    status: Literal["completed"]
    job_id: str
    song: Song


class ErrorEvent(TypedDict):
    """The event of a wait that ended in an error."""

    status: Literal["error"]
    job_id: str
    error: SerializedError


class PackedChunk(TypedDict):
    """A :class:`ResultChunk` as an event carries it."""

    #: The songs' data by job, compressed.
    completed: str
    failed: dict[str, str]
    not_found: dict[str, str]
    timed_out: dict[str, str]


class ChunkEvent(TypedDict):
    """The event of a batch when some of its jobs have ended."""

    status: Literal["chunk"]
    chunk: PackedChunk


class BatchErrorEvent(TypedDict):
    """The event of a batch whose wait ended in an error, with the jobs that had ended before."""

    status: Literal["error"]
    chunk: PackedChunk
    error: SerializedError


class LoggedEvent(dict[str, object]):
    """
    An event whose repr is short. Airflow logs the repr of each event, and a chunk's songs are unreadable there.

    :param event: The event. It is stored and passed on as the dict that it is.
    :param summary: What the repr says.
    """

    def __init__(self, event: Mapping[str, object], summary: str) -> None:
        super().__init__(event)
        self._summary = summary

    def __repr__(self) -> str:
        return f"<{self._summary}>"


class ChunkPacker:
    """
    Packs the jobs of a batch that have ended for an event, one by one.

    Most of a song's data is repeated in the next one's: compressed, an event holds some 400 songs instead of 65, and
    each event costs a task process. Each song is compressed once. The size of all of them is measured on a copy of the
    compressor, in 0.2 ms however many there are. Flushing the compressor itself would begin a new block with each song,
    and cost a third of the room.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.not_found: dict[str, str] = {}
        self.timed_out: dict[str, str] = {}
        #: The number of completed jobs.
        self.songs = 0
        self._compressor = zlib.compressobj()
        self._compressed = b""

    def add_completed(self, job_id: str, song: Mapping[str, object] | None) -> None:
        """
        Add a completed job.

        :param job_id: The job's id.
        :param song: The song's data, None where that is too large for an event.
        """
        self.songs += 1
        self._compressed += self._compressor.compress(json.dumps([job_id, song]).encode() + b"\n")

    def size(self) -> int:
        """Return the bytes of JSON that the chunk takes in an event."""
        return len(json.dumps(self.packed()))

    def summary(self) -> str:
        """Return what the chunk holds, for a log line."""
        ended = (("failed", self.failed), ("not found", self.not_found), ("timed out", self.timed_out))
        return f"{self.songs:,} completed" + "".join(f", {len(jobs):,} {what}" for what, jobs in ended if jobs)

    def packed(self) -> PackedChunk:
        """Return the chunk for an event; :func:`unpack_chunk` reads it."""
        completed = b64encode(self._compressed + self._compressor.copy().flush()).decode()
        return {
            "completed": completed,
            "failed": self.failed,
            "not_found": self.not_found,
            "timed_out": self.timed_out,
        }


def unpack_chunk(packed: PackedChunk) -> ResultChunk:
    """
    Return the jobs that a :class:`ChunkPacker` has packed.

    :param packed: The packed chunk, which is not trusted.
    :raises ValueError: It is not in this provider's format.
    """
    completed: dict[str, dict[str, object] | None] = {}
    try:
        decompressor = zlib.decompressobj()
        lines = decompressor.decompress(b64decode(packed["completed"], validate=True), _MAX_UNPACKED_BYTES)
        if not decompressor.eof:
            raise ValueError("The songs are truncated, or too large to be those of one chunk.")
        for line in lines.splitlines():
            match json.loads(line):
                case [str(job_id), dict() | None as song]:
                    completed[job_id] = song
                case _:
                    raise ValueError("One of the songs is not a song.")
    except (zlib.error, RecursionError) as error:
        raise ValueError(f"The songs cannot be read: {error}") from error
    return {
        "completed": completed,
        "failed": packed["failed"],
        "not_found": packed["not_found"],
        "timed_out": packed["timed_out"],
    }


def song_from_event(event: object, job_id: str) -> Song:
    """
    Return the song in a trigger's event, or raise the error in it.

    :param event: The event, as Airflow passes it to ``execute_complete``. It is not trusted to be one of ours.
    :param job_id: The job that was waited for.
    :raises WhisulError: The error that ended the wait, or a plain one where the event makes no sense.
    """
    match event:
        case {"status": "completed", "song": {"job_id": str()} as song}:
            return cast(Song, song)
        case {"status": "error", "error": {"type": str(), "message": str(), "job_id": _, "http_status": _} as error}:
            raise error_from_dict(cast(SerializedError, error))
    raise WhisulError(
        f"The trigger that waited for Whisul job {job_id} reported an event that is not one of this provider's: "
        f"{event!r:.200}. The job is not affected; a WhisulJobSensor with this job id finds it.",
        job_id=job_id,
    )


def chunk_from_event(event: object) -> tuple[ResultChunk, WhisulError | None]:
    """
    Return the jobs in a batch trigger's event that have ended, and the error that ended the wait, if one did.

    :param event: The event, as Airflow passes it to ``execute_complete``. It is not trusted to be one of ours.
    :raises WhisulError: The event makes no sense.
    """
    # Songs that cannot be read are like any other event that makes no sense.
    with suppress(ValueError):
        match event:
            case {
                "status": "chunk",
                "chunk": {"completed": str(), "failed": dict(), "not_found": dict(), "timed_out": dict()} as chunk,
            }:
                return unpack_chunk(cast(PackedChunk, chunk)), None
            case {
                "status": "error",
                "chunk": {"completed": str(), "failed": dict(), "not_found": dict(), "timed_out": dict()} as chunk,
                "error": {"type": str(), "message": str(), "job_id": _, "http_status": _} as error,
            }:
                return unpack_chunk(cast(PackedChunk, chunk)), error_from_dict(cast(SerializedError, error))
    raise WhisulError(
        f"The trigger that waited for the batch reported an event that is not one of this provider's: {event!r:.200}. "
        "The jobs are not affected: a retry of this task waits for them again, where a record is kept."
    )


def deferral_error(error: Exception, waited_for: str, outlook: str, job_id: str | None = None) -> WhisulError:
    """
    Return the error for a deferral that Airflow ended by itself, without an event.

    :param error: One of :data:`~airflow_provider_whisul.version_compat.DEFERRAL_ERRORS`.
    :param waited_for: What the trigger waited for, such as ``Whisul job 81fa5ff7``.
    :param outlook: What happens to the job, or the jobs, as a sentence.
    :param job_id: The job, None for a batch.
    """
    if is_deferral_timeout(error):
        return WhisulJobTimeoutError(
            f"The trigger that waited for {waited_for} did not report in time. Is a triggerer running? {outlook}",
            job_id=job_id,
        )
    return WhisulError(
        f"The trigger that waited for {waited_for} ended with an error of its own: {error}. Its traceback is in this "
        f"log. {outlook}",
        job_id=job_id,
    )

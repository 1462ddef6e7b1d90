"""The songs that a task is given, and the names of their files. No I/O."""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, cast

from airflow_provider_whisul.api.messages import job_request
from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.storage.manifest import SkippedSong
from airflow_provider_whisul.storage.media_types import Role
from airflow_provider_whisul.text import quote

#: Characters of a title that a file name holds at most.
MAX_SLUG_CHARACTERS = 60

#: The song's field that holds the URL of each file.
URL_FIELDS: dict[Role, Literal["song_url", "image_url"]] = {"audio": "song_url", "cover": "image_url"}


def read_songs(songs: object) -> tuple[list[Song], list[SkippedSong]]:
    """
    Return the songs to store, each job once, and the songs to skip because they failed.

    :param songs: What the operator, the sensor or the batch operator return: a song, a batch's results, or any nesting
        of lists of these, such as the lazy sequence of a mapped task.
    :raises WhisulInvalidInputError: ``songs`` holds something else.
    """
    found: dict[str, Song] = {}
    skipped: list[SkippedSong] = []
    for value in _flatten(songs):
        match value:
            case {"status": "failed"}:
                skipped.append(_skipped_song(cast("Mapping[str, object]", value)))
            case {"status": "completed", "song": None, "job_id": str(job_id), "prompt": prompt}:
                # The song was too large for the batch's state. Its job still has it.
                song = _read_song({"job_id": job_id, "prompt": prompt})
                found.setdefault(song["job_id"], song)
            case {"status": "completed", "song": {"job_id": _} as data} | ({"job_id": _} as data):
                song = _read_song(cast("Mapping[str, object]", data))
                found.setdefault(song["job_id"], song)
            case None:
                skipped.append({"job_id": None, "prompt": None, "error": "The upstream task returned no song."})
            case _:
                raise _not_songs(value)
    return list(found.values()), skipped


def merge_songs(song: Song, other: Mapping[str, object]) -> Song:
    """
    Return a song whose empty fields are filled from another description of it. Fields of a wrong type are left out.

    :param song: The song. Its fields win.
    :param other: The other description: what the job says now, or what a ``NAME.json`` holds.
    """
    return _read_song({**other, **{field: value for field, value in song.items() if value}})


def song_name(song: Song) -> str:
    """
    Return what the names of a song's files begin with: the same in each try, and different for each job.

    The name is safe on any store: lower case ASCII letters, digits, dashes and one underscore, and never a name that an
    operating system reserves.

    :param song: The song.
    """
    plain = unicodedata.normalize("NFKD", song["title"] or "").encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_SLUG_CHARACTERS].strip("-")
    job_id = song["job_id"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", job_id):
        # Some stores do not tell upper case from lower case, and some limit the length of a name.
        job_id = hashlib.sha256(job_id.encode()).hexdigest()[:32]
    # Neither part holds an underscore, so that no two pairs of them make the same name.
    return f"{slug or 'song'}_{job_id}"


def _flatten(value: object) -> Iterator[object]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _skipped_song(result: Mapping[str, object]) -> SkippedSong:
    return {
        "job_id": _text(result.get("job_id")),
        "prompt": _text(result.get("prompt")),
        "error": quote(_text(result.get("error")) or "") or "The song failed, and Whisul gave no reason.",
    }


def _read_song(data: Mapping[str, object]) -> Song:
    job_id = data.get("job_id")
    job_request(job_id)  # Raises for what cannot be a job's id.
    tags = data.get("tags")
    return {
        "job_id": cast(str, job_id),
        "prompt": _text(data.get("prompt")),
        "title": _text(data.get("title")),
        "bpm": _number(data.get("bpm")),
        "duration_seconds": _number(data.get("duration_seconds")),
        "song_url": _text(data.get("song_url")),
        "image_url": _text(data.get("image_url")),
        "tags": [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list | tuple) else [],
        "started_at": _text(data.get("started_at")),
        "finished_at": _text(data.get("finished_at")),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    """Return a number that JSON can hold, None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return value
    return None


def _not_songs(value: object) -> WhisulInvalidInputError:
    hint = "Pass the output of the task that made the songs, such as songs=make.output."
    if isinstance(value, str):
        hint += (
            " A string is not a song: to get the song of a job's id, wait for the job (WhisulJobSensor). A template"
            " that renders to songs needs the DAG's render_template_as_native_obj=True."
        )
    return WhisulInvalidInputError(f"songs holds a value of type {type(value).__name__}, which is not a song. {hint}")

"""
The JSON files beside the stored songs: ``NAME.json`` for each song, ``manifest.json`` for the whole transfer. No I/O.

A song's ``NAME.json`` is written after its audio and cover, and the manifest last of all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypedDict, get_args

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.storage.media_types import Role, is_known
from airflow_provider_whisul.text import quote

#: Titles in the extra of an asset event at most, and characters of each.
MAX_EVENT_TITLES = 50
MAX_EVENT_TITLE_CHARACTERS = 80


class StoredFile(TypedDict):
    """A file in the store."""

    name: str
    #: In bytes.
    size: int
    sha256: str
    content_type: str


class StoredSong(TypedDict):
    """A song in the store: the content of its ``NAME.json``, and one of the manifest's ``songs``."""

    job_id: str
    prompt: str | None
    title: str | None
    #: Beats per minute.
    bpm: float | None
    duration_seconds: float | None
    tags: list[str]
    #: ISO 8601, UTC.
    started_at: str | None
    finished_at: str | None
    #: The name of the song's ``NAME.json``.
    metadata: str
    audio: StoredFile
    #: None where the song has no cover.
    cover: StoredFile | None
    #: Why the cover is missing, None unless the song should have one.
    cover_error: str | None


class SkippedSong(TypedDict):
    """A song that is not in the store."""

    job_id: str | None
    prompt: str | None
    #: Why the song is not in the store.
    error: str


class Manifest(TypedDict):
    """The result of a transfer: the content of ``manifest.json``, and what the operator returns."""

    #: The URL of the folder, without a connection's id.
    destination: str
    #: The name of the manifest's own file in the folder.
    manifest: str
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    #: ISO 8601, UTC.
    stored_at: str
    #: How many songs are in the store.
    count: int
    songs: list[StoredSong]
    failed: list[SkippedSong]


def stored_song(song: Song, name: str, files: Mapping[Role, StoredFile], cover_error: str | None = None) -> StoredSong:
    """
    Return the content of a song's ``NAME.json``. It holds no URL: URLs may be signed, and may expire.

    :param song: The song.
    :param name: What the names of the song's files begin with.
    :param files: The song's files in the store; the audio is among them.
    :param cover_error: Why the cover is missing, None unless the song should have one.
    """
    return {
        "job_id": song["job_id"],
        "prompt": song["prompt"],
        "title": song["title"],
        "bpm": song["bpm"],
        "duration_seconds": song["duration_seconds"],
        "tags": song["tags"],
        "started_at": song["started_at"],
        "finished_at": song["finished_at"],
        "metadata": f"{name}.json",
        "audio": files["audio"],
        "cover": files.get("cover"),
        "cover_error": cover_error,
    }


def stored_files(metadata: Mapping[str, object], name: str, job_id: str) -> dict[Role, StoredFile]:
    """
    Return the files that a ``NAME.json`` names; none if it describes another job, names a file of another song, or is
    damaged.

    :param metadata: The content of the ``NAME.json``.
    :param name: What the names of the song's files begin with.
    :param job_id: The song's job.
    """
    files: dict[Role, StoredFile] = {}
    if metadata.get("job_id") == job_id:
        for role in get_args(Role):
            match metadata.get(role):
                case None:
                    pass
                case {
                    "name": str(file),
                    "size": int(size),
                    "sha256": str(sha256),
                    "content_type": str(content_type),
                } if is_known(role, file.removeprefix(name), content_type):
                    files[role] = {"name": file, "size": size, "sha256": sha256, "content_type": content_type}
                case _:
                    return {}
    return files


def files_of(song: StoredSong) -> dict[Role, StoredFile]:
    """
    Return a song's files.

    :param song: The song.
    """
    files: dict[Role, StoredFile] = {"audio": song["audio"]}
    if song["cover"] is not None:
        files["cover"] = song["cover"]
    return files


def is_complete(files: Mapping[Role, StoredFile], existing_files: Mapping[str, int | None]) -> bool:
    """
    Return whether the files of a song are in the store, each with the length that its ``NAME.json`` says.

    :param files: The files that the ``NAME.json`` names.
    :param existing_files: The length in bytes of each file in the store, by name.
    """
    return "audio" in files and all(existing_files.get(file["name"]) == file["size"] for file in files.values())


def manifest_name(map_index: int) -> str:
    """
    Return the name of a task's manifest. Each mapped task has a manifest of its own.

    :param map_index: The task's map index, negative if it is not mapped.
    """
    return "manifest.json" if map_index < 0 else f"manifest-{map_index}.json"


def is_of_same_task(content: Mapping[str, object], manifest: Manifest) -> bool:
    """
    Return whether an existing manifest is from an earlier try of the same task in the same run.

    :param content: The content of the existing manifest.
    :param manifest: The manifest that is to replace it.
    """
    return all(content.get(key) == manifest[key] for key in ("dag_id", "task_id", "run_id", "map_index"))


def event_extra(manifest: Manifest) -> dict[str, object]:
    """
    Return the extra of an asset event: at most 50 titles, however many songs there are.

    :param manifest: The manifest.
    """
    titles = [quote(song["title"] or "")[:MAX_EVENT_TITLE_CHARACTERS] for song in manifest["songs"][:MAX_EVENT_TITLES]]
    return {
        "destination": manifest["destination"],
        "manifest": f"{manifest['destination']}/{manifest['manifest']}",
        "count": manifest["count"],
        "failed": len(manifest["failed"]),
        "titles": titles,
    }


def to_json(content: Mapping[str, object]) -> bytes:
    """
    Return the bytes of a JSON file, indented for people.

    :param content: The content of the file.
    """
    # ASCII only: UTF-8 cannot hold half of a surrogate pair, which JSON may.
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()

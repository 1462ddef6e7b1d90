"""
Keeping songs in a store of one's own, as decisions: what is landed under which name, and what is written beside it.

Nothing here sends, writes, waits or logs. :mod:`airflow_provider_whisul.media` fetches, and
:mod:`airflow_provider_whisul.storage` writes.

A song becomes ``NAME.mp3``, ``NAME.jpg`` and, after these, ``NAME.json``. What ends in ``.part`` is not finished.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, cast
from urllib.parse import urljoin, urlsplit

from airflow_provider_whisul.account import is_loopback
from airflow_provider_whisul.api import Song, job_request, quote
from airflow_provider_whisul.batch import BatchResult
from airflow_provider_whisul.exceptions import WhisulInvalidInputError, WhisulMediaUnsafeError

#: What the name of an unfinished file ends with.
PART = ".part"

#: Characters of a title that a file's name holds at the most.
LONGEST_SLUG = 60

#: The first bytes of a file that its kind is read from.
HEAD_BYTES = 64

#: Titles that an asset event carries at the most, and characters of each.
MOST_TITLES = 50
LONGEST_TITLE = 80

Role = Literal["audio", "cover"]

#: The song's field that holds the URL of each file.
URL_FIELDS: dict[Role, Literal["song_url", "image_url"]] = {"audio": "song_url", "cover": "image_url"}


class LandedFile(TypedDict):
    """A file in the store."""

    name: str
    #: In bytes.
    size: int
    sha256: str
    content_type: str


class LandedSong(TypedDict):
    """A song in the store: what its ``NAME.json`` holds, and one of the manifest's ``songs``."""

    job_id: str
    prompt: str | None
    title: str | None
    bpm: float | None
    duration_seconds: float | None
    tags: list[str]
    #: ISO 8601, UTC.
    started_at: str | None
    finished_at: str | None
    #: The name of the file that holds all this.
    metadata: str
    audio: LandedFile
    #: None where the song has none.
    cover: LandedFile | None
    #: Why it has none, if it should have one.
    cover_error: str | None


class PassedOver(TypedDict):
    """A song that is not in the store."""

    job_id: str | None
    prompt: str | None
    #: Why.
    error: str


class Manifest(TypedDict):
    """What a landing has brought: its ``manifest.json``, and what the operator returns."""

    #: Where the files are: a URL, without a connection's id.
    destination: str
    #: The name of the manifest's own file there.
    manifest: str
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    #: ISO 8601, UTC.
    landed_at: str
    #: How many songs there are.
    count: int
    songs: list[LandedSong]
    failed: list[PassedOver]


@dataclass(frozen=True)
class Kind:
    """
    What a file is.

    :param extension: What its name ends with.
    :param content_type: Its media type.
    """

    extension: str
    content_type: str


def read_songs(songs: object) -> tuple[list[Song], list[PassedOver]]:
    """
    Return the songs that there are to land, each job once, and those that there are not.

    :param songs: What operator, sensor or batch operator return: a song, a batch's result, or any nesting of lists of
        them, such as the lazy one of a mapped task.
    :raises WhisulInvalidInputError: It is something else.
    """
    found: dict[str, Song] = {}
    failed: list[PassedOver] = []
    for value in _flat(songs):
        match value:
            case {"status": "failed"}:
                failed.append(_passed_over(cast(BatchResult, value)))
            case {"status": "completed", "track": None, "job_id": str(job_id), "prompt": prompt}:
                # Too much data for the batch to hold on to: the job has it.
                song = _read_song({"job_id": job_id, "prompt": prompt})
                found.setdefault(song["job_id"], song)
            case {"status": "completed", "track": {"job_id": _} as track} | ({"job_id": _} as track):
                song = _read_song(cast("Mapping[str, object]", track))
                found.setdefault(song["job_id"], song)
            case None:
                failed.append({"job_id": None, "prompt": None, "error": "The task before returned no song."})
            case _:
                raise _no_songs(value)
    return list(found.values()), failed


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _passed_over(result: BatchResult) -> PassedOver:
    return {
        "job_id": _text(result.get("job_id")),
        "prompt": _text(result.get("prompt")),
        "error": quote(_text(result.get("error")) or "") or "The song failed, and Whisul gave no reason.",
    }


def _read_song(data: Mapping[str, object]) -> Song:
    job_id = data.get("job_id")
    job_request(job_id)  # refuses what is no job's id
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
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value if is_number else None  # type: ignore[return-value]


def _no_songs(value: object) -> WhisulInvalidInputError:
    hint = "Pass the output of the task that made them, such as songs=make.output."
    if isinstance(value, str):
        hint += (
            " A text is none: a job's id has to be waited for (WhisulJobSensor), and a template that yields songs needs"
            " the DAG's render_template_as_native_obj=True."
        )
    return WhisulInvalidInputError(f"songs holds a {type(value).__name__}, which is no song. {hint}")


def song_name(song: Song) -> str:
    """
    Return what the names of a song's files begin with: the same in each try, and its alone.

    It is safe on any store: lower case ASCII letters, digits, dashes and one underscore, and never a name that a
    system keeps for itself.

    :param song: The song.
    """
    plain = unicodedata.normalize("NFKD", song["title"] or "").encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:LONGEST_SLUG].strip("-")
    job_id = song["job_id"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", job_id):
        # Some stores do not tell upper case from lower, and some names are too long.
        job_id = hashlib.sha256(job_id.encode()).hexdigest()[:32]
    # Neither of the two holds the sign between them, so that no other two make the same name.
    return f"{slug or 'song'}_{job_id}"


_MAGIC: tuple[tuple[Role, re.Pattern[bytes], Kind], ...] = (
    ("audio", re.compile(rb"ID3|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd]"), Kind(".mp3", "audio/mpeg")),
    ("audio", re.compile(rb"RIFF.{4}WAVE", re.DOTALL), Kind(".wav", "audio/wav")),
    ("audio", re.compile(rb"fLaC"), Kind(".flac", "audio/flac")),
    ("audio", re.compile(rb"OggS"), Kind(".ogg", "audio/ogg")),
    ("audio", re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), Kind(".aac", "audio/aac")),
    ("audio", re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL), Kind(".aiff", "audio/aiff")),
    ("cover", re.compile(rb".{4}ftyp(?:avif|avis|heic|heix|mif1)", re.DOTALL), Kind(".avif", "image/avif")),
    ("audio", re.compile(rb".{4}ftyp", re.DOTALL), Kind(".m4a", "audio/mp4")),
    ("audio", re.compile(rb"\x1a\x45\xdf\xa3"), Kind(".webm", "audio/webm")),
    ("cover", re.compile(rb"\xff\xd8\xff"), Kind(".jpg", "image/jpeg")),
    ("cover", re.compile(rb"\x89PNG\r\n\x1a\n"), Kind(".png", "image/png")),
    ("cover", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), Kind(".webp", "image/webp")),
    ("cover", re.compile(rb"GIF8[79]a"), Kind(".gif", "image/gif")),
)


def kind_of(role: Role, head: bytes, content_type: str) -> Kind | None:
    """
    Return what a file is, None where it is not what it should be: a page of HTML, an error as JSON, another thing.

    Its first bytes decide. Where they are of no kind that is known here, the server's word for audio or an image is
    taken, since a song that was paid for must not be refused for being of a new kind.

    :param role: What it should be.
    :param head: Its first bytes, at least :data:`HEAD_BYTES` of them where there are as many.
    :param content_type: The server's ``Content-Type``, empty if there was none.
    """
    for is_role, magic, kind in _MAGIC:
        if magic.match(head):
            return kind if is_role == role else None
    media_type = content_type.partition(";")[0].strip().lower()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    # A page or an error, also a plain one such as "error code: 1015". No audio and no image is nothing but text.
    if text.startswith((b"<", b"{", b"[")) or re.fullmatch(rb"[\t\n\r\x20-\x7e]*", text):
        return None
    if not re.fullmatch(rf"{'audio' if role == 'audio' else 'image'}/[a-z0-9.+-]+", media_type):
        return None
    extension = mimetypes.guess_extension(media_type, strict=False) or ".bin"
    return Kind(extension, media_type) if re.fullmatch(r"\.[a-z0-9]{1,8}", extension) else Kind(".bin", media_type)


def checked_url(url: str, job_id: str, *, came_from: str | None = None) -> str:
    """
    Return the address that a song is fetched from, if it is a safe one: https, or http from this machine itself.

    :param url: The URL, or the ``Location`` of a redirect.
    :param job_id: The song's job, for the message.
    :param came_from: The address that redirected there, None for the song's own.
    :raises WhisulMediaUnsafeError: It is not.
    """
    what = "The media URL" if came_from is None else f"The redirect from {shown(came_from)}"
    try:
        absolute = urljoin(came_from or "", url)
        parts = urlsplit(absolute)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    odd = any(character.isspace() or not character.isprintable() or character == "\\" for character in url)
    if not host or odd or parts.username is not None or parts.password is not None:
        raise WhisulMediaUnsafeError(
            f"{what} of job {job_id} is no URL that can be fetched from, so nothing was. Ask Whisul's support.",
            job_id=job_id,
        )
    here = is_loopback(host)
    from_here = came_from is None or is_loopback(urlsplit(came_from).hostname or "")
    if parts.scheme == "https" or (parts.scheme == "http" and here and from_here):
        return absolute
    raise WhisulMediaUnsafeError(
        f"{what} of job {job_id} is to {shown(absolute)}, which is not https, so nothing was fetched from there. Plain "
        "http is taken only from this machine itself (the sandbox). Ask Whisul's support.",
        job_id=job_id,
    )


def shown(url: str) -> str:
    """Return a URL as a message may show it: its query may hold a signature that lets anybody fetch the file."""
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "(no URL)"
    return quote(f"{parts.scheme}://{host}{parts.path}")


def landed_song(song: Song, name: str, files: Mapping[Role, LandedFile], cover_error: str | None = None) -> LandedSong:
    """
    Return what is kept of a song beside its files. Its URLs are not: they may be signed, and may expire.

    :param song: The song.
    :param name: What its files' names begin with.
    :param files: Its files in the store.
    :param cover_error: Why it has no cover, if it should have one.
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


def landed_again(song: Song, name: str, files: Mapping[Role, LandedFile], earlier: Mapping[str, object]) -> LandedSong:
    """
    Return what is kept of a song that an earlier try has landed.

    What that has written is taken only where the song itself does not say, and where it makes sense: somebody may have
    edited it.

    :param song: The song.
    :param name: What its files' names begin with.
    :param files: Its files in the store.
    :param earlier: What its ``NAME.json`` holds.
    """
    told = _read_song({**earlier, **{key: value for key, value in song.items() if value}})
    return landed_song(told, name, files, _text(earlier.get("cover_error")))


def files_of(content: object, job_id: str) -> dict[Role, LandedFile] | None:
    """
    Return the files that a ``NAME.json``, or ``NAME.part``, accounts for; None if it is not one of this job's.

    :param content: What was read from it.
    :param job_id: The job.
    """
    if not isinstance(content, dict) or content.get("job_id") != job_id:
        return None
    files: dict[Role, LandedFile] = {}
    for role in URL_FIELDS:
        match content.get(role):
            case {"name": str(name), "size": int(size), "sha256": str(sha256), "content_type": str(content_type)}:
                files[role] = {"name": name, "size": size, "sha256": sha256, "content_type": content_type}
    return files


def is_whole(file: LandedFile | None, sizes: Mapping[str, int | None]) -> bool:
    """Return whether a file that is accounted for is in the store, as long as it should be."""
    return file is not None and sizes.get(file["name"]) == file["size"]


def manifest_name(map_index: int) -> str:
    """Return the name of a task's manifest. Each of mapped tasks has one of its own."""
    return "manifest.json" if map_index < 0 else f"manifest-{map_index}.json"


def is_of_same_task(content: object, manifest: Manifest) -> bool:
    """Return whether the manifest that is in the store already is an earlier one of this very task and run."""
    return isinstance(content, dict) and all(
        content.get(key) == manifest[key] for key in ("dag_id", "task_id", "run_id", "map_index")
    )


def event_extra(manifest: Manifest) -> dict[str, object]:
    """
    Return what an asset event says of a landing: bounded, however many songs there are.

    :param manifest: The manifest.
    """
    titles = [quote(song["title"] or "")[:LONGEST_TITLE] for song in manifest["songs"][:MOST_TITLES]]
    return {
        "destination": manifest["destination"],
        "manifest": f"{manifest['destination']}/{manifest['manifest']}",
        "count": manifest["count"],
        "failed": len(manifest["failed"]),
        "titles": titles,
    }


def as_json(content: Mapping[str, object]) -> bytes:
    """Return the bytes of a JSON file that people may read too."""
    # ASCII alone: a half of a surrogate pair, which JSON may hold, is nothing that UTF-8 can.
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()

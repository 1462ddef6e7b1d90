"""Prompt directives: ``[sandbox:NAME]`` or ``[sandbox:NAME=VALUE]`` in a prompt decides what becomes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_provider_whisul.sandbox.options import FAULTS

_DIRECTIVE = re.compile(r"\[sandbox:([^\]=]*)(?:=([^\]]*))?\]")
_SIZE = re.compile(r"(\d{1,12})(B|kB|MB|GB)?")
_LOCATION = re.compile(r"https?://[!-~]+")
_UNITS = {None: 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
DIRECTIVES = (
    "fail",
    "expired",
    "seconds",
    "status",
    "end-status",
    "forever",
    "bare-track",
    "song-late",
    "duration",
    "hostile",
    "media-size",
    "media-expired",
    "media-gone",
    "media-location",
    "media-no-cors",
)
"""The directives that are no faults; every fault is one too."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that hits ``count`` requests in a row; ``delay`` in seconds is for the slow ones (None: the default)."""

    fault: str
    count: int = 1
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Directives:
    """What a prompt asks of the sandbox.

    :param fail: how many of the first jobs of this prompt fail; infinite for all.
    :param expired: the job is 404 as soon as it is over.
    :param seconds: how long the job takes in seconds; None to draw it.
    :param status: the status of the job while it runs.
    :param end_status: the status of the job once it has ended; None for the documented one.
    :param forever: the job never ends.
    :param bare_track: the result has null and missing fields.
    :param song_late: how many seconds after its end the completed job gets its result; infinite for never.
    :param duration: what the result says as ``duration``; None for the song's own length.
    :param hostile: title and tags hold HTML and script.
    :param media_size: least size of the song's file in bytes; silence is added after its end.
    :param media_expired: how many of the first URLs that the job gives out no longer work (403).
    :param media_gone: no URL of the job works (410).
    :param media_location: where every request for song and cover is redirected to; None for nowhere.
    :param media_no_cors: the responses do not let pages of other sites read song and cover.
    :param faults: what hits the requests, in the order of the prompt.
    """

    fail: float = 0
    expired: bool = False
    seconds: float | None = None
    status: str = "running"
    end_status: str | None = None
    forever: bool = False
    bare_track: bool = False
    song_late: float = 0.0
    duration: str | int | None = None
    hostile: bool = False
    media_size: int = 0
    media_expired: int = 0
    media_gone: bool = False
    media_location: str | None = None
    media_no_cors: bool = False
    faults: tuple[Hit, ...] = ()

    def fault_at(self, names: Iterable[str], index: int) -> Hit | None:
        """Return what hits the request number ``index`` (from 0) among the faults called ``names``, if anything."""
        for hit in self.faults:
            if hit.fault in names:
                if index < hit.count:
                    return hit
                index -= hit.count
        return None


def parse(prompt: str) -> Directives:
    """Read the directives of a prompt.

    :param prompt: the prompt as sent.
    :raises ValueError: a directive is unknown or its value cannot be read. A typo must not pass for a good song.
    """
    found: dict[str, str | None] = {}
    faults: list[Hit] = []
    for match in _DIRECTIVE.finditer(prompt):
        name, value = match[1], match[2]
        if name in FAULTS:
            faults.append(_hit(name, value))
        elif name in DIRECTIVES:
            found[name] = value
        else:
            known = ", ".join((*DIRECTIVES, *FAULTS))
            raise ValueError(f"Unknown sandbox directive {name!r}; known: {known}.")
    for name in ("expired", "forever", "bare-track", "hostile", "media-gone", "media-no-cors"):
        if found.get(name) is not None:
            raise ValueError(f"The sandbox directive {name!r} takes no value.")
    for name in ("seconds", "status", "end-status", "duration", "media-size", "media-location"):
        if name in found and found[name] is None:
            raise ValueError(f"The sandbox directive {name!r} needs a value: [sandbox:{name}=VALUE].")
    fail = found.get("fail", "0")
    seconds = found.get("seconds")
    duration = found.get("duration")
    late = found.get("song-late", "0")
    return Directives(
        fail=math.inf if fail is None else _count("fail", fail),
        expired="expired" in found,
        seconds=None if seconds is None else _seconds("seconds", seconds),
        status=found.get("status") or "running",
        end_status=found.get("end-status"),
        forever="forever" in found,
        bare_track="bare-track" in found,
        song_late=math.inf if late is None else _seconds("song-late", late),
        duration=int(duration) if duration and duration.isascii() and duration.isdigit() else duration,
        hostile="hostile" in found,
        media_size=_bytes("media-size", found.get("media-size") or "0"),
        media_expired=_count("media-expired", found["media-expired"] or "1") if "media-expired" in found else 0,
        media_gone="media-gone" in found,
        media_location=_location(found.get("media-location")),
        media_no_cors="media-no-cors" in found,
        faults=tuple(faults),
    )


def _hit(name: str, value: str | None) -> Hit:
    if value is None:
        return Hit(name)
    if name.endswith("-slow"):
        return Hit(name, delay=_seconds(name, value))
    return Hit(name, _count(name, value))


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"The sandbox directive {name!r} takes a whole number, not {value!r}.")
    return int(value)


def _bytes(name: str, value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"The sandbox directive {name!r} takes a number of B, kB, MB or GB, not {value!r}.")
    return int(match[1]) * _UNITS[match[2]]


def _location(value: str | None) -> str | None:
    if value is not None and not _LOCATION.fullmatch(value):
        raise ValueError(f"The sandbox directive 'media-location' takes an http or https URL, not {value!r}.")
    return value


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"The sandbox directive {name!r} takes a number of seconds, not {value!r}.")
    return seconds

"""What the API returns, as data: a song and its job."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, TypedDict

from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError, WhisulResponseError
from airflow_provider_whisul.text import excerpt, quote, storable

Status = Literal["running", "completed", "failed"]

#: The statuses that the API documents, and other words for them, each without regard to case and surrounding space. Any
#: other word counts as running: a job that is waited for too long costs less than one that is paid for twice.
STATUS_WORDS: dict[Status, tuple[str, ...]] = {
    "running": ("running",),
    "completed": ("completed", "complete", "done", "finished", "succeeded", "success"),
    "failed": ("failed", "failure", "error", "errored", "cancelled", "canceled", "rejected"),
}
_STATUSES: dict[str, Status] = {word: status for status, words in STATUS_WORDS.items() for word in words}

#: A response about a job has at least one of them. A general error may have a ``result``, which is null.
_JOB_FIELDS = {"prompt", "started_at", "finished_at"}


class Song(TypedDict):
    """A song as plain data, as the operator and the sensor return it. Any field but ``job_id`` may be missing."""

    job_id: str
    prompt: str | None
    title: str | None
    #: Beats per minute.
    bpm: float | None
    duration_seconds: float | None
    #: Where the audio is, on a host that must never see the API key.
    song_url: str | None
    #: Where the cover is, likewise.
    image_url: str | None
    tags: list[str]
    #: ISO 8601, UTC.
    started_at: str | None
    finished_at: str | None


@dataclass(frozen=True)
class WhisulJob:
    """
    A job as a poll returned it (page api-reference/job-status).

    :param job_id: The job's id.
    :param status: ``running``, ``completed`` or ``failed``, also where the API has another of :data:`STATUS_WORDS`. Any
        other word is undocumented and counts as running.
    :param prompt: The prompt.
    :param song: The song, None unless the job is completed.
    :param error: Why the job failed, None unless it failed and the API gives a reason.
    :param started_at: When the job started, UTC.
    :param finished_at: When the job ended, UTC; None while it runs.
    :param raw: The JSON object of the response, also with fields that are not documented. The API key is masked in it,
        and a database can hold it. Nothing else of it is checked. It is at most as large as a response that is read
        (1 MiB), and in no message, log, event or XCom of this provider.
    """

    job_id: str
    status: str
    prompt: str | None = None
    song: Song | None = None
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    raw: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, job_id: str, data: Mapping[str, object]) -> WhisulJob:
        """
        Return the job that a response body describes.

        :param job_id: The job that was polled.
        :param data: The body, as :meth:`~airflow_provider_whisul.api.messages.Response.json_object` returns it.
        :raises WhisulResponseError: The body has no status.
        """
        status = data.get("status")
        if not isinstance(status, str):
            raise WhisulResponseError(
                f"No status is in Whisul's response about job {job_id}.", job_id=job_id, http_status=200
            )
        word, result = status.strip().casefold(), data.get("result")
        status = _STATUSES.get(word) or quote(status)
        if status == "failed" != word and not _JOB_FIELDS & data.keys():
            # The usual envelope of a general error has such a word too. A failed job is paid for again.
            raise WhisulResponseError(
                f"A response with the status {quote(word)!r} that is not about a job came for job {job_id}.",
                job_id=job_id,
                http_status=200,
            )
        return cls(
            job_id=job_id,
            status=status,
            prompt=_text(data.get("prompt")),
            song=_song(job_id, data, result if isinstance(result, dict) else {}) if status == "completed" else None,
            error=_text(data.get("error")),
            started_at=_utc(data.get("started_at")),
            finished_at=_utc(data.get("finished_at")),
            raw=data,
        )

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def has_song_url(self) -> bool:
        """Whether the job is completed and its song can be fetched. A job may be completed some time before that."""
        return self.song is not None and bool((self.song["song_url"] or "").strip())

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def time_taken(self) -> timedelta | None:
        """How long the job has taken, None while it runs or where Whisul does not say it."""
        return self.finished_at - self.started_at if self.started_at and self.finished_at else None

    @property
    def status_known(self) -> bool:
        return self.status in STATUS_WORDS

    def failed_error(self) -> WhisulJobFailedError:
        """Return the error for a failed job."""
        reason = quote(self.error).rstrip(".") if self.error else "Whisul gave no reason"
        prompt = f'"{excerpt(self.prompt)}"' if self.prompt else "not reported"
        error = WhisulJobFailedError(
            f"The song failed: {reason}. The prompt was {prompt} (job {self.job_id}). A failed job cannot be resumed: "
            "only a new submission makes the song; consider another prompt if the reason points at it.",
            job_id=self.job_id,
        )
        error.prompt = self.prompt
        return error


def describe_job(job_id: str, prompt: str | None) -> str:
    """
    Return a job as a message names it: its id, and the beginning of its prompt where that is known.

    :param job_id: The job's id.
    :param prompt: Its prompt.
    """
    return f'job {job_id} ("{excerpt(prompt)}")' if prompt else f"job {job_id}"


#: What one poll of a job brought: the job, or the error that the poll ended in.
PollResult = WhisulJob | WhisulError


def _song(job_id: str, job: Mapping[str, object], result: Mapping[str, object]) -> Song:
    started_at, finished_at = _utc(job.get("started_at")), _utc(job.get("finished_at"))
    return {
        "job_id": job_id,
        "prompt": _text(job.get("prompt")),
        "title": _text(result.get("title")),
        "bpm": _number(result.get("bpm")),
        "duration_seconds": _duration(result.get("duration")),
        "song_url": _text(result.get("song_url")),
        "image_url": _text(result.get("image_url")),
        "tags": _tags(result.get("tags")),
        "started_at": started_at.isoformat() if started_at else None,
        "finished_at": finished_at.isoformat() if finished_at else None,
    }


def _text(value: object) -> str | None:
    return storable(value) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    """Return a finite number of zero or more, None for anything else; whole ones stay ``int``."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A larger number is no tempo and no length, and as an int might not even be convertible.
    if not 0 <= value < 1e9 or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def _duration(value: object) -> float | None:
    """Read ``m:ss``, ``h:mm:ss`` or seconds: the reference documents the first, the introduction the last."""
    if isinstance(value, str) and ":" in value:
        if not re.fullmatch(r"\s*(\d{1,6}:)?\d{1,6}:\d{1,2}\s*", value):
            return None
        seconds = 0
        for part in value.split(":"):
            seconds = seconds * 60 + int(part)
        return seconds
    return _number(value)


def _tags(value: object) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    tags = (_text(part) for part in parts)
    return [tag.strip() for tag in tags if tag and tag.strip()]


def _utc(value: object) -> datetime | None:
    """Read a time of the API: UTC without a zone, or ISO 8601."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None

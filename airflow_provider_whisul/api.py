"""
The Whisul API as data: what is sent, and what an answer means. No input, no output, no clock.

Both clients, on requests in a worker and on aiohttp in the triggerer, send what this module builds and believe what
it reads, so that a status means the same wherever it is met. Documented at https://docs.whisul.com, pages
api-reference/compose, api-reference/get-job, api-reference/job-status and guides/error-handling.
"""

from __future__ import annotations

import json
import math
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypedDict

from airflow_provider_whisul import __version__
from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.pace import parse_retry_after

DEFAULT_BASE_URL = "https://whisul.com/api"

#: What every request has, beside the key.
HEADERS = {"Accept": "application/json", "User-Agent": f"airflow-provider-whisul/{__version__}"}

#: Bytes of an answer that are read at the most; a documented one has less than a thousandth of that.
MAX_BODY_BYTES = 1 << 20

#: Characters of a text from the API that a message or a log line repeats at the most.
MAX_QUOTED = 500

#: A job that cannot exist. Looking for it proves a key and costs nothing.
NO_SUCH_JOB_ID = "00000000-0000-0000-0000-000000000000"

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")

# What PostgreSQL's JSON and UTF-8 cannot hold: a song must not be lost because its title has a stray NUL.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Song(TypedDict):
    """A completed job as plain data, as the operator and the sensor return it."""

    job_id: str
    prompt: str | None
    title: str | None
    bpm: float | None
    duration_seconds: float | None
    song_url: str | None
    image_url: str | None
    tags: list[str]
    #: ISO 8601, UTC.
    started_at: str | None
    finished_at: str | None


@dataclass(frozen=True)
class Request:
    """One request to the API: the path is relative to the base URL."""

    method: Literal["GET", "POST"]
    path: str
    json: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Answer:
    """
    One answer of the API, or of what stands before it.

    :param status: The HTTP status.
    :param body: What came of the body, at most :data:`MAX_BODY_BYTES` of it.
    :param complete: Whether the body came to its end.
    :param retry_after: Seconds that a ``Retry-After`` header asks for.
    :param api_key: The key that was sent. Where an answer echoes it, it is not read.
    """

    status: int
    body: bytes = b""
    complete: bool = True
    retry_after: float | None = None
    api_key: str = field(default="", repr=False)

    @classmethod
    def received(
        cls, *, status: int, headers: Mapping[str, str], body: bytes, complete: bool, now: float, api_key: str
    ) -> Answer:
        """
        Take in what a client received.

        :param status: The HTTP status.
        :param headers: The answer's headers, looked up without regard to case.
        :param body: What came of the body.
        :param complete: Whether it came to its end.
        :param now: When, in Unix seconds.
        :param api_key: The key that was sent.
        """
        return cls(status, body, complete, parse_retry_after(headers.get("Retry-After"), now), api_key)

    def text(self) -> str:
        """Return the body as text, without the key."""
        return self._hidden(self.body.decode("utf-8", "replace"))

    def json(self) -> object:
        """Return the body's JSON, without the key; None where it is none, as are nesting or digits without end."""
        try:
            return self._without_key(json.loads(self.body))
        except (ValueError, RecursionError):
            return None

    def _without_key(self, value: object) -> object:
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, list):
            return [self._without_key(item) for item in value]
        if isinstance(value, dict):
            return {key: self._without_key(item) for key, item in value.items()}
        return value

    def _hidden(self, text: str) -> str:
        return text.replace(self.api_key, "***") if self.api_key else text


@dataclass(frozen=True)
class WhisulTrack:
    """
    A song's data. Any of it may be missing: that does not unmake a song.

    :param title: The title.
    :param bpm: Beats per minute.
    :param duration_seconds: The length in seconds.
    :param song_url: Where the audio is, on a host that must never see the API key.
    :param image_url: Where the cover is, likewise.
    :param tags: The tags, one by one.
    """

    title: str | None = None
    bpm: float | None = None
    duration_seconds: float | None = None
    song_url: str | None = None
    image_url: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class WhisulJob:
    """
    A job as the API last described it.

    :param job_id: Its id.
    :param status: ``running``, ``completed`` or ``failed``; any other word is the API's own and counts as running.
    :param prompt: The prompt it was made from.
    :param track: The song, once completed.
    :param error: Why it failed, if it failed and the API says.
    :param started_at: When it was started, UTC.
    :param finished_at: When it ended, UTC; None while it runs.
    """

    job_id: str
    status: str
    prompt: str | None = None
    track: WhisulTrack | None = None
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def status_known(self) -> bool:
        return self.status in ("running", "completed", "failed")

    def song(self) -> Song:
        """Return a completed job as the plain data that goes into XCom."""
        track = self.track or WhisulTrack()
        return {
            "job_id": self.job_id,
            "prompt": self.prompt,
            "title": track.title,
            "bpm": track.bpm,
            "duration_seconds": track.duration_seconds,
            "song_url": track.song_url,
            "image_url": track.image_url,
            "tags": list(track.tags),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
        }

    def failure(self) -> WhisulJobFailedError:
        """Return the error that a failed job is."""
        reason = quote(self.error).rstrip(".") if self.error else "Whisul gave no reason"
        return WhisulJobFailedError(
            f"Whisul job {self.job_id} failed: {reason}. A failed job cannot be resumed: only a new submission makes "
            "the song; consider another prompt if the reason points at it.",
            job_id=self.job_id,
        )


def generate_request(prompt: object) -> Request:
    """
    Return the request that submits a prompt (page api-reference/compose).

    :param prompt: What the song should be, in plain language.
    :raises WhisulInvalidInputError: It is not a string, or empty. Nothing needs to be sent to know that.
    """
    if not isinstance(prompt, str):
        raise WhisulInvalidInputError(
            f"The prompt must be a string, not {type(prompt).__name__}. Nothing was sent. Where it is a template, "
            "look at the task's rendered fields."
        )
    if not prompt.strip():
        raise WhisulInvalidInputError(
            "The prompt is empty, and Whisul refuses an empty one. Nothing was sent. Where it is a template, look at "
            "the task's rendered fields."
        )
    return Request("POST", "/generate", {"prompt": prompt})


def job_request(job_id: object) -> Request:
    """
    Return the request that looks at a job (page api-reference/get-job).

    :param job_id: The job's id.
    :raises WhisulInvalidInputError: It cannot be a job's id. Nothing is sent: in a URL it could lead elsewhere.
    """
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise WhisulInvalidInputError(
            f"{_shape(job_id)} is not the id of a Whisul job, so nothing was sent. Use the id that the submission "
            "returned: letters, digits, '-' and '_'."
        )
    return Request("GET", f"/jobs/{job_id}")


def read_submission(answer: Answer) -> str:
    """
    Return the id of the job that an answer to :func:`generate_request` says was made.

    :param answer: The answer.
    :raises WhisulError: Whatever else the answer means; see :func:`error_for`.
    """
    if answer.status != 202:
        raise error_for(answer)
    job_id = _object(answer).get("job_id")
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise WhisulResponseError(
            f"Whisul accepted the prompt (202) but gave no usable job_id: {_shape(job_id)}.", http_status=202
        )
    return job_id


def read_job(answer: Answer, job_id: str) -> WhisulJob:
    """
    Return the job that an answer to :func:`job_request` describes.

    :param answer: The answer.
    :param job_id: The job that was asked for.
    :raises WhisulError: Whatever else the answer means; see :func:`error_for`.
    """
    if answer.status != 200:
        raise error_for(answer, job_id)
    data = _object(answer, job_id)
    status = data.get("status")
    if not isinstance(status, str):
        raise WhisulResponseError(f"Whisul's answer about job {job_id} has no status.", job_id=job_id, http_status=200)
    status = quote(status)
    result = data.get("result")
    track = _track(result) if isinstance(result, dict) else None
    if status == "completed" and track is None:
        raise WhisulResponseError(
            f"Whisul says that job {job_id} is completed, but sends no result with it.", job_id=job_id, http_status=200
        )
    return WhisulJob(
        job_id=job_id,
        status=status,
        prompt=_text(data.get("prompt")),
        track=track,
        error=_text(data.get("error")),
        started_at=_utc(data.get("started_at")),
        finished_at=_utc(data.get("finished_at")),
    )


def error_for(answer: Answer, job_id: str | None = None) -> WhisulError:
    """
    Return the error that an answer other than the documented success means.

    :param answer: The answer.
    :param job_id: The job it was about, if it was about one.
    """
    status = answer.status
    said = _said(answer)
    about = f"about job {job_id}" if job_id else "to the submission"
    heard = f"Whisul answered {status} {about}{said}"
    if status == 400:
        mend = "Check the job's id." if job_id else "No job was made. Check that the prompt is a non-empty text."
        return WhisulInvalidInputError(f"{heard}. {mend}", job_id=job_id, http_status=status)
    if status in (401, 403):
        return WhisulUnauthorizedError(
            f"{heard}. The API key is missing, wrong, revoked or expired. Put a valid one into the password of the "
            "Airflow connection; one that was regenerated in the dashboard replaces the old one at once.",
            job_id=job_id,
            http_status=status,
        )
    if status == 404 and job_id:
        return WhisulJobNotFoundError(
            f"{heard}. There is no such job: the id is wrong, it belongs to another account, or the job has expired. "
            "Check the id and the connection; an expired song can only be submitted anew.",
            job_id=job_id,
            http_status=status,
        )
    if status == 429:
        asked = "" if answer.retry_after is None else f" and asks to wait {answer.retry_after:.0f} s"
        return WhisulRateLimitError(
            f"{heard}{asked}. Too many requests with this key; asking again at once would prolong the block.",
            job_id=job_id,
            http_status=status,
            retry_after=answer.retry_after,
        )
    if status >= 500:
        return WhisulServerError(
            f"{heard}. This is usually transient. If it persists, look at Whisul's status page or contact its support.",
            job_id=job_id,
            http_status=status,
        )
    if 300 <= status < 400:
        return WhisulResponseError(
            f"{heard}: a redirect, which is not followed, since the key must not go to another address. Check the "
            "host of the Airflow connection.",
            job_id=job_id,
            http_status=status,
        )
    return WhisulResponseError(
        f"{heard}, which its documentation does not know. Check the host of the Airflow connection.",
        job_id=job_id,
        http_status=status,
    )


def no_answer(
    request: Request, base_url: str, error: Exception, never_sent: tuple[type[Exception], ...]
) -> WhisulConnectionError:
    """
    Return the error for a request that got no answer.

    :param request: The request.
    :param base_url: Where it was sent.
    :param error: What the client raised.
    :param never_sent: The client's errors that can only happen before a request goes out.
    """
    causes = list(_causes(error))
    job_id = request.path.rpartition("/")[2] if request.method == "GET" else None
    reason = next((quote(str(cause)) for cause in reversed(causes) if str(cause)), type(causes[-1]).__name__)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return WhisulTLSError(
            f"The certificate of {base_url} could not be verified ({reason}), so nothing was sent. Behind a proxy with "
            "a CA of its own, name the CA file in the connection's extra 'verify'.",
            job_id=job_id,
            request_sent=False,
        )
    sent = not any(isinstance(cause, never_sent) for cause in causes)
    if not sent:
        outcome = "The request was not sent."
    elif request.method == "POST":
        outcome = "The request may have arrived."
    else:
        outcome = "The job is not affected."
    return WhisulConnectionError(
        f"No answer to {request.method} {base_url}{request.path}: {reason}. {outcome}",
        job_id=job_id,
        request_sent=sent,
    )


def may_send_again(request: Request, error: WhisulError) -> bool:
    """
    Return whether a request that ended in an error may be sent once more.

    Looking at a job may, after anything transient. A submission may not unless it certainly made no job, since the
    API has no idempotency key: it was refused for the rate limit, or it never left this machine.

    :param request: The request.
    :param error: How it ended.
    """
    if request.method == "GET" or isinstance(error, WhisulRateLimitError):
        return error.transient
    return error.transient and isinstance(error, WhisulConnectionError) and not error.request_sent


def submission_lost(error: WhisulError) -> bool:
    """
    Return whether a submission that ended in an error may have made a job all the same.

    :param error: How it ended.
    """
    if isinstance(error, WhisulConnectionError):
        return error.request_sent
    if isinstance(error, WhisulResponseError):
        return error.http_status is not None and 200 <= error.http_status < 300
    return isinstance(error, WhisulServerError)


def quote(text: str) -> str:
    """Return a text of unknown origin on one line and bounded, fit for a message or a log line."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "�" for character in line)
    return line if len(line) <= MAX_QUOTED else line[:MAX_QUOTED] + "…"


def storable(text: str) -> str:
    """Return a text without what no database can hold."""
    return _UNSTORABLE.sub("�", text)


def _object(answer: Answer, job_id: str | None = None) -> dict[str, object]:
    """Return the JSON object that a successful answer must hold."""
    about = f"about job {job_id}" if job_id else "to the submission"
    if not answer.complete:
        raise WhisulResponseError(
            f"Whisul's answer {about} broke off after {len(answer.body)} bytes.",
            job_id=job_id,
            http_status=answer.status,
        )
    data = answer.json()
    if not isinstance(data, dict):
        raise WhisulResponseError(
            f"Whisul's answer {about} ({answer.status}) is not the documented JSON but {_glimpse(answer)}.",
            job_id=job_id,
            http_status=answer.status,
        )
    return data


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the innermost last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _said(answer: Answer) -> str:
    """Return the API's own words in an error answer, as the continuation of a sentence."""
    data = answer.json()
    if isinstance(data, dict):
        for name in ("message", "error", "detail"):
            words = data.get(name)
            if isinstance(words, str) and words.strip():
                return f' ("{quote(words).rstrip(".")}")'
    return ""


def _glimpse(answer: Answer) -> str:
    text = quote(answer.text())
    return f'"{text[:80]}"' if text else "empty"


def _shape(value: object) -> str:
    # Only what is known to be short work: a number's digits or a list's nesting may have no end.
    return quote(repr(value)) if isinstance(value, str | None) else f"A value of type {type(value).__name__}"


def _track(result: Mapping[str, object]) -> WhisulTrack:
    return WhisulTrack(
        title=_text(result.get("title")),
        bpm=_number(result.get("bpm")),
        duration_seconds=_duration(result.get("duration")),
        song_url=_text(result.get("song_url")),
        image_url=_text(result.get("image_url")),
        tags=_tags(result.get("tags")),
    )


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


def _tags(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    tags = (_text(part) for part in parts)
    return tuple(tag.strip() for tag in tags if tag and tag.strip())


def _utc(value: object) -> datetime | None:
    """Read a time of the API: UTC without saying so, or ISO 8601."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None

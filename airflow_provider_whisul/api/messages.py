"""
The two endpoints as data: requests, and what a response means. No I/O and no clock.

Both HTTP clients, requests in a worker and aiohttp in the triggerer, send what this module builds and read what it
parses, so that a status means the same in both. Documented at https://docs.whisul.com, pages api-reference/compose,
api-reference/get-job, api-reference/job-status and guides/error-handling.
"""

from __future__ import annotations

import json
import math
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from airflow_provider_whisul import __version__
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobNotFoundError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.text import quote

#: The headers of every request, beside ``Authorization``.
HEADERS = {"Accept": "application/json", "User-Agent": f"airflow-provider-whisul/{__version__}"}

#: Bytes of a response body that are read at most. A documented body has less than a thousandth of that.
MAX_BODY_BYTES = 1 << 20

#: Seconds. A longer ``Retry-After`` makes no sense: it is probably a Unix time, not a number of seconds.
MAX_RETRY_AFTER = 86_400.0

#: A job that cannot exist. Polling it proves a key and costs nothing.
NO_SUCH_JOB_ID = "00000000-0000-0000-0000-000000000000"

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True)
class Request:
    """
    One request to the API.

    :param method: ``POST`` submits a prompt, ``GET`` polls a job.
    :param path: The path, relative to the base URL.
    :param json: The body, None for no body.
    """

    method: Literal["GET", "POST"]
    path: str
    json: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Response:
    """
    One response of the API, or of a proxy or CDN before it.

    :param status: The HTTP status.
    :param body: The body, at most :data:`MAX_BODY_BYTES` of it.
    :param complete: Whether the body came to its end.
    :param retry_after: Seconds that a ``Retry-After`` header asks to wait, None if it does not.
    :param cooldown: Seconds until our rate limiter permits the next request, None unless the key is throttled.
    :param api_key: The key that was sent. It is masked where the body echoes it.
    """

    status: int
    body: bytes = b""
    complete: bool = True
    retry_after: float | None = None
    cooldown: float | None = None
    api_key: str = field(default="", repr=False)

    @classmethod
    def from_http(
        cls, *, status: int, headers: Mapping[str, str], body: bytes, complete: bool, now: float, api_key: str
    ) -> Response:
        """
        Return the response that an HTTP client received.

        :param status: The HTTP status.
        :param headers: The headers, looked up without regard to case.
        :param body: The body, as much of it as came.
        :param complete: Whether the body came to its end.
        :param now: When the response came, in Unix seconds.
        :param api_key: The key that was sent.
        """
        retry_after = parse_retry_after(headers.get("Retry-After"), now)
        return cls(status, body, complete, retry_after=retry_after, api_key=api_key)

    @property
    def throttled(self) -> bool:
        """Whether the response is a 429."""
        return self.status == 429

    def text(self) -> str:
        """Return the body as text, with the key masked."""
        return self._masked(self.body.decode("utf-8", "replace"))

    def json(self) -> object:
        """Return the body's JSON, with the key masked; None where the body is no JSON that can be read."""
        try:
            return self._without_key(json.loads(self.body))
        except (ValueError, RecursionError):
            return None

    def _without_key(self, value: object) -> object:
        if isinstance(value, str):
            return self._masked(value)
        if isinstance(value, list):
            return [self._without_key(item) for item in value]
        if isinstance(value, dict):
            return {key: self._without_key(item) for key, item in value.items()}
        return value

    def _masked(self, text: str) -> str:
        return text.replace(self.api_key, "***") if self.api_key else text


def generate_request(prompt: object) -> Request:
    """
    Return the request that submits a prompt (page api-reference/compose).

    :param prompt: The description of the song, in plain language.
    :raises WhisulInvalidInputError: The prompt is not a string, or empty. Nothing needs to be sent to know that.
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
    Return the request that polls a job (page api-reference/get-job).

    :param job_id: The job's id.
    :raises WhisulInvalidInputError: It cannot be a job's id. Nothing is sent: in a URL it could lead elsewhere.
    """
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise WhisulInvalidInputError(
            f"{_describe(job_id)} is not the id of a Whisul job, so nothing was sent. Use the id that the submission "
            "returned: letters, digits, '-' and '_'."
        )
    return Request("GET", f"/jobs/{job_id}")


def read_submission(response: Response) -> str:
    """
    Return the job's id from a response to :func:`generate_request`.

    :param response: The response.
    :raises WhisulError: The response is not a 202 with a job's id; see :func:`error_from_response`.
    """
    if response.status != 202:
        raise error_from_response(response)
    job_id = _json_object(response).get("job_id")
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise WhisulResponseError(
            f"Whisul accepted the prompt (202) but gave no usable job_id: {_describe(job_id)}.", http_status=202
        )
    return job_id


def read_job(response: Response, job_id: str) -> WhisulJob:
    """
    Return the job from a response to :func:`job_request`.

    :param response: The response.
    :param job_id: The job that was polled.
    :raises WhisulError: The response is not a 200 with a job; see :func:`error_from_response`.
    """
    if response.status != 200:
        raise error_from_response(response, job_id)
    return WhisulJob.from_json(job_id, _json_object(response, job_id))


def error_from_response(response: Response, job_id: str | None = None) -> WhisulError:
    """
    Return the error that a response other than the documented success means.

    :param response: The response.
    :param job_id: The job that was polled, None for a submission.
    """
    status = response.status
    about = f"about job {job_id}" if job_id else "to the submission"
    detail = f"Whisul answered {status} {about}{_api_message(response)}"
    if status == 400:
        hint = "Check the job's id." if job_id else "No job was made. Check that the prompt is a non-empty text."
        return WhisulInvalidInputError(f"{detail}. {hint}", job_id=job_id, http_status=status)
    if status in (401, 403):
        return WhisulUnauthorizedError(
            f"{detail}. The API key is missing, wrong, revoked or expired. Put a valid one into the password of the "
            "Airflow connection; one that was regenerated in the dashboard replaces the old one at once.",
            job_id=job_id,
            http_status=status,
        )
    if status == 404 and job_id:
        return WhisulJobNotFoundError(
            f"{detail}. There is no such job: the id is wrong, it belongs to another account, or the job has expired. "
            "Check the id and the connection; an expired song can only be submitted anew.",
            job_id=job_id,
            http_status=status,
        )
    if response.throttled:
        asked = "" if response.retry_after is None else f" and asks to wait {response.retry_after:.0f} s"
        return WhisulRateLimitError(
            f"{detail}{asked}. Too many requests with this key; another request at once would prolong the block.",
            job_id=job_id,
            http_status=status,
            retry_after=response.retry_after,
            cooldown=response.cooldown,
        )
    if status >= 500:
        return WhisulServerError(
            f"{detail}. This is usually transient. If it persists, see Whisul's status page or contact its support.",
            job_id=job_id,
            http_status=status,
        )
    if 300 <= status < 400:
        return WhisulResponseError(
            f"{detail}: a redirect, which is not followed, since the key must not go to another address. Check the "
            "host of the Airflow connection.",
            job_id=job_id,
            http_status=status,
        )
    return WhisulResponseError(
        f"{detail}, which is not documented. Check the host of the Airflow connection.",
        job_id=job_id,
        http_status=status,
    )


def connection_error(
    request: Request, base_url: str, error: Exception, never_sent: tuple[type[Exception], ...]
) -> WhisulConnectionError:
    """
    Return the error for a request that got no response.

    :param request: The request.
    :param base_url: The base URL that it was for.
    :param error: What the HTTP client raised.
    :param never_sent: The client's errors that only happen before a request is sent.
    """
    causes = list(_causes(error))
    job_id = request.path.rpartition("/")[2] if request.method == "GET" else None
    reason = next((quote(str(cause)) for cause in reversed(causes) if str(cause)), type(error).__name__)
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
        f"No response to {request.method} {base_url}{request.path}: {reason}. {outcome}",
        job_id=job_id,
        request_sent=sent,
    )


def is_retryable(request: Request, error: WhisulError) -> bool:
    """
    Return whether a request that ended in an error may be sent again.

    A poll may be, after any transient error. A submission may be only where it certainly made no job, since the API has
    no idempotency key: after a 429, or where it never left this machine.

    :param request: The request.
    :param error: How it ended.
    """
    if isinstance(error, WhisulRateLimitError):
        # Without a status it is our rate limiter's refusal: the time for this request is over.
        return error.http_status is not None
    if request.method == "GET":
        return error.transient
    return error.transient and isinstance(error, WhisulConnectionError) and not error.request_sent


def may_have_been_accepted(error: WhisulError) -> bool:
    """
    Return whether a submission that ended in an error may have made a job all the same.

    :param error: How it ended.
    """
    if isinstance(error, WhisulConnectionError):
        return error.request_sent
    if isinstance(error, WhisulResponseError):
        return error.http_status is not None and 200 <= error.http_status < 300
    return isinstance(error, WhisulServerError)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """
    Return a ``Retry-After`` header as seconds from now, None where there is none or it makes no sense.

    :param value: The header: a number of seconds or an HTTP date.
    :param now: When the response came, in Unix seconds.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            if date.tzinfo is None:
                date = date.replace(tzinfo=UTC)
            seconds = date.timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if -math.inf < seconds <= MAX_RETRY_AFTER else None


def _json_object(response: Response, job_id: str | None = None) -> dict[str, object]:
    about = f"about job {job_id}" if job_id else "to the submission"
    if not response.complete:
        raise WhisulResponseError(
            f"Whisul's response {about} broke off after {len(response.body)} bytes.",
            job_id=job_id,
            http_status=response.status,
        )
    data = response.json()
    if not isinstance(data, dict):
        text = quote(response.text())
        excerpt = f'"{text[:80]}"' if text else "empty"
        raise WhisulResponseError(
            f"Whisul's response {about} ({response.status}) is not the documented JSON but {excerpt}.",
            job_id=job_id,
            http_status=response.status,
        )
    return data


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, the innermost last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _api_message(response: Response) -> str:
    """Return the API's own message in an error response, as the continuation of a sentence."""
    data = response.json()
    if isinstance(data, dict):
        for name in ("message", "error", "detail"):
            message = data.get(name)
            if isinstance(message, str) and message.strip():
                return f' ("{quote(message).rstrip(".")}")'
    return ""


def _describe(value: object) -> str:
    # The repr of a number or of nested lists can be endless.
    return quote(repr(value)) if isinstance(value, str | None) else f"A value of type {type(value).__name__}"

"""
The two endpoints as data: requests and responses. No I/O and no clock.

Both HTTP clients, requests in a worker and aiohttp in the triggerer, send what this module builds. What a response
means is in :mod:`airflow_provider_whisul.api.outcomes`. Documented at https://docs.whisul.com, pages
api-reference/compose, api-reference/get-job, api-reference/job-status and guides/error-handling.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from airflow_provider_whisul import __version__
from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.text import mask, quote, storable

#: The headers of every request, beside ``Authorization``.
HEADERS = {"Accept": "application/json", "User-Agent": f"airflow-provider-whisul/{__version__}"}

#: Bytes of a response body that are read at most. A documented body has less than a thousandth of that.
MAX_BODY_BYTES = 1 << 20

#: Seconds of a ``Retry-After`` that are waited at most, then one request asks again. A longer one is probably no number
#: of seconds but milliseconds or a Unix time, or a date by a clock that is wrong.
MAX_RETRY_AFTER = 900.0

#: The same where a header says that the limit is used up. Whisul documents none: a wrong one must cost little.
MAX_EXHAUSTED = 60.0

#: A job that cannot exist. Polling it proves a key and costs nothing.
NO_SUCH_JOB_ID = "00000000-0000-0000-0000-000000000000"

#: What can be a job's id.
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")

#: How a 403 or a 429 says that the account has no credits left.
_OUT_OF_CREDITS = re.compile(
    r"\b(insufficient|not enough|no more|no|out of) (\w+ )?(credits?|balance|funds)\b"
    r"|\bcredits? (\w+ )?(exhausted|used up|depleted)\b|\bpayment required\b"
)
#: The same of a "quota", which may also be one of requests per minute: then the text says so, or when to come back.
_OUT_OF_QUOTA = re.compile(
    r"^(?!.*\b(requests?|rate|per|(this|each|next) \w+|seconds?|minutes?|hours?|try again|retry)\b)"
    r".*(\b(insufficient|not enough|no more|no|out of) (\w+ )?quota\b|exceeded your current quota)"
)

#: How a text reaches the task as a text where Jinja reads what it renders as Python.
_NATIVE_ADVICE = (
    "In a DAG with render_template_as_native_obj=True a text such as 1984 or [1] becomes a number or a list: write it "
    """in quotes of its own, prompt="'1984'", or as a template {{ params.prompt | string | pprint }}."""
)


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
    :param exhausted_for: Seconds until the account's limit allows another request, where a header says that it is used
        up; else None.
    :param cooldown: Seconds until our rate limiter permits the next request, None unless the key is throttled.
    :param api_key: The key that was sent. It is masked where the body echoes it.
    :param conn_id: The Airflow connection that the key is in, for the messages; blank where that is not known.
    """

    status: int
    body: bytes = b""
    complete: bool = True
    retry_after: float | None = None
    exhausted_for: float | None = None
    cooldown: float | None = None
    api_key: str = field(default="", repr=False)
    conn_id: str = ""

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
        exhausted_for = parse_exhausted_for(headers, now)
        return cls(status, body, complete, retry_after=retry_after, exhausted_for=exhausted_for, api_key=api_key)

    @property
    def throttled(self) -> bool:
        """Whether the response is a 429 about too many requests, which the rate limiter must know."""
        return self.status == 429 and not self.out_of_credits

    @property
    def asked_wait(self) -> float | None:
        """The seconds that the response asks all requests of the account to wait, None if it does not."""
        asked = (self.retry_after if self.throttled else None, self.exhausted_for)
        return max((seconds for seconds in asked if seconds is not None), default=None)

    @property
    def out_of_credits(self) -> bool:
        """Whether the account has no credits left: a 402, or a 403 or 429 whose JSON says so."""
        if self.status not in (403, 429):
            return self.status == 402
        words = (re.sub(r"[\W_]+", " ", text).lower() for text in self.api_texts())
        return any(_OUT_OF_CREDITS.search(text) or _OUT_OF_QUOTA.search(text) for text in words)

    def json_object(self) -> dict[str, object] | None:
        """Return the body's JSON object, cleaned as by :meth:`json`; None where the body is none, or broke off."""
        data = self.json() if self.complete else None
        return data if isinstance(data, dict) else None

    def api_texts(self) -> list[str]:
        """Return the texts by which the JSON of an error says what is wrong, the most telling first."""
        data = self.json()
        found = [data] if isinstance(data, dict) else []
        found += [nested for name in ("error", "detail") if found and isinstance(nested := found[0].get(name), dict)]
        texts = (one.get(name) for name in ("message", "error", "detail", "code", "type") for one in found)
        return [text for text in texts if isinstance(text, str) and text.strip()]

    def text(self) -> str:
        """Return the body as text, with the key masked."""
        # UTF-16 has a NUL beside each character of ASCII: a key would be readable, and not found.
        return self._masked(self.body.replace(b"\0", b"").decode("utf-8", "replace"))

    def json(self) -> object:
        """
        Return the body's JSON, None where the body is none that can be read.

        The key is masked in it, and a database can hold it: a number that is none (NaN, infinity) is None.
        """
        try:
            return self._cleaned(json.loads(self.body))
        except (ValueError, RecursionError):
            return None

    def _cleaned(self, value: object) -> object:
        if isinstance(value, str):
            return storable(self._masked(value))
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, list):
            return [self._cleaned(item) for item in value]
        if isinstance(value, dict):
            # Masking takes its time, and no field that is known by its name holds the key there.
            names = (storable(self._masked(name) if self.api_key in name else name) for name in value)
            return dict(zip(names, map(self._cleaned, value.values()), strict=True))
        return value

    def _masked(self, text: str) -> str:
        return mask(text, self.api_key)


def generate_request(prompt: object) -> Request:
    """
    Return the request that submits a prompt (page api-reference/compose).

    :param prompt: The description of the song, in plain language.
    :raises WhisulInvalidInputError: The prompt is not a string, or empty. Nothing needs to be sent to know that.
    """
    if not isinstance(prompt, str):
        raise WhisulInvalidInputError(
            f"The prompt must be a string, not {type(prompt).__name__}. Nothing was sent. Where it is a template, "
            f"look at the task's rendered fields. {_NATIVE_ADVICE}"
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
    if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
        raise WhisulInvalidInputError(
            f"{describe(job_id)} is not the id of a Whisul job, so nothing was sent. Use the id that the submission "
            "returned: letters, digits, '-' and '_'."
        )
    return Request("GET", f"/jobs/{job_id}")


def parse_retry_after(value: str | None, now: float) -> float | None:
    """
    Return a ``Retry-After`` header as seconds from now, None where there is none or it makes no sense.

    It is at most :data:`MAX_RETRY_AFTER`.

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
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if math.isfinite(seconds) else None


def parse_exhausted_for(headers: Mapping[str, str], now: float) -> float | None:
    """
    Return for how many seconds the account's limit is used up, by ``RateLimit-*`` or ``X-RateLimit-*`` headers.

    Whisul documents none, so they are used only to be more careful.

    :param headers: The headers, looked up without regard to case.
    :param now: When the response came, in Unix seconds.
    :return: The seconds, at most :data:`MAX_EXHAUSTED`. None where requests remain, or nothing says so.
    """
    for prefix in ("RateLimit-", "X-RateLimit-"):
        try:
            remaining, reset = float(headers[f"{prefix}Remaining"]), float(headers[f"{prefix}Reset"])
        except (KeyError, ValueError):
            continue
        # Some count the seconds from now on, others name a Unix time.
        seconds = reset - now if reset > now / 2 else reset
        if remaining <= 0 and 0 < seconds < math.inf:
            return min(seconds, MAX_EXHAUSTED)
    return None


def describe(value: object) -> str:
    """
    Return a value of unknown origin as a message names it.

    :param value: The value.
    """
    # The repr of a number or of nested lists can be endless.
    return quote(repr(value)) if isinstance(value, str | None) else f"A value of type {type(value).__name__}"

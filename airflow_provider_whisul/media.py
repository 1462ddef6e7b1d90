"""
Fetches songs and covers from the media host, in pieces of bounded size into a file on this machine.

The media host is not the API: it never gets the API key, nor anything else that this machine keeps for its users
(``.netrc``, cookies). Proxies and CA files that the environment names are used.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import tenacity
import urllib3.exceptions
from requests.auth import AuthBase

from airflow_provider_whisul import __version__
from airflow_provider_whisul.account import is_loopback
from airflow_provider_whisul.api import quote
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulMediaError, WhisulMediaExpiredError, WhisulTLSError
from airflow_provider_whisul.landing import HEAD_BYTES, Kind, Role, checked_url, kind_of, shown
from airflow_provider_whisul.pace import MAX_WORKER_WAIT, parse_retry_after

#: Bytes that are read, and held in memory, at once.
CHUNK_BYTES = 1 << 18

#: Seconds to wait for a connection, and for the next byte.
CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0

#: A download that brings less than so many bytes in so many seconds has stalled.
STALL_BYTES = 1 << 18
STALL_SECONDS = 60.0

#: How often one file is asked for, all in all. Each time what has come already is kept, where the host allows that.
MAX_ATTEMPTS = 6

#: Redirects that are followed for one file.
MAX_REDIRECTS = 5

#: Seconds to wait before the second attempt; doubled before each later one.
FIRST_WAIT = 1.0

#: What means that a URL no longer works, not that the host is busy: every other 4xx.
_TRANSIENT_4XX = (408, 425, 429)

#: Characters of what a library says of a failure that a message holds.
_LONGEST_REASON = 200

#: What an answer, or a name of a host, can bring the libraries to raise.
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


@dataclass(frozen=True)
class FetchedFile:
    """
    A whole file.

    :param size: Its bytes.
    :param sha256: Their digest, in hexadecimal digits.
    :param kind: What it is.
    """

    size: int
    sha256: str
    kind: Kind


class _BrokenError(Exception):
    """An attempt that another one may mend. Its text continues a sentence, and holds no query of a URL."""

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class _WrongKindError(_BrokenError):
    """It came whole, and is not what it should be."""


class NoCoverError(Exception):
    """What a song has as its cover comes whole, and is none. Its text holds no query of a URL."""


@dataclass
class _Partial:
    """
    What has come of a file so far.

    :param file: Where it is written.
    :param size: How many bytes.
    :param digest: Of these.
    :param validator: What tells this version of the file from another, if the host says and can send a part.
    :param total: How long the whole file is, if the host says.
    :param content_type: What the host says that it is.
    """

    file: BinaryIO
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    validator: str | None = None
    total: int | None = None
    content_type: str = ""

    def begin_again(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size, self.digest = 0, hashlib.sha256()
        self.validator, self.total, self.content_type = None, None, ""

    def add(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)


class MediaClient:
    """
    Fetches files. May be used by several threads at once; enter it (``with``) to close its connections in the end.

    :param clock: Time and chance; for tests.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._stopped = threading.Event()

    def __enter__(self) -> MediaClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in self._sessions:
            session.close()

    def stop(self) -> None:
        """End what other threads are fetching or waiting for, soon: with the next bytes, or the next time-out."""
        self._stopped.set()

    def fetch(self, url: str, to: Path, role: Role, job_id: str, log_wait: Callable[[str], None]) -> FetchedFile:
        """
        Fetch a whole file. What breaks off is resumed, or begun again, a few times with growing pauses.

        :param url: Its URL.
        :param to: Where it is written. Without a return, what is there is not whole.
        :param role: What it should be.
        :param job_id: The song's job, for the messages.
        :param log_wait: Told, as a sentence, why an attempt failed and when the next one is made.
        :return: What came.
        :raises WhisulMediaUnsafeError: The URL, or where it redirects to, is not https. Nothing was fetched from there.
        :raises WhisulMediaExpiredError: The host says that this URL does not work, or no longer.
        :raises WhisulTLSError: The host's certificate could not be verified.
        :raises NoCoverError: It should be a cover, and what comes in its place is none, also in the sixth attempt.
        :raises WhisulMediaError: It did not come whole in six attempts, or is not what it should be.
        :raises OSError: It could not be written.
        """
        checked_url(url, job_id)

        def log(state: tenacity.RetryCallState) -> None:
            log_wait(
                f"The {role} of job {job_id}: {state.outcome and state.outcome.exception()}. Going on in "
                f"{state.upcoming_sleep:.0f} s (attempt {state.attempt_number} of {MAX_ATTEMPTS} failed)."
            )

        with to.open("w+b") as file:
            partial = _Partial(file)
            problem, wrong_kind = "", False
            try:
                return tenacity.Retrying(
                    retry=tenacity.retry_if_exception_type(_BrokenError),
                    stop=lambda state: state.attempt_number >= MAX_ATTEMPTS or state.upcoming_sleep > MAX_WORKER_WAIT,
                    wait=_wait,
                    before_sleep=log,
                    sleep=self._sleep,
                    reraise=True,
                )(self._attempt, url, partial, role, job_id)
            except _BrokenError as error:
                problem, wrong_kind = str(error), isinstance(error, _WrongKindError)
            # Not from within the handler: what led to it may hold the whole URL, and would be shown with it.
            what = f"The {role} of job {job_id} did not come whole from {shown(url)}"
            failed = f"{what} in {MAX_ATTEMPTS} attempts: {problem}."
            if role == "cover" and wrong_kind:
                raise NoCoverError(failed)
            raise WhisulMediaError(
                f"{failed} The song is still Whisul's to give: a retry fetches what is missing.", job_id=job_id
            )

    def _attempt(self, url: str, partial: _Partial, role: Role, job_id: str) -> FetchedFile:
        if partial.validator is None:
            partial.begin_again()
        self._check_stopped(job_id)
        with closing(self._open(url, partial, job_id)) as response:
            self._check_answer(response, partial, role, job_id, url)
            for chunk in self._chunks(response):
                partial.add(chunk)
                self._check_stopped(job_id)
        return _whole(partial, role)

    def _sleep(self, seconds: float) -> None:
        """Sleep for so long, or until :meth:`stop`."""
        if self._clock.sleep is SYSTEM_CLOCK.sleep:
            self._stopped.wait(seconds)
        else:
            # Only the test knows how its time passes.
            self._clock.sleep(seconds)

    def _check_stopped(self, job_id: str) -> None:
        if self._stopped.is_set():
            raise WhisulMediaError(f"Fetching job {job_id} was ended with the task.", job_id=job_id)

    def _open(self, url: str, partial: _Partial, job_id: str) -> requests.Response:
        """Ask for what is missing, following redirects by hand."""
        headers = {"Accept-Encoding": "identity"}
        if partial.size and partial.validator:
            headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(url, headers, job_id)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = checked_url(location, job_id, came_from=url)
        raise _BrokenError(f"more than {MAX_REDIRECTS} redirects")

    def _get(self, url: str, headers: Mapping[str, str], job_id: str) -> requests.Response:
        session = self._session()
        # A proxy that the environment names is for the way out, not for the sandbox.
        session.trust_env = not is_loopback(urlsplit(url).hostname or "")
        try:
            return session.get(
                url,
                headers=dict(headers),
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                allow_redirects=False,
                stream=True,
            )
        except _NETWORK_ERRORS as error:
            cause = _innermost(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise WhisulTLSError(
                f"The certificate of {shown(url)} could not be verified ({cause.verify_message}), so nothing was "
                "fetched. Behind a proxy with a CA of its own, name the CA file in REQUESTS_CA_BUNDLE.",
                job_id=job_id,
                request_sent=False,
            )
        raise _BrokenError(f"no answer from {shown(url)}: {_reason(cause)}")

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = self._local.session = requests.Session()
            session.headers.update({"Accept": "*/*", "User-Agent": f"airflow-provider-whisul/{__version__}"})
            # As requests' ``auth`` it keeps ``.netrc`` from being read.
            session.auth = _NoAuth()
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            self._sessions.append(session)
        session = self._local.session
        assert isinstance(session, requests.Session)  # noqa: S101 - for the type checker
        return session

    def _check_answer(self, response: requests.Response, partial: _Partial, role: Role, job_id: str, url: str) -> None:
        """Take in an answer's status and headers, or raise for what they mean."""
        status = response.status_code
        if 400 <= status < 500 and status not in (416, *_TRANSIENT_4XX):
            raise WhisulMediaExpiredError(
                f"{shown(url)}, the {role} of job {job_id}, was answered {status}: the URL has expired, or never "
                "worked.",
                job_id=job_id,
                http_status=status,
            )
        if status == 206 and partial.size:
            sent = response.headers
            other_part = _content_range(sent.get("Content-Range", "")) != (partial.size, partial.total)
            told_apart_by = "ETag" if (partial.validator or "").startswith('"') else "Last-Modified"
            # Some hosts do not look at ``If-Range``.
            if not other_part and sent.get(told_apart_by, partial.validator) == partial.validator:
                return
            partial.begin_again()
            what = "another part than was asked for" if other_part else "a part of another version of the file"
            raise _BrokenError(f"the host sent {what}")
        if status != 200:
            if status == 416:
                partial.begin_again()
            retry_after = parse_retry_after(response.headers.get("Retry-After"), self._clock.time())
            raise _BrokenError(f"{shown(url)} was answered {status}", retry_after)
        partial.begin_again()
        length = response.headers.get("Content-Length", "")
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        partial.total = int(length) if re.fullmatch("[0-9]{1,18}", length) and not chunked else None
        if partial.total is None and not chunked:
            raise _BrokenError(
                f"{shown(url)} did not say how long the file is, so that nobody could tell if it is whole"
            )
        partial.content_type = response.headers.get("Content-Type", "")
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise _BrokenError(f"{shown(url)} came encoded as {encoding[:20]!r}, which was not asked for")
        if "bytes" in response.headers.get("Accept-Ranges", "").lower() and partial.total is not None:
            etag = response.headers.get("ETag", "")
            # A weak one does not stand for the same bytes.
            partial.validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield a body as it comes, as long as it comes."""
        since, came = time.monotonic(), 0
        reason = ""
        try:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
                came += len(chunk)
                now = time.monotonic()
                if now - since >= STALL_SECONDS:
                    if came < STALL_BYTES:
                        reason = f"only {came:,} bytes came in {now - since:.0f} s"
                        break
                    since, came = now, 0
            else:
                return
        except _NETWORK_ERRORS as error:
            reason = _reason(_innermost(error))
        raise _BrokenError(f"it broke off: {reason}")


class _NoAuth(AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _whole(partial: _Partial, role: Role) -> FetchedFile:
    """Return what has come if it is all there is, and what it should be."""
    if partial.total not in (None, partial.size):
        raise _BrokenError(f"{partial.size:,} bytes came of {partial.total:,}")
    size, content_type = partial.size, partial.content_type
    digest = partial.digest.hexdigest()
    partial.file.seek(0)
    head = partial.file.read(HEAD_BYTES)
    partial.file.flush()
    kind = kind_of(role, head, content_type)
    if kind is None:
        partial.begin_again()
        what = f"a file of {size:,} bytes that is no {role}" if size else "an empty file"
        raise _WrongKindError(f"the host sent {what} (Content-Type {content_type[:60]!r})")
    return FetchedFile(size, digest, kind)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = (error.retry_after if isinstance(error, _BrokenError) else None) or 0.0
    return max(FIRST_WAIT * 2.0 ** (state.attempt_number - 1), asked)


def _content_range(value: str) -> tuple[int, int] | None:
    """Return where a part of a file begins, and how long the whole file is, if it is the file's end."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", value.strip())
    if match is None or int(match[2]) != int(match[3]) - 1:
        return None
    return int(match[1]), int(match[3])


def _innermost(error: BaseException) -> BaseException:
    """Return what an error began with: only libraries' own errors around it repeat the URL."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    """Return why a connection failed, without the URL that libraries put into their messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeError):
        return "no host can have that name"
    if type(error) is OSError and str(error):
        # Of a proxy or a CA file that cannot be used.
        return re.sub(r"\?\S*", "", quote(str(error)))[:_LONGEST_REASON]
    return re.sub(r"(Error|Exception)$", "", type(error).__name__) or type(error).__name__

"""
Downloads audio and covers from the media host into files on this machine.

The media host is not the API. It never receives the API key, nor anything that this machine keeps for its users
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
from airflow_provider_whisul.api.connection import is_loopback
from airflow_provider_whisul.api.messages import parse_retry_after
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulMediaError, WhisulMediaExpiredError, WhisulTLSError
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_WAIT
from airflow_provider_whisul.storage.media_types import SIGNATURE_BYTES, MediaType, Role, detect_media_type
from airflow_provider_whisul.storage.urls import redact_url, require_https
from airflow_provider_whisul.text import quote

#: Bytes that are read, and held in memory, at once.
CHUNK_BYTES = 1 << 18

#: Seconds to wait for a connection, and for the next byte.
CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0

#: A download that receives fewer than so many bytes in so many seconds has stalled.
STALL_BYTES = 1 << 18
STALL_SECONDS = 60.0

#: How often one file is requested at most.
MAX_ATTEMPTS = 6

#: Redirects that are followed for one file.
MAX_REDIRECTS = 5

#: Seconds to wait before the second attempt. The wait doubles with each further attempt.
FIRST_DELAY = 1.0

# Every other 4xx means that the URL does not work.
_TRANSIENT_4XX = (408, 425, 429)

_MAX_REASON_CHARACTERS = 200

# What the libraries raise for a response, or for the name of a host.
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


@dataclass(frozen=True)
class DownloadedFile:
    """
    A complete file.

    :param size: The length in bytes.
    :param sha256: The SHA-256 digest in hexadecimal digits.
    :param media_type: The media type.
    """

    size: int
    sha256: str
    media_type: MediaType


class InvalidCoverError(Exception):
    """The cover's URL returns a complete file that is no image. The text holds no query of a URL."""


class _AttemptError(Exception):
    """An attempt failed, and another one may succeed. The text continues a sentence, and holds no query of a URL."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _WrongMediaTypeError(_AttemptError):
    """The file is complete, but is not what it should be."""


@dataclass
class _PartialFile:
    """
    The bytes of a file that were received so far.

    :param file: The local file that they are written to.
    :param size: How many bytes were received.
    :param digest: The digest of these bytes.
    :param validator: ``ETag`` or ``Last-Modified`` of this version of the file, None where it cannot be resumed.
    :param total: The length of the complete file, None where the host does not say.
    :param content_type: The host's ``Content-Type``.
    """

    file: BinaryIO
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    validator: str | None = None
    total: int | None = None
    content_type: str = ""

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size, self.digest = 0, hashlib.sha256()
        self.validator, self.total, self.content_type = None, None, ""

    def append(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)


class Downloader:
    """
    Downloads files. Several threads may use it at once. Leaving it as a context manager closes its connections.

    :param clock: Time and sleep; replaced by tests.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._stopped = threading.Event()

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in self._sessions:
            session.close()

    def stop(self) -> None:
        """Stop the downloads and waits of all threads, at the next bytes or at the next time-out."""
        self._stopped.set()

    def download(self, url: str, to: Path, role: Role, job_id: str, log_retry: Callable[[str], None]) -> DownloadedFile:
        """
        Download a complete file in up to six attempts, 1, 2, 4, … seconds apart.

        A broken download is resumed where the host supports that, and restarted otherwise.

        :param url: The URL of the file.
        :param to: The local file to write. It is complete only if this method returns.
        :param role: What the file should be.
        :param job_id: The song's job, for the messages.
        :param log_retry: Receives a sentence before each wait: why the attempt failed, and when the next one follows.
        :raises WhisulMediaUnsafeError: The URL, or a redirect of it, is not https. Nothing was downloaded from there.
        :raises WhisulMediaExpiredError: The host says that the URL does not work, or no longer works.
        :raises WhisulTLSError: The host's certificate could not be verified.
        :raises InvalidCoverError: The file should be a cover, and is no image, also in the last attempt.
        :raises WhisulMediaError: The file was not complete in six attempts, or is not audio.
        :raises OSError: The local file could not be written.
        """
        require_https(url, job_id)

        def log(state: tenacity.RetryCallState) -> None:
            log_retry(
                f"The {role} of job {job_id}: {state.outcome and state.outcome.exception()}. Trying again in "
                f"{state.upcoming_sleep:.0f} s (attempt {state.attempt_number} of {MAX_ATTEMPTS} failed)."
            )

        with to.open("w+b") as file:
            partial = _PartialFile(file)
            try:
                return tenacity.Retrying(
                    retry=tenacity.retry_if_exception_type(_AttemptError),
                    stop=lambda state: state.attempt_number >= MAX_ATTEMPTS or state.upcoming_sleep > MAX_WORKER_WAIT,
                    wait=_retry_delay,
                    before_sleep=log,
                    sleep=self._sleep,
                    reraise=True,
                )(self._attempt, url, partial, role, job_id)
            except _AttemptError as error:
                reason, is_invalid_cover = str(error), role == "cover" and isinstance(error, _WrongMediaTypeError)
        # Not raised inside the handler: the causes of the error may hold the whole URL, and would be logged with it.
        failure = (
            f"The {role} of job {job_id} could not be downloaded from {redact_url(url)} in {MAX_ATTEMPTS} attempts: "
            f"{reason}."
        )
        if is_invalid_cover:
            raise InvalidCoverError(failure)
        raise WhisulMediaError(f"{failure} A retry of the task downloads what is missing, at no cost.", job_id=job_id)

    def _attempt(self, url: str, partial: _PartialFile, role: Role, job_id: str) -> DownloadedFile:
        if partial.validator is None:
            partial.restart()
        self._check_stopped(job_id)
        with closing(self._open(url, partial, job_id)) as response:
            self._check_response(response, partial, role, job_id, url)
            for chunk in self._read_chunks(response):
                partial.append(chunk)
                self._check_stopped(job_id)
        return _complete_file(partial, role)

    def _sleep(self, seconds: float) -> None:
        """Sleep, or return early after :meth:`stop`."""
        if self._clock.sleep is SYSTEM_CLOCK.sleep:
            self._stopped.wait(seconds)
        else:
            # A test drives the time.
            self._clock.sleep(seconds)

    def _check_stopped(self, job_id: str) -> None:
        if self._stopped.is_set():
            raise WhisulMediaError(f"The download for job {job_id} was stopped with the task.", job_id=job_id)

    def _open(self, url: str, partial: _PartialFile, job_id: str) -> requests.Response:
        """Request the missing bytes, and follow redirects, each of which must be https too."""
        headers = {"Accept-Encoding": "identity"}
        if partial.size and partial.validator:
            headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(url, headers, job_id)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = require_https(location, job_id, redirected_from=url)
        raise _AttemptError(f"more than {MAX_REDIRECTS} redirects")

    def _get(self, url: str, headers: Mapping[str, str], job_id: str) -> requests.Response:
        session = self._session()
        # The environment's proxy is for other machines, not for the sandbox on this one.
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
                f"The certificate of {redact_url(url)} could not be verified ({cause.verify_message}), so nothing was "
                "downloaded. Behind a proxy with a CA of its own, name the CA file in REQUESTS_CA_BUNDLE.",
                job_id=job_id,
                request_sent=False,
            )
        raise _AttemptError(f"no response from {redact_url(url)}: {_reason(cause)}")

    def _session(self) -> requests.Session:
        """Return this thread's session."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.headers.update({"Accept": "*/*", "User-Agent": f"airflow-provider-whisul/{__version__}"})
            # requests reads ``.netrc`` only where there is no other authentication.
            session.auth = _NoAuth()
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            self._sessions.append(session)
        return session

    def _check_response(
        self, response: requests.Response, partial: _PartialFile, role: Role, job_id: str, url: str
    ) -> None:
        """Prepare the partial file for the response's body, or raise for its status and headers."""
        status = response.status_code
        if 400 <= status < 500 and status not in (416, *_TRANSIENT_4XX):
            raise WhisulMediaExpiredError(
                f"The media host answered {status} to {redact_url(url)}, the {role} of job {job_id}: the URL has "
                "expired, or never worked.",
                job_id=job_id,
                http_status=status,
            )
        if status == 206 and partial.size:
            _check_resumed(response.headers, partial)
            return
        if status != 200:
            if status == 416:
                partial.restart()
            retry_after = parse_retry_after(response.headers.get("Retry-After"), self._clock.time())
            raise _AttemptError(f"{redact_url(url)} answered {status}", retry_after)
        partial.restart()
        _read_headers(response.headers, partial, url)

    def _read_chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body, and raise where it breaks off or stalls."""
        since, received = time.monotonic(), 0
        reason = ""
        try:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
                received += len(chunk)
                now = time.monotonic()
                if now - since >= STALL_SECONDS:
                    if received < STALL_BYTES:
                        reason = f"only {received:,} bytes in {now - since:.0f} s"
                        break
                    since, received = now, 0
            else:
                return
        except _NETWORK_ERRORS as error:
            reason = _reason(_innermost(error))
        raise _AttemptError(f"the download broke off: {reason}")


class _NoAuth(AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _check_resumed(headers: Mapping[str, str], partial: _PartialFile) -> None:
    """Raise unless a 206 continues the same version of the file: some hosts ignore ``If-Range``."""
    other_range = _content_range(headers.get("Content-Range", "")) != (partial.size, partial.total)
    validated_by = "ETag" if (partial.validator or "").startswith('"') else "Last-Modified"
    if other_range or headers.get(validated_by, partial.validator) != partial.validator:
        partial.restart()
        what = "another range than was requested" if other_range else "a range of another version of the file"
        raise _AttemptError(f"the host sent {what}")


def _read_headers(headers: Mapping[str, str], partial: _PartialFile, url: str) -> None:
    """Read from a 200 how long the file is, what it should be and whether it can be resumed."""
    length = headers.get("Content-Length", "")
    chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
    partial.total = int(length) if re.fullmatch("[0-9]{1,18}", length) and not chunked else None
    if partial.total is None and not chunked:
        raise _AttemptError(f"{redact_url(url)} has no Content-Length, so that a broken download could not be detected")
    partial.content_type = headers.get("Content-Type", "")
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise _AttemptError(f"{redact_url(url)} has the Content-Encoding {encoding[:20]!r}, which was not requested")
    if "bytes" in headers.get("Accept-Ranges", "").lower() and partial.total is not None:
        etag = headers.get("ETag", "")
        # A weak ETag does not promise the same bytes.
        partial.validator = etag if etag.startswith('"') else headers.get("Last-Modified")


def _complete_file(partial: _PartialFile, role: Role) -> DownloadedFile:
    """Return the file if it is complete and what it should be, and raise otherwise."""
    if partial.total not in (None, partial.size):
        raise _AttemptError(f"{partial.size:,} of {partial.total:,} bytes were received")
    size, content_type = partial.size, partial.content_type
    digest = partial.digest.hexdigest()
    partial.file.seek(0)
    head = partial.file.read(SIGNATURE_BYTES)
    partial.file.flush()
    media_type = detect_media_type(role, head, content_type)
    if media_type is None:
        partial.restart()
        what = f"a file of {size:,} bytes that is no {role}" if size else "an empty file"
        raise _WrongMediaTypeError(f"the host sent {what} (Content-Type {content_type[:60]!r})")
    return DownloadedFile(size, digest, media_type)


def _retry_delay(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    retry_after = (error.retry_after if isinstance(error, _AttemptError) else None) or 0.0
    return max(FIRST_DELAY * 2.0 ** (state.attempt_number - 1), retry_after)


def _content_range(value: str) -> tuple[int, int] | None:
    """Return where a range begins and how long the file is, None unless the range reaches the end of the file."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", value.strip())
    if match is None or int(match[2]) != int(match[3]) - 1:
        return None
    return int(match[1]), int(match[3])


def _innermost(error: BaseException) -> BaseException:
    """Return the first cause of an error: the libraries' errors around it repeat the URL."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    """Return why a connection failed, without the URL that libraries put into their messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeError):
        return "the host name is invalid"
    if type(error) is OSError and str(error):
        # From a proxy, or about a CA file that cannot be used.
        return re.sub(r"\?\S*", "", quote(str(error)))[:_MAX_REASON_CHARACTERS]
    return re.sub(r"(Error|Exception)$", "", type(error).__name__) or type(error).__name__

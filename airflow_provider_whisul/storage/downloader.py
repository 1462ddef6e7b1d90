"""Downloads audio and covers from the media host into open files: attempts, waits, limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

import requests

from airflow_provider_whisul.api.messages import parse_retry_after
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import (
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulStorageError,
)
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_WAIT
from airflow_provider_whisul.storage.media_client import (
    NETWORK_ERRORS,
    AttemptError,
    MediaClient,
    innermost,
    reason_of,
)
from airflow_provider_whisul.storage.media_types import Role
from airflow_provider_whisul.storage.new_file import NewFile
from airflow_provider_whisul.storage.partial_file import (
    DownloadedFile,
    LocalFileError,
    NothingFitsError,
    PartialFile,
    WrongMediaTypeError,
)
from airflow_provider_whisul.storage.urls import MediaAccess, redact_url, require_allowed
from airflow_provider_whisul.storage.watchdog import Attempt, Watchdog

#: Bytes that are read, and held in memory, at once.
CHUNK_BYTES = 1 << 18

#: How often one file is requested at most. Requests for a file that is not there yet do not count.
MAX_ATTEMPTS = 6

#: Seconds to wait before the second attempt. The wait doubles with each further attempt.
FIRST_DELAY = 1.0

#: Seconds that one file may take at most, with all attempts and the waits between them.
MAX_FILE_SECONDS = 1800.0

#: Bytes of a cover at most, and of a song's audio unless the user says otherwise.
MAX_COVER_BYTES = 50_000_000
MAX_AUDIO_BYTES = 500_000_000

#: So many seconds after its job ended, a file that the media host does not find may still come: CDNs lag behind.
PUBLISHING_SECONDS = 300.0
MAX_PUBLISHING_DELAY = 30.0

# The clocks of this machine and of Whisul may differ by so many seconds.
_CLOCK_SKEW = 60.0

# Every other 4xx means that the URL does not work.
_TRANSIENT_4XX = (408, 425, 429)

# A file that does not exist is a 403 at a store that does not let strangers list its files.
_NOT_THERE = (403, 404)


class InvalidCoverError(Exception):
    """The cover's URL returns a complete file that is no image. The text holds no query of a URL."""


class _NotThereYetError(AttemptError):
    """The job has only just ended, and the media host does not have the file yet."""


@dataclass(frozen=True)
class _Wanted:
    """A file to download: its URL, what it should be, its song's job and when this ended, in Unix seconds."""

    url: str
    role: Role
    job_id: str
    finished_at: float | None


class Downloader:
    """
    Downloads files. Several threads may use it at once. Leaving it as a context manager closes its connections.

    :param clock: Time and sleep; replaced by tests.
    :param access: Which hosts media may come from. The default is public ones, over https.
    :param max_audio_bytes: The largest audio that is downloaded, in bytes.
    """

    def __init__(
        self,
        *,
        clock: Clock = SYSTEM_CLOCK,
        access: MediaAccess | None = None,
        max_audio_bytes: int = MAX_AUDIO_BYTES,
    ) -> None:
        self._clock = clock
        self._max_bytes: dict[Role, int] = {"audio": max_audio_bytes, "cover": MAX_COVER_BYTES}
        self._client = MediaClient(access or MediaAccess())
        self._watchdog = Watchdog()

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog.close()
        self._client.close()

    def stop(self) -> None:
        """Stop the downloads and waits of all threads at once."""
        self._watchdog.stop()

    def download(
        self,
        url: str,
        to: NewFile,
        role: Role,
        job_id: str,
        log_retry: Callable[[str], None],
        finished_at: str | None = None,
    ) -> DownloadedFile:
        """
        Download a complete file in up to six attempts, 1, 2, 4, … seconds apart.

        A broken download is resumed where the host supports that, and restarted otherwise. With ``finished_at``, a file
        that is not there (403, 404) is waited for until five minutes after the job's end. All of this ends after 30
        minutes.

        :param url: The URL of the file.
        :param to: The file to write. It is complete only if this method returns.
        :param role: What the file should be.
        :param job_id: The song's job, for the messages.
        :param log_retry: Receives a sentence before each wait: why the attempt failed, and when the next one follows.
        :param finished_at: When the song's job ended (ISO 8601, UTC), None not to wait for it.
        :raises WhisulMediaUnsafeError: The URL, or a redirect of it, may not be requested; or the file is too large.
        :raises WhisulMediaExpiredError: The host says that the URL does not work, or no longer works.
        :raises WhisulTLSError: The host's certificate could not be verified.
        :raises InvalidCoverError: The file should be a cover, and is no image, also in the last attempt.
        :raises WhisulMediaError: The file was not complete in all attempts, is not audio, or could not be written.
        :raises WhisulStorageError: There is no space left in the store's folder, in which the file is.
        """
        wanted = _Wanted(require_allowed(url, job_id, self._client.access), role, job_id, _unix_seconds(finished_at))
        is_invalid_cover = is_full = False
        try:
            return self._attempts(wanted, PartialFile(to.file, to.place), log_retry)
        except AttemptError as error:
            reason = str(error)
            is_invalid_cover = role == "cover" and isinstance(error, WrongMediaTypeError)
            is_full = to.is_unnamed and isinstance(error, NothingFitsError)
        except LocalFileError as error:
            raise WhisulMediaError(
                f"The {role} of job {job_id} could not be written to {to.place}: {error}. Is there space left? A retry "
                "of the task downloads what is missing, at no cost.",
                job_id=job_id,
            ) from None
        # Not raised inside the handler: the causes of the error may hold the whole URL, and would be logged with it.
        failure = f"The {role} of job {job_id} could not be downloaded from {redact_url(url)} in {reason}."
        if is_full:
            raise WhisulStorageError(
                f"{failure} Free some, and clear the task. Songs that are stored already are complete, "
                "and are not downloaded again."
            )
        if is_invalid_cover:
            raise InvalidCoverError(failure)
        raise WhisulMediaError(f"{failure} A retry of the task downloads what is missing, at no cost.", job_id=job_id)

    def _attempts(self, wanted: _Wanted, partial: PartialFile, log_retry: Callable[[str], None]) -> DownloadedFile:
        """Attempt the download until it succeeds or a limit is reached. The text of the error begins with a count."""
        deadline = time.monotonic() + MAX_FILE_SECONDS
        failed = not_there = 0
        waited = 0.0
        while True:
            try:
                return self._attempt(wanted, partial, deadline)
            except AttemptError as error:
                if isinstance(error, _NotThereYetError):
                    not_there += 1
                    delay = min(FIRST_DELAY * 2.0 ** (not_there - 1), MAX_PUBLISHING_DELAY)
                else:
                    failed += 1
                    delay = max(FIRST_DELAY * 2.0 ** (failed - 1), error.retry_after or 0.0)
                limit = ""
                if waited + delay > MAX_WORKER_WAIT:
                    limit = f". The next attempt would be in {delay:,.0f} s, which is too long for a worker to wait"
                elif time.monotonic() + delay >= deadline:
                    limit = f". One file may take {MAX_FILE_SECONDS / 60:.0f} minutes"
                attempts = failed + not_there
                counted = f"{attempts} attempt{'' if attempts == 1 else 's'}"
                if limit or failed >= MAX_ATTEMPTS:
                    raise type(error)(f"{counted}: {error}{limit}") from None
                log_retry(
                    f"The {wanted.role} of job {wanted.job_id}: {error}. Trying again in {delay:.0f} s "
                    + (
                        "(the job has only just ended)."
                        if isinstance(error, _NotThereYetError)
                        else f"(attempt {failed} of {MAX_ATTEMPTS} failed)."
                    )
                )
            waited += delay
            self._sleep(delay)

    def _attempt(self, wanted: _Wanted, partial: PartialFile, deadline: float) -> DownloadedFile:
        if partial.size and partial.validator is None:
            partial.restart()
        headers = {"Accept-Encoding": "identity"}
        if partial.size and partial.validator:
            headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
        with self._watchdog.watch(deadline) as attempt:
            try:
                self._check_stopped(wanted.job_id)
                with closing(self._client.get(wanted.url, headers, wanted.job_id, attempt)) as response:
                    self._check_response(response, partial, wanted)
                    self._read(response, partial, wanted, attempt)
            except AttemptError:
                self._check_stopped(wanted.job_id)
                raise
        return partial.complete(wanted.role)

    def _sleep(self, seconds: float) -> None:
        """Sleep, or return early after :meth:`stop`."""
        if self._clock.sleep is SYSTEM_CLOCK.sleep:
            self._watchdog.stopped.wait(seconds)
        else:
            # A test drives the time.
            self._clock.sleep(seconds)

    def _check_stopped(self, job_id: str) -> None:
        if self._watchdog.stopped.is_set():
            raise WhisulMediaError(f"The download for job {job_id} was stopped with the task.", job_id=job_id)

    def _check_response(self, response: requests.Response, partial: PartialFile, wanted: _Wanted) -> None:
        """Prepare the partial file for the response's body, or raise for its status and headers."""
        status, headers, url = response.status_code, response.headers, wanted.url
        if status in _NOT_THERE and self._is_being_published(wanted):
            raise _NotThereYetError(f"{redact_url(url)} answered {status}")
        if 400 <= status < 500 and status not in (416, *_TRANSIENT_4XX):
            raise WhisulMediaExpiredError(
                f"The media host answered {status} to {redact_url(response.url)}, the {wanted.role} of job "
                f"{wanted.job_id}: the URL has expired, or never worked.",
                job_id=wanted.job_id,
                http_status=status,
            )
        if status == 206 and partial.size:
            partial.resume(headers, url)
        elif status == 200:
            partial.begin(headers, url)
            self._check_size(partial.total or 0, wanted)
        else:
            if status == 416:
                partial.restart()
            retry_after = parse_retry_after(headers.get("Retry-After"), self._clock.time())
            raise AttemptError(f"{redact_url(url)} answered {status}", retry_after)

    def _is_being_published(self, wanted: _Wanted) -> bool:
        if wanted.finished_at is None:
            return False
        return -_CLOCK_SKEW <= self._clock.time() - wanted.finished_at < PUBLISHING_SECONDS

    def _check_size(self, size: int, wanted: _Wanted) -> None:
        most = self._max_bytes[wanted.role]
        if size > most:
            hint = " If songs are that large, set max_audio_bytes." if wanted.role == "audio" else ""
            raise WhisulMediaUnsafeError(
                f"The {wanted.role} of job {wanted.job_id} at {redact_url(wanted.url)} is larger than {most:,} bytes, "
                f"so it is not downloaded.{hint}",
                job_id=wanted.job_id,
            )

    def _read(self, response: requests.Response, partial: PartialFile, wanted: _Wanted, attempt: Attempt) -> None:
        """Read the body into the partial file, and raise where it breaks off, stalls or is too long."""
        while True:
            try:
                chunk = response.raw.read1(CHUNK_BYTES, decode_content=False)
            except NETWORK_ERRORS as error:
                reason = reason_of(innermost(error))
                break
            if not chunk and attempt.ended is None:
                return
            if attempt.ended is not None:
                reason = ""
                break
            attempt.received += len(chunk)
            self._check_size(partial.size + len(chunk), wanted)
            partial.append(chunk)
        raise AttemptError(f"the download broke off: {attempt.ended or reason}")


def _unix_seconds(finished_at: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(finished_at or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

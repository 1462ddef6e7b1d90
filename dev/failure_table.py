"""Writes the table of docs/failures.md from the exceptions and rules of the code, so that the two cannot differ."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_whisul.api.messages import generate_request, is_retryable, job_request, may_have_been_accepted
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulError,
    WhisulFileExistsError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobFailedFinalError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulStorageError,
    WhisulTLSError,
    WhisulUnauthorizedError,
    all_errors,
)
from airflow_provider_whisul.polling import MAX_CONSECUTIVE_POLL_FAILURES, NOT_FOUND_GRACE
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE, MAX_ATTEMPTS, TRANSIENT_DELAY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "failures.md"
BEGIN, END = "<!-- the table: make docs -->\n", "<!-- end of the table -->\n"

#: Each cause, and an error that it raises.
CASES: list[tuple[str, WhisulError]] = [
    ("400", WhisulInvalidInputError("", http_status=400)),
    ("401, 403", WhisulUnauthorizedError("", http_status=401)),
    ("404 about a job", WhisulJobNotFoundError("", http_status=404)),
    ("429", WhisulRateLimitError("", http_status=429)),
    ("5xx", WhisulServerError("", http_status=500)),
    ("no connection: DNS, refused, connect time-out", WhisulConnectionError("", request_sent=False)),
    ("connection lost after sending, time-out", WhisulConnectionError("")),
    ("200 or 202 that is not the documented JSON", WhisulResponseError("", http_status=202)),
    ("a redirect, another status", WhisulResponseError("", http_status=302)),
    ("certificate not verified", WhisulTLSError("", request_sent=False)),
    ("the connection has no key, or is unsafe", WhisulConfigurationError("")),
    ("job failed", WhisulJobFailedError("")),
    ("job failed, in a sensor", WhisulJobFailedFinalError("")),
    ("job did not end in time", WhisulJobTimeoutError("")),
    ("response to a submission lost", WhisulAmbiguousSubmitError("")),
    ('the same with `on_ambiguous_submit="fail"`', all_errors()["WhisulAmbiguousSubmitFinalError"]("")),
    ("storing: download broke off, wrong length, HTML, empty", WhisulMediaError("")),
    ("storing: the URL has expired, there is no other", WhisulMediaExpiredError("")),
    ("storing: a URL or a redirect that is not https", WhisulMediaUnsafeError("")),
    ("storing: the store is full, or refuses", WhisulStorageError("")),
    ("storing: the manifest of another run is in the folder", WhisulFileExistsError("")),
]

_STORED_SONGS_STAY = "nothing more: a retry downloads only the songs that are not stored"

#: What each error costs, by its class.
COSTS = {
    "WhisulAmbiguousSubmitError": "perhaps one song that nobody can find, and the one that the retry submits",
    "WhisulAmbiguousSubmitFinalError": "perhaps one song that nobody can find",
    "WhisulConfigurationError": "nothing: nothing was sent",
    "WhisulConnectionError": "nothing more",
    "WhisulFileExistsError": "nothing more",
    "WhisulInvalidInputError": "nothing: no job was made",
    "WhisulJobFailedError": "the failed job, and the one that the retry submits",
    "WhisulJobFailedFinalError": "the failed job",
    "WhisulJobNotFoundError": "the song, if the job existed and has expired",
    "WhisulJobTimeoutError": "nothing more where the next try re-attaches, else another song",
    "WhisulMediaError": _STORED_SONGS_STAY,
    "WhisulMediaExpiredError": "the song, unless it was stored elsewhere",
    "WhisulMediaUnsafeError": "nothing more",
    "WhisulRateLimitError": "nothing: no job was made",
    "WhisulResponseError": "nothing more",
    "WhisulServerError": "nothing more",
    "WhisulStorageError": _STORED_SONGS_STAY,
    "WhisulTLSError": "nothing: nothing was sent",
    "WhisulUnauthorizedError": "nothing; a running job continues, and is found again once the key is valid",
}

_AFTER_429 = f"again after {', '.join(f'{step:g}' for step in BACKOFF_SCHEDULE)} s or `Retry-After`"
_AFTER_TRANSIENT_FAILURE = f"again after {TRANSIENT_DELAY[0]:g} to {TRANSIENT_DELAY[1]:g} s"
_NOT_FOUND_GRACE = (
    f"; tolerated for {NOT_FOUND_GRACE:g} s after the submission, or after the first 404 about a job that was found"
)


def _retry(error: WhisulError) -> str:
    delay = _AFTER_429 if isinstance(error, WhisulRateLimitError) else _AFTER_TRANSIENT_FAILURE
    return f"{delay}, {MAX_ATTEMPTS} times in all"


def _poll(error: WhisulError) -> str:
    if error.http_status is None and not isinstance(error, WhisulConnectionError):
        return ""
    if is_retryable(job_request("a-job"), error):
        return _retry(error)
    return "raises"


def _submission(error: WhisulError) -> str:
    if isinstance(error, WhisulJobNotFoundError) or not _poll(error):
        return ""
    if is_retryable(generate_request("a prompt"), error):
        return _retry(error)
    return "raises `WhisulAmbiguousSubmitError`" if may_have_been_accepted(error) else "raises"


def _trigger(error: WhisulError) -> str:
    if isinstance(error, WhisulMediaError | WhisulStorageError):
        return ""
    if isinstance(error, WhisulRateLimitError):
        return f"{_AFTER_429}, until the timeout"
    if error.transient:
        return f"{_AFTER_TRANSIENT_FAILURE}, up to {MAX_CONSECUTIVE_POLL_FAILURES} times in a row"
    if isinstance(error, WhisulAmbiguousSubmitError):
        return ""
    return "ends the wait" + (_NOT_FOUND_GRACE if isinstance(error, WhisulJobNotFoundError) else "")


def table() -> str:
    """Return the table as Markdown."""
    rows = [
        ("what happens", "error", "hook, polling", "hook, submitting", "trigger", "Airflow's retry", "what it costs"),
        ("---",) * 7,
    ]
    for happens, error in CASES:
        rows.append(
            (
                happens,
                f"`{type(error).__name__}`",
                _poll(error),
                _submission(error),
                _trigger(error),
                error.task_retry.value,
                COSTS[type(error).__name__],
            )
        )
    return "".join(f"| {' | '.join(cell or '-' for cell in row)} |\n" for row in rows)


def page() -> str:
    """Return docs/failures.md with the table as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)

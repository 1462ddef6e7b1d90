"""Writes the table of docs/failures.md from the exceptions, which the code goes by, so that the two cannot differ."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_whisul.api import generate_request, job_request, may_send_again, submission_lost
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
from airflow_provider_whisul.pace import (
    APPEARANCE_GRACE,
    BLIP_WAIT,
    MAX_ATTEMPTS,
    MAX_CONSECUTIVE_BLIPS,
    RATE_LIMIT_LADDER,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "failures.md"
BEGIN, END = "<!-- the table: make docs -->\n", "<!-- end of the table -->\n"

#: What happens, with an error that stands for it where it comes from an answer.
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
    ("job not over in time", WhisulJobTimeoutError("")),
    ("answer to a submission lost", WhisulAmbiguousSubmitError("")),
    ('the same with `on_ambiguous_submit="fail"`', all_errors()["WhisulAmbiguousSubmitFinalError"]("")),
    ("landing: broken off, wrong length, HTML, empty", WhisulMediaError("")),
    ("landing: the URL has expired, there is no other", WhisulMediaExpiredError("")),
    ("landing: a URL or a redirect that is not https", WhisulMediaUnsafeError("")),
    ("landing: the store is full, or refuses", WhisulStorageError("")),
    ("landing: another file has the name", WhisulFileExistsError("")),
]

_LADDER = f"again after {', '.join(f'{rung:g}' for rung in RATE_LIMIT_LADDER)} s or `Retry-After`"
_BLIP = f"again after {BLIP_WAIT[0]:g} to {BLIP_WAIT[1]:g} s"
_GRACE = f"; as a 5xx within {APPEARANCE_GRACE:g} s of the submission, or of the first 404 where the job was there"


def _again(error: WhisulError) -> str:
    return _LADDER if isinstance(error, WhisulRateLimitError) else _BLIP


def _look(error: WhisulError) -> str:
    if error.http_status is None and not isinstance(error, WhisulConnectionError):
        return ""
    if may_send_again(job_request("a-job"), error):
        return f"{_again(error)}, {MAX_ATTEMPTS} times in all"
    return "raises"


def _submission(error: WhisulError) -> str:
    if isinstance(error, WhisulJobNotFoundError) or not _look(error):
        return ""
    if may_send_again(generate_request("a prompt"), error):
        return f"{_again(error)}, {MAX_ATTEMPTS} times in all"
    return "raises `WhisulAmbiguousSubmitError`" if submission_lost(error) else "raises"


def _trigger(error: WhisulError) -> str:
    if isinstance(error, WhisulMediaError | WhisulStorageError):
        return ""
    if isinstance(error, WhisulRateLimitError):
        return f"{_LADDER}, until the timeout"
    if error.transient:
        return f"{_BLIP}, up to {MAX_CONSECUTIVE_BLIPS} times in a row"
    if isinstance(error, WhisulAmbiguousSubmitError):
        return ""
    return "ends the wait" + (_GRACE if isinstance(error, WhisulJobNotFoundError) else "")


def table() -> str:
    """Return the table as Markdown."""
    rows = [
        ("what happens", "error", "hook, looking", "hook, submitting", "trigger", "Airflow's retry", "what it costs"),
        ("---",) * 7,
    ]
    for happens, error in CASES:
        rows.append(
            (
                happens,
                f"`{type(error).__name__}`",
                _look(error),
                _submission(error),
                _trigger(error),
                error.task_retry.value,
                error.cost,
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

"""Writes the tables of docs/failures.md from the exceptions and rules of the code, so that the two cannot differ."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_whisul.api.messages import generate_request, job_request
from airflow_provider_whisul.api.models import STATUS_WORDS
from airflow_provider_whisul.api.outcomes import POLL_RULES, SUBMISSION_RULES, Rule, is_retryable, submission_error
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulBudgetExceededError,
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
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulSongMissingError,
    WhisulStateError,
    WhisulStateUnreadableError,
    WhisulStorageError,
    WhisulTLSError,
    WhisulUnauthorizedError,
    all_errors,
)
from airflow_provider_whisul.polling import MAX_CONSECUTIVE_POLL_FAILURES, NOT_FOUND_GRACE, SONG_URL_GRACE
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE, MAX_WORKER_ATTEMPTS, TRANSIENT_DELAY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "failures.md"

#: Each cause, and an error that it raises.
CASES: list[tuple[str, WhisulError]] = [
    ("the prompt, or the job's id, is refused", WhisulInvalidInputError("", http_status=400)),
    ("the key is not accepted", WhisulUnauthorizedError("", http_status=401)),
    ("out of credits", WhisulOutOfCreditsError("", http_status=402)),
    ("404, 410 about a job", WhisulJobNotFoundError("", http_status=404)),
    ("429", WhisulRateLimitError("", http_status=429)),
    ("5xx to a poll", WhisulServerError("", http_status=500)),
    ("no connection: DNS, refused, connect time-out", WhisulConnectionError("", request_sent=False)),
    ("connection lost after sending, time-out", WhisulConnectionError("")),
    ("a response that is not documented", WhisulResponseError("", http_status=302)),
    ("certificate not verified", WhisulTLSError("", request_sent=False)),
    ("there is no such connection, or it, a proxy or a CA file cannot be used", WhisulConfigurationError("")),
    ("the record or the ledger cannot be reached", WhisulStateError("")),
    ("the record or the ledger is damaged", WhisulStateUnreadableError("")),
    ("the ceiling of submissions is reached", WhisulBudgetExceededError("")),
    ("job failed", WhisulJobFailedError("")),
    ("job failed, in a sensor", WhisulJobFailedFinalError("")),
    ("job did not end in time", WhisulJobTimeoutError("")),
    ("a submission may have made a job", WhisulAmbiguousSubmitError("")),
    ("job completed, but no URL of its song", WhisulSongMissingError("")),
    ('the same with `on_ambiguous_submit="fail"`', all_errors()["WhisulAmbiguousSubmitFinalError"]("")),
    ("storing: download broke off, wrong length, HTML, empty", WhisulMediaError("")),
    ("storing: the URL has expired, there is no other", WhisulMediaExpiredError("")),
    (
        "storing: a URL that is not https or leads to a private address, a file that is too large",
        WhisulMediaUnsafeError(""),
    ),
    ("storing: the store is full, or refuses", WhisulStorageError("")),
    ("storing: the manifest of another run is in the folder", WhisulFileExistsError("")),
]

_STORED_SONGS_STAY = "nothing more: a retry downloads only the songs that are not stored"

#: What each error costs, by its class.
COSTS = {
    "WhisulAmbiguousSubmitError": "perhaps one song that nobody can find, and the one that the retry submits",
    "WhisulAmbiguousSubmitFinalError": "perhaps one song that nobody can find",
    "WhisulBudgetExceededError": "nothing: nothing was sent",
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
    "WhisulOutOfCreditsError": "nothing; a running job continues, and is found again",
    "WhisulRateLimitError": "nothing: no job was made",
    "WhisulResponseError": "nothing more",
    "WhisulServerError": "nothing more",
    "WhisulSongMissingError": "nothing more where the next try re-attaches, else another song",
    "WhisulStateError": "nothing: nothing was sent",
    "WhisulStateUnreadableError": "nothing: nothing was sent",
    "WhisulStorageError": _STORED_SONGS_STAY,
    "WhisulTLSError": "nothing: nothing was sent",
    "WhisulUnauthorizedError": "nothing; a running job continues, and is found again once the key is valid",
}

_AFTER_429 = f"again after {', '.join(f'{step:g}' for step in BACKOFF_SCHEDULE)} s or `Retry-After`"
_AFTER_TRANSIENT_FAILURE = f"again after {TRANSIENT_DELAY[0]:g} to {TRANSIENT_DELAY[1]:g} s"
_NOT_FOUND_GRACE = f"; tolerated for {NOT_FOUND_GRACE:g} s from the first one on"


def _retry(error: WhisulError) -> str:
    delay = _AFTER_429 if isinstance(error, WhisulRateLimitError) else _AFTER_TRANSIENT_FAILURE
    return f"{delay}, {MAX_WORKER_ATTEMPTS} times in all"


def _poll(error: WhisulError) -> str:
    if error.http_status is None and not isinstance(error, WhisulConnectionError):
        return ""
    if is_retryable(job_request("a-job"), error):
        return _retry(error)
    return "raises"


def _trigger(error: WhisulError) -> str:
    if isinstance(error, WhisulMediaError | WhisulStorageError | WhisulStateError | WhisulBudgetExceededError):
        return ""
    if isinstance(error, WhisulRateLimitError):
        return f"{_AFTER_429}, until the timeout"
    if error.transient:
        return f"{_AFTER_TRANSIENT_FAILURE}, up to {MAX_CONSECUTIVE_POLL_FAILURES} times in a row"
    if isinstance(error, WhisulAmbiguousSubmitError):
        return ""
    if isinstance(error, WhisulSongMissingError):
        return f"ends the wait after {SONG_URL_GRACE / 60:g} min"
    return "ends the wait" + (_NOT_FOUND_GRACE if isinstance(error, WhisulJobNotFoundError) else "")


def _markdown(rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cell or '-' for cell in row)} |\n" for row in rows)


def _job_made(rule: Rule) -> str:
    return "perhaps" if rule.error is WhisulAmbiguousSubmitError else "no"


def _example(rule: Rule) -> WhisulError:
    return rule.error("", http_status=429 if rule.error is WhisulRateLimitError else 0)


def _after_submission(rule: Rule) -> str:
    error = _example(rule)
    return _retry(error) if is_retryable(generate_request("a prompt"), error) else "raises"


def _after_poll(rule: Rule) -> str:
    error = _example(rule)
    return _retry(error) if is_retryable(job_request("a-job"), error) else "raises"


def submission_table() -> str:
    """Return the table of what the end of a submission means, as Markdown."""
    rows: list[tuple[str, ...]] = [("response to a submission", "means", "a job was made", "hook", "error")]
    rows += [("---",) * 5, ("2xx that names a job", "accepted", "yes", "returns the job's id", "")]
    for rule in SUBMISSION_RULES:
        rows.append((rule.condition, rule.gist, _job_made(rule), _after_submission(rule), f"`{rule.error.__name__}`"))
    no_connection, lost = WhisulConnectionError("", request_sent=False), WhisulConnectionError("")
    for happens, error in (("none: the request was not sent", no_connection), ("none: lost, or a time-out", lost)):
        meant = submission_error(error)
        made = "perhaps" if isinstance(meant, WhisulAmbiguousSubmitError) else "no"
        then = _retry(error) if is_retryable(generate_request("a prompt"), error) else "raises"
        rows.append((happens, "no response", made, then, f"`{type(meant).__name__}`"))
    return _markdown(rows)


def poll_table() -> str:
    """Return the table of what the end of a poll means, as Markdown."""
    rows: list[tuple[str, ...]] = [("response to a poll", "means", "hook", "error"), ("---",) * 4]
    rows.append(("200 with the documented JSON", "the job's status, see below", "returns the job", ""))
    rows += [(rule.condition, rule.gist, _after_poll(rule), f"`{rule.error.__name__}`") for rule in POLL_RULES]
    return _markdown(rows)


def status_table() -> str:
    """Return the table of the words for a job's status, as Markdown."""
    rows: list[tuple[str, ...]] = [("status", "means"), ("---",) * 2]
    rows += [(", ".join(f"`{word}`" for word in words), status) for status, words in STATUS_WORDS.items()]
    return _markdown([*rows, ("any other word", "running, with one warning")])


def table() -> str:
    """Return the table of all errors as Markdown."""
    rows = [
        ("what happens", "error", "hook, polling", "trigger", "Airflow's retry", "what it costs"),
        ("---",) * 6,
    ]
    for happens, error in CASES:
        rows.append(
            (
                happens,
                f"`{type(error).__name__}`",
                _poll(error),
                _trigger(error),
                error.task_retry.value,
                COSTS[type(error).__name__],
            )
        )
    return _markdown(rows)


def page() -> str:
    """Return docs/failures.md with the tables as they should be."""
    text = PAGE.read_text()
    for name, content in (
        ("submissions", submission_table()),
        ("polls", poll_table()),
        ("statuses", status_table()),
        ("errors", table()),
    ):
        begin, end = f"<!-- the table of {name}: make docs -->\n", f"<!-- end of the table of {name} -->\n"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)

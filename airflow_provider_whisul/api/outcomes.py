"""
What the end of a request means, as two tables: of a submission, and of a poll.

The first row that fits decides. docs/failures.md prints both tables. Documented at https://docs.whisul.com, page
guides/error-handling.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_whisul.api.connection import DEFAULT_BASE_URL, ConnectionSettings
from airflow_provider_whisul.api.messages import JOB_ID, Request, Response, describe
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobNotFoundError,
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.text import quote, truncate

_POLL_URL = re.compile(rf"(?:/api)?/jobs/({JOB_ID.pattern})/?")
_JOB_ID_IN_TEXT = re.compile(rf'"job_id"\s*:\s*"({JOB_ID.pattern})"')

#: Characters of a body that is not the documented JSON in a message.
_MAX_EXCERPT = 80


@dataclass(frozen=True)
class Rule:
    """
    A row of a table: what some of the responses mean.

    :param condition: Which responses, in words, for the documentation.
    :param fits: Whether a response is one of them.
    :param error: The error that they become.
    :param gist: What has happened: the beginning of the message.
    :param advice: What to do about it, and what it has cost: the end of the message.
    :param test_advice: The same where a user tests a connection, None for ``advice``. Airflow tests under an id of its
        own making, and there is no task, so it names neither, and fields as the form does.
    """

    condition: str
    fits: Callable[[Response], bool]
    error: type[WhisulError]
    gist: str
    advice: str
    test_advice: str | None = None


def _status(*statuses: int) -> Callable[[Response], bool]:
    return lambda response: response.status in statuses


def _json_status(*statuses: int) -> Callable[[Response], bool]:
    return lambda response: response.status in statuses and isinstance(response.json(), dict)


def _status_class(first: int, last: int) -> Callable[[Response], bool]:
    return lambda response: first <= response.status <= last


_THROTTLED = Rule(
    "429",
    _status(429),
    WhisulRateLimitError,
    "Too many requests with this API key",
    "Another request at once would prolong the block.",
)
_KEY_GIST = "Whisul does not accept the API key"
_KEY_CAUSES = (
    "The key is missing, wrong, revoked or expired; one that was regenerated in the dashboard replaces the old one at "
    "once."
)
_KEY_ADVICE = f"{_KEY_CAUSES} Put the valid key into the password of {{connection}}, then clear the task."
_CDN_GIST = "A CDN or proxy before Whisul refused the request"
_CDN_ADVICE = "The response is not the API's JSON, so it says nothing about the API key. This is usually transient."
_CREDITS = "402, or 403 or 429 whose JSON says that the credits are used up"
_CREDITS_GIST = "The Whisul account is out of credits"
_CHECK_HOST = "Check the host of {connection}."
_CHECK_BASE_URL = "Check the Base URL."
_NOT_FOLLOWED = "It is not followed, since the key must not go to another address."
_REDIRECT_ADVICE = f"{_NOT_FOLLOWED} {_CHECK_HOST}"
_SERVER_ADVICE = "This is usually transient. If it persists, see Whisul's status page or contact its support."

#: What the end of a submission means that returns no job's id. Only what the API documents to make no job, and what
#: refuses a request by the meaning of HTTP, is certain. All else may have made a job.
SUBMISSION_RULES: tuple[Rule, ...] = (
    Rule(
        "400, 413, 414, 422, 451",
        _status(400, 413, 414, 422, 451),
        WhisulInvalidInputError,
        "Whisul refused the prompt",
        "No job was made. Check that the prompt is a non-empty text, not too long, and allowed.",
    ),
    Rule(
        _CREDITS,
        lambda response: response.out_of_credits,
        WhisulOutOfCreditsError,
        _CREDITS_GIST,
        "No job was made. Top up the account, then clear the task.",
    ),
    _THROTTLED,
    Rule(
        "401, 403 with JSON",
        _json_status(401, 403),
        WhisulUnauthorizedError,
        _KEY_GIST,
        f"No job was made. {_KEY_ADVICE}",
    ),
    Rule("401, 403 without JSON", _status(401, 403), WhisulResponseError, _CDN_GIST, f"No job was made. {_CDN_ADVICE}"),
    Rule(
        "404, 405, 406, 410, 411, 415, 417, 421, 426, 428, 431",
        _status(404, 405, 406, 410, 411, 415, 417, 421, 426, 428, 431),
        WhisulResponseError,
        "The request was refused, as by a server that is not Whisul's API",
        f"No job was made. {_CHECK_HOST}",
    ),
    Rule(
        "a redirect (3xx)",
        _status_class(300, 399),
        WhisulAmbiguousSubmitError,
        "a redirect came back",
        _REDIRECT_ADVICE,
    ),
    Rule("5xx", _status_class(500, 599), WhisulAmbiguousSubmitError, "Whisul or its CDN failed to answer", ""),
    Rule(
        "2xx that names no job",
        _status_class(200, 299),
        WhisulAmbiguousSubmitError,
        "the response has no usable job_id",
        "",
    ),
    Rule(
        "any other status",
        lambda _: True,
        WhisulAmbiguousSubmitError,
        "the response is not documented",
        _CHECK_HOST,
    ),
)

#: What the end of a poll means that returns no job.
POLL_RULES: tuple[Rule, ...] = (
    Rule(
        "400 with JSON",
        _json_status(400),
        WhisulInvalidInputError,
        "Whisul refused the poll",
        "Check the job's id.",
        _CHECK_BASE_URL,
    ),
    Rule(
        _CREDITS,
        lambda response: response.out_of_credits,
        WhisulOutOfCreditsError,
        _CREDITS_GIST,
        "The job is not affected. Top up the account, then clear the task: it continues with the same job, and "
        "nothing is paid twice.",
        "Top up the account.",
    ),
    _THROTTLED,
    Rule(
        "401, 403 with JSON",
        _json_status(401, 403),
        WhisulUnauthorizedError,
        _KEY_GIST,
        f"{_KEY_ADVICE} It continues with the same job, and nothing is paid twice.",
        f"{_KEY_CAUSES} Enter the valid key as the API key.",
    ),
    Rule("401, 403 without JSON", _status(401, 403), WhisulResponseError, _CDN_GIST, _CDN_ADVICE),
    Rule(
        "404, 410",
        _status(404, 410),
        WhisulJobNotFoundError,
        "Whisul has no such job, or no longer",
        "The id is wrong, it belongs to another account, or the job has expired. Check the id and {connection}; an "
        "expired song can only be submitted anew.",
    ),
    Rule("5xx", _status_class(500, 599), WhisulServerError, "Whisul or its CDN failed to answer", _SERVER_ADVICE),
    Rule(
        "a redirect (3xx)",
        _status_class(300, 399),
        WhisulResponseError,
        "A redirect came back",
        _REDIRECT_ADVICE,
        f"{_NOT_FOLLOWED} {_CHECK_BASE_URL}",
    ),
    Rule(
        "any other status, and 200 that is not the documented JSON",
        lambda _: True,
        WhisulResponseError,
        "The response is not documented",
        _CHECK_HOST,
        _CHECK_BASE_URL,
    ),
)


def read_submission(response: Response) -> str:
    """
    Return the job's id from a response to :func:`~airflow_provider_whisul.api.messages.generate_request`.

    Any 2xx that names a job is a success: its ``job_id``, or the id in its ``poll_url``.

    :param response: The response.
    :raises WhisulError: The response names no job; see :data:`SUBMISSION_RULES`.
    """
    job_id = _named_job(response) if 200 <= response.status <= 299 else None
    if job_id is None:
        raise submission_error(response)
    return job_id


def read_job(response: Response, job_id: str) -> WhisulJob:
    """
    Return the job from a response to :func:`~airflow_provider_whisul.api.messages.job_request`.

    :param response: The response.
    :param job_id: The job that was polled.
    :raises WhisulError: The response is not a 200 with a job; see :data:`POLL_RULES`.
    """
    data = response.json_object()
    if response.status == 200 and data is not None:
        return WhisulJob.from_json(job_id, data)
    raise _error(_rule(POLL_RULES, response), response, f"about job {job_id}", job_id)


def submission_error(end: Response | WhisulError) -> WhisulError:
    """
    Return the error that the end of a submission means: an ambiguous one if the submission may have made a job.

    :param end: The response, which names no job, or the error of a request that got no response.
    """
    if isinstance(end, WhisulError):
        ambiguous = isinstance(end, WhisulConnectionError) and end.request_sent
        return _ambiguous(str(end), end.http_status) if ambiguous else end
    rule = _rule(SUBMISSION_RULES, end)
    error = _error(rule, end, "to the submission")
    return _ambiguous(str(error), end.status) if isinstance(error, WhisulAmbiguousSubmitError) else error


def is_retryable(request: Request, error: WhisulError) -> bool:
    """
    Return whether a request that ended in an error may be sent again.

    A poll may be, after any transient error. A submission may be only where it certainly made no job besides, since the
    API has no idempotency key.

    :param request: The request.
    :param error: How it ended.
    """
    if isinstance(error, WhisulRateLimitError):
        # Without a status it is our rate limiter's refusal: the time for this request is over.
        return error.http_status is not None
    return (error if request.method == "GET" else submission_error(error)).transient


def check_key(response: Response, settings: ConnectionSettings) -> tuple[bool, str]:
    """
    Return whether a response to the poll of a job that cannot exist proves that the key is accepted, and a sentence.

    Any server answers 404 to a path that it does not know. Only one in the shape of the API's own errors counts. Other
    servers have errors of that shape too, so the sentence claims no more than that, except at the API's own address.

    :param response: The response.
    :param settings: The settings of the connection that the poll was sent with.
    """
    data = response.json_object() or {}
    answered = f"{quote(settings.base_url)} answered"
    if response.status == 404 and any(isinstance(data.get(name), str) for name in ("error", "message")):
        if settings.base_url == DEFAULT_BASE_URL and settings.verify is not False:
            return True, "Whisul accepts the API key."
        return True, (
            f"{answered} as Whisul does for an unknown job. So the API key is accepted, if this is Whisul's API: other "
            "servers may answer alike."
        )
    if response.status in (200, 404, 410):
        return False, (
            f"{answered} {response.status}{_api_message(response)}, which Whisul's API would not: whether Whisul "
            f"accepts the key, this cannot tell. {_CHECK_BASE_URL}"
        )
    rule = _rule(POLL_RULES, response)
    return False, _message(rule, response, "to the test", rule.advice if rule.test_advice is None else rule.test_advice)


def _rule(rules: tuple[Rule, ...], response: Response) -> Rule:
    return next(rule for rule in rules if rule.fits(response))


def _error(rule: Rule, response: Response, about: str, job_id: str | None = None) -> WhisulError:
    status = response.status
    connection = f"the Airflow connection {response.conn_id!r}" if response.conn_id else "the Airflow connection"
    message = _message(rule, response, about, rule.advice.format(connection=connection), job_id)
    if rule.error is WhisulRateLimitError:
        return WhisulRateLimitError(
            message,
            job_id=job_id,
            http_status=status,
            retry_after=response.retry_after,
            cooldown=response.cooldown,
        )
    return rule.error(message, job_id=job_id, http_status=status)


def _message(rule: Rule, response: Response, about: str, advice: str, job_id: str | None = None) -> str:
    status = response.status
    asked = "" if response.retry_after is None else f" and asks to wait {response.retry_after:.0f} s"
    names_a_job = not {"job_id", "poll_url"}.isdisjoint(response.json_object() or {})
    found = _as_found(response) if 200 <= status <= 299 or (names_a_job and job_id is None) else ""
    answer = f"Whisul answered {status}{_api_message(response)} {about}{asked if response.throttled else ''}{found}."
    return f"{rule.gist}: {answer} {advice}".rstrip()


def _ambiguous(reason: str, http_status: int | None) -> WhisulAmbiguousSubmitError:
    return WhisulAmbiguousSubmitError(
        f"The prompt may have become a job and may have been paid for: {reason} The API cannot tell, and another "
        "submission may pay for the song twice: see your Whisul dashboard if in doubt.",
        http_status=http_status,
    )


def _named_job(response: Response) -> str | None:
    """Return the id of the job that a response to a submission names."""
    data = response.json_object()
    if data is None:
        # The id may be whole though the body is not. A page of HTML may show one as an example.
        text = response.text().lstrip()
        match = _JOB_ID_IN_TEXT.search(text) if text.startswith("{") else None
        return match[1] if match else None
    job_id = data.get("job_id")
    if isinstance(job_id, int) and not isinstance(job_id, bool) and 0 <= job_id < 10**200:
        return str(job_id)
    if isinstance(job_id, str) and JOB_ID.fullmatch(job_id):
        return job_id
    poll_url = data.get("poll_url")
    match = _POLL_URL.fullmatch(poll_url) if isinstance(poll_url, str) else None
    return match[1] if match else None


def _as_found(response: Response) -> str:
    """Return what the body of a 2xx is, as the continuation of a sentence: above all, which job it names."""
    data = response.json_object()
    if data is not None and not {"job_id", "poll_url"}.isdisjoint(data):
        return f", with the job_id {_shown(data.get('job_id'))} and the poll_url {_shown(data.get('poll_url'))}"
    text = quote(truncate(response.text(), 10 * _MAX_EXCERPT))
    # JSON that names a job in another way may do so at its end.
    excerpt = f'"{truncate(text, _MAX_EXCERPT if data is None else 5 * _MAX_EXCERPT)}"' if text else "empty"
    if not response.complete:
        return f", but the response broke off after {len(response.body)} bytes: it is {excerpt}"
    named = "naming no job" if data is not None else "not with the documented JSON"
    return f", but {named}: the body is {excerpt}"


def _shown(value: object) -> str:
    return quote(repr(value)) if isinstance(value, int | float) else describe(value)


def _api_message(response: Response) -> str:
    """Return the API's own message in an error response, as the continuation of a sentence."""
    texts = response.api_texts() if response.status >= 300 else []
    return f' ("{quote(texts[0]).rstrip(".")}")' if texts else ""

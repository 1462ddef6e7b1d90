"""
The errors of this provider, one class per cause.

All derive from :class:`WhisulError`, an ``AirflowException``. An error that no retry can mend is an
``AirflowFailException`` too. It ends Airflow's retries wherever it is raised, also inside a user's own ``@task``.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, NotRequired, TypedDict

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

#: Characters of a prompt in a trigger's event.
MAX_PROMPT = 500


class TaskRetry(Enum):
    """When Airflow tries a task again after an error, if the task has retries left."""

    NEVER = "never"
    IMMEDIATE = "at once"
    RATE_LIMIT = "after 5, 10, 20, 40, 60 s or `Retry-After`"
    TRANSIENT = "after 10 to 30 s"
    TASK_DEFAULT = "after the task's own `retry_delay`"


class SerializedError(TypedDict):
    """A :class:`WhisulError` as plain data, for a trigger's event."""

    type: str
    message: str
    job_id: str | None
    http_status: int | None
    #: The beginning of the prompt. An event of an earlier version has none.
    prompt: NotRequired[str | None]


class WhisulError(AirflowException):
    """
    Base class of all errors of this provider.

    :param message: What happened, and what to do about it. Never holds the API key.
    :param job_id: The job that the error is about, None if no job is known.
    :param http_status: The HTTP status of the response, None if there was no response.
    """

    #: Whether the same request may succeed a little later. Hooks and triggers act on it.
    transient: ClassVar[bool] = False

    #: When a task that fails with this error is tried again. The retry policy acts on it.
    task_retry: ClassVar[TaskRetry] = TaskRetry.TASK_DEFAULT

    #: The prompt of the job, None where no poll has told it.
    prompt: str | None = None

    def __init__(self, message: str, *, job_id: str | None = None, http_status: int | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.http_status = http_status

    def as_dict(self) -> SerializedError:
        """Return the error as plain data, which :func:`error_from_dict` reads."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "job_id": self.job_id,
            "http_status": self.http_status,
            "prompt": self.prompt and self.prompt[:MAX_PROMPT],
        }


class WhisulConfigurationError(WhisulError, AirflowFailException):
    """
    The Airflow connection cannot be used: there is none, or its API key or URL is missing, malformed or unsafe.

    Also raised where a proxy or a CA file cannot be used. Nothing was sent.
    """

    task_retry = TaskRetry.NEVER


class WhisulInvalidInputError(WhisulError, AirflowFailException):
    """
    Whisul refused the request for what is in it, or it was not sent as it would be refused. No job was made.

    A submission is refused with 400, or with 413, 414, 422 or 451; a poll with 400.
    """

    task_retry = TaskRetry.NEVER


class WhisulOutOfCreditsError(WhisulError, AirflowFailException):
    """The account has no credits left: Whisul answered 402, or a 403 or 429 that says so. No job was made."""

    task_retry = TaskRetry.NEVER


class WhisulUnauthorizedError(WhisulError, AirflowFailException):
    """The API key is missing, malformed, revoked or not allowed to do this (401 or 403, with JSON)."""

    task_retry = TaskRetry.NEVER


class WhisulJobNotFoundError(WhisulError, AirflowFailException):
    """Whisul has no such job (404, 410): the id is wrong, the job is of another account, or the job has expired."""

    task_retry = TaskRetry.NEVER


class WhisulRateLimitError(WhisulError):
    """
    Too many requests: Whisul answered 429, or our rate limiter sent nothing. No job was made.

    :param retry_after: Seconds that the server asked to wait (``Retry-After``), None if it did not ask.
    :param cooldown: Seconds until our rate limiter permits the next request, None if that is not known.
    """

    transient = True
    task_retry = TaskRetry.RATE_LIMIT

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        http_status: int | None = None,
        retry_after: float | None = None,
        cooldown: float | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id, http_status=http_status)
        self.retry_after = retry_after
        self.cooldown = cooldown


class WhisulServerError(WhisulError):
    """Whisul or its CDN failed to answer (5xx)."""

    transient = True
    task_retry = TaskRetry.TRANSIENT


class WhisulConnectionError(WhisulError):
    """
    No response: a host name that does not resolve, a refused or reset connection, a time-out.

    :param request_sent: False only where the request certainly never left this machine.
    """

    transient = True
    task_retry = TaskRetry.TRANSIENT

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        http_status: int | None = None,
        request_sent: bool = True,
    ) -> None:
        super().__init__(message, job_id=job_id, http_status=http_status)
        self.request_sent = request_sent


class WhisulTLSError(WhisulConnectionError):
    """The server's certificate could not be verified. Never retried: the server may not be Whisul."""

    transient = False
    task_retry = TaskRetry.TASK_DEFAULT


class WhisulResponseError(WhisulError):
    """A response that is not documented: HTML, truncated or wrong JSON, a missing field, a redirect of a poll."""

    transient = True
    task_retry = TaskRetry.TRANSIENT


class WhisulAmbiguousSubmitError(WhisulError):
    """
    A submission ended neither with a job's id nor with a certain refusal. The job may exist and may have been paid for.

    Nothing below the task submits such a prompt again. The message says how the response was lost.
    """

    #: What the task does next: the end of the message where a task raises the error.
    outlook: ClassVar[str] = (
        'If Airflow retries the task, it submits the prompt again, unless on_ambiguous_submit is "fail".'
    )

    task_retry = TaskRetry.TRANSIENT


class WhisulAmbiguousSubmitFinalError(WhisulAmbiguousSubmitError, AirflowFailException):
    """The same with ``on_ambiguous_submit="fail"``: the task ends until a user clears it."""

    outlook = 'Since on_ambiguous_submit is "fail", nothing is submitted until you clear this task.'
    task_retry = TaskRetry.NEVER


class WhisulJobFailedError(WhisulError):
    """The job ended with status ``failed``. It cannot be resumed: only a new submission makes the song."""

    task_retry = TaskRetry.IMMEDIATE


class WhisulJobFailedFinalError(WhisulJobFailedError, AirflowFailException):
    """A failed job in a task that does not submit. A retry of the task changes nothing."""

    task_retry = TaskRetry.NEVER


class WhisulJobTimeoutError(WhisulError):
    """The timeout passed before the job ended. The job may still be running, and may still complete."""


class WhisulSongMissingError(WhisulError):
    """The job is completed, but Whisul has given no URL of its song for minutes."""


class WhisulStateError(WhisulError):
    """What the tasks have submitted could not be read or written, as where the store of ``state_path`` is away."""

    def before_sending(self) -> WhisulStateError:
        """Return the same error, whose message says that nothing was sent."""
        message = str(self)
        return self if "Nothing was sent" in message else type(self)(f"{message} Nothing was sent.")


class WhisulStateUnreadableError(WhisulStateError, AirflowFailException):
    """
    The record of what an earlier try has submitted is there and cannot be read.

    It is damaged, or of another version of the provider. Nothing is submitted: the song may be paid for already.
    """

    task_retry = TaskRetry.NEVER


class WhisulBudgetExceededError(WhisulError, AirflowFailException):
    """The connection's ``max_submissions_per_day``, or a batch's ``max_submissions``, is used up. Nothing was sent."""

    task_retry = TaskRetry.NEVER


class WhisulMediaError(WhisulError):
    """A song's audio or cover could not be downloaded whole, or the download is no audio or image."""

    transient = True
    task_retry = TaskRetry.TRANSIENT


class WhisulMediaExpiredError(WhisulMediaError, AirflowFailException):
    """A song has no URL that works: it expired or never existed, and polling the job again returned no other."""

    transient = False
    task_retry = TaskRetry.NEVER


class WhisulMediaUnsafeError(WhisulMediaError, AirflowFailException):
    """A song's URL, or a redirect, is malformed, not https or leads to a private address; or the file is too large."""

    transient = False
    task_retry = TaskRetry.NEVER


class WhisulStorageError(WhisulError):
    """Files could not be written or listed: no room, no permission, no such store."""


class WhisulFileExistsError(WhisulStorageError, AirflowFailException):
    """The manifest of another run is in the destination, and is not overwritten."""

    task_retry = TaskRetry.NEVER


def all_errors(cls: type[WhisulError] = WhisulError) -> dict[str, type[WhisulError]]:
    """
    Return a base class and all its subclasses by name.

    :param cls: The base class.
    """
    found = {cls.__name__: cls}
    for subclass in cls.__subclasses__():
        found.update(all_errors(subclass))
    return found


def error_from_dict(data: SerializedError) -> WhisulError:
    """
    Return the error that :meth:`WhisulError.as_dict` described.

    :param data: The plain data. A type that this version does not know becomes a plain :class:`WhisulError`.
    """
    cls = all_errors().get(data["type"], WhisulError)
    error = cls(data["message"], job_id=data["job_id"], http_status=data["http_status"])
    prompt = data.get("prompt")
    error.prompt = prompt if isinstance(prompt, str) else None
    return error

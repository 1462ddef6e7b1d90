"""
Everything that can go wrong between Airflow and Whisul, one class per cause.

All derive from :class:`WhisulError`, an ``AirflowException``. What no retry can mend is an ``AirflowFailException``
too, so that it ends Airflow's retries wherever it is raised, also inside a user's own ``@task``.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, TypedDict

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException


class TaskRetry(Enum):
    """When Airflow should try a task again after an error, if the task has retries left."""

    NEVER = "never"
    AT_ONCE = "at once"
    LADDER = "after 5, 10, 20, 40, 60 s or `Retry-After`"
    SHORTLY = "after 10 to 30 s"
    AS_SET = "after the task's own `retry_delay`"


class SerializedError(TypedDict):
    """A :class:`WhisulError` as the plain data that a trigger's event can carry."""

    type: str
    message: str
    job_id: str | None
    http_status: int | None


class WhisulError(AirflowException):
    """
    Base of all errors of this provider.

    :param message: What happened, and what to do about it. Never holds the API key.
    :param job_id: The job it is about, if one is known.
    :param http_status: The HTTP status of the answer, if there was one.
    """

    #: Whether looking again, a little later, may bring another answer. Hook and trigger go by it.
    transient: ClassVar[bool] = False

    #: When a task that it fails should be tried again. The retry policy goes by it.
    task_retry: ClassVar[TaskRetry] = TaskRetry.AS_SET

    #: What it has cost.
    cost: ClassVar[str] = "nothing more"

    def __init__(self, message: str, *, job_id: str | None = None, http_status: int | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.http_status = http_status

    def as_dict(self) -> SerializedError:
        """Return the error as plain data; :func:`error_from_dict` makes it an error again."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "job_id": self.job_id,
            "http_status": self.http_status,
        }


class WhisulConfigurationError(WhisulError, AirflowFailException):
    """The Airflow connection cannot be used as it is: no key, a malformed key, an unsafe or malformed URL."""

    task_retry = TaskRetry.NEVER
    cost = "nothing: nothing was sent"


class WhisulInvalidInputError(WhisulError, AirflowFailException):
    """The request was refused as malformed (400), or was not sent because it could only be refused. No job was made."""

    task_retry = TaskRetry.NEVER
    cost = "nothing: no job was made"


class WhisulUnauthorizedError(WhisulError, AirflowFailException):
    """The API key is missing, malformed, revoked or not allowed to do this (401, 403)."""

    task_retry = TaskRetry.NEVER
    cost = "nothing; a job that runs goes on, and is found again once the key is right"


class WhisulJobNotFoundError(WhisulError, AirflowFailException):
    """Whisul has no such job (404): the id is wrong, it belongs to another account, or the job has expired."""

    task_retry = TaskRetry.NEVER
    cost = "the song, if it was one and has expired"


class WhisulRateLimitError(WhisulError):
    """
    Too many requests (429). Nothing was done, no job was made.

    :param retry_after: Seconds that the answer asked to wait, None where it did not say.
    """

    transient = True
    task_retry = TaskRetry.LADDER
    cost = "nothing: no job was made"

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id, http_status=http_status)
        self.retry_after = retry_after


class WhisulServerError(WhisulError):
    """Whisul or its CDN failed to answer (5xx)."""

    transient = True
    task_retry = TaskRetry.SHORTLY


class WhisulConnectionError(WhisulError):
    """
    No answer: name resolution, a refused or reset connection, a time-out.

    :param request_sent: False only where the request certainly never left this machine.
    """

    transient = True
    task_retry = TaskRetry.SHORTLY

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
    """The server's certificate could not be verified. Never retried: the other side may not be Whisul."""

    transient = False
    task_retry = TaskRetry.AS_SET
    cost = "nothing: nothing was sent"


class WhisulResponseError(WhisulError):
    """An answer that is not what the API documents: HTML, truncated or wrong JSON, a missing field, a redirect."""

    transient = True
    task_retry = TaskRetry.SHORTLY


class WhisulAmbiguousSubmitError(WhisulError):
    """
    The answer to a submission was lost: the job may exist and may have been paid for, and nothing can find out.

    Nothing below the task submits such a prompt again. Its ``__cause__`` says how the answer was lost.
    """

    task_retry = TaskRetry.SHORTLY
    cost = "perhaps one song that nobody can find, and its successor"


class WhisulAmbiguousSubmitFinalError(WhisulAmbiguousSubmitError, AirflowFailException):
    """The same, where the user would rather look at it than have the prompt submitted again."""

    task_retry = TaskRetry.NEVER
    cost = "perhaps one song that nobody can find"


class WhisulJobFailedError(WhisulError):
    """The job ended with status ``failed``. It cannot be resumed: only a new submission can make the song."""

    task_retry = TaskRetry.AT_ONCE
    cost = "the failed job, and its successor"


class WhisulJobFailedFinalError(WhisulJobFailedError, AirflowFailException):
    """A failed job met by a task that cannot submit another, so that retrying the task would change nothing."""

    task_retry = TaskRetry.NEVER
    cost = "the failed job"


class WhisulJobTimeoutError(WhisulError):
    """Our patience ended before the job did. The job may still be running, and may still complete."""

    cost = "nothing more where the next try re-attaches, else another song"


class WhisulMediaError(WhisulError):
    """A song's audio or cover could not be fetched whole: it broke off, or what came was neither."""

    transient = True
    task_retry = TaskRetry.SHORTLY
    cost = "nothing more: the song is there, and a retry fetches only what is missing"


class WhisulMediaExpiredError(WhisulMediaError, AirflowFailException):
    """A song has no URL that works: it has expired or was never given, and asking the job again gave no other."""

    transient = False
    task_retry = TaskRetry.NEVER
    cost = "the song, unless it was kept elsewhere"


class WhisulMediaUnsafeError(WhisulMediaError, AirflowFailException):
    """A song's URL, or where it redirects to, is not https. Nothing was fetched from there."""

    transient = False
    task_retry = TaskRetry.NEVER
    cost = "nothing more"


class WhisulStorageError(WhisulError):
    """Songs could not be written: no room, no permission, no such store, or another file that has the name."""

    cost = "nothing more: a retry fetches only what is missing"


class WhisulFileExistsError(WhisulStorageError, AirflowFailException):
    """Another file has the name of one of ours, and is not overwritten."""

    task_retry = TaskRetry.NEVER


def all_errors(cls: type[WhisulError] = WhisulError) -> dict[str, type[WhisulError]]:
    """Return every class of error by its name, from a base class on."""
    found = {cls.__name__: cls}
    for subclass in cls.__subclasses__():
        found.update(all_errors(subclass))
    return found


def error_from_dict(data: SerializedError) -> WhisulError:
    """
    Make the error that :meth:`WhisulError.as_dict` described.

    :param data: Its plain data. A type that this version does not know becomes a plain :class:`WhisulError`.
    """
    cls = all_errors().get(data["type"], WhisulError)
    return cls(data["message"], job_id=data["job_id"], http_status=data["http_status"])

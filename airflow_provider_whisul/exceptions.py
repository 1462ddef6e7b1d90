"""
Everything that can go wrong between Airflow and Whisul, one class per cause.

All derive from :class:`WhisulError`, an ``AirflowException``. What no retry can mend is an ``AirflowFailException``
too, so that it ends Airflow's retries wherever it is raised, also inside a user's own ``@task``.
"""

from __future__ import annotations

from typing import TypedDict

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException


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

    #: Whether asking the same thing again, a little later, may bring another answer.
    transient: bool = False

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


class WhisulInvalidInputError(WhisulError, AirflowFailException):
    """The request was refused as malformed (400), or was not sent because it could only be refused. No job was made."""


class WhisulUnauthorizedError(WhisulError, AirflowFailException):
    """The API key is missing, malformed, revoked or not allowed to do this (401, 403)."""


class WhisulJobNotFoundError(WhisulError, AirflowFailException):
    """Whisul has no such job (404): the id is wrong, it belongs to another account, or the job has expired."""


class WhisulRateLimitError(WhisulError):
    """
    Too many requests (429). Nothing was done, no job was made.

    :param retry_after: Seconds that the answer asked to wait, None where it did not say.
    """

    transient = True

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


class WhisulConnectionError(WhisulError):
    """
    No answer: name resolution, a refused or reset connection, a time-out.

    :param request_sent: False only where the request certainly never left this machine.
    """

    transient = True

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


class WhisulResponseError(WhisulError):
    """An answer that is not what the API documents: HTML, truncated or wrong JSON, a missing field, a redirect."""

    transient = True


class WhisulJobFailedError(WhisulError):
    """The job ended with status ``failed``. It cannot be resumed: only a new submission can make the song."""


class WhisulJobFailedFinalError(WhisulJobFailedError, AirflowFailException):
    """A failed job met by a task that cannot submit another, so that retrying the task would change nothing."""


class WhisulJobTimeoutError(WhisulError):
    """Our patience ended before the job did. The job may still be running, and may still complete."""


def _with_subclasses(cls: type[WhisulError]) -> dict[str, type[WhisulError]]:
    found = {cls.__name__: cls}
    for subclass in cls.__subclasses__():
        found.update(_with_subclasses(subclass))
    return found


def error_from_dict(data: SerializedError) -> WhisulError:
    """
    Make the error that :meth:`WhisulError.as_dict` described.

    :param data: Its plain data. A type that this version does not know becomes a plain :class:`WhisulError`.
    """
    cls = _with_subclasses(WhisulError).get(data["type"], WhisulError)
    return cls(data["message"], job_id=data["job_id"], http_status=data["http_status"])

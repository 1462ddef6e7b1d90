"""
The client of the Whisul API for workers, on requests.

It sends and receives. What a request looks like and what a response means is in
:mod:`airflow_provider_whisul.api.messages`, when a request may be sent in :mod:`airflow_provider_whisul.rate_limit`,
when to poll a job again in :mod:`airflow_provider_whisul.polling`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import requests
import tenacity
import urllib3.exceptions
from airflow.providers.common.compat.sdk import BaseHook
from requests.auth import AuthBase

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings
from airflow_provider_whisul.api.messages import (
    HEADERS,
    MAX_BODY_BYTES,
    NO_SUCH_JOB_ID,
    Request,
    Response,
    connection_error,
    generate_request,
    is_retryable,
    job_request,
    may_have_been_accepted,
    read_job,
    read_submission,
)
from airflow_provider_whisul.api.models import PollResult, WhisulJob
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulError,
    WhisulJobNotFoundError,
    WhisulRateLimitError,
)
from airflow_provider_whisul.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    JobPoller,
    check_poll_interval,
    check_timeout,
)
from airflow_provider_whisul.rate_limit.backoff import MAX_ATTEMPTS, MAX_WORKER_WAIT, transient_delay
from airflow_provider_whisul.rate_limit.shared_rate_limiter import SharedRateLimiter
from airflow_provider_whisul.text import quote

if TYPE_CHECKING:
    from wtforms import Field

T = TypeVar("T")

#: Seconds after which a connection that was kept alive is not trusted with a submission. Some servers keep it for 5.
IDLE_SECONDS = 3.0

#: The client's errors that only happen while a connection is made, before a request is sent on it.
_NEVER_SENT = (
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ProxyError,
)


class WhisulHook(BaseHook):
    """
    Talks to Whisul from a worker, on requests.

    A request is retried as the API's documentation asks (page guides/error-handling), with each wait in the log: after
    a 429 by the backoff schedule of 5, 10, 20, 40, 60 s or ``Retry-After`` where longer; a poll also after 10 to 30 s
    where the response was a 5xx or the connection broke. A submission that may have arrived is never sent again. All
    hooks with one API key, of one user on one machine, share one rate limiter. While the key is blocked one of them
    probes.

    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param clock: Time, sleep and jitter; for tests.
    """

    conn_name_attr = "whisul_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "whisul"
    hook_name = "Whisul"

    def __init__(self, whisul_conn_id: str = DEFAULT_CONN_ID, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self.whisul_conn_id = whisul_conn_id
        self.clock = clock
        self._last_response_at = 0.0

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Field]:
        """Return the provider's own fields of the connection form, for Airflow before 3.2."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField

        return {
            name: StringField(field["label"], description=field["description"], widget=BS3TextFieldWidget())
            for name, field in CONN_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, object]:
        """Return how the connection form labels and hides its fields, for Airflow before 3.2."""
        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @cached_property
    def settings(self) -> ConnectionSettings:
        """
        The settings in the Airflow connection, looked up at first use.

        :raises WhisulConfigurationError: The connection cannot be used.
        """
        connection = self.get_connection(self.whisul_conn_id)
        return ConnectionSettings.from_connection(
            self.whisul_conn_id,
            host=connection.host,
            schema=connection.schema,
            port=connection.port,
            password=connection.password,
            extra=connection.extra_dejson,
        )

    def generate(self, prompt: str, *, before_send: Callable[[], None] | None = None) -> str:
        """
        Submit a prompt. This costs credits (page api-reference/compose).

        The request is sent again only after a 429, or where it certainly never left this machine.

        :param prompt: The description of the song, in plain language.
        :param before_send: Called once, when the rate limiter has permitted the request and just before it is sent. A
            task that is killed before that has certainly submitted nothing. What it raises stops the submission.
        :return: The job's id.
        :raises WhisulInvalidInputError: The prompt is empty or no string, or Whisul refused it (400).
        :raises WhisulUnauthorizedError: The key is not accepted (401, 403).
        :raises WhisulRateLimitError: A 429 in the sixth attempt, or the rate limiter permits no request in ten minutes.
        :raises WhisulConnectionError: The request could not be sent in six attempts.
        :raises WhisulAmbiguousSubmitError: No response, a 5xx, or a 2xx without a readable id: the job may exist.
        :raises WhisulResponseError: Another response that is not documented; no job was made.
        """

        def read(response: Response) -> str:
            if response.status == 400:
                self.log.error("Whisul's response to the refused request: %s", quote(response.text()))
            return read_submission(response)

        try:
            job_id = self._send(generate_request(prompt), read, before_send=before_send)
        except WhisulError as error:
            if may_have_been_accepted(error):
                raise WhisulAmbiguousSubmitError(
                    f"{error} So the prompt may have become a job and may have been paid for. The API cannot tell, so "
                    "it is not sent again here: look at your Whisul dashboard if in doubt.",
                    http_status=error.http_status,
                ) from error
            raise
        metrics.submitted()
        return job_id

    def get_job(self, job_id: str, *, retry: bool = True, max_wait: float | None = None) -> WhisulJob:
        """
        Poll a job once (pages api-reference/get-job and api-reference/job-status).

        :param job_id: The job's id, as :meth:`generate` returned it.
        :param retry: Whether to retry transient errors, waiting in this process, for ten minutes at most.
        :param max_wait: Seconds to wait for the rate limiter at most, where ``retry`` is false; None for as many as one
            request may take.
        :return: The job as it is now.
        :raises WhisulInvalidInputError: The id cannot be a job's; nothing was sent.
        :raises WhisulJobNotFoundError: There is no such job, or no longer (404).
        :raises WhisulUnauthorizedError: The key is not accepted (401, 403).
        :raises WhisulRateLimitError: Too many requests: the sixth 429, or the rate limiter permits no request in time.
        :raises WhisulServerError: A 5xx, in the sixth attempt.
        :raises WhisulConnectionError: No response, in the sixth attempt.
        :raises WhisulResponseError: A response that is not documented, in the sixth attempt.
        """
        request = job_request(job_id)

        def read(response: Response) -> WhisulJob:
            return read_job(response, job_id)

        if retry:
            job = self._send(request, read)
        else:
            job = self._send(
                request, read, attempts=1, max_wait=self.settings.timeout if max_wait is None else max_wait
            )
        metrics.polled(job)
        return job

    def wait_for_job(
        self,
        job_id: str,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float = DEFAULT_TIMEOUT,
        submitted_at: float | None = None,
        last_poll: PollResult | None = None,
    ) -> WhisulJob:
        """
        Wait until a job is completed, polling it from this process.

        :param job_id: The job's id.
        :param poll_interval: Seconds between two polls, at least 5.
        :param timeout: Seconds to wait at most.
        :param submitted_at: When the job was submitted, in Unix seconds, None if that is not known. For a minute after
            it a 404 is tolerated: the job may not be there yet.
        :param last_poll: The result of a poll that was made just now, so that the next one waits its interval.
        :return: The completed job. Its ``song`` is a dict, see :class:`~airflow_provider_whisul.api.models.Song`.
        :raises ValueError: The interval is under 5 s, or the timeout no positive number.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The job did not end in time. It may still be running.
        :raises WhisulError: As :meth:`get_job`; a transient error only after 20 of them since the last response.
        """
        poll_interval = check_poll_interval(poll_interval, "poll_interval")
        poller = JobPoller(job_id, poll_interval, self.clock.time() + check_timeout(timeout), submitted_at)
        result = last_poll
        while True:
            if result is None:
                try:
                    result = self.get_job(job_id, retry=False, max_wait=max(poller.deadline - self.clock.time(), 0.0))
                except WhisulError as error:
                    result = error
            delay = poller.next_delay(result, self.clock.time(), self.clock.random())
            if delay is None and isinstance(result, WhisulJob):
                return result
            self.clock.sleep(delay or 0.0)
            result = None

    def test_connection(self) -> tuple[bool, str]:
        """
        Ask Whisul whether it accepts the key, by polling a job that cannot exist. Costs nothing.

        :return: Whether it does, and a sentence for the user.
        """
        try:
            self.get_job(NO_SUCH_JOB_ID, retry=False)
        except WhisulJobNotFoundError:
            return True, "Whisul accepts the API key."
        except WhisulError as error:
            return False, str(error)
        return False, f"Whisul knows a job that cannot exist at {self.settings.base_url}; is this its API?"

    @cached_property
    def _session(self) -> requests.Session:
        session = requests.Session()
        session.headers.update(HEADERS)
        session.auth = _BearerAuth(self.settings.api_key)
        # A proxy in the environment is for the way out; it must not get the key of the sandbox's plain http.
        session.trust_env = not self.settings.is_loopback
        return session

    @cached_property
    def _rate_limiter(self) -> SharedRateLimiter:
        return SharedRateLimiter(self.settings, self.clock)

    def _send(
        self,
        request: Request,
        read: Callable[[Response], T],
        *,
        attempts: int = MAX_ATTEMPTS,
        max_wait: float = MAX_WORKER_WAIT,
        before_send: Callable[[], None] | None = None,
    ) -> T:
        """Send a request when the rate limiter permits it, again where that can help, and return what is read of it."""
        give_up_at = self.clock.time() + max_wait

        def attempt() -> T:
            nonlocal before_send
            request_number = self._rate_limiter.acquire(max(give_up_at - self.clock.time(), 0.0))
            try:
                if before_send is not None:
                    before_send()
                    before_send = None
                    while not self._rate_limiter.is_permitted(request_number):
                        # A block has begun meanwhile. A request during it would prolong it.
                        request_number = self._rate_limiter.acquire(max(give_up_at - self.clock.time(), 0.0))
                response = self._exchange(request)
            except BaseException:
                self._rate_limiter.on_response(request_number, throttled=None)
                raise
            metrics.response(request, response)
            cooldown = self._rate_limiter.on_response(request_number, response.throttled, response.retry_after)
            return read(replace(response, cooldown=cooldown))

        def delay(state: tenacity.RetryCallState) -> float:
            # After a 429 the next attempt waits for the rate limiter.
            throttled = isinstance(_error_of(state), WhisulRateLimitError)
            return 0.0 if throttled else transient_delay(self.clock.random())

        def give_up(state: tenacity.RetryCallState) -> bool:
            error = _error_of(state)
            cooldown = (error.cooldown if isinstance(error, WhisulRateLimitError) else None) or 0.0
            waits_until = self.clock.time() + max(state.upcoming_sleep, cooldown)
            return state.attempt_number >= attempts or waits_until > give_up_at

        def log_retry(state: tenacity.RetryCallState) -> None:
            self.log.warning(
                "%s Sending the request again %s (attempt %d of %d failed).",
                _error_of(state),
                f"in {state.upcoming_sleep:.0f} s" if state.upcoming_sleep else "when the rate limiter permits it",
                state.attempt_number,
                attempts,
            )

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, WhisulError) and is_retryable(request, error)
            ),
            stop=give_up,
            wait=delay,
            before_sleep=log_retry,
            sleep=self.clock.sleep,
            reraise=True,
        )(attempt)

    def _exchange(self, request: Request) -> Response:
        settings = self.settings
        give_up_at = time.monotonic() + settings.timeout
        if request.method == "POST" and self.clock.time() - self._last_response_at > IDLE_SECONDS:
            # A submission must not meet a connection that the server is just closing: nobody could tell if it arrived.
            self._session.close()
        try:
            with self._session.request(
                request.method,
                settings.base_url + request.path,
                json=request.json,
                timeout=settings.timeout,
                verify=settings.verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                body, complete = _read_body(response, give_up_at)
                self._last_response_at = self.clock.time()
                return Response.from_http(
                    status=response.status_code,
                    headers=response.headers,
                    body=body,
                    complete=complete,
                    now=self._last_response_at,
                    api_key=settings.api_key,
                )
        except (requests.RequestException, OSError) as error:
            raise connection_error(request, settings.base_url, error, _NEVER_SENT) from error


class _BearerAuth(AuthBase):
    """Puts the key into the header. As requests' ``auth`` it also keeps ``.netrc`` from replacing the key."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _error_of(state: tenacity.RetryCallState) -> WhisulError:
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, WhisulError):
        raise TypeError(f"Only a WhisulError is retried, not {error!r}.")
    return error


def _read_body(response: requests.Response, give_up_at: float) -> tuple[bytes, bool]:
    """Return as much of a body as came, bounded in size and time, and whether that is all of it."""
    body = bytearray()
    try:
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            body += chunk
            if len(body) > MAX_BODY_BYTES or time.monotonic() > give_up_at:
                return bytes(body[:MAX_BODY_BYTES]), False
    except (urllib3.exceptions.HTTPError, OSError):
        return bytes(body), False
    return bytes(body), True

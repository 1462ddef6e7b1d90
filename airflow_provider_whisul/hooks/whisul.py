"""
The client of the Whisul API for workers, on requests.

It only sends and receives. What a request looks like and what an answer means is in :mod:`airflow_provider_whisul.api`,
how long to wait in :mod:`airflow_provider_whisul.pace`, when to look at a job again in
:mod:`airflow_provider_whisul.watch`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import requests
import tenacity
import urllib3.exceptions
from airflow.providers.common.compat.sdk import BaseHook
from requests.auth import AuthBase

from airflow_provider_whisul import metrics
from airflow_provider_whisul.account import DEFAULT_CONN_ID, WhisulAccount
from airflow_provider_whisul.account_pace import AccountPace
from airflow_provider_whisul.api import (
    HEADERS,
    MAX_BODY_BYTES,
    NO_SUCH_JOB_ID,
    Answer,
    Request,
    WhisulJob,
    generate_request,
    job_request,
    may_send_again,
    no_answer,
    quote,
    read_job,
    read_submission,
    submission_lost,
)
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock, utc
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulError,
    WhisulJobNotFoundError,
    WhisulRateLimitError,
)
from airflow_provider_whisul.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_whisul.pace import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    MAX_ATTEMPTS,
    MAX_WORKER_WAIT,
    check_poll_interval,
    check_timeout,
    retry_wait,
)
from airflow_provider_whisul.shared_pace import SharedPace
from airflow_provider_whisul.watch import JobWatch

if TYPE_CHECKING:
    from wtforms import Field

T = TypeVar("T")

#: Seconds after which a connection that was kept alive is not trusted with a submission. Some servers keep it for 5.
IDLE_SECONDS = 3.0

#: Seconds after which who waits for its turn looks again whether it has come.
LOOK_AGAIN_AFTER = 1.0

#: What can only happen while a connection is being made, before a request goes out on it.
_NEVER_SENT = (
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ProxyError,
)


class WhisulHook(BaseHook):
    """
    Talks to Whisul from a worker, on requests.

    Every request is retried as the API's documentation asks, with each wait in the log: after a 429 along the ladder
    of 5, 10, 20, 40, 60 s or ``Retry-After`` where longer, a look at a job also after 10 to 30 s when the answer was a
    5xx or the connection broke. A submission is never sent again when it may have arrived. All hooks of one account on
    one machine ask at one pace, and while the key is blocked one of them probes.

    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param clock: The time, and how to wait; for tests.
    """

    conn_name_attr = "whisul_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "whisul"
    hook_name = "Whisul"

    def __init__(self, whisul_conn_id: str = DEFAULT_CONN_ID, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self.whisul_conn_id = whisul_conn_id
        self.clock = clock
        self._last_answer_at = 0.0
        self._busy_since = self._busy_until = 0.0

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Field]:
        """Return the connection form's own fields, for an Airflow whose UI asks the hook (before 3.2)."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField

        return {
            name: StringField(field["label"], description=field["description"], widget=BS3TextFieldWidget())
            for name, field in CONN_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, object]:
        """Return how the connection form names and hides its fields, for an Airflow whose UI asks the hook."""
        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @cached_property
    def account(self) -> WhisulAccount:
        """
        What the Airflow connection says, looked up at first use.

        :raises WhisulConfigurationError: It cannot be used.
        """
        connection = self.get_connection(self.whisul_conn_id)
        return WhisulAccount.from_connection(
            self.whisul_conn_id,
            host=connection.host,
            schema=connection.schema,
            port=connection.port,
            password=connection.password,
            extra=connection.extra_dejson,
        )

    def wait_for_turn(self) -> None:
        """
        Wait until the account's pace would let a request go; :meth:`generate` waits for that too.

        Whoever notes that a submission is about to go does so only then: a task that is killed in a long wait has
        certainly sent nothing.

        :raises WhisulRateLimitError: That would take more than ten minutes. Nothing was sent.
        """
        self._when_free(MAX_WORKER_WAIT, lambda pace, now: None)

    def generate(self, prompt: str) -> str:
        """
        Submit a prompt. This costs credits (page api-reference/compose).

        It is sent again only after a 429, or where it certainly never left this machine.

        :param prompt: What the song should be, in plain language.
        :return: The id of the job.
        :raises WhisulInvalidInputError: The prompt is empty or no string, or Whisul refused it (400).
        :raises WhisulUnauthorizedError: The key is not accepted.
        :raises WhisulRateLimitError: Still too many requests after six attempts, or ten minutes of waiting.
        :raises WhisulConnectionError: It could not be sent in six attempts.
        :raises WhisulAmbiguousSubmitError: No answer, a 5xx or an unreadable 202: the job may exist.
        :raises WhisulResponseError: Another answer that is not documented; no job was made.
        """
        request = generate_request(prompt)

        def submit() -> str:
            answer = self._send(request, MAX_WORKER_WAIT)
            if answer.status == 400:
                said = quote(answer.text())
                self.log.error("Whisul's answer to the refused request: %s", said)
            return read_submission(answer)

        try:
            job_id = self._with_retries(request, submit)
        except WhisulError as error:
            if submission_lost(error):
                raise WhisulAmbiguousSubmitError(
                    f"{error} So the prompt may have become a job and may have been paid for. The API cannot tell, so "
                    "it is not sent again here: look at your Whisul dashboard if in doubt.",
                    http_status=error.http_status,
                ) from error
            raise
        metrics.submitted()
        return job_id

    def get_job(self, job_id: str, *, retry: bool = True, patience: float | None = None) -> WhisulJob:
        """
        Look at a job (pages api-reference/get-job and api-reference/job-status).

        :param job_id: Its id, as :meth:`generate` returned it.
        :param retry: Whether to live through what is transient, waiting in this process.
        :param patience: Seconds to wait at the most until the account's pace lets the look go, where ``retry`` is
            false; None for as many as one request may take.
        :return: The job as it stands.
        :raises WhisulInvalidInputError: That cannot be a job's id; nothing was sent.
        :raises WhisulJobNotFoundError: There is no such job, or no longer.
        :raises WhisulUnauthorizedError: The key is not accepted.
        :raises WhisulRateLimitError: Too many requests, still so after six attempts, or ten minutes of waiting.
        :raises WhisulServerError: A 5xx, likewise.
        :raises WhisulConnectionError: No answer, likewise.
        :raises WhisulResponseError: An answer that is not the documented one, likewise.
        """
        request = job_request(job_id)

        if retry:
            patience = MAX_WORKER_WAIT
        elif patience is None:
            patience = self.account.timeout

        def look() -> WhisulJob:
            return read_job(self._send(request, patience), job_id)

        job = self._with_retries(request, look, MAX_ATTEMPTS if retry else 1)
        metrics.seen(job)
        return job

    def wait_for_job(
        self,
        job_id: str,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float = DEFAULT_TIMEOUT,
        submitted_at: float | None = None,
        seen: WhisulJob | WhisulError | None = None,
    ) -> WhisulJob:
        """
        Wait until a job is completed, looking at it from this process.

        :param job_id: Its id.
        :param poll_interval: Seconds between two looks, at least 5.
        :param timeout: Seconds to wait at the most.
        :param submitted_at: When the job was submitted, in Unix seconds, if that is known: for a minute, a job that
            Whisul does not find is only not there yet.
        :param seen: What a look that was made this moment has brought, so that the next one waits its turn.
        :return: The completed job.
        :raises ValueError: The interval is under 5 s, or the timeout no positive number.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: It was not over in time. It may still be running.
        :raises WhisulError: As :meth:`get_job`; what is transient only after many failures in a row.
        """
        poll_interval = check_poll_interval(poll_interval, "poll_interval")
        watch = JobWatch(job_id, poll_interval, self.clock.time() + check_timeout(timeout), submitted_at)
        while True:
            if seen is None:
                try:
                    seen = self.get_job(job_id, retry=False, patience=max(watch.deadline - self.clock.time(), 0.0))
                except WhisulError as error:
                    seen = error
            wait = watch.after(seen, self.clock.time(), self.clock.random())
            if wait is None and isinstance(seen, WhisulJob):
                return seen
            self.clock.sleep(wait or 0.0)
            seen = None

    def test_connection(self) -> tuple[bool, str]:
        """
        Ask Whisul whether it takes the key, by looking for a job that cannot exist. Costs nothing.

        :return: Whether it does, and a sentence for the user.
        """
        try:
            self.get_job(NO_SUCH_JOB_ID, retry=False)
        except WhisulJobNotFoundError:
            return True, "Whisul accepts the API key."
        except WhisulError as error:
            return False, str(error)
        return False, f"Whisul knows a job that cannot exist at {self.account.base_url}; is this its API?"

    @cached_property
    def _session(self) -> requests.Session:
        session = requests.Session()
        session.headers.update(HEADERS)
        session.auth = _BearerAuth(self.account.api_key)
        # A proxy named by the environment is for the way out; it must not get the key of the sandbox's plain http.
        session.trust_env = not self.account.is_loopback
        return session

    def _with_retries(self, request: Request, attempt: Callable[[], T], attempts: int = MAX_ATTEMPTS) -> T:
        began = self.clock.time()

        def wait(state: tenacity.RetryCallState) -> float:
            error = _error_of(state)
            if isinstance(error, WhisulRateLimitError):
                # The account's pace climbs the documented ladder, and each request waits for its turn.
                return 0.0
            return retry_wait(error, state.attempt_number, self.clock.random())

        def goes_in(state: tenacity.RetryCallState) -> float:
            return max(state.upcoming_sleep, self._quiet_for())

        def give_up(state: tenacity.RetryCallState) -> bool:
            waited = self.clock.time() - began
            return state.attempt_number >= attempts or waited + goes_in(state) > MAX_WORKER_WAIT

        def tell_of_wait(state: tenacity.RetryCallState) -> None:
            self.log.warning(
                "%s Sending the request again in %.0f s (attempt %d of %d failed).",
                _error_of(state),
                goes_in(state),
                state.attempt_number,
                attempts,
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, WhisulError) and may_send_again(request, error)
            ),
            stop=give_up,
            wait=wait,
            before_sleep=tell_of_wait,
            sleep=self.clock.sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except WhisulRateLimitError as error:
            # Whoever tries again later has to wait out the ladder too, which the answer does not know of.
            error.retry_after = self._quiet_for()
            raise

    def _send(self, request: Request, patience: float) -> Answer:
        account = self.account
        ticket = self._take_turn(patience)
        give_up_at = time.monotonic() + account.timeout
        if request.method == "POST" and self.clock.time() - self._last_answer_at > IDLE_SECONDS:
            # A submission must not meet a connection that the server is just closing: whether it arrived were unknown.
            self._session.close()
        try:
            with self._session.request(
                request.method,
                account.base_url + request.path,
                json=request.json,
                timeout=account.timeout,
                verify=account.verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                body, complete = _read_body(response, give_up_at)
                self._last_answer_at = self._busy_until = self.clock.time()
                answer = Answer.received(
                    status=response.status_code,
                    headers=response.headers,
                    body=body,
                    complete=complete,
                    now=self.clock.time(),
                    api_key=account.api_key,
                )
        except (requests.RequestException, OSError) as error:
            self._learn(ticket, None)
            raise no_answer(request, account.base_url, error, _NEVER_SENT) from error
        metrics.answered(request, answer.status)
        self._learn(ticket, answer.status == 429, answer.retry_after)
        return answer

    @cached_property
    def _pace(self) -> SharedPace:
        return SharedPace(self.account)

    def _take_turn(self, patience: float) -> int:
        """Wait as :meth:`_when_free`, and return the ticket of the request that goes now."""
        return self._when_free(patience, lambda pace, now: pace.sent(now, overdue=now - self._busy_since))

    def _when_free(self, patience: float, use: Callable[[AccountPace, float], T]) -> T:
        """
        Wait until the account's pace lets the next request go, and return what is made of that.

        :param patience: Seconds to wait at the most.
        :param use: Is called with the pace and the time, before anybody else's turn can come.
        :raises WhisulRateLimitError: That would take longer. Nothing was sent.
        """
        came = now = self.clock.time()
        if came - self._busy_until > IDLE_SECONDS:
            # A worker asks one thing after the other: since here there has been work without a break.
            self._busy_since = came
        while True:
            with self._pace.held() as pace:
                at = pace.next_at(now)
                # A shorter wait is over by the time it has begun.
                if at - now <= 0.001:
                    used = use(pace, now)
                    break
                probing = pace.probing
            if (now if probing else at) - came > patience:
                raise WhisulRateLimitError(
                    f"Whisul limits the requests of this API key, as this task or another one on this machine has met. "
                    f"None goes before {utc(at)}, so that the block can end. Nothing was sent now.",
                    retry_after=at - now,
                )
            # Another process may find meanwhile that the block is over.
            self.clock.sleep(min(at - now, LOOK_AGAIN_AFTER))
            now = self.clock.time()
        self._busy_until = now
        if now > came:
            metrics.waited(now - came)
        return used

    def _learn(self, ticket: int, limited: bool | None, retry_after: float | None = None) -> None:
        with self._pace.held() as pace:
            pace.answered(self.clock.time(), ticket, limited, retry_after, self.clock.random())

    def _quiet_for(self) -> float:
        """Return the seconds until the account's pace lets the next request go."""
        now = self.clock.time()
        with self._pace.held() as pace:
            return max(pace.next_at(now) - now, 0.0)


class _BearerAuth(AuthBase):
    """Puts the key into the header. As requests' ``auth`` it also keeps ``.netrc`` from replacing it."""

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
    """Return what comes of a body, and whether that is all: bounded in size, and in time as a whole."""
    body = bytearray()
    try:
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            body += chunk
            if len(body) > MAX_BODY_BYTES or time.monotonic() > give_up_at:
                return bytes(body[:MAX_BODY_BYTES]), False
    except (urllib3.exceptions.HTTPError, OSError):
        return bytes(body), False
    return bytes(body), True

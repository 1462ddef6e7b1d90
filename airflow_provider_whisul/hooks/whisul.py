"""
The client of the Whisul API for workers, on requests.

It sends and receives. What a request looks like is in :mod:`airflow_provider_whisul.api.messages`, what a response
means in :mod:`airflow_provider_whisul.api.outcomes`, when a request may be sent in
:mod:`airflow_provider_whisul.rate_limit`, when to poll a job again in :mod:`airflow_provider_whisul.polling`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import requests
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings, read_connection
from airflow_provider_whisul.api.messages import NO_SUCH_JOB_ID, Request, Response, generate_request, job_request
from airflow_provider_whisul.api.models import PollResult, WhisulJob
from airflow_provider_whisul.api.outcomes import check_key, read_job, read_submission, submission_error
from airflow_provider_whisul.api.price import in_brackets
from airflow_provider_whisul.api.transport import find_ca, find_proxy
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulError, WhisulJobNotFoundError, WhisulRateLimitError
from airflow_provider_whisul.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_whisul.hooks.bounded_session import bounded_session, exchange, nothing_sent
from airflow_provider_whisul.hooks.retrying import retrying
from airflow_provider_whisul.ledger.entries import Entry, Outcome
from airflow_provider_whisul.ledger.outcomes import OutcomeRecorder, outcome_of_job
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.ledger.submitting import AlreadySubmitted, Submitting
from airflow_provider_whisul.polling import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, start_polling
from airflow_provider_whisul.rate_limit.backoff import MAX_WORKER_ATTEMPTS, MAX_WORKER_WAIT, NotBefore
from airflow_provider_whisul.rate_limit.store_choice import find_redis, limiter_store
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from airflow_provider_whisul.text import excerpt, quote

if TYPE_CHECKING:
    from wtforms import Field

T = TypeVar("T")

#: Seconds after which a connection that was kept alive is not trusted with a submission. Some servers keep it for 5.
IDLE_SECONDS = 3.0


class WhisulHook(BaseHook):
    """
    Talks to Whisul from a worker, on requests.

    A request is retried as the API's documentation asks (page guides/error-handling), with each wait in the log: after
    a 429 by the backoff schedule of 5, 10, 20, 40, 60 s or ``Retry-After`` where longer; a poll also after 10 to 30 s
    where the response was a 5xx or the connection broke. A submission that may have arrived is never sent again. All
    hooks with one API key share one rate limiter, with the triggerer too: in a file of this user on this machine, or in
    Redis where that is configured. While the key is blocked one of them probes.

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
        #: When this hook submitted each of its jobs, in Unix seconds.
        self.submitted_at: dict[str, float] = {}
        # When the latest response came: in Unix seconds, and on the monotonic clock.
        self._last_response_at, self._used_at = 0.0, -math.inf
        self._pid = os.getpid()
        self._outcomes = OutcomeRecorder(clock)

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

        :raises WhisulConfigurationError: There is no such connection, or it cannot be used.
        """
        return self._read_settings()

    def _read_settings(self) -> ConnectionSettings:
        return read_connection(self.whisul_conn_id, self.get_connection)

    def _key_was_replaced(self) -> bool:
        """Read the Airflow connection once more, and return whether it has another key, which is used from now on."""
        try:
            fresh = self._read_settings()
        except Exception as error:
            # The response that made us ask says more. The error's own text may hold a secret of the backend.
            kind = type(error).__name__
            self.log.warning("Airflow connection %r could not be read again: %s", self.whisul_conn_id, kind)
            return False
        if fresh.api_key == self.settings.api_key:
            return False
        self.log.info("Airflow connection %r has a new API key. The request is sent again.", self.whisul_conn_id)
        self._forget_clients()
        self.settings = fresh
        return True

    def generate(
        self,
        prompt: str,
        *,
        before_send: Callable[[], None] | None = None,
        before_wait: Callable[[], None] | None = None,
        on_refused: Callable[[], None] | None = None,
        submission: SubmissionId | None = None,
    ) -> str:
        """
        Submit a prompt. This costs credits (page api-reference/compose).

        The request is sent again only where it certainly made no job and the reason may pass: after a 429, a refusal by
        a CDN, or where it never left this machine.

        :param prompt: The description of the song, in plain language.
        :param before_send: Called when the rate limiter has permitted the request and just before it is sent, once or
            again after each ``on_refused``. A task that is killed before that has certainly submitted nothing. What it
            raises stops the submission. Also called before a :class:`WhisulAmbiguousSubmitError` of a submission that
            an earlier try has begun.
        :param before_wait: Called before each wait of more than 0.1 s. What it raises stops the submission.
        :param on_refused: Called where the request that ``before_send`` was called for has certainly made no job.
            ``before_send`` is called anew then before it is sent again. What it raises is logged.
        :param submission: What the submission is called, so that it is made once: where the ledger of the API key has a
            job of this submission and prompt, that job is returned, and nothing is sent. None for one of its own.
        :return: The job's id.
        :raises WhisulInvalidInputError: The prompt is empty or no string, or Whisul refused it (400, 413, 422, 451).
        :raises WhisulUnauthorizedError: The key is not accepted (401 or 403, with JSON).
        :raises WhisulOutOfCreditsError: The account has no credits left (402, or a 403 or 429 that says so).
        :raises WhisulRateLimitError: A 429 in the sixth attempt, or the rate limiter permits no request in ten minutes.
        :raises WhisulConnectionError: The request could not be sent in six attempts.
        :raises WhisulResponseError: A CDN, or a server that is not Whisul's, refused the request in six attempts.
        :raises WhisulAmbiguousSubmitError: The submission ended in any other way: the job may exist.
        :raises WhisulBudgetExceededError: The connection's ``max_submissions_per_day`` is used up. Nothing was sent.
        :raises WhisulStateError: The ledger cannot be read or written. Nothing was sent.
        """
        request = generate_request(prompt)
        entry = Submitting(prompt, submission, self.whisul_conn_id, self.clock, before_send, before_wait, on_refused)

        def read(response: Response) -> str:
            if response.status == 400:
                self.log.error("Whisul's response to the refused request: %s", quote(response.text()))
            job_id = read_submission(response)
            entry.accept(job_id)
            self.submitted_at[job_id] = self._last_response_at
            return job_id

        try:
            job_id = self._send(request, read, entry=entry)
        except AlreadySubmitted as found:
            return found.job_id
        except WhisulError as error:
            raise submission_error(error) from None
        metrics.submitted()
        cost = in_brackets(self.settings.price_per_song, 1)
        self.log.info("Whisul accepted the prompt %r as job %s%s", excerpt(prompt), job_id, cost)
        return job_id

    def find_submission(self, submission: SubmissionId, prompt: str, *, since: float) -> Entry | None:
        """
        Return what the ledger knows of an earlier submission, whichever key it was made with.

        Where another try is in the middle of it, its response is waited for.

        :param submission: What the submission is called.
        :param prompt: Its prompt.
        :param since: When it was about to be made, in Unix seconds.
        :return: The entry, whose ``job_id`` is None where nobody knows the job. None where there is no entry, as after
            a refusal: the try that was refused may be alive, and about to make the same submission once more.
        :raises WhisulStateError: The ledger cannot be read.
        """
        return Submitting(prompt, submission, self.whisul_conn_id, self.clock).find(self.settings, since)

    def record_outcome(self, job_id: str, outcome: Outcome) -> None:
        """
        Record in the ledger how a job ended. Where that fails, a warning says so.

        :param job_id: The job.
        :param outcome: ``delivered``, ``failed`` or ``not_found``.
        """
        self._outcomes.record(lambda: self.settings, job_id, outcome)

    def get_job(self, job_id: str, *, retry: bool = True, max_wait: float | None = None) -> WhisulJob:
        """
        Poll a job once (pages api-reference/get-job and api-reference/job-status).

        :param job_id: The job's id, as :meth:`generate` returned it.
        :param retry: Whether to retry transient errors, waiting in this process, for ten minutes at most.
        :param max_wait: Seconds to wait for the rate limiter at most, where ``retry`` is false; None for as many as one
            request may take.
        :return: The job as it is now.
        :raises WhisulInvalidInputError: The id cannot be a job's; nothing was sent.
        :raises WhisulJobNotFoundError: There is no such job, or no longer (404, 410).
        :raises WhisulUnauthorizedError: The key is not accepted (401 or 403, with JSON).
        :raises WhisulOutOfCreditsError: The account has no credits left.
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
            max_wait = self.settings.timeout if max_wait is None else max_wait
            job = self._send(request, read, attempts=1, max_wait=max_wait)
        metrics.polled(job, self.clock.time())
        self._rate_limiter.add_job(job)
        if (outcome := outcome_of_job(job)) is not None:
            self.record_outcome(job_id, outcome)
        return job

    def throttled_until(self, error: WhisulError) -> NotBefore | None:
        """
        Return when the next request may be sent after an error, as a trigger is told; None unless the key is blocked.

        :param error: The error of this hook's latest request.
        """
        # After any other error there may be no rate limiter, as where the connection is wrong.
        return self._rate_limiter.throttled_until(error) if isinstance(error, WhisulRateLimitError) else None

    def wait_for_job(
        self,
        job_id: str,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float = DEFAULT_TIMEOUT,
        delay: float = 0.0,
        submitted_at: float | None = None,
    ) -> WhisulJob:
        """
        Wait until a job is completed, polling it from this process.

        :param job_id: The job's id.
        :param poll_interval: Seconds between two polls, at least 5.
        :param timeout: Seconds to wait at most.
        :param delay: Seconds until the first poll, or more where the job is known to be too young to be over.
        :param submitted_at: When the job was submitted, in Unix seconds; None for unknown, or by this hook.
        :return: The completed job. Its ``song`` is a dict, see :class:`~airflow_provider_whisul.api.models.Song`.
        :raises ValueError: The interval is under 5 s, or the timeout no positive number.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The job did not end in time. It may still be running.
        :raises WhisulSongMissingError: The job is completed, but has no URL of its song.
        :raises WhisulJobNotFoundError: Whisul has not found the job for a minute.
        :raises WhisulError: As :meth:`get_job`; a transient error only after 20 of them since the last response.
        """
        submitted_at = self.submitted_at.get(job_id) if submitted_at is None else submitted_at
        poller = start_polling(job_id, poll_interval, timeout, submitted_at, self.clock.time())
        next_delay: float | None = poller.until_deadline(self.clock.time(), delay) if delay else 0.0
        while next_delay is not None:
            self.clock.sleep(next_delay)
            if next_delay := poller.first_poll_delay(self.clock.time(), self._rate_limiter.durations):
                continue
            result: PollResult
            try:
                result = job = self.get_job(job_id, retry=False, max_wait=poller.max_wait(self.clock.time()))
            except WhisulError as error:
                result = error
            try:
                next_delay = poller.next_delay(result, self.clock.time(), self.clock.random())
            except WhisulJobNotFoundError:
                self.record_outcome(job_id, "not_found")
                raise
        return job

    def test_connection(self) -> tuple[bool, str]:
        """
        Ask Whisul whether it accepts the key, by polling a job that cannot exist. Costs nothing.

        :return: Whether it does, and a sentence for the user.
        """
        try:
            settings = self.settings
            settings.refuse_masked_key()
            # Where Airflow tests one connection it may not reach that of a Redis: the machine's rate limiter will do.
            hook, request, wait = copy(self), job_request(NO_SUCH_JOB_ID), settings.timeout
            hook._rate_limiter = WorkerRateLimiter(limiter_store(settings, clock=self.clock), settings, self.clock)
            return hook._send(request, lambda response: check_key(response, hook.settings), attempts=1, max_wait=wait)
        except WhisulError as error:
            # Airflow's UI tests a connection under an id of its own making, which says nothing to the user.
            return False, str(error).replace(f"Airflow connection {self.whisul_conn_id!r} can", "The connection can")

    @cached_property
    def _session(self) -> requests.Session:
        return bounded_session(self.settings.api_key)

    @cached_property
    def _ca(self) -> bool | str:
        return find_ca(self.settings.verify)

    @cached_property
    def _rate_limiter(self) -> WorkerRateLimiter:
        store = limiter_store(self.settings, find_redis(self.settings, self.get_connection), self.clock)
        return WorkerRateLimiter(store, self.settings, self.clock)

    def _forget_clients(self) -> None:
        """Use no connection and no lock again that was there before."""
        self._session.close()
        for name in ("_session", "_rate_limiter", "_ca"):
            self.__dict__.pop(name, None)

    def _send(
        self,
        request: Request,
        read: Callable[[Response], T],
        *,
        attempts: int = MAX_WORKER_ATTEMPTS,
        max_wait: float = MAX_WORKER_WAIT,
        entry: Submitting | None = None,
    ) -> T:
        """Send a request when the rate limiter permits it, again where that can help, and return what is read of it."""
        if self._pid != os.getpid():
            # The response to one process could be read by the other, and a lock may have been forked while it was held.
            self._forget_clients()
            self._pid = os.getpid()
        give_up_at = self.clock.monotonic() + max_wait
        read = read if entry is None else partial(entry.finish, read)
        key_reread = False

        def attempt() -> T:
            nonlocal key_reread
            if entry is None:
                permit = self._rate_limiter.acquire("poll", max(give_up_at - self.clock.monotonic(), 0.0))
            else:
                permit = entry.acquire(self._rate_limiter, self.settings, give_up_at)
            began = self.clock.monotonic()
            try:
                response = self._exchange(request)
            except BaseException as error:
                self._rate_limiter.on_response(permit, throttled=None)
                if entry is not None:
                    entry.end(error)
                raise
            try:
                metrics.response(request, response, self.clock.monotonic() - began)
                cooldown = self._rate_limiter.on_response(permit, response.throttled, response.asked_wait)
            except BaseException:
                # The task is just being ended, and only this response says which job is paid for.
                if entry is not None:
                    with suppress(WhisulError):
                        self.log.error(
                            "The task was ended when it had submitted job %s, which is paid for.", read(response)
                        )
                raise
            if response.status == 401 and not key_reread:
                # Once only: a secrets backend may return another key at each reading.
                key_reread = True
                if entry is not None:
                    # The old key has made no job. First, as the task may be ended while the connection is read.
                    entry.withdraw()
                if self._key_was_replaced():
                    return attempt()
            return read(replace(response, cooldown=cooldown, conn_id=self.whisul_conn_id))

        send = retrying(request, attempts=attempts, give_up_at=give_up_at, clock=self.clock, warn=self.log.warning)
        return send(attempt)

    def _exchange(self, request: Request) -> Response:
        with nothing_sent():
            proxy, ca, session = find_proxy(self.settings.base_url + request.path), self._ca, self._session
        # By both clocks: the monotonic one stands still while the machine is suspended, the other one may be put back.
        idle = max(self.clock.time() - self._last_response_at, self.clock.monotonic() - self._used_at)
        if request.method == "POST" and idle > IDLE_SECONDS:
            # A submission must not meet a connection that the server is just closing: nobody could tell if it arrived.
            session.close()
        response = exchange(session, request, self.settings, verify=ca, proxy=proxy, now=self.clock.time)
        self._last_response_at, self._used_at = self.clock.time(), self.clock.monotonic()
        return response

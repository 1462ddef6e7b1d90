"""
The client of the Whisul API for an event loop, on aiohttp: for the triggerer, and for tasks on a worker that run one.

It polls, and leaves all retries to the poller. What it submits is submitted by
:mod:`airflow_provider_whisul.hooks.submission_thread`. It is a module of its own so that no task process loads aiohttp
unless it asks for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings, check_extra, named_connection
from airflow_provider_whisul.api.messages import Request, Response, job_request
from airflow_provider_whisul.api.models import PollResult, WhisulJob
from airflow_provider_whisul.api.outcomes import read_job
from airflow_provider_whisul.api.transport import Exchange, connection_error, exchanging
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError, WhisulJobNotFoundError
from airflow_provider_whisul.hooks.shared_session import SharedSession, read_body, shared_session
from airflow_provider_whisul.polling import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, JobPoller, start_polling
from airflow_provider_whisul.rate_limit.async_rate_limiter import AsyncRateLimiter
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from airflow_provider_whisul.rate_limit.store_choice import find_redis_async, limiter_store

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.submission_thread import SubmissionThread
    from airflow_provider_whisul.ledger.submission_id import SubmissionId

#: The process that has read this module. One that is forked from it has none of its threads.
_PID = os.getpid()

#: Returns the settings of a connection, and how to reach the Redis of its rate limiter, None for none.
LookUp = Callable[[], tuple[ConnectionSettings, RedisSettings | None]]


class WhisulAsyncHook(BaseHook):
    """
    Talks to Whisul from an event loop without ever blocking it: polls jobs from the triggerer, on aiohttp.

    Code on a worker that runs in an event loop, as an ``async`` task does, submits with it and waits too.

    Hooks with equal settings share one session per event loop, with its connections and its TLS context. The last of
    them to leave closes it. Hooks with one API key share one rate limiter per event loop, which shares its store with
    the workers. Enter the hook (``async with``) to keep the session from one poll to the next.

    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param clock: Time, sleep and jitter; for tests.
    :param look_up: Returns the settings, and how to reach the Redis of the rate limiter. None to look up the Airflow
        connections as the triggerer does. A worker has another way.
    """

    def __init__(
        self, whisul_conn_id: str = DEFAULT_CONN_ID, *, clock: Clock = SYSTEM_CLOCK, look_up: LookUp | None = None
    ) -> None:
        super().__init__()
        self.whisul_conn_id = whisul_conn_id
        self.clock = clock
        self._look_up = look_up
        self._settings: ConnectionSettings | None = None
        # That of the settings, and the event loop that both are for.
        self._rate_limiter: AsyncRateLimiter
        self._loop: ref[asyncio.AbstractEventLoop] | None = None
        self._stack = AsyncExitStack()
        self._entered = False
        self._submissions: SubmissionThread | None = None
        # The process that has made it.
        self._submissions_pid = 0

    async def __aenter__(self) -> WhisulAsyncHook:
        await self._stack.enter_async_context(shared_session(await self.settings()))
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        await self._stack.aclose()

    async def settings(self) -> ConnectionSettings:
        """
        Return the settings in the Airflow connection, looked up at first use in an event loop.

        :raises WhisulConfigurationError: There is no such connection, or it cannot be used.
        """
        loop = asyncio.get_running_loop()
        if self._settings is None or self._loop is None or self._loop() is not loop:
            self._settings = await self._read_settings()
            self._loop = ref(loop)
        return self._settings

    async def _read_settings(self) -> ConnectionSettings:
        # A worker's way blocks the loop, which serves nobody else: its look-ups must come one after the other.
        if self._look_up:
            settings, redis = self._look_up()
        elif os.getpid() == _PID:
            settings, redis = await self._look_up_in_triggerer()
        else:
            # With a thread of its own: Airflow would wait for one of the process before the fork, for ever.
            from asgiref.sync import ThreadSensitiveContext

            async with ThreadSensitiveContext():
                settings, redis = await self._look_up_in_triggerer()
        self._rate_limiter = _shared_rate_limiter(settings, redis, self.clock)
        return settings

    async def _look_up_in_triggerer(self) -> tuple[ConnectionSettings, RedisSettings | None]:
        with named_connection(self.whisul_conn_id):
            connection = await get_async_connection(self.whisul_conn_id)
            extra = await get_async_extra_dejson(connection) if check_extra(connection.extra) else {}
        settings = ConnectionSettings.from_connection(
            self.whisul_conn_id,
            host=connection.host,
            schema=connection.schema,
            port=connection.port,
            password=connection.password,
            extra=extra,
        )
        return settings, await find_redis_async(settings)

    async def _key_was_replaced(self, used: ConnectionSettings) -> bool:
        """Read the Airflow connection once more, and return whether it has another key, which is used from now on."""
        try:
            fresh = await self._read_settings()
        except Exception as error:
            # The response that made us ask says more. The error's own text may hold a secret of the backend.
            kind = type(error).__name__
            self.log.warning("Airflow connection %r could not be read again: %s", self.whisul_conn_id, kind)
            return False
        if fresh.api_key == used.api_key:
            return False
        self.log.info("Airflow connection %r has a new API key. Polling again with it.", self.whisul_conn_id)
        self._settings = fresh
        if self._entered:
            await self._stack.enter_async_context(shared_session(fresh))
        return True

    async def generate(
        self,
        prompt: str,
        *,
        before_send: Callable[[], None] | None = None,
        submission: SubmissionId | None = None,
    ) -> str:
        """
        Submit a prompt, as :meth:`WhisulHook.generate` does, for code on a worker such as an ``async`` task.

        This costs credits. The submissions of one hook are made one after the other, in a thread, by the worker's
        client: with its attempts, its rules about what may be sent again, the ledger and the ceiling of the day.

        Where the caller is cancelled before the request is sent, nothing is submitted. A request that is on its way is
        not cut off: the thread awaits its response, and the ledger and the log have the job.

        :param prompt: The description of the song, in plain language.
        :param before_send: As for :meth:`WhisulHook.generate`. It is called once, in the thread.
        :param submission: What the submission is called, as for :meth:`WhisulHook.generate`.
        :return: The job's id.
        :raises WhisulError: As :meth:`WhisulHook.generate`.
        """
        thread = await self._submission_thread()
        return await thread.generate(prompt, before_send, submission)

    async def wait_for_job(
        self,
        job_id: str,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - its end is an error that names the job
        delay: float = 0.0,
        submitted_at: float | None = None,
    ) -> WhisulJob:
        """
        Wait until a job is completed, as :meth:`WhisulHook.wait_for_job` does, for code on a worker.

        How the job ended is recorded in the ledger.

        :param job_id: The job's id.
        :param poll_interval: Seconds between two polls, at least 5.
        :param timeout: Seconds to wait at most.
        :param delay: Seconds until the first poll, or more where the job is known to be too young to be over.
        :param submitted_at: When the job was submitted, in Unix seconds; None for unknown, or by this hook.
        :return: The completed job. Its ``song`` is a dict, see :class:`~airflow_provider_whisul.api.models.Song`.
        :raises ValueError: The interval is under 5 s, or the timeout no positive number.
        :raises WhisulError: As :meth:`WhisulHook.wait_for_job`.
        """
        thread, now = await self._submission_thread(), self.clock.time()
        submitted_at = thread.submitted_at(job_id) if submitted_at is None else submitted_at
        poller = start_polling(job_id, poll_interval, timeout, submitted_at, now)
        try:
            job = await self.follow(poller, poller.until_deadline(now, delay) if delay else 0.0)
        except WhisulJobFailedError:
            await thread.record_outcome(job_id, "failed")
            raise
        except WhisulJobNotFoundError:
            await thread.record_outcome(job_id, "not_found")
            raise
        await thread.record_outcome(job_id, "delivered")
        return job

    async def _submission_thread(self) -> SubmissionThread:
        settings = await self.settings()
        if self._submissions is None or self._submissions_pid != os.getpid():
            # In a thread, and not where this module is read: triggers need neither the worker's client nor the ledger.
            create = await asyncio.to_thread(_import_submission_thread)
            if self._submissions is None or self._submissions_pid != os.getpid():
                self._submissions = create(self.whisul_conn_id, settings, self.clock)
                self._submissions_pid = os.getpid()
        return self._submissions

    async def pause_until(self, not_before: NotBefore) -> None:
        """
        Pause for a 429 that a worker has met: no hook in this event loop sends a request with the same key before then.

        :param not_before: When the next request may be sent.
        """
        await self.settings()
        await self._rate_limiter.pause_until(not_before)

    async def get_job(
        self, job_id: str, *, max_wait: float | None = None, poll: WaitingPoll | None = None
    ) -> WhisulJob:
        """
        Poll a job once (pages api-reference/get-job and api-reference/job-status).

        All polls with one key share one rate limiter. While the key is blocked none is sent but one probe at a time.

        :param job_id: The job's id.
        :param max_wait: Seconds to wait for the rate limiter at most; None for as long as it takes.
        :param poll: What decides which of the polls that wait goes first; None for one that is due now.
        :return: The job as it is now.
        :raises WhisulRateLimitError: A 429, or the rate limiter permits no request in time.
        :raises WhisulError: As :meth:`WhisulHook.get_job`, at the first failure.
        """
        request = job_request(job_id)
        settings, began = await self.settings(), self.clock.monotonic()
        response = await self._send(settings, request, max_wait, poll)
        if response.status == 401 and await self._key_was_replaced(settings):
            # Once only: a secrets backend may return another key at each reading.
            left = None if max_wait is None else max(max_wait - (self.clock.monotonic() - began), 0.0)
            response = await self._send(await self.settings(), request, left, poll)
        job = read_job(response, job_id)
        metrics.polled(job, self.clock.time())
        self._rate_limiter.add_job(job)
        return job

    async def _send(
        self, settings: ConnectionSettings, request: Request, max_wait: float | None, poll: WaitingPoll | None
    ) -> Response:
        """Send a request once, when the rate limiter permits it."""
        rate_limiter = self._rate_limiter
        async with shared_session(settings) as shared:
            permit = await rate_limiter.acquire(max_wait, poll)
            began = self.clock.monotonic()
            try:
                response = await self._exchange(shared, settings, request)
            except BaseException:
                rate_limiter.on_response(permit, throttled=None)
                raise
            # Before anything that may fail: a permit of which nothing is heard counts as on its way for ever.
            reported = rate_limiter.on_response(permit, response.throttled, response.asked_wait)
            metrics.response(request, response, self.clock.monotonic() - began)
            cooldown = await reported
        return replace(response, cooldown=cooldown, conn_id=self.whisul_conn_id)

    async def follow(self, poller: JobPoller, delay: float) -> WhisulJob:
        """
        Poll a job whenever its poller says so, until it is completed. Triggers wait so.

        :param poller: The job, its poll interval and its deadline.
        :param delay: Seconds until the first poll. It waits longer where the job is known to be too young to be over.
        :return: The completed job. Its ``song`` is a dict, see :class:`~airflow_provider_whisul.api.models.Song`.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The job did not end by the deadline. It may still be running.
        :raises WhisulSongMissingError: The job is completed, but has no URL of its song.
        :raises WhisulJobNotFoundError: Whisul has not found the job for a minute.
        :raises WhisulError: As :meth:`get_job`; a transient error only after 20 of them since the last response.
        """
        clock = self.clock
        next_delay: float | None = delay
        while next_delay is not None:
            await clock.async_sleep(next_delay)
            await self.settings()
            if next_delay := poller.first_poll_delay(clock.time(), self._rate_limiter.durations):
                continue
            result: PollResult
            now = clock.time()
            try:
                result = job = await self.get_job(
                    poller.job_id,
                    max_wait=poller.max_wait(now),
                    poll=poller.waiting_poll(now, asyncio.get_running_loop().time()),
                )
            except WhisulError as error:
                result = error
            next_delay = poller.next_delay(result, clock.time(), clock.random())
        return job

    async def _exchange(self, shared: SharedSession, settings: ConnectionSettings, request: Request) -> Response:
        exchange = Exchange(request, settings)
        try:
            with exchanging(exchange):
                async with shared.session.request(
                    request.method,
                    settings.base_url + request.path,
                    json=request.json,
                    # Not with the session's own headers: aiohttp gives those to a proxy too.
                    headers={"Authorization": f"Bearer {settings.api_key}"},
                    proxy=shared.proxy,
                    proxy_headers=shared.proxy_headers,
                    allow_redirects=False,
                    trace_request_ctx=exchange,
                ) as response:
                    body, complete = await read_body(response)
                    return Response.from_http(
                        status=response.status,
                        headers=response.headers,
                        body=body,
                        complete=complete,
                        now=self.clock.time(),
                        api_key=settings.api_key,
                    )
        except Exception as error:
            failure = connection_error(exchange, error)
        # Not raised inside the handler: Airflow logs the causes of an error, and theirs may hold the key.
        raise failure


def _import_submission_thread() -> type[SubmissionThread]:
    from airflow_provider_whisul.hooks.submission_thread import SubmissionThread

    return SubmissionThread


# A rate limiter outlives the sessions: what it has learnt of an account's limit holds for the next job too. Where a
# connection comes to name another Redis, the triggers that start from then on have the rate limiter that is kept there.
_RATE_LIMITERS: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[str, RedisSettings | None], AsyncRateLimiter]
] = WeakKeyDictionary()


def _shared_rate_limiter(settings: ConnectionSettings, redis: RedisSettings | None, clock: Clock) -> AsyncRateLimiter:
    """Return the event loop's one rate limiter for an account and its store, with settings that may be newer."""
    rate_limiters = _RATE_LIMITERS.setdefault(asyncio.get_running_loop(), {})
    key = settings.fingerprint, redis
    if key not in rate_limiters:
        rate_limiters[key] = AsyncRateLimiter(limiter_store(settings, redis, clock), settings, clock)
    rate_limiters[key].settings = settings
    return rate_limiters[key]

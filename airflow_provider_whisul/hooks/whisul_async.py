"""
The client of the Whisul API for the triggerer, on aiohttp.

It only polls, and leaves all retries to the poller. It is a module of its own so that no task process loads aiohttp.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace, TracebackType
from weakref import WeakKeyDictionary, ref

import aiohttp
import yarl
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import BaseHook
from urllib3.util import make_headers

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings, check_extra, named_connection
from airflow_provider_whisul.api.messages import (
    HEADERS,
    MAX_BODY_BYTES,
    Request,
    Response,
    job_request,
)
from airflow_provider_whisul.api.models import PollResult, WhisulJob
from airflow_provider_whisul.api.outcomes import read_job
from airflow_provider_whisul.api.transport import (
    Exchange,
    connection_error,
    exchanging,
    find_ca,
    find_proxy,
    silence,
    tls_context,
)
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.polling import JobPoller
from airflow_provider_whisul.rate_limit.async_rate_limiter import AsyncRateLimiter
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from airflow_provider_whisul.rate_limit.store_choice import find_redis_async, limiter_store

silence("aiohttp.client")


class WhisulAsyncHook(BaseHook):
    """
    Polls jobs from the triggerer, on aiohttp, without ever blocking its event loop.

    Hooks with equal settings share one session per event loop, with its connections and its TLS context. The last of
    them to leave closes it. Hooks with one API key share one rate limiter per event loop, which shares its store with
    the workers. Enter the hook (``async with``) to keep the session from one poll to the next.

    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param clock: Time, sleep and jitter; for tests.
    """

    def __init__(self, whisul_conn_id: str = DEFAULT_CONN_ID, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self.whisul_conn_id = whisul_conn_id
        self.clock = clock
        self._settings: ConnectionSettings | None = None
        # That of the settings, and the event loop that both are for.
        self._rate_limiter: AsyncRateLimiter
        self._loop: ref[asyncio.AbstractEventLoop] | None = None
        self._stack = AsyncExitStack()
        self._entered = False

    async def __aenter__(self) -> WhisulAsyncHook:
        await self._stack.enter_async_context(_shared_session(await self.settings()))
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
        self._rate_limiter = await _shared_rate_limiter(settings, self.clock)
        return settings

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
            await self._stack.enter_async_context(_shared_session(fresh))
        return True

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
        settings = await self.settings()
        response = await self._send(settings, request, max_wait, poll)
        if response.status == 401 and await self._key_was_replaced(settings):
            # Once only: a secrets backend may return another key at each reading.
            response = await self._send(await self.settings(), request, max_wait, poll)
        job = read_job(response, job_id)
        metrics.polled(job)
        self._rate_limiter.add_job(job)
        return job

    async def _send(
        self, settings: ConnectionSettings, request: Request, max_wait: float | None, poll: WaitingPoll | None
    ) -> Response:
        """Send a request once, when the rate limiter permits it."""
        rate_limiter = self._rate_limiter
        async with _shared_session(settings) as shared:
            permit = await rate_limiter.acquire(max_wait, poll)
            try:
                response = await self._exchange(shared, settings, request)
            except BaseException:
                rate_limiter.on_response(permit, throttled=None)
                raise
            cooldown = await rate_limiter.on_response(permit, response.throttled, response.asked_wait)
        metrics.response(request, response)
        return replace(response, cooldown=cooldown, conn_id=self.whisul_conn_id)

    async def wait_for_job(self, poller: JobPoller, delay: float) -> WhisulJob:
        """
        Wait until a job is completed, polling it whenever its poller says so.

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

    async def _exchange(self, shared: _SharedSession, settings: ConnectionSettings, request: Request) -> Response:
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
                    body, complete = await _read_body(response)
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


@dataclass
class _SharedSession:
    session: aiohttp.ClientSession
    proxy: yarl.URL | None
    proxy_headers: dict[str, str]
    users: int = 0


_SHARED_SESSIONS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ConnectionSettings, _SharedSession]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def _shared_session(settings: ConnectionSettings) -> AsyncIterator[_SharedSession]:
    """Lend the event loop's one session for a connection. The last one to leave closes it."""
    sessions = _SHARED_SESSIONS.setdefault(asyncio.get_running_loop(), {})
    if settings not in sessions:
        tls, proxy = await _tls_and_proxy(settings)
        if settings not in sessions:
            sessions[settings] = _SharedSession(_new_session(settings, tls), *_without_password(proxy))
    shared = sessions[settings]
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            del sessions[settings]
            await shared.session.close()


_LOADING: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[ConnectionSettings, asyncio.Task[tuple[ssl.SSLContext | bool, str | None]]]
] = WeakKeyDictionary()


async def _tls_and_proxy(settings: ConnectionSettings) -> tuple[ssl.SSLContext | bool, str | None]:
    """Return the TLS context and the proxy, loaded once for all that ask at the same time."""
    loading = _LOADING.setdefault(asyncio.get_running_loop(), {})
    if settings not in loading:
        # Reading CA files takes tens of milliseconds, which no other trigger should have to wait out.
        task = asyncio.ensure_future(asyncio.to_thread(lambda: (_tls_context(settings), find_proxy(settings.base_url))))
        task.add_done_callback(lambda _: loading.pop(settings))
        loading[settings] = task
    # The coroutine that asked first may be cancelled; the others still need the result.
    return await asyncio.shield(loading[settings])


# A rate limiter outlives the sessions: what it has learnt of an account's limit holds for the next job too. Where a
# connection comes to name another Redis, the triggers that start from then on have the rate limiter that is kept there.
_RATE_LIMITERS: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[str, RedisSettings | None], AsyncRateLimiter]
] = WeakKeyDictionary()


async def _shared_rate_limiter(settings: ConnectionSettings, clock: Clock) -> AsyncRateLimiter:
    """Return the event loop's one rate limiter for an account and its store, with settings that may be newer."""
    rate_limiters = _RATE_LIMITERS.setdefault(asyncio.get_running_loop(), {})
    redis = await find_redis_async(settings)
    key = settings.fingerprint, redis
    if key not in rate_limiters:
        rate_limiters[key] = AsyncRateLimiter(limiter_store(settings, redis, clock), settings, clock)
    rate_limiters[key].settings = settings
    return rate_limiters[key]


def _new_session(settings: ConnectionSettings, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(total=settings.timeout),
        # Longer than the usual poll interval, so that a single job's polls share a connection too.
        connector=aiohttp.TCPConnector(ssl=tls, keepalive_timeout=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_note_what_is_sent()],
    )
    # By itself aiohttp would send a GET again at once when its connection broke: two polls in one moment.
    session._retry_connection = False
    return session


def _note_what_is_sent() -> aiohttp.TraceConfig:
    """Return what sets :attr:`Exchange.sent` just before the first byte of a request is written."""

    async def on_headers(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.sent = True

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(on_headers)
    return trace


def _tls_context(settings: ConnectionSettings) -> ssl.SSLContext | bool:
    """Return what verifies the server, as requests does it."""
    ca = find_ca(settings.verify)
    if isinstance(ca, bool) or settings.base_url.startswith("http://"):
        return ca is not False
    return tls_context(ca)


def _without_password(proxy: str | None) -> tuple[yarl.URL | None, dict[str, str]]:
    """Return a proxy's URL without user and password, and the header that has them: aiohttp's errors name the URL."""
    if proxy is None:
        return None, {}
    url = yarl.URL(proxy)
    headers = make_headers(proxy_basic_auth=f"{url.user}:{url.password or ''}") if url.user else {}
    return url.with_user(None), headers


async def _read_body(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return bytes(body[:MAX_BODY_BYTES]), False
    except (aiohttp.ClientError, TimeoutError, OSError):
        return bytes(body), False
    return bytes(body), True

"""
The client of the Whisul API for the triggerer, on aiohttp.

It only polls, and leaves all retries to the poller. It is a module of its own so that no task process loads aiohttp.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import aiohttp
import yarl
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import BaseHook
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util import make_headers

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings
from airflow_provider_whisul.api.messages import (
    HEADERS,
    MAX_BODY_BYTES,
    Request,
    Response,
    connection_error,
    job_request,
    read_job,
)
from airflow_provider_whisul.api.models import PollResult, WhisulJob
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.polling import JobPoller
from airflow_provider_whisul.rate_limit.async_rate_limiter import AsyncRateLimiter
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter

#: The client's errors that only happen while a connection is made, before a request is sent on it.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class WhisulAsyncHook(BaseHook):
    """
    Polls jobs from the triggerer, on aiohttp, without ever blocking its event loop.

    Hooks with equal settings share one session per event loop, with its connections and its TLS context. The last of
    them to leave closes it. Hooks with one API key share one rate limiter. Enter the hook
    (``async with``) to keep the session from one poll to the next.

    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param clock: Time, sleep and jitter; for tests.
    """

    def __init__(self, whisul_conn_id: str = DEFAULT_CONN_ID, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self.whisul_conn_id = whisul_conn_id
        self.clock = clock
        self._settings: ConnectionSettings | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> WhisulAsyncHook:
        await self._stack.enter_async_context(_shared_session(await self.settings()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def settings(self) -> ConnectionSettings:
        """
        Return the settings in the Airflow connection, looked up at first use.

        :raises WhisulConfigurationError: The connection cannot be used.
        """
        if self._settings is None:
            connection = await get_async_connection(self.whisul_conn_id)
            self._settings = ConnectionSettings.from_connection(
                self.whisul_conn_id,
                host=connection.host,
                schema=connection.schema,
                port=connection.port,
                password=connection.password,
                extra=await get_async_extra_dejson(connection),
            )
        return self._settings

    async def pause_until(self, not_before: float) -> None:
        """
        Pause for a 429 that a worker has met: no hook in this event loop sends a request with the same key before then.

        :param not_before: When the next request may be sent, in Unix seconds.
        """
        _rate_limiter(await self.settings(), self.clock).pause_until(not_before)

    async def get_job(self, job_id: str, *, max_wait: float | None = None) -> WhisulJob:
        """
        Poll a job once (pages api-reference/get-job and api-reference/job-status).

        All polls with one key share one rate limiter per event loop, first in, first out. While the key is blocked
        none is sent but one probe at a time.

        :param job_id: The job's id.
        :param max_wait: Seconds to wait for the rate limiter at most; None for as long as it takes.
        :return: The job as it is now.
        :raises WhisulRateLimitError: A 429, or the rate limiter permits no request in time.
        :raises WhisulError: As :meth:`WhisulHook.get_job`, at the first failure.
        """
        request = job_request(job_id)
        settings = await self.settings()
        rate_limiter = _rate_limiter(settings, self.clock)
        async with _shared_session(settings) as shared:
            request_number = await rate_limiter.acquire(max_wait)
            try:
                response = await self._exchange(shared, settings, request)
            except BaseException:
                rate_limiter.on_response(request_number, throttled=None)
                raise
            cooldown = rate_limiter.on_response(request_number, response.throttled, response.retry_after)
        metrics.response(request, response)
        job = read_job(replace(response, cooldown=cooldown), job_id)
        metrics.polled(job)
        return job

    async def wait_for_job(self, poller: JobPoller, delay: float) -> WhisulJob:
        """
        Wait until a job is completed, polling it whenever its poller says so.

        :param poller: The job, its poll interval and its deadline.
        :param delay: Seconds until the first poll.
        :return: The completed job. Its ``song`` is a dict, see :class:`~airflow_provider_whisul.api.models.Song`.
        :raises WhisulJobFailedError: The job failed.
        :raises WhisulJobTimeoutError: The job did not end by the deadline. It may still be running.
        :raises WhisulError: As :meth:`get_job`; a transient error only after 20 of them since the last response.
        """
        clock = self.clock
        next_delay: float | None = delay
        while next_delay is not None:
            await clock.async_sleep(next_delay)
            # Waiting for the rate limiter ends little later than waiting for the job.
            max_wait = max(poller.deadline + poller.poll_interval - clock.time(), poller.poll_interval)
            result: PollResult
            try:
                result = job = await self.get_job(poller.job_id, max_wait=max_wait)
            except WhisulError as error:
                result = error
            next_delay = poller.next_delay(result, clock.time(), clock.random())
        return job

    async def _exchange(self, shared: _SharedSession, settings: ConnectionSettings, request: Request) -> Response:
        try:
            async with shared.session.request(
                request.method,
                settings.base_url + request.path,
                json=request.json,
                # Not with the session's own headers: aiohttp gives those to a proxy too.
                headers={"Authorization": f"Bearer {settings.api_key}"},
                proxy=shared.proxy,
                proxy_headers=shared.proxy_headers,
                allow_redirects=False,
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
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise connection_error(request, settings.base_url, error, _NEVER_SENT) from error


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
        task = asyncio.ensure_future(asyncio.to_thread(lambda: (_tls_context(settings), _proxy(settings))))
        task.add_done_callback(lambda _: loading.pop(settings))
        loading[settings] = task
    # The coroutine that asked first may be cancelled; the others still need the result.
    return await asyncio.shield(loading[settings])


# A rate limiter outlives the sessions: what it has learnt of an account's limit holds for the next job too.
_RATE_LIMITERS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncRateLimiter]] = WeakKeyDictionary()


def _rate_limiter(settings: ConnectionSettings, clock: Clock) -> AsyncRateLimiter:
    """Return the event loop's one rate limiter for an account."""
    rate_limiters = _RATE_LIMITERS.setdefault(asyncio.get_running_loop(), {})
    if settings.fingerprint not in rate_limiters:
        rate_limiters[settings.fingerprint] = AsyncRateLimiter(RateLimiter(settings.max_requests_per_second), clock)
    return rate_limiters[settings.fingerprint]


def _new_session(settings: ConnectionSettings, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(total=settings.timeout),
        # Longer than the usual poll interval, so that a single job's polls share a connection too.
        connector=aiohttp.TCPConnector(ssl=tls, keepalive_timeout=60),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    # By itself aiohttp would send a GET again at once when its connection broke: two polls in one moment.
    session._retry_connection = False
    return session


def _tls_context(settings: ConnectionSettings) -> ssl.SSLContext | bool:
    """Return what requests would verify the server with: the connection's CA, the environment's, or certifi's."""
    if settings.verify is False:
        return False
    if settings.base_url.startswith("http://"):
        return True
    ca = settings.verify if isinstance(settings.verify, str) else None
    ca = ca or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
    return ssl.create_default_context(capath=ca) if os.path.isdir(ca) else ssl.create_default_context(cafile=ca)


def _without_password(proxy: str | None) -> tuple[yarl.URL | None, dict[str, str]]:
    """Return a proxy's URL without user and password, and the header that has them: aiohttp's errors name the URL."""
    if proxy is None:
        return None, {}
    url = yarl.URL(proxy)
    headers = make_headers(proxy_basic_auth=f"{url.user}:{url.password or ''}") if url.user else {}
    return url.with_user(None), headers


def _proxy(settings: ConnectionSettings) -> str | None:
    """
    Return the proxy that the environment names, as requests finds it.

    aiohttp's own ``trust_env`` would also read ``.netrc``, for each request, and fail where it finds an entry.
    """
    url = urlsplit(settings.base_url)
    if settings.is_loopback or urllib.request.proxy_bypass(url.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


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

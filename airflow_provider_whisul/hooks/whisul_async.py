"""
The client of the Whisul API for the triggerer, on aiohttp.

Like the worker's, :mod:`airflow_provider_whisul.hooks.whisul`, it only sends and receives. It is apart from that so
that no task process loads aiohttp.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
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
from airflow_provider_whisul.account import DEFAULT_CONN_ID, WhisulAccount
from airflow_provider_whisul.account_pace import AccountPace
from airflow_provider_whisul.api import (
    HEADERS,
    MAX_BODY_BYTES,
    Answer,
    Request,
    WhisulJob,
    job_request,
    no_answer,
    read_job,
)
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.gate import Gate

#: What can only happen while a connection is being made, before a request goes out on it.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class WhisulAsyncHook(BaseHook):
    """
    Looks at jobs from the triggerer, on aiohttp, without ever blocking its event loop.

    All hooks of one account share one session per event loop, with its connections and its TLS context; the last one
    to leave closes it. Enter the hook (``async with``) to hold the session from one look to the next.

    :param whisul_conn_id: The Airflow connection that holds the API key.
    :param clock: The time; for tests.
    """

    def __init__(self, whisul_conn_id: str = DEFAULT_CONN_ID, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self.whisul_conn_id = whisul_conn_id
        self.clock = clock
        self._account: WhisulAccount | None = None
        self._held = AsyncExitStack()

    async def __aenter__(self) -> WhisulAsyncHook:
        await self._held.enter_async_context(_shared_session(await self.account()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def account(self) -> WhisulAccount:
        """
        Return what the Airflow connection says, looked up at first use.

        :raises WhisulConfigurationError: It cannot be used.
        """
        if self._account is None:
            connection = await get_async_connection(self.whisul_conn_id)
            self._account = WhisulAccount.from_connection(
                self.whisul_conn_id,
                host=connection.host,
                schema=connection.schema,
                port=connection.port,
                password=connection.password,
                extra=await get_async_extra_dejson(connection),
            )
        return self._account

    async def keep_quiet(self, until: float) -> None:
        """
        Take in a 429 that a worker has met: nobody in this event loop asks with the same key before it is over.

        :param until: When that is, in Unix seconds.
        """
        _gate(await self.account(), self.clock).keep_quiet(until)

    async def get_job(self, job_id: str, *, due: float | None = None, patience: float | None = None) -> WhisulJob:
        """
        Look at a job once, when it is its turn (pages api-reference/get-job and api-reference/job-status).

        All looks with one key go through one gate per event loop, at the pace that the account allows, the most
        overdue first. While the key is blocked none goes.

        :param job_id: Its id.
        :param due: Since when the look has been due, in Unix seconds; None for since now.
        :param patience: Seconds to wait for the turn at the most; None for as long as it takes.
        :return: The job as it stands.
        :raises TimeoutError: Its turn has not come by then.
        :raises WhisulError: As :meth:`WhisulHook.get_job`, at the first failure already.
        """
        request = job_request(job_id)
        account = await self.account()
        now = self.clock.time()
        async with (
            _shared_session(account) as shared,
            _gate(account, self.clock).turn(now if due is None else due, patience) as turn,
        ):
            if turn.waited:
                metrics.waited(turn.waited)
            answer = await self._send(shared, account, request)
            turn.limited = answer.status == 429
            turn.retry_after = answer.retry_after
        metrics.answered(request, answer.status)
        job = read_job(answer, job_id)
        metrics.seen(job)
        return job

    async def _send(self, shared: _SharedSession, account: WhisulAccount, request: Request) -> Answer:
        try:
            async with shared.session.request(
                request.method,
                account.base_url + request.path,
                json=request.json,
                # Not with the session's own headers: aiohttp gives those to a proxy too.
                headers={"Authorization": f"Bearer {account.api_key}"},
                proxy=shared.proxy,
                proxy_headers=shared.proxy_headers,
                allow_redirects=False,
            ) as response:
                body, complete = await _read_body_async(response)
                return Answer.received(
                    status=response.status,
                    headers=response.headers,
                    body=body,
                    complete=complete,
                    now=self.clock.time(),
                    api_key=account.api_key,
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise no_answer(request, account.base_url, error, _NEVER_SENT) from error


@dataclass
class _SharedSession:
    session: aiohttp.ClientSession
    proxy: yarl.URL | None
    proxy_headers: dict[str, str]
    users: int = 0


_SHARED_SESSIONS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[WhisulAccount, _SharedSession]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def _shared_session(account: WhisulAccount) -> AsyncIterator[_SharedSession]:
    """Lend the event loop's one session for an account; the last borrower closes it."""
    sessions = _SHARED_SESSIONS.setdefault(asyncio.get_running_loop(), {})
    if account not in sessions:
        tls, proxy = await _surroundings(account)
        if account not in sessions:
            sessions[account] = _SharedSession(_new_session(account, tls), *_apart_from_password(proxy))
    shared = sessions[account]
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            del sessions[account]
            await shared.session.close()


_BEING_READ: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[WhisulAccount, asyncio.Task[tuple[ssl.SSLContext | bool, str | None]]]
] = WeakKeyDictionary()


async def _surroundings(account: WhisulAccount) -> tuple[ssl.SSLContext | bool, str | None]:
    """Return the TLS context and the proxy for an account, read once for all who ask at the same time."""
    being_read = _BEING_READ.setdefault(asyncio.get_running_loop(), {})
    if account not in being_read:
        # Reading CA files takes tens of milliseconds, which no other trigger should have to wait out.
        reading = asyncio.ensure_future(asyncio.to_thread(lambda: (_tls_context(account), _proxy(account))))
        reading.add_done_callback(lambda _: being_read.pop(account))
        being_read[account] = reading
    # Whoever asked first may be cancelled; the others still want it.
    return await asyncio.shield(being_read[account])


# A gate outlives the sessions: what it has learnt of an account's limit holds for the next job too.
_GATES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Gate]] = WeakKeyDictionary()


def _gate(account: WhisulAccount, clock: Clock) -> Gate:
    """Return the event loop's one gate for an account."""
    gates = _GATES.setdefault(asyncio.get_running_loop(), {})
    if account.fingerprint not in gates:
        gates[account.fingerprint] = Gate(AccountPace(account.max_requests_per_second), clock)
    return gates[account.fingerprint]


def _new_session(account: WhisulAccount, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(total=account.timeout),
        # Longer than the usual poll interval, so that a single job's polls share a connection too.
        connector=aiohttp.TCPConnector(ssl=tls, keepalive_timeout=60),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    # aiohttp sends a GET whose connection broke again at once, without asking: two looks at a job in one moment.
    session._retry_connection = False
    return session


def _tls_context(account: WhisulAccount) -> ssl.SSLContext | bool:
    """Return what requests would verify the server with: the connection's CA, the environment's, or certifi's."""
    if account.verify is False:
        return False
    if account.base_url.startswith("http://"):
        return True
    ca = account.verify if isinstance(account.verify, str) else None
    ca = ca or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
    return ssl.create_default_context(capath=ca) if os.path.isdir(ca) else ssl.create_default_context(cafile=ca)


def _apart_from_password(proxy: str | None) -> tuple[yarl.URL | None, dict[str, str]]:
    """Return a proxy's URL without user and password, and the header that has them: aiohttp's errors name the URL."""
    if proxy is None:
        return None, {}
    url = yarl.URL(proxy)
    headers = make_headers(proxy_basic_auth=f"{url.user}:{url.password or ''}") if url.user else {}
    return url.with_user(None), headers


def _proxy(account: WhisulAccount) -> str | None:
    """
    Return the proxy that the environment names, as requests finds it.

    aiohttp's own ``trust_env`` would also read ``.netrc``, for each request, and fail where it finds an entry.
    """
    url = urlsplit(account.base_url)
    if account.is_loopback or urllib.request.proxy_bypass(url.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


async def _read_body_async(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return bytes(body[:MAX_BODY_BYTES]), False
    except (aiohttp.ClientError, TimeoutError, OSError):
        return bytes(body), False
    return bytes(body), True

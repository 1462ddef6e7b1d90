"""
The sessions of an event loop, on aiohttp: one for all hooks with equal settings.

A request is sent inside of :func:`~airflow_provider_whisul.api.transport.exchanging`, and given its exchange as
``trace_request_ctx``, so that it is known whether a part of it was sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import aiohttp
import yarl
from urllib3.util import make_headers

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.messages import HEADERS, MAX_BODY_BYTES
from airflow_provider_whisul.api.transport import find_ca, find_proxy, silence, tls_context

silence("aiohttp.client")


@dataclass
class SharedSession:
    session: aiohttp.ClientSession
    proxy: yarl.URL | None
    proxy_headers: dict[str, str]
    users: int = 0


_SHARED_SESSIONS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ConnectionSettings, SharedSession]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def shared_session(settings: ConnectionSettings) -> AsyncIterator[SharedSession]:
    """Lend the event loop's one session for a connection. The last one to leave closes it."""
    sessions = _SHARED_SESSIONS.setdefault(asyncio.get_running_loop(), {})
    if settings not in sessions:
        tls, proxy = await _tls_and_proxy(settings)
        if settings not in sessions:
            sessions[settings] = SharedSession(_new_session(settings, tls), *_without_password(proxy))
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


def _new_session(settings: ConnectionSettings, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(total=settings.timeout),
        # The rate limiter caps how many requests are on their way. One that it has permitted must not wait here: it
        # would be sent after a 429 that came meanwhile. The time is longer than the usual poll interval, so that a
        # single job's polls share a connection too.
        connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=60),
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


async def read_body(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return bytes(body[:MAX_BODY_BYTES]), False
    except (aiohttp.ClientError, TimeoutError, OSError):
        return bytes(body), False
    return bytes(body), True

"""The sandbox over HTTP: the only module here that loads aiohttp."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from urllib.parse import urlsplit

from aiohttp import web

from airflow_provider_whisul.sandbox import responses
from airflow_provider_whisul.sandbox.responses import Response
from airflow_provider_whisul.sandbox.state import Call, LoggedRequest

_KEEP_ALIVE_SECONDS = 3600.0
_SHUTDOWN_SECONDS = 0.1
_LARGEST_BODY = 16 * 2**20
_MISSING_BYTES = 1000
# The sandbox's own paths, and the method that each takes.
_OWN_PATHS = {"/_sandbox/requests": "GET", "/_sandbox/revoke-key": "POST"}
_DRIP_SECONDS = 1.0
# Between two checks whether the client of a stalled response is gone.
_STALL_SECONDS = 0.1
# The middle of what an 8 bit WAV file can hold.
_SILENCE = b"\x80" * 2**18


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    handle: Callable[[Call], Response],
    requests: Callable[[], list[LoggedRequest]],
    revoke_key: Callable[[], None],
) -> AsyncIterator[int]:
    """Serve in the running loop for as long as the context lasts; yields the port.

    :param host: address to listen on.
    :param port: port to listen on; 0 for a free one.
    :param handle: answers a request.
    :param requests: returns the request log.
    :param revoke_key: makes the key invalid.
    :raises OSError: the port cannot be had.
    """
    numbers = itertools.count(1)
    connections: dict[asyncio.BaseTransport, int] = {}

    def number(transport: asyncio.BaseTransport) -> int:
        if transport not in connections:
            for old in [known for known in connections if known.is_closing()]:
                del connections[old]
            connections[transport] = next(numbers)
        return connections[transport]

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.transport is None:
            raise ConnectionResetError
        connection = number(request.transport)  # before the body is read: the client may be gone by then
        body, too_large = b"", False
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            too_large = True
        call = Call(
            method=request.method,
            target=request.raw_path,
            headers=tuple(request.headers.items()),
            body=body,
            connection=connection,
            too_large=too_large,
        )
        return await _send(request, handle(call))

    async def show_requests(_: web.Request) -> web.Response:
        return web.json_response([asdict(entry) for entry in requests()])

    async def revoke(_: web.Request) -> web.Response:
        revoke_key()
        return web.json_response({"revoked": True})

    async def wrong_method(request: web.Request) -> web.StreamResponse:
        allowed = _OWN_PATHS.get(request.path)
        return await _send(request, responses.wrong_method(allowed) if allowed else responses.not_found())

    app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[_refuse_foreign_requests])
    app.router.add_get("/_sandbox/requests", show_requests)
    app.router.add_post("/_sandbox/revoke-key", revoke)
    app.router.add_route("*", r"/_sandbox/{path:[\s\S]*}", wrong_method)
    # Not ".*", which would stop at a newline: odd paths are what the log is for.
    app.router.add_route("*", r"/{path:[\s\S]*}", answer)
    # A long keep-alive, so that a loop whose time leaps does not lose its connections to it.
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=_KEEP_ALIVE_SECONDS, shutdown_timeout=_SHUTDOWN_SECONDS
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@web.middleware
async def _refuse_foreign_requests(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    # A page whose host name leads here by DNS could read every response, and any page may send a POST.
    if not _is_loopback(request.headers.get("Host", "")):
        return await _send(request, responses.foreign_host())
    origin = request.headers.get("Origin")
    if request.path.startswith("/_sandbox/") and origin not in (None, f"http://{request.host}"):
        return await _send(request, responses.foreign_origin())
    return await handler(request)


def _is_loopback(authority: str) -> bool:
    try:
        name = urlsplit(f"//{authority}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _send(request: web.Request, reply: Response) -> web.StreamResponse:
    if reply.delay:
        await asyncio.sleep(reply.delay)
    if reply.sent == "drip":
        await _drip(request, reply.status)
    if reply.sent in ("nothing", "drip"):
        _reset(request)
        return web.Response()
    headers = {"Content-Type": reply.content_type, **reply.headers}
    if reply.sent == "whole" and not reply.silence:
        return web.Response(status=reply.status, body=reply.body, headers=headers)
    return await _send_in_pieces(request, reply, headers)


def _reset(request: web.Request) -> None:
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    # Without this the kernel would end the connection politely, and the client would see no reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


async def _drip(request: web.Request, status: int) -> None:
    line = f"HTTP/1.1 {status} OK\r\nX-Drip: "
    while request.transport is not None and not request.transport.is_closing():
        request.transport.write(line.encode())
        line = "."
        await asyncio.sleep(_DRIP_SECONDS)


async def _wait_until_closed(request: web.Request) -> None:
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(_STALL_SECONDS)


async def _send_in_pieces(request: web.Request, reply: Response, headers: dict[str, str]) -> web.StreamResponse:
    sent = reply.part(0, reply.size // 2) if reply.sent in ("half", "stall") else reply
    response = web.StreamResponse(status=reply.status, headers=headers)
    if reply.sent == "chunks":
        response.enable_chunked_encoding()
    else:
        response.content_length = reply.size + (_MISSING_BYTES if reply.sent == "short" else 0)
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(sent.body)
        for left in range(sent.silence, 0, -len(_SILENCE)):
            await response.write(_SILENCE[:left])
    if reply.sent == "stall":
        await _wait_until_closed(request)
    if reply.sent not in ("whole", "chunks") and request.transport is not None:
        request.transport.close()
    return response

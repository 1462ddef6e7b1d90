"""The sandbox over HTTP: the only module here that loads aiohttp."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict

from aiohttp import web

from airflow_provider_whisul.sandbox.responses import Response
from airflow_provider_whisul.sandbox.state import Call, LoggedRequest

_KEEP_ALIVE_SECONDS = 3600.0
_SHUTDOWN_SECONDS = 0.1
_LARGEST_BODY = 16 * 2**20
_MISSING_BYTES = 1000
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
        call = Call(
            method=request.method,
            target=request.raw_path,
            headers=tuple(request.headers.items()),
            body=await request.read(),
            connection=connection,
        )
        return await _send(request, handle(call))

    async def show_requests(_: web.Request) -> web.Response:
        return web.json_response([asdict(entry) for entry in requests()])

    async def revoke(_: web.Request) -> web.Response:
        revoke_key()
        return web.json_response({"revoked": True})

    app = web.Application(client_max_size=_LARGEST_BODY)
    app.router.add_get("/_sandbox/requests", show_requests)
    app.router.add_post("/_sandbox/revoke-key", revoke)
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


async def _send(request: web.Request, reply: Response) -> web.StreamResponse:
    if reply.delay:
        await asyncio.sleep(reply.delay)
    if reply.sent == "nothing":
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


async def _send_in_pieces(request: web.Request, reply: Response, headers: dict[str, str]) -> web.StreamResponse:
    content_length = reply.size + (_MISSING_BYTES if reply.sent == "short" else 0)
    sent = reply.part(0, reply.size // 2) if reply.sent == "half" else reply
    response = web.StreamResponse(status=reply.status, headers={"Content-Length": str(content_length), **headers})
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(sent.body)
        for left in range(sent.silence, 0, -len(_SILENCE)):
            await response.write(_SILENCE[:left])
    if reply.sent != "whole" and request.transport is not None:
        request.transport.close()
    return response

"""
A session of requests that bounds a whole request in time, and knows whether a part of it was sent.

requests bounds only each wait for the next byte: a server that sends one byte now and then would hold a task for ever.
"""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.messages import HEADERS, MAX_BODY_BYTES, Request, Response
from airflow_provider_whisul.api.transport import (
    Exchange,
    NoRedirectSession,
    connection_error,
    current_exchange,
    exchanging,
    silence,
)

silence("urllib3.connection")
silence("urllib3.connectionpool")


def bounded_session(api_key: str) -> requests.Session:
    """
    Return a session, whose requests :func:`exchange` sends.

    It reads nothing of the environment: proxies and CA files are given with each request.

    :param api_key: The key that each request has in its header.
    """
    session = NoRedirectSession()
    session.trust_env = False
    session.headers.update(HEADERS)
    session.auth = _BearerAuth(api_key)
    session.mount("https://", _Adapter())
    session.mount("http://", _Adapter())
    return session


def exchange(
    session: requests.Session,
    request: Request,
    settings: ConnectionSettings,
    *,
    verify: bool | str,
    proxy: str | None,
    now: Callable[[], float],
) -> Response:
    """
    Send a request once, and return the response.

    :param session: The session.
    :param request: The request.
    :param settings: The settings of the connection that the session is of.
    :param verify: Whether to verify the server's certificate, or the file of the CAs to verify it with.
    :param proxy: The URL of the proxy for https, if there is one.
    :param now: Returns the time, in Unix seconds.
    :raises WhisulConnectionError: There was no response.
    """
    this = Exchange(request, settings)
    try:
        with (
            exchanging(this),
            session.request(
                request.method,
                settings.base_url + request.path,
                json=request.json,
                timeout=settings.timeout,
                verify=verify,
                proxies={"https": proxy} if proxy else {},
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            body, complete = _read_body(response)
            return Response.from_http(
                status=response.status_code,
                headers=response.headers,
                body=body,
                complete=complete,
                now=now(),
                api_key=settings.api_key,
            )
    except Exception as error:
        # Whatever it is: a submission that was sent must not look like one that was not.
        failure = connection_error(this, error)
    except BaseException as ending:
        # The task is being ended, perhaps while it waits for a connection: the ledger asks whether anything was sent.
        ending.request_sent = this.sent  # type: ignore[attr-defined]
        raise
    # Not raised inside the handler: Airflow logs the causes of an error, and theirs may hold the key.
    raise failure


@contextmanager
def nothing_sent() -> Iterator[None]:
    """Mark what ends a task before its request: the ledger asks whether anything was sent."""
    try:
        yield
    except BaseException as ending:
        ending.request_sent = False  # type: ignore[attr-defined]
        raise


def _read_body(response: requests.Response) -> tuple[bytes, bool]:
    """Return as much of a body as came, bounded in size, and whether that is all of it."""
    body = bytearray()
    try:
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return bytes(body[:MAX_BODY_BYTES]), False
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
        return bytes(body), False
    return bytes(body), True


class _BearerAuth(AuthBase):
    """Puts the key into the header. As requests' ``auth`` it also keeps ``.netrc`` from replacing the key."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class _BoundedReader(io.RawIOBase):
    """Reads from a socket until the exchange's time is over, however little comes at a time."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, exchange: Exchange) -> None:
        self._raw, self._sock, self._exchange = raw, sock, exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._exchange.remaining())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response of the server, or of a proxy to CONNECT."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if exchange := current_exchange():
            raw: Any = self.fp.detach()
            self.fp = io.BufferedReader(_BoundedReader(raw, sock, exchange))


class _Bounded(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        exchange = current_exchange()
        if exchange is None:
            return super()._new_conn()
        # Each address of a host gets its share of the time: urllib3 would give the whole time to each.
        addresses = socket.getaddrinfo(self._dns_host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(exchange.remaining() / (len(addresses) - number))
                sock.connect(address)
                sock.settimeout(exchange.remaining())
            except OSError:
                sock.close()
                if number == len(addresses) - 1:
                    raise
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise OSError(f"{self.host} has no address")

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        # Here the first byte is written, after a connection is made.
        if self.sock is None:
            self.connect()
        if exchange := current_exchange():
            self.sock.settimeout(exchange.remaining())
            exchange.sent = True
        super().endheaders(*args, **kwargs)


class _BoundedTLS(_Bounded, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Bounded


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedTLS


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_bounded_pools(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(*args, **kwargs)
        _use_bounded_pools(manager)
        return manager


def _use_bounded_pools(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

"""
The HTTP client for the media host, which is not the API.

It never receives the API key, nor anything that this machine keeps for its users (``.netrc``, cookies). Proxies and CA
files are those that :mod:`airflow_provider_whisul.api.transport` finds. Each address is checked before it is connected
to, so a DNS response that changes in between changes nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from functools import cached_property
from http.cookiejar import DefaultCookiePolicy
from typing import Any, BinaryIO

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.connection import create_connection

from airflow_provider_whisul import __version__
from airflow_provider_whisul.api.transport import NoRedirectSession, find_ca, find_proxy
from airflow_provider_whisul.exceptions import WhisulMediaUnsafeError, WhisulTLSError
from airflow_provider_whisul.storage.urls import (
    MediaAccess,
    location_text,
    redact_url,
    require_allowed,
    require_permitted,
)
from airflow_provider_whisul.storage.watchdog import INTERVAL, Attempt
from airflow_provider_whisul.text import quote

#: Seconds to wait for a connection, and for the next byte.
CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0

#: Redirects that are followed for one file.
MAX_REDIRECTS = 5

_MAX_REASON_CHARACTERS = 200

#: What the libraries raise for a response, or for the name of a host.
NETWORK_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)


class AttemptError(Exception):
    """
    An attempt failed, and another one may succeed. The text continues a sentence, and holds no query of a URL.

    :param reason: Why it failed.
    :param retry_after: Seconds that the host asks to wait, None if it does not ask.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class MediaClient:
    """
    Sends requests to the media host. Several threads may use it at once, each with a session of its own.

    :param access: Which hosts media may come from.
    """

    def __init__(self, access: MediaAccess) -> None:
        self.access = access
        self._local = threading.local()
        self._sessions: list[requests.Session] = []

    def close(self) -> None:
        """Close all connections."""
        for session in self._sessions:
            session.close()

    def get(self, url: str, headers: Mapping[str, str], job_id: str, attempt: Attempt) -> requests.Response:
        """
        Request a URL, and follow redirects, each of which must be allowed too.

        :param url: The URL.
        :param headers: The request's headers.
        :param job_id: The song's job, for the messages.
        :param attempt: Ends the request from outside.
        :return: The response, whose body is not read yet.
        :raises WhisulMediaUnsafeError: A URL or an address may not be requested.
        :raises WhisulConfigurationError: A proxy or a CA file that the environment names cannot be used.
        :raises WhisulTLSError: The host's certificate could not be verified.
        :raises AttemptError: There was no response, or there were too many redirects.
        """
        url = require_allowed(url, job_id, self.access)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(url, headers, job_id, attempt)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = location_text(response.headers.get("Location", ""))
            response.close()
            url = require_allowed(location, job_id, self.access, redirected_from=url)
        raise AttemptError(f"more than {MAX_REDIRECTS} redirects")

    def _get(self, url: str, headers: Mapping[str, str], job_id: str, attempt: Attempt) -> requests.Response:
        session = self._session()
        proxy = find_proxy(url)
        _current.context = (attempt, self.access, url, job_id)
        try:
            return session.get(
                url,
                headers=dict(headers),
                proxies={"https": proxy} if proxy else {},
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                allow_redirects=False,
                stream=True,
            )
        except NETWORK_ERRORS as error:
            cause = innermost(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise WhisulTLSError(
                f"The certificate of {redact_url(url)} could not be verified ({cause.verify_message}), so nothing was "
                "downloaded. Behind a proxy with a CA of its own, name the CA file in REQUESTS_CA_BUNDLE.",
                job_id=job_id,
                request_sent=False,
            )
        raise AttemptError(f"no response from {redact_url(url)}: {attempt.ended or reason_of(cause)}")

    @cached_property
    def _ca(self) -> bool | str:
        # Reading it takes longer than a song.
        return find_ca()

    def _session(self) -> requests.Session:
        """Return this thread's session."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = NoRedirectSession()
            session.trust_env = False
            session.verify = self._ca
            session.headers.update({"Accept": "*/*", "User-Agent": f"airflow-provider-whisul/{__version__}"})
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            for scheme in ("https://", "http://"):
                session.mount(scheme, _Adapter())
            self._sessions.append(session)
        return session


class _Current(threading.local):
    #: What this thread is downloading.
    context: tuple[Attempt, MediaAccess, str, str]


_current = _Current()


class _StrictLines:
    """A response's bytes, in which a line that ends with the connection is an error: a header or a size was cut."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begun = False

    def readline(self, *limit: int) -> bytes:
        line = self._file.readline(*limit)
        # Where there is no response at all, the HTTP client has an error of its own.
        if not line.endswith(b"\n") and (line or self._begun):
            raise http.client.IncompleteRead(line)
        self._begun = True
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp: Any = _StrictLines(self.fp)


class _WatchedConnection(HTTPConnection):
    """A connection that only leads to permitted addresses, and that another thread can end."""

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        attempt, access, url, job_id = _current.context
        # A proxy may have a private address, and resolves the media host's name itself.
        access = access if self.proxy is None else MediaAccess(allow_private=True)
        refusal: Exception = OSError("the host name has no address")
        for address in _resolve(self._dns_host, self.port, attempt):
            try:
                require_permitted(address, url, job_id, access)
                sock = create_connection((address, self.port), self.timeout, socket_options=self.socket_options)
            except (OSError, WhisulMediaUnsafeError) as error:
                refusal = error
                if attempt.ended is not None:
                    break
                continue
            # Before TLS, whose handshake may stall.
            attempt.add(sock)
            return sock
        raise refusal

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        # A connection of an earlier attempt.
        if self.sock is not None:
            _current.context[0].add(self.sock)
        super().putrequest(*args, **kwargs)


class _WatchedTLSConnection(_WatchedConnection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _WatchedConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


def _resolve(host: str, port: int, attempt: Attempt) -> list[str]:
    """Return the addresses of a host. The system's resolver cannot be interrupted, so that it gets its own thread."""
    name = host.strip("[]")
    try:
        ipaddress.ip_address(name.partition("%")[0])
        return [name]
    except ValueError:
        pass
    # What the resolver would raise in its own thread.
    name.encode("idna")
    outcome: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            outcome.put([str(address[0]) for *_, address in found])
        except (OSError, UnicodeError) as error:
            outcome.put(error)

    threading.Thread(target=resolve, name="whisul-resolve", daemon=True).start()
    while attempt.ended is None:
        try:
            addresses = outcome.get(timeout=INTERVAL)
        except queue.Empty:
            continue
        if isinstance(addresses, list):
            return addresses
        raise addresses
    raise TimeoutError(attempt.ended)


def innermost(error: BaseException) -> BaseException:
    """
    Return the first cause of an error: the libraries' errors around it repeat the URL.

    :param error: The error.
    """
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def reason_of(error: BaseException) -> str:
    """
    Return why a connection failed, without the URL that libraries put into their messages.

    :param error: The first cause.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeError):
        return "the host name is invalid"
    if type(error) is OSError and str(error):
        # From a proxy, or about a CA file that cannot be used.
        return re.sub(r"\?\S*", "", quote(str(error)))[:_MAX_REASON_CHARACTERS]
    return re.sub(r"(Error|Exception)$", "", type(error).__name__) or type(error).__name__

"""
The way to a server, alike for both HTTP clients: proxies, CA files, and what an error of a client means.

requests in a worker, aiohttp in the triggerer and the downloads all ask here: what works in one of them works in all.
Nothing is sent here. An error of a client is never repeated in its own words: they may hold what the server sent, and a
server may echo the API key.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy

from airflow_provider_whisul.api.connection import ConnectionSettings, is_loopback, is_resolvable
from airflow_provider_whisul.api.messages import Request
from airflow_provider_whisul.exceptions import (
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulError,
    WhisulTLSError,
)
from airflow_provider_whisul.text import quote

#: The environment variables that name a CA file or folder, the first that is set counts.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

#: The port of a URL without one.
DEFAULT_PORTS = {"http": 80, "https": 443}


class NoRedirectSession(requests.Session):
    """A session that leaves ``Location`` alone. requests parses it though no redirect is followed, and may fail."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


@dataclass
class Exchange:
    """
    One request on its way.

    :param request: The request.
    :param settings: The settings of the connection that it is sent with.
    :param give_up_at: When it is given up, in seconds of :func:`time.monotonic`.
    :param sent: Whether a part of it may have left this machine. The clients set it before they write the first byte.
    """

    request: Request
    settings: ConnectionSettings
    give_up_at: float = field(init=False)
    sent: bool = False

    def __post_init__(self) -> None:
        self.give_up_at = time.monotonic() + self.settings.timeout

    def remaining(self) -> float:
        """
        Return the seconds that are left, always more than zero.

        :raises TimeoutError: None is left.
        """
        seconds = self.give_up_at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


_CURRENT: ContextVar[Exchange | None] = ContextVar("whisul_exchange", default=None)


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[Exchange]:
    """
    Make an exchange the current one of this thread or coroutine.

    :param exchange: The exchange.
    """
    token = _CURRENT.set(exchange)
    try:
        yield exchange
    finally:
        _CURRENT.reset(token)


def current_exchange() -> Exchange | None:
    """Return the exchange of this thread or coroutine, None outside of one."""
    return _CURRENT.get()


def silence(logger: str) -> None:
    """
    Drop what a client logs during an exchange: its warnings repeat headers, in which a server may echo the API key.

    :param logger: The name of the client's logger.
    """
    logging.getLogger(logger).addFilter(_outside_of_exchanges)


def _outside_of_exchanges(record: logging.LogRecord) -> bool:
    return _CURRENT.get() is None


def find_proxy(url: str) -> str | None:
    """
    Return the URL of the proxy that the environment names for a URL, None for a direct connection.

    The variables are those that requests reads: ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in upper or lower
    case. A proxy without a scheme is an ``http`` one. This machine itself (the sandbox) is reached without a proxy.

    :param url: The URL that will be requested.
    :return: The proxy with scheme, user, password, host and port.
    :raises WhisulConfigurationError: The proxy cannot be used, in the worker or in the triggerer.
    """
    if is_loopback(urlsplit(url).hostname or ""):
        return None
    proxy = select_proxy(url, get_environ_proxies(_with_port(url)))
    if not proxy:
        return None
    proxy = proxy.strip()
    if "://" not in proxy:
        proxy = f"http://{proxy.removeprefix('//')}"
    if proxy.lower().startswith("socks"):
        raise _unusable_proxy("is a SOCKS proxy, which the triggerer's HTTP client cannot use. Name an http proxy")
    try:
        parts = urlsplit(proxy)
        host, _ = parts.hostname or "", parts.port
        credentials = unquote(f"{parts.username or ''}{parts.password or ''}")
    except ValueError:
        raise _unusable_proxy("is no URL. Write it as http://proxy.example:3128") from None
    odd = any(character.isspace() or not character.isprintable() or character == "\\" for character in proxy)
    if parts.scheme not in ("http", "https") or odd or not is_resolvable(host):
        raise _unusable_proxy("is no http URL. Write it as http://proxy.example:3128")
    if any(character > "\xff" for character in credentials):
        raise _unusable_proxy("has a user or a password with characters that HTTP cannot carry. Choose others")
    return f"{parts.scheme}://{parts.netloc}"


def _with_port(url: str) -> str:
    """Return a URL that names its port, as NO_PROXY may: requests compares the two as texts."""
    parts = urlsplit(url)
    if parts.port is not None or parts.scheme not in DEFAULT_PORTS:
        return url
    return parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{DEFAULT_PORTS[parts.scheme]}").geturl()


def _unusable_proxy(what: str) -> WhisulConfigurationError:
    return WhisulConfigurationError(
        f"The proxy that the environment names (HTTPS_PROXY or ALL_PROXY) {what}, or except the host with NO_PROXY. "
        "Nothing was sent."
    )


def find_ca(verify: bool | str = True) -> bool | str:
    """
    Return what to verify certificates with: the path of a CA file or folder, or False for not at all.

    :param verify: A connection's own setting: a path, False, or True for what the environment names in one of
        :data:`CA_VARIABLES`, else for the CAs of certifi.
    :raises WhisulConfigurationError: The CA file does not exist, or holds no certificate.
    """
    if verify is False:
        return False
    variable = next((name for name in CA_VARIABLES if os.environ.get(name)), None) if verify is True else None
    if verify is True and variable is None:
        return DEFAULT_CA_BUNDLE_PATH
    path, source = (os.environ[variable], variable) if variable else (str(verify), "the connection's extra 'verify'")
    try:
        tls_context(path)
    except (OSError, ValueError):
        raise WhisulConfigurationError(
            f"The CA file that {source} names cannot be used: there is none at that path on this machine, or it holds "
            "no certificate in PEM form. Nothing was sent."
        ) from None
    return path


def tls_context(ca: str) -> ssl.SSLContext:
    """
    Return a TLS context that verifies servers.

    :param ca: The path of a CA file or folder.
    :raises OSError: There is none, or it holds no certificate.
    """
    if os.path.isdir(ca):
        return ssl.create_default_context(capath=ca)
    return ssl.create_default_context(cafile=ca)


def connection_error(exchange: Exchange, error: Exception) -> WhisulError:
    """
    Return the error for a request that got no response. Its text has none of the client's own words.

    :param exchange: The request. Where nothing of it was sent, the error says so.
    :param error: What the HTTP client raised.
    """
    request, settings = exchange.request, exchange.settings
    causes = _causes(error)
    job_id = request.path.rpartition("/")[2] if request.method == "GET" else None
    reason = _reason(causes, settings.timeout)
    unverified = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)
    if unverified and not exchange.sent:
        return WhisulTLSError(
            f"The certificate of {settings.base_url} could not be verified ({reason}), so nothing was sent. Behind a "
            "proxy with a CA of its own, name the CA file in the connection's extra 'verify'.",
            job_id=job_id,
            request_sent=False,
        )
    if not exchange.sent and any(isinstance(cause, ValueError) for cause in causes):
        return WhisulConfigurationError(
            f"{settings.base_url} cannot be requested: the HTTP client refuses the URL or its proxy ({reason}). The "
            "request was not sent. Check the Base URL (host), and HTTPS_PROXY.",
            job_id=job_id,
        )
    if not exchange.sent:
        outcome = "The request was not sent."
    elif request.method == "POST":
        outcome = "The request may have arrived."
    else:
        outcome = "The job is not affected."
    return WhisulConnectionError(
        f"No response to {request.method} {settings.base_url}{request.path}: {reason}. {outcome}",
        job_id=job_id,
        request_sent=exchange.sent,
    )


def _reason(causes: list[BaseException], timeout: float) -> str:
    """Return why a request failed, in words of this machine or of ours: a server's own may hold the key."""
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return quote(str(cause.verify_message))
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({quote(str(cause.reason or 'no reason given'))})"
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return f"timed out, after {timeout:g} s at most"
        if isinstance(cause, OSError) and cause.errno:
            # Those below zero are the resolver's.
            return os.strerror(cause.errno) if cause.errno > 0 else quote(str(cause.strerror))
        if status := _proxy_status(cause):
            return f"the proxy answered {status}"
        if isinstance(cause, ConnectionError | http.client.IncompleteRead) or "Disconnected" in type(cause).__name__:
            return "the connection was closed"
        if isinstance(cause, http.client.HTTPException) or "http_exceptions" in type(cause).__module__:
            return "the response is not valid HTTP"
    return type(causes[-1]).__name__


def _proxy_status(error: BaseException) -> int | None:
    """Return the status with which a proxy refused to connect, None where it did not."""
    if "ProxyError" in type(error).__name__ and isinstance(status := getattr(error, "status", None), int):
        return status
    match = re.match(r"Tunnel connection failed: (\d{3})\b", str(error)) if type(error) is OSError else None
    return int(match[1]) if match else None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the innermost last. urllib3 and requests also keep them in their arguments."""
    found = [error]
    for each in found:
        inner = (each.__context__, each.__cause__, getattr(each, "reason", None), *each.args)
        found += [cause for cause in inner if isinstance(cause, BaseException) and cause not in found]
    return found

"""The settings in an Airflow connection of type ``whisul``: the base URL, the API key and how to send requests."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit, urlunsplit

from airflow_provider_whisul.exceptions import WhisulConfigurationError

DEFAULT_BASE_URL = "https://whisul.com/api"
DEFAULT_CONN_ID = "whisul_default"
DEFAULT_REQUEST_TIMEOUT = 30.0


@dataclass(frozen=True)
class ConnectionSettings:
    """
    The settings of one Airflow connection.

    :param base_url: The API's base URL, without a slash at its end.
    :param api_key: The API key. It is in no repr.
    :param timeout: Seconds that one request may take.
    :param verify: Whether the server's certificate is verified, or the path of the CA file to verify it with.
    :param max_requests_per_second: The account's rate limit, None if the user does not know it.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout: float = DEFAULT_REQUEST_TIMEOUT
    verify: bool | str = True
    max_requests_per_second: float | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A digest of base URL and API key. Connections with the same fingerprint share a rate limit."""
        return hashlib.sha256(f"{self.base_url} {self.api_key}".encode()).hexdigest()

    @property
    def is_loopback(self) -> bool:
        """Whether the API is on this machine, as the sandbox is. Then no proxy is used."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    @classmethod
    def from_connection(
        cls,
        conn_id: str,
        *,
        host: str | None,
        schema: str | None,
        port: int | None,
        password: str | None,
        extra: Mapping[str, object],
    ) -> ConnectionSettings:
        """
        Return the settings in the fields of an Airflow connection.

        :param conn_id: The connection's id, for the messages.
        :param host: Blank for the public API; a full URL; or a host that ``schema`` and ``port`` complete.
        :param schema: ``https`` (also where blank) or ``http``, for a host that is not a full URL.
        :param port: The port, for a host that is not a full URL.
        :param password: The API key.
        :param extra: ``timeout`` in seconds; ``verify``, true, false or the path of a CA file;
            ``max_requests_per_second``.
        :raises WhisulConfigurationError: A field cannot be used; the message says which one and why.
        """
        try:
            return cls(
                base_url=_base_url(host, schema, port),
                api_key=_api_key(password),
                timeout=_positive(extra, "timeout") or DEFAULT_REQUEST_TIMEOUT,
                verify=_verify(extra.get("verify")),
                max_requests_per_second=_positive(extra, "max_requests_per_second"),
            )
        except ValueError as error:
            raise WhisulConfigurationError(f"Airflow connection {conn_id!r} cannot be used: {error}") from None


# No message repeats the value of a field: an API key pasted into the wrong field would be in the log.


def _api_key(password: str | None) -> str:
    if not password:
        raise ValueError("it has no API key. Put the key of your Whisul dashboard into the connection's password.")
    if not all("!" <= character <= "~" for character in password):
        raise ValueError(
            "its API key (the password) holds a space, a line break or another character that no key has. Copy the key "
            "again, without anything around it."
        )
    return password


def _base_url(host: str | None, schema: str | None, port: int | None) -> str:
    host = (host or "").strip()
    if not host:
        return DEFAULT_BASE_URL
    if "://" in host:
        url = host
    else:
        authority, _, path = host.partition("/")
        if authority.count(":") > 1 and not authority.startswith("["):
            authority = f"[{authority}]"
        url = f"{schema or 'https'}://{authority}{f':{port}' if port else ''}/{path}"
    try:
        parts = urlsplit(url)
        hostname, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("its host and port make no URL.") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("its host holds a user name or a password. The key belongs into the connection's password.")
    if parts.scheme not in ("http", "https"):
        raise ValueError("its schema must be https, or http to this machine itself.")
    # URL parsers disagree on whether a backslash ends the host.
    odd = any(character.isspace() or not character.isprintable() or character == "\\" for character in url)
    if not hostname or parts.query or parts.fragment or odd:
        raise ValueError(f"its host must be a host name or a plain URL such as {DEFAULT_BASE_URL}.")
    if parts.scheme == "http" and not is_loopback(hostname):
        raise ValueError(
            "its URL is plain http to another machine, where the API key could be read on the way. "
            "Use https; plain http is accepted only to this machine itself (the sandbox)."
        )
    path = parts.path.rstrip("/") or urlsplit(DEFAULT_BASE_URL).path
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def is_loopback(hostname: str) -> bool:
    """Return whether a host name or an IP address is this machine itself."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _positive(extra: Mapping[str, object], name: str) -> float | None:
    value = extra.get(name)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not (0 < number < math.inf):
        raise ValueError(f"its extra {name!r} must be a positive number{' of seconds' if name == 'timeout' else ''}.")
    return number


def _verify(value: object) -> bool | str:
    if value is None or value == "":
        return True
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        with suppress(ValueError):  # a NUL in it
            if os.path.exists(value):
                return value
    raise ValueError("its extra 'verify' must be true, false or the path of a CA file that exists on this machine.")

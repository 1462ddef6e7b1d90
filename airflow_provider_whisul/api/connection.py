"""The settings in an Airflow connection of type ``whisul``: the base URL, the API key and how to send requests."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_whisul.api.price import Price
from airflow_provider_whisul.exceptions import WhisulConfigurationError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

DEFAULT_BASE_URL = "https://whisul.com/api"
DEFAULT_CONN_ID = "whisul_default"
DEFAULT_REQUEST_TIMEOUT = 30.0

#: What Airflow shows in place of a stored key, and Airflow 3.3.1 gives to the test of some connections.
MASKED_KEY = "***"

# As Airflow has it.
_CONN_ID = re.compile(r"[\w#!()\-.:/\\]{1,250}")

#: Seconds that one request may be given at most.
MAX_REQUEST_TIMEOUT = 3_600.0


@dataclass(frozen=True)
class ConnectionSettings:
    """
    The settings of one Airflow connection.

    :param base_url: The API's base URL, without a slash at its end.
    :param api_key: The API key. It is in no repr.
    :param timeout: Seconds that one request may take.
    :param verify: Whether the server's certificate is verified, or the path of the CA file to verify it with.
    :param max_requests_per_second: The account's rate limit, None if the user does not know it.
    :param max_submissions_per_day: How many prompts may be submitted in a day (UTC) at most, None for as many as come.
    :param price_per_song: What one song costs, None if the user has not said it.
    :param rate_limit_conn_id: The Airflow connection of the Redis that keeps the rate limiter, None if none is named.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout: float = DEFAULT_REQUEST_TIMEOUT
    verify: bool | str = True
    max_requests_per_second: float | None = None
    max_submissions_per_day: int | None = None
    price_per_song: Price | None = None
    rate_limit_conn_id: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A digest of base URL and API key. Connections with the same fingerprint share a rate limit."""
        return hashlib.sha256(f"{self.base_url} {self.api_key}".encode()).hexdigest()

    @property
    def is_loopback(self) -> bool:
        """Whether the API is on this machine, as the sandbox is. Then no proxy is used."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    def refuse_masked_key(self) -> None:
        """
        Refuse to test a connection whose key Airflow has withheld: the test would call a good key wrong.

        :raises WhisulConfigurationError: The key is Airflow's mask.
        """
        if self.api_key == MASKED_KEY:
            raise WhisulConfigurationError(
                f"Airflow has not given the stored API key to this test, only {MASKED_KEY}, so nothing was sent. "
                "Airflow 3.3.1 does that where the connection has no port or no Base URL. Give it the Base URL "
                f"{DEFAULT_BASE_URL} and the port 443, save it, and test it again. Or use this command where your "
                "tasks run: python -c 'from airflow_provider_whisul.hooks.whisul import WhisulHook; "
                "print(WhisulHook().test_connection())'. If the command says the same, the stored API key is "
                f"{MASKED_KEY}: enter the key again."
            )

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
            ``max_requests_per_second``; ``max_submissions_per_day``; ``price_per_song``, a number, or
            a number and a unit such as ``0.08 USD``; ``rate_limit_conn_id``.
        :raises WhisulConfigurationError: A field cannot be used; the message says which one and why.
        """
        try:
            return cls(
                base_url=_base_url(host, schema, port),
                api_key=_api_key(password),
                timeout=_timeout(extra),
                verify=_verify(extra.get("verify")),
                max_requests_per_second=_positive(extra, "max_requests_per_second"),
                max_submissions_per_day=_max_submissions(extra.get("max_submissions_per_day")),
                price_per_song=_price(extra.get("price_per_song")),
                rate_limit_conn_id=_conn_id(extra.get("rate_limit_conn_id"), password),
            )
        except ValueError as error:
            raise WhisulConfigurationError(f"Airflow connection {conn_id!r} cannot be used: {error}") from None


@contextmanager
def named_connection(conn_id: str) -> Iterator[None]:
    """
    Make errors of looking up an Airflow connection name the connection, and what to do.

    :param conn_id: The connection's id.
    :raises WhisulConfigurationError: There is no such connection, or its JSON or URI cannot be read.
    """
    try:
        yield
    except AirflowNotFoundException:
        raise WhisulConfigurationError(
            f"There is no Airflow connection {conn_id!r}, or none that Airflow can read. Make one of type Whisul with "
            "the API key as its password: in Airflow's UI under Admin, Connections; with "
            f"`airflow connections add {conn_id} --conn-type whisul --conn-password KEY`; or in the environment "
            f"variable AIRFLOW_CONN_{conn_id.upper()}. Nothing was sent."
        ) from None
    except (ValueError, TypeError):
        raise WhisulConfigurationError(
            f"Airflow connection {conn_id!r} cannot be used: it is no connection that Airflow can read. In an "
            "environment variable or a secrets backend it must be a URI, or a JSON object with numbers where Airflow "
            "has numbers, as the port; its extra must be a JSON object."
        ) from None


def read_connection(conn_id: str, get_connection: Callable[[str], Connection]) -> ConnectionSettings:
    """
    Return the settings in an Airflow connection.

    :param conn_id: The connection's id.
    :param get_connection: Returns the connection with an id.
    :raises WhisulConfigurationError: There is no such connection, or it cannot be used.
    """
    with named_connection(conn_id):
        connection = get_connection(conn_id)
        extra = check_extra(connection.extra) and connection.extra_dejson
    return ConnectionSettings.from_connection(
        conn_id,
        host=connection.host,
        schema=connection.schema,
        port=connection.port,
        password=connection.password,
        extra=extra or {},
    )


def check_extra(extra: str | None) -> bool:
    """
    Return whether a connection has an extra.

    :param extra: The extra as Airflow keeps it.
    :raises ValueError: It is no JSON object. Airflow itself would log all of it, or take a list for one.
    """
    if not extra or not extra.strip():
        return False
    if not isinstance(json.loads(extra), dict):
        raise ValueError("not a JSON object")
    return True


# No message repeats the value of a field: an API key pasted into the wrong field would be in the log.


def _api_key(password: str | None) -> str:
    if not password:
        raise ValueError("it has no API key. Put the key of your Whisul dashboard into the password (API key).")
    if not all("!" <= character <= "~" for character in password):
        raise ValueError(
            "its API key (password) holds a space, a line break or another character that no key has. Copy the key "
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
        raise ValueError("its Base URL (host) and port make no URL.") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "its Base URL (host) holds a user name or a password. The key belongs into the password (API key)."
        )
    if parts.scheme not in ("http", "https"):
        raise ValueError("its schema must be https, or http to this machine itself.")
    # URL parsers disagree on whether a backslash ends the host.
    odd = any(character.isspace() or not character.isprintable() or character == "\\" for character in url)
    if not hostname or not is_resolvable(hostname) or parts.query or parts.fragment or odd:
        raise ValueError(f"its Base URL (host) must be a host name or a plain URL such as {DEFAULT_BASE_URL}.")
    if parts.scheme == "http" and not is_loopback(hostname):
        raise ValueError(
            "its URL is plain http to another machine, where the API key could be read on the way. "
            "Use https; plain http is accepted only to this machine itself (the sandbox)."
        )
    path = parts.path.rstrip("/") or urlsplit(DEFAULT_BASE_URL).path
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def is_resolvable(hostname: str) -> bool:
    """Return whether a host name can be one: no part of it is empty or has more than 63 characters."""
    try:
        return bool(hostname.encode("idna"))
    except UnicodeError:
        return False


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
    number = _number(value)
    if not (0 < number < math.inf):
        raise ValueError(f"its extra {name!r} must be a positive number{' of seconds' if name == 'timeout' else ''}.")
    return number


def _max_submissions(value: object) -> int | None:
    if value is None or value == "":
        return None
    number = _number(value)
    if not (0 <= number < math.inf and number == int(number)):
        raise ValueError("its extra 'max_submissions_per_day' must be a whole number, zero or more.")
    return int(number)


def _number(value: object) -> float:
    """Return a number, also one that is a text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _timeout(extra: Mapping[str, object]) -> float:
    timeout = _positive(extra, "timeout") or DEFAULT_REQUEST_TIMEOUT
    if timeout > MAX_REQUEST_TIMEOUT:
        raise ValueError(f"its extra 'timeout' must be at most {MAX_REQUEST_TIMEOUT:.0f} seconds.")
    return timeout


def _price(value: object) -> Price | None:
    try:
        return Price.parse(value)
    except ValueError:
        raise ValueError(
            "its extra 'price_per_song' must be a positive number, or one and a unit, such as 0.08, 0.08 USD or 1 "
            "credit."
        ) from None


def _conn_id(value: object, password: str | None) -> str | None:
    if value is None or value == "":
        return None
    # Messages repeat an id.
    if not isinstance(value, str) or not _CONN_ID.fullmatch(value.strip()) or value.strip() == password:
        raise ValueError("its extra 'rate_limit_conn_id' must be the id of an Airflow connection.")
    return value.strip()


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

"""How to reach the Redis that keeps a rate limiter: the fields of an Airflow connection of type ``redis``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_whisul.api.connection import check_extra, is_resolvable
from airflow_provider_whisul.exceptions import WhisulConfigurationError
from airflow_provider_whisul.text import mask, quote

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

DEFAULT_PORT = 6379

#: What ``ssl_cert_reqs`` may be, as Python's ``ssl`` names it.
_CERT_REQS = ("required", "optional", "none")

#: The extras that name a file, and what is in it.
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True)
class RedisSettings:
    """
    The settings of an Airflow connection of type ``redis``, as Airflow's own ``RedisHook`` reads them.

    :param conn_id: The connection's id, for the messages.
    :param host: The host's name or address.
    :param port: The port.
    :param db: The number of the database.
    :param username: The user's name, None for the default user.
    :param password: The password, None where there is none. It is in no repr.
    :param tls: The TLS options of ``redis.Redis``; empty for a connection without TLS.
    """

    conn_id: str
    host: str = "localhost"
    port: int = DEFAULT_PORT
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: tuple[tuple[str, bool | str], ...] = ()

    def __str__(self) -> str:
        """Return where the Redis is, as messages say it."""
        return f"Redis at {self.host}:{self.port}, database {self.db} (Airflow connection {self.conn_id!r})"

    def quote(self, text: str) -> str:
        """
        Return a text from the server or its client, made fit for a message. The password is not in it.

        :param text: The text.
        """
        return quote(mask(text, self.password or ""))

    @classmethod
    def from_connection(cls, conn_id: str, connection: Connection) -> RedisSettings:
        """
        Return the settings in an Airflow connection.

        :param conn_id: The connection's id.
        :param connection: The connection. Its extra may have ``db``, ``ssl``, ``ssl_cert_reqs``, ``ssl_ca_certs``,
            ``ssl_certfile``, ``ssl_keyfile`` and ``ssl_check_hostname``.
        :raises WhisulConfigurationError: A field cannot be used. The message says which one, and does not repeat its
            value.
        """
        # Not `extra_dejson`, which has Airflow mask it by a call that blocks the triggerer's event loop for ever.
        extra = json.loads(connection.extra or "{}") if check_extra(connection.extra) else {}
        is_tls = connection.conn_type == "rediss"
        try:
            if connection.conn_type != "redis" and not is_tls:
                raise ValueError("its type is not redis")
            return cls(
                conn_id,
                _host(connection.host),
                connection.port or DEFAULT_PORT,
                _database(extra.get("db"), connection.schema),
                connection.login or None,
                # As Airflow's own hook has it.
                None if str(connection.password).lower() in ("none", "false", "") else connection.password,
                _tls(extra, is_tls),
            )
        except ValueError as error:
            raise _unusable(conn_id, f"{error}.") from None


@contextmanager
def named_redis_connection(conn_id: str) -> Iterator[None]:
    """
    Make errors of looking up and reading the connection of a Redis say which one it is, and what to do.

    :param conn_id: The connection's id.
    :raises WhisulConfigurationError: It cannot be used, or the package ``redis`` is not installed.
    """
    if find_spec("redis") is None:
        raise WhisulConfigurationError(
            f"The Airflow connection {conn_id!r}, which rate_limit_conn_id names, needs the package redis, which is "
            "not installed. Run pip install 'airflow-provider-whisul[redis]' on all workers and triggerers, or remove "
            "rate_limit_conn_id. Nothing was sent."
        )
    try:
        yield
    except AirflowNotFoundException:
        raise WhisulConfigurationError(
            f"There is no Airflow connection {conn_id!r}, which rate_limit_conn_id names, or none that Airflow can "
            "read. Make one of type redis, or remove rate_limit_conn_id from the extra of the Whisul connection and "
            "from [whisul] in Airflow's configuration. Nothing was sent."
        ) from None
    except (ValueError, TypeError):
        # The error's own text may hold the password.
        raise _unusable(
            conn_id, "it is no connection that Airflow can read. Its extra must be a JSON object."
        ) from None


def _unusable(conn_id: str, problem: str) -> WhisulConfigurationError:
    return WhisulConfigurationError(
        f"The Airflow connection {conn_id!r}, which rate_limit_conn_id names, cannot be used: {problem} Nothing was "
        "sent."
    )


def _host(host: str | None) -> str:
    host = (host or "localhost").strip()
    if not host.isprintable() or any(character in host for character in " /@") or not is_resolvable(host):
        raise ValueError("its host is no host name and no address")
    return host


def _database(db: object, schema: str | None) -> int:
    for value in (db, schema):
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not str(value).isdecimal():
            raise ValueError("its database (extra db, or schema) is no number")
        return int(str(value))
    return 0


def _tls(extra: Mapping[str, object], default: bool) -> tuple[tuple[str, bool | str], ...]:
    if not _flag(extra, "ssl", default):
        return ()
    reqs = str(extra.get("ssl_cert_reqs") or "required").lower().removeprefix("cert_")
    if reqs not in _CERT_REQS:
        raise ValueError(f"its extra ssl_cert_reqs is none of {', '.join(_CERT_REQS)}")
    options: dict[str, bool | str] = {
        "ssl": True,
        "ssl_cert_reqs": reqs,
        # The client's own default is another one in its older versions.
        "ssl_check_hostname": _flag(extra, "ssl_check_hostname", True) and reqs != "none",
    }
    for name in _TLS_FILES:
        if path := extra.get(name):
            if not Path(str(path)).is_file():
                raise ValueError(f"its extra {name} names no file of this machine")
            options[name] = str(path)
    return tuple(options.items())


def _flag(extra: Mapping[str, object], name: str, default: bool) -> bool:
    value = extra.get(name)
    if value is None or value == "":
        return default
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"its extra {name} is not true or false")
    return str(value).lower() == "true"

"""The Airflow connection of the Redis, and which store a connection of type Whisul uses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.exceptions import WhisulConfigurationError
from airflow_provider_whisul.rate_limit import redis_connection
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from airflow_provider_whisul.rate_limit.redis_store import RedisStore
from airflow_provider_whisul.rate_limit.store_choice import find_redis, find_redis_async, limiter_store
from tests.support.redis_server import RedisServer

PASSWORD = "a-redis-password"
NAMED = ConnectionSettings("https://api.whisul.test", "a-secret-key", rate_limit_conn_id="my_redis")
UNNAMED = ConnectionSettings("https://api.whisul.test", "a-secret-key")

SetConnection = Callable[..., None]


@pytest.fixture(autouse=True)
def _the_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "find_spec", lambda name: object())


@pytest.fixture
def set_connection(monkeypatch: pytest.MonkeyPatch) -> SetConnection:
    def set_connection(**fields: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", json.dumps({"conn_type": "redis", "host": "cache", **fields}))

    return set_connection


def found(settings: ConnectionSettings = NAMED) -> RedisSettings | None:
    """Return what a worker finds, and the triggerer too."""
    settings_on_worker = find_redis(settings, BaseHook.get_connection)
    assert asyncio.run(find_redis_async(settings)) == settings_on_worker
    return settings_on_worker


# --- which connection


def test_without_a_name_there_is_no_redis() -> None:
    assert found(UNNAMED) is None
    assert "file" in limiter_store(UNNAMED).where


def test_the_name_is_in_the_extra_or_else_in_airflows_configuration(
    set_connection: SetConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_connection(host="one")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "redis", "host": "other"}))
    monkeypatch.setenv("AIRFLOW__WHISUL__RATE_LIMIT_CONN_ID", " other ")
    assert found(UNNAMED) == RedisSettings("other", "other")
    assert found() == RedisSettings("my_redis", "one")
    assert limiter_store(NAMED, found()).where == "Redis at one:6379, database 0 (Airflow connection 'my_redis')"


def test_a_connection_that_is_not_there_is_told_and_not_passed_over() -> None:
    with pytest.raises(WhisulConfigurationError, match=r"no Airflow connection 'my_redis'.*Nothing was sent\."):
        find_redis(NAMED, BaseHook.get_connection)
    with pytest.raises(WhisulConfigurationError, match="no Airflow connection 'my_redis'"):
        asyncio.run(find_redis_async(NAMED))


def test_without_the_package_the_error_says_what_to_install(
    set_connection: SetConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_connection()
    monkeypatch.setattr(redis_connection, "find_spec", lambda name: None)
    with pytest.raises(WhisulConfigurationError, match=r"pip install 'airflow-provider-whisul\[redis\]'"):
        find_redis(NAMED, BaseHook.get_connection)
    with pytest.raises(WhisulConfigurationError, match=r"pip install 'airflow-provider-whisul\[redis\]'"):
        asyncio.run(find_redis_async(NAMED))


def test_without_a_redis_its_package_is_not_imported() -> None:
    code = (
        "import sys\nfrom airflow_provider_whisul.api.connection import ConnectionSettings\n"
        "from airflow_provider_whisul.rate_limit.store_choice import limiter_store\n"
        "import airflow_provider_whisul.hooks.whisul, airflow_provider_whisul.hooks.whisul_async\n"
        "limiter_store(ConnectionSettings('https://api.whisul.test', 'key')).update(lambda limiter, now: None)\n"
        "sys.exit('redis' in sys.modules)"
    )
    folder = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0


# --- its fields


def test_all_fields_are_read(set_connection: SetConnection) -> None:
    set_connection(host="cache", port=6380, login="bob", password=PASSWORD, extra={"db": 3})
    assert found() == RedisSettings("my_redis", "cache", 6380, 3, "bob", PASSWORD)
    assert PASSWORD not in f"{found()!r} {found()}"


def test_the_extra_is_read_without_a_call_that_blocks_the_triggerers_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blocks(self: object) -> None:
        raise AssertionError("This asks the supervisor to mask the extra, and waits.")

    connection = Connection(conn_id="my_redis", conn_type="redis", host="cache", extra='{"db": 3}')
    monkeypatch.setattr(Connection, "extra_dejson", property(blocks))
    assert RedisSettings.from_connection("my_redis", connection) == RedisSettings("my_redis", "cache", db=3)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("redis://cache/2", RedisSettings("my_redis", "cache", db=2)),
        (f"redis://:{PASSWORD}@cache:1234/2?db=3", RedisSettings("my_redis", "cache", 1234, 3, None, PASSWORD)),
        ("redis://", RedisSettings("my_redis")),
        ("redis://:None@cache", RedisSettings("my_redis", "cache")),
    ],
)
def test_a_uri_is_read(monkeypatch: pytest.MonkeyPatch, uri: str, expected: RedisSettings) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", uri)
    assert found() == expected


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"conn_type": "postgres"}, "type is not redis"),
        ({"host": f"redis://:{PASSWORD}@cache"}, "host"),
        ({"host": f"{PASSWORD}@cache"}, "host"),
        ({"host": "a..b"}, "host"),
        ({"extra": {"db": PASSWORD}}, "database"),
        ({"extra": {"db": True}}, "database"),
        ({"schema": PASSWORD}, "database"),
        ({"extra": {"ssl": PASSWORD}}, "extra ssl "),
        ({"extra": {"ssl": True, "ssl_cert_reqs": PASSWORD}}, "ssl_cert_reqs"),
        ({"extra": {"ssl": True, "ssl_ca_certs": PASSWORD}}, "ssl_ca_certs names no file"),
        ({"extra": {"ssl": True, "ssl_keyfile": "/"}}, "ssl_keyfile names no file"),
        ({"extra": {"ssl": True, "ssl_check_hostname": PASSWORD}}, "ssl_check_hostname"),
        ({"extra": json.dumps([PASSWORD])}, "no connection that Airflow can read"),
        ({"extra": "{" + PASSWORD}, "no connection that Airflow can read"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_without_its_value(
    set_connection: SetConnection, fields: dict[str, Any], problem: str
) -> None:
    set_connection(**fields)
    for find in (lambda: find_redis(NAMED, BaseHook.get_connection), lambda: asyncio.run(find_redis_async(NAMED))):
        with pytest.raises(WhisulConfigurationError) as caught:
            find()
        assert f"{problem}" in str(caught.value)
        assert "'my_redis', which rate_limit_conn_id names, cannot be used" in str(caught.value)
        assert "Nothing was sent." in str(caught.value)
        assert PASSWORD not in f"{caught.value}"


def test_a_uri_that_cannot_be_read_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", f"redis://cache:{PASSWORD}")
    with pytest.raises(WhisulConfigurationError) as caught:
        find_redis(NAMED, BaseHook.get_connection)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__suppress_context__


# --- TLS


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"extra": {"ssl": False, "ssl_cert_reqs": "none"}}, {}),
        ({"extra": {"ssl": True}}, {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}),
        ({"conn_type": "rediss"}, {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}),
        (
            {"extra": {"ssl": "true", "ssl_cert_reqs": "CERT_NONE", "ssl_check_hostname": True}},
            {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False},
        ),
        (
            {"extra": {"ssl": True, "ssl_check_hostname": "false", "ssl_ca_certs": __file__}},
            {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": False, "ssl_ca_certs": __file__},
        ),
    ],
)
def test_the_options_of_tls(set_connection: SetConnection, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    set_connection(**fields)
    redis = found()
    assert redis is not None
    assert dict(redis.tls) == expected


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis that speaks TLS, with a certificate for localhost."""
    pytest.importorskip("redis")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate"), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    certificate, key = str(tmp_path / "certificate"), str(tmp_path / "key")
    server = RedisServer(
        tmp_path, tls_options=("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no")
    )
    yield server
    server.kill()


def test_a_server_is_verified_by_the_ca_of_the_connection(
    tls_server: RedisServer, set_connection: SetConnection, tmp_path: Path
) -> None:
    def update(host: str, **extra: Any) -> bool:
        set_connection(host=host, port=tls_server.tls_port, extra={"ssl": True, **extra})
        redis = found()
        assert redis is not None
        return RedisStore(UNNAMED, redis).update(lambda limiter, now: True)

    trusted = {"ssl_ca_certs": str(tmp_path / "certificate")}
    assert update("localhost", **trusted)
    assert update("127.0.0.1", **trusted, ssl_check_hostname=False)
    assert update("127.0.0.1", ssl_cert_reqs="none")
    for host, extra in (("127.0.0.1", trusted), ("localhost", {})):
        with pytest.raises(Exception, match="(?i)certificate"):
            update(host, **extra)

"""The Redis that the rate limiter of a suite is kept in, and the Airflow connections that lead to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.sandbox import Sandbox
from dev.airflow_runner.services import Services
from tests.support.redis_server import BINARY, RedisServer

REDIS_CONN_ID = "whisul_redis"


@contextmanager
def limiter_redis(services: Services, sandbox: Sandbox, folder: Path) -> Iterator[tuple[str, RedisServer | None]]:
    """
    Yield the URL of a Redis, and the Redis where it is of our own.

    :param services: Has the Redis to use where no ``redis-server`` is installed.
    :param sandbox: The sandbox. What is kept of its account there is removed afterwards.
    :param folder: The working folder of a Redis of our own.
    """
    if BINARY is not None:
        server = RedisServer(folder)
        try:
            yield f"redis://127.0.0.1:{server.port}/0", server
        finally:
            server.kill()
        return
    try:
        yield services.redis, None
    finally:
        kept(services.redis, sandbox, remove=True)


def kept(url: str, sandbox: Sandbox, *, remove: bool = False) -> dict[bytes, bytes]:
    """
    Return what a Redis keeps of a sandbox's account, by its keys.

    :param url: The URL of the Redis.
    :param sandbox: The sandbox.
    :param remove: Whether to remove it.
    """
    from redis import Redis

    connection = json.loads(sandbox.connection)
    account = ConnectionSettings(connection["host"], connection["password"]).fingerprint[:32]
    with closing(Redis.from_url(url)) as redis:
        names = list(redis.scan_iter(match=f"whisul:*{account}*", count=1000))
        found = {name: redis.get(name) or b"" for name in names}
        if remove and names:
            redis.delete(*names)
    return found


def connections(sandbox: Sandbox, redis_url: str | None, **extra: object) -> dict[str, str]:
    """
    Return the environment variables of the connections.

    :param sandbox: The sandbox.
    :param redis_url: The URL of the Redis; None where each machine has a rate limiter of its own.
    :param extra: More of the extra of the Whisul connection.
    """
    whisul = {**json.loads(sandbox.connection), "extra": extra}
    if redis_url is None:
        return {"AIRFLOW_CONN_WHISUL_DEFAULT": json.dumps(whisul)}
    extra["rate_limit_conn_id"] = REDIS_CONN_ID
    url = urlsplit(redis_url)
    redis = {
        "conn_type": "redis",
        "host": url.hostname,
        "port": url.port or 6379,
        "login": url.username,
        "password": url.password,
        "extra": {"db": int(url.path.strip("/") or 0)},
    }
    return {
        "AIRFLOW_CONN_WHISUL_DEFAULT": json.dumps(whisul),
        f"AIRFLOW_CONN_{REDIS_CONN_ID.upper()}": json.dumps(redis),
    }

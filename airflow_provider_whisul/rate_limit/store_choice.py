"""Which store keeps the rate limiter of an account: the Redis that is configured, or the machine's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import conf

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.fallback_store import FallbackStore
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.limiter_store import LimiterStore, MemoryStore
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings, named_redis_connection
from airflow_provider_whisul.rate_limit.redis_store import RedisStore

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection


def redis_conn_id(settings: ConnectionSettings) -> str | None:
    """
    Return the id of the Airflow connection of the Redis, None where none is configured.

    :param settings: The settings of the Whisul connection, whose extra comes before Airflow's configuration.
    """
    return settings.rate_limit_conn_id or (conf.get("whisul", "rate_limit_conn_id", fallback="") or "").strip() or None


def find_redis(settings: ConnectionSettings, get_connection: Callable[[str], Connection]) -> RedisSettings | None:
    """
    Return how to reach the Redis of an account, None where none is configured. Connects to no Redis.

    :param settings: The settings of the Whisul connection.
    :param get_connection: Returns the Airflow connection with an id.
    :raises WhisulConfigurationError: The Airflow connection of the Redis cannot be found or used.
    """
    conn_id = redis_conn_id(settings)
    if conn_id is None:
        return None
    with named_redis_connection(conn_id):
        return RedisSettings.from_connection(conn_id, get_connection(conn_id))


async def find_redis_async(settings: ConnectionSettings) -> RedisSettings | None:
    """
    Return the same as :func:`find_redis`, in the triggerer.

    :param settings: The settings of the Whisul connection.
    :raises WhisulConfigurationError: As :func:`find_redis`.
    """
    from airflow.providers.common.compat.connection import get_async_connection

    conn_id = redis_conn_id(settings)
    if conn_id is None:
        return None
    with named_redis_connection(conn_id):
        return RedisSettings.from_connection(conn_id, await get_async_connection(conn_id))


def limiter_store(
    settings: ConnectionSettings, redis: RedisSettings | None = None, clock: Clock = SYSTEM_CLOCK
) -> LimiterStore:
    """
    Return the store of an account's rate limiter. Does no I/O.

    The store raises nothing but :class:`~airflow_provider_whisul.rate_limit.limiter_store.DayIsFullError`.

    :param settings: The settings of the Whisul connection.
    :param redis: How to reach the Redis, None where none is configured.
    :param clock: The time, for the stores of this machine.
    """
    machine = FallbackStore(FileStore(settings, clock), MemoryStore(clock), clock)
    return machine if redis is None else FallbackStore(RedisStore(settings, redis), machine, clock)

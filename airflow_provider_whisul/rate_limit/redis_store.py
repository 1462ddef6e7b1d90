"""
The rate limiter of one account for all machines that reach one Redis.

The rules are decided in Python: a script reads the state and the time of the server, and another one replaces the state
where it is still the one that was read. So the clocks of the machines do not matter. The state holds numbers, and
neither key nor prompt.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit.limiter_store import (
    DayIsFullError,
    Decide,
    StoreUnavailableError,
    T,
    state_name,
)
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings

if TYPE_CHECKING:
    from redis import Redis

#: Seconds that connecting to the server and one response of it may take.
SOCKET_TIMEOUT = 0.5

#: Seconds without a request after which a connection is not used again, but replaced: a firewall may have forgotten it
#: without a word. Most wait for a minute or longer.
MAX_IDLE_SECONDS = 20.0

#: Seconds for which a decision is made anew, because others have come first, until the store counts as unavailable.
CONFLICT_TIMEOUT = 5.0
#: Seconds to wait at most before the second attempt, then twice as long each time, up to the second number.
_CONFLICT_DELAY, _MAX_CONFLICT_DELAY = 0.002, 0.05

#: Seconds that what was learnt of an account is kept without a request: a week.
STATE_SECONDS = 7 * 86_400

# TIME comes last: a Redis before 5 writes nothing after it.
_READ = "return {redis.call('GET', KEYS[1]) or '', redis.call('TIME')}"
_REPLACE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

# The number of a day since 1970 is the end of its key. It is kept for another day: a submission may be taken back.
_COUNT = """
local day = math.floor(redis.call('TIME')[1] / 86400)
local key = KEYS[1] .. day
if tonumber(redis.call('GET', key) or 0) >= tonumber(ARGV[1]) then return -1 end
redis.call('INCR', key)
redis.call('EXPIRE', key, 172800)
return day
"""
_UNCOUNT = "if tonumber(redis.call('GET', KEYS[1]) or 0) > 0 then redis.call('DECR', KEYS[1]) end"
_COUNTED = "return tonumber(redis.call('GET', KEYS[1] .. math.floor(redis.call('TIME')[1] / 86400)) or 0)"


class RedisStore:
    """
    Keeps the rate limiter in a Redis, and counts the submissions of the day there.

    Its methods raise :class:`StoreUnavailableError` where the Redis is away, too slow or full, refuses the password, or
    has something else at the key. What the process has seen last begins anew in a Redis that has lost it.

    :param settings: The settings of the Whisul connection, which name the account.
    :param redis: How to reach the Redis.
    """

    def __init__(self, settings: ConnectionSettings, redis: RedisSettings) -> None:
        self._redis = redis
        self.key = f"whisul:rate_limit:{state_name(settings)}"
        self._count_key = f"whisul:submissions:{settings.fingerprint[:32]}:"
        self._last_seen: object = None
        self._used_at = time.monotonic()

    @property
    def where(self) -> str:
        """The Redis, as messages say it."""
        return str(self._redis)

    def update(self, decide: Decide[T]) -> T:
        """
        Make a decision, as :class:`LimiterStore` says.

        :raises StoreUnavailableError: The Redis cannot be used.
        """
        give_up_at = time.monotonic() + CONFLICT_TIMEOUT
        delay = _CONFLICT_DELAY
        while True:
            found, now = self._read()
            # A server that was restarted may have lost it.
            state = _parse(found) or self._last_seen
            limiter = RateLimiter.from_dict(state)
            result = decide(limiter, now)
            changed = json.dumps(limiter.as_dict()).encode()
            if changed == found or self._call(bool, _REPLACE, self.key, found, changed, STATE_SECONDS):
                self._last_seen = json.loads(changed)
                return result
            if time.monotonic() > give_up_at:
                raise StoreUnavailableError(f"Others have changed it first for {CONFLICT_TIMEOUT:g} s.")
            time.sleep(random.random() * delay)  # noqa: S311 - no secret
            delay = min(2 * delay, _MAX_CONFLICT_DELAY)

    def reset(self) -> None:
        """
        Forget all that is known of the account, but not the submissions of the day.

        :raises StoreUnavailableError: The Redis cannot be used.
        """
        self.update(lambda limiter, _: limiter.forget())

    def count_submission(self, ceiling: int) -> str:
        """
        Count a submission of today, as :class:`LimiterStore` says. The day is that of the server's clock.

        :raises StoreUnavailableError: The Redis cannot be used.
        :raises DayIsFullError: The day has as many submissions already.
        """
        day = self._call(int, _COUNT, self._count_key, ceiling)
        if day < 0:
            raise DayIsFullError
        return str(day)

    def uncount_submission(self, day: str) -> None:
        """
        Take back a submission that certainly made no job.

        :raises StoreUnavailableError: The Redis cannot be used.
        """
        self._call(str, _UNCOUNT, self._count_key + day)

    def submissions_today(self) -> int:
        """
        Return how many submissions were counted today (UTC).

        :raises StoreUnavailableError: The Redis cannot be used.
        """
        return self._call(int, _COUNTED, self._count_key)

    def _read(self) -> tuple[bytes, float]:
        """Return the state as it is there, empty where there is none, and the server's time in Unix seconds."""
        return self._call(_state_and_time, _READ, self.key)

    def _call(self, read: Callable[[Any], T], script: str, key: str, *arguments: bytes | str | float) -> T:
        used_at, self._used_at = self._used_at, time.monotonic()
        try:
            if self._used_at - used_at > MAX_IDLE_SECONDS:
                self._client.connection_pool.disconnect()
            return read(self._client.eval(script, 1, key, *arguments))
        except Exception as error:
            # Whatever it is: a client that meets another kind of server raises errors of any class.
            problem = self._redis.quote(str(error)) or type(error).__name__
        # Not raised inside the handler: the text of the cause may hold the password.
        raise StoreUnavailableError(f"{problem.rstrip('.')}.")

    @cached_property
    def _client(self) -> Redis:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        redis = self._redis
        tls: dict[str, Any] = dict(redis.tls)
        return Redis(
            host=redis.host,
            port=redis.port,
            db=redis.db,
            username=redis.username,
            password=redis.password,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
            # None. The client finds by itself that the server has closed a connection meanwhile.
            retry=Retry(NoBackoff(), 0),
            # The one that each server and each version of the client speaks.
            protocol=2,
            **tls,
        )


def _state_and_time(reply: Any) -> tuple[bytes, float]:
    found, (seconds, microseconds) = reply
    return bytes(found), int(seconds) + int(microseconds) / 1e6


def _parse(found: bytes) -> object:
    try:
        return json.loads(found or b"null")
    except (ValueError, RecursionError):
        return None

"""What a real Redis that is killed, restarted empty or slow does to the processes that share it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit import redis_store
from airflow_provider_whisul.rate_limit.async_rate_limiter import AsyncRateLimiter
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.fallback_store import FallbackStore
from airflow_provider_whisul.rate_limit.limiter_store import (
    MemoryStore,
)
from airflow_provider_whisul.rate_limit.store_choice import limiter_store
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer
from tests.support.soon import soon
from tests.unit.rate_limit.unsteady_store import Logged, UnsteadyStore, block, is_blocked, take_number

SETTINGS = ConnectionSettings("https://api.whisul.test", "a-secret-key")


def told_to_a_trigger(worker: WorkerRateLimiter) -> NotBefore:
    """Return what a task that meets a block tells its trigger."""
    with pytest.raises(WhisulRateLimitError) as refused:
        worker.acquire("poll", 0)
    not_before = worker.throttled_until(refused.value)
    assert not_before is not None
    return not_before


@pytest.mark.parametrize("away", [True, False])
def test_a_triggerer_that_has_lost_the_shared_store_is_paused_by_what_a_task_has_met_there(
    store: FallbackStore, primary: UnsteadyStore, backup: MemoryStore, clock: FakeClock, away: bool
) -> None:
    worker = WorkerRateLimiter(primary, SETTINGS, clock.clock)
    worker.on_response(worker.acquire("poll", 0), throttled=True, retry_after=30)
    not_before = told_to_a_trigger(worker)
    known = primary.limiter.as_dict()
    # Though nothing has told the triggerer yet.
    primary.away = away
    asyncio.run(AsyncRateLimiter(store, SETTINGS, clock.clock).pause_until(not_before))
    assert backup.limiter.block.active == away
    if away:
        assert backup.limiter.next_allowed_at(clock.now) == pytest.approx(clock.now + 30)
    assert primary.limiter.as_dict() == known


# --- the real stores


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    pytest.importorskip("redis")
    server = RedisServer(tmp_path)
    yield server
    server.kill()


def test_a_redis_that_is_killed_and_restarted_costs_no_block_and_no_decision(
    redis: RedisServer, clock: FakeClock, logged: Logged
) -> None:
    one, other = (limiter_store(SETTINGS, redis.settings, clock.clock) for _ in range(2))
    one.update(block)
    assert other.update(is_blocked)
    redis.kill()
    assert one.update(is_blocked)
    # They share the file of their machine meanwhile.
    assert one.update(take_number) < other.update(take_number)
    redis.start()
    clock.now += 10
    assert one.update(is_blocked)
    assert other.update(is_blocked)
    assert "redis_test" in one.where
    assert [level for level, _ in logged()] == ["WARNING", "WARNING", "INFO", "INFO"]


@pytest.mark.parametrize("seen_as_late", [False, True], ids=["saw less", "saw all its requests"])
def test_a_429_that_a_restarted_redis_has_lost_pauses_the_triggerer_that_has_restored_an_older_state(
    redis: RedisServer, clock: FakeClock, seen_as_late: bool
) -> None:
    triggerer, worker = (
        kind(limiter_store(SETTINGS, redis.settings, clock.clock), SETTINGS, clock.clock)
        for kind in (AsyncRateLimiter, WorkerRateLimiter)
    )
    worker.acquire("poll", 0)
    triggerer._still_permits(0)
    clock.now += 10
    permit = worker.acquire("poll", 9)
    if seen_as_late:
        # No number of a request tells the two states apart: the 429 comes after the triggerer has looked.
        triggerer._still_permits(0)
    worker.on_response(permit, throttled=True, retry_after=30)
    not_before = told_to_a_trigger(worker)
    redis.kill()
    redis.start()
    asyncio.run(triggerer.pause_until(not_before))
    _, block, free_in = triggerer._ask("poll", 1, 0.0)
    assert block.active
    assert free_in == pytest.approx(30, abs=5)


@pytest.mark.parametrize("numbers", [3, 4], ids=["of an earlier version", ""])
def test_a_block_that_a_redis_still_knows_is_not_prolonged_by_a_trigger(
    redis: RedisServer, clock: FakeClock, numbers: int
) -> None:
    triggerer, worker = (
        kind(limiter_store(SETTINGS, redis.settings, clock.clock), SETTINGS, clock.clock)
        for kind in (AsyncRateLimiter, WorkerRateLimiter)
    )
    triggerer._still_permits(0)
    worker.on_response(worker.acquire("poll", 0), throttled=True, retry_after=30)
    told = list(told_to_a_trigger(worker))
    known = worker.store.update(lambda limiter, _: limiter.as_dict())
    # As of a worker whose clock is ahead.
    not_before = NotBefore(*json.loads(json.dumps([told[0] + 100, told[1] + 100, *told[2:numbers]])))
    asyncio.run(triggerer.pause_until(not_before))
    assert triggerer.store.update(lambda limiter, _: limiter.as_dict()) == known


def test_a_redis_is_paused_by_a_trigger_of_the_first_version(redis: RedisServer, clock: FakeClock) -> None:
    """It does not tell which store knows of the 429."""
    triggerer = AsyncRateLimiter(limiter_store(SETTINGS, redis.settings, clock.clock), SETTINGS, clock.clock)
    asyncio.run(triggerer.pause_until(NotBefore(*[clock.clock.time() + 30, 30])))
    assert triggerer.store.update(is_blocked)


def test_a_redis_that_is_slow_costs_one_timeout_in_10_s(
    redis: RedisServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "SOCKET_TIMEOUT", 2.0)
    store = limiter_store(SETTINGS, redis.settings, clock.clock)
    store.update(block)
    redis.freeze()
    with soon():
        for _ in range(20):
            assert store.update(is_blocked)
    redis.thaw()
    clock.now += 10
    store.update(is_blocked)
    assert "redis_test" in store.where

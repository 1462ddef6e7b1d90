"""Workers and triggerers of several machines, which share a rate limiter in Redis."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")

from redis import Redis

from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulConfigurationError, WhisulRateLimitError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.rate_limit.backoff import NotBefore
from airflow_provider_whisul.rate_limit.limiter_store import T
from airflow_provider_whisul.rate_limit.redis_store import RedisStore
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock
from tests.support.connection import set_extra
from tests.support.redis_server import RedisServer


@pytest.fixture
def sandbox(start_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A sandbox whose blocks outlast each test, however slow this machine is."""
    return start_sandbox(block_seconds=300.0, retry_after=True)


@pytest.fixture
def redis(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis that the connection of the sandbox names."""
    server = RedisServer(tmp_path)
    connection = {"conn_type": "redis", "host": "127.0.0.1", "port": server.port}
    monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", json.dumps(connection))
    set_extra(monkeypatch, rate_limit_conn_id="my_redis")
    yield server
    server.kill()


@pytest.fixture
def move_to_another_machine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Use another temporary folder from now on."""
    return lambda: monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("machine")))


def throttled() -> None:
    """Submit a prompt that is answered with a 429, on a worker that does not wait for a second attempt."""
    with pytest.raises(WhisulRateLimitError):
        WhisulHook(clock=Clock(sleep=give_up)).generate("a song [sandbox:post-429=9]")


def give_up(seconds: float) -> None:
    raise WhisulRateLimitError("The test does not wait.")


async def poll() -> None:
    await WhisulAsyncHook().get_job("11111111-1111-1111-1111-111111111111", max_wait=0.5)


@pytest.mark.usefixtures("redis")
def test_a_429_that_a_worker_has_met_holds_for_workers_and_triggerers_of_other_machines(
    sandbox: Sandbox, move_to_another_machine: Callable[[], None]
) -> None:
    throttled()
    sent = len(sandbox.requests)
    move_to_another_machine()
    with pytest.raises(WhisulRateLimitError, match="Nothing was sent"):
        WhisulHook().get_job("11111111-1111-1111-1111-111111111111", retry=False, max_wait=0.5)
    with pytest.raises(WhisulRateLimitError, match="Nothing was sent"):
        asyncio.run(poll())
    assert len(sandbox.requests) == sent


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_task_has_met_pauses_a_triggerer_only_where_it_does_not_use_the_same_redis(
    sandbox: Sandbox,
    redis: RedisServer,
    move_to_another_machine: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
) -> None:
    throttled()
    worker = WhisulHook()
    with pytest.raises(WhisulRateLimitError, match="Nothing was sent") as refused:
        worker.get_job("11111111-1111-1111-1111-111111111111", retry=False, max_wait=0.5)
    not_before = worker.throttled_until(refused.value)
    assert not_before is not None
    server, sent = Redis(port=redis.port), len(sandbox.requests)
    (key,) = server.keys("whisul:rate_limit:*")
    known = server.get(key)
    move_to_another_machine()
    if not shared:
        set_extra(monkeypatch, rate_limit_conn_id="")

    async def trigger() -> None:
        # As in Airflow's database.
        stored = json.loads(json.dumps(list(not_before)))
        behind = Clock(time=lambda: SYSTEM_CLOCK.time() - 100)
        async with WhisulAsyncHook(clock=behind) as hook:
            await hook.pause_until(NotBefore(*stored))
            assert server.get(key) == known
            await hook.get_job("11111111-1111-1111-1111-111111111111", max_wait=0.5)

    with pytest.raises(WhisulRateLimitError, match="Nothing was sent"):
        asyncio.run(trigger())
    assert len(sandbox.requests) == sent


def test_a_block_holds_on_a_machine_whose_redis_is_killed(sandbox: Sandbox, redis: RedisServer) -> None:
    worker = WhisulHook(clock=Clock(sleep=give_up))
    with pytest.raises(WhisulRateLimitError):
        worker.generate("a song [sandbox:post-429=9]")
    redis.kill()
    sent = len(sandbox.requests)
    with pytest.raises(WhisulRateLimitError):
        worker.generate("another song")
    assert len(sandbox.requests) == sent


def test_a_redis_that_is_not_there_stops_no_task(sandbox: Sandbox, redis: RedisServer) -> None:
    redis.kill()
    assert WhisulHook().generate("a song") in sandbox.jobs


def test_a_redis_that_no_connection_describes_stops_a_task_before_anything_is_sent(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_extra(monkeypatch, rate_limit_conn_id="nobody")
    with pytest.raises(WhisulConfigurationError, match="no Airflow connection 'nobody'"):
        WhisulHook().generate("a song")
    with pytest.raises(WhisulConfigurationError, match="no Airflow connection 'nobody'"):
        asyncio.run(poll())
    assert sandbox.requests == []


def test_the_key_can_be_tested_where_airflow_has_no_other_connection(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_extra(monkeypatch, rate_limit_conn_id="nobody")
    hook = WhisulHook()
    assert hook.test_connection()[0]
    with pytest.raises(WhisulConfigurationError, match="no Airflow connection 'nobody'"):
        hook.generate("a song")
    assert [request.method for request in sandbox.requests] == ["GET"]


def test_a_triggerer_takes_up_another_redis_without_a_restart(
    sandbox: Sandbox, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RedisServer(tmp_path_factory.mktemp("other"))

    both = [Redis(port=server.port) for server in (redis, other)]

    async def main() -> list[list[bool]]:
        found = []
        # Another id, another server under the same id, and the machine's file.
        for conn_id, server in (("my_redis", redis), ("other", other), ("my_redis", other), ("", None)):
            connection = {"conn_type": "redis", "host": "127.0.0.1", "port": server.port if server else 0}
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
            set_extra(monkeypatch, rate_limit_conn_id=conn_id)
            for each in both:
                each.flushall()
            await WhisulAsyncHook().get_job(job_id)
            found.append([each.dbsize() > 0 for each in both])
        return found

    try:
        job_id = WhisulHook().generate("a song")
        assert asyncio.run(main()) == [[True, False], [False, True], [False, True], [False, False]]
    finally:
        other.kill()


@pytest.mark.usefixtures("redis")
def test_a_worker_makes_as_many_round_trips_as_the_documents_say(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "rate_limits.md").read_text()
    assert "A worker makes two round trips to Redis per poll and three per submission" in " ".join(page.split())
    assert "It makes two more after a 429, after a probe, and after a poll that has found its job ended." in " ".join(
        page.split()
    )
    round_trips: list[str] = []
    call = RedisStore._call

    def counted(self: RedisStore, read: Callable[[Any], T], script: str, *arguments: Any) -> T:
        round_trips.append(script)
        return call(self, read, script, *arguments)

    monkeypatch.setattr(RedisStore, "_call", counted)
    hook = WhisulHook()
    job_id = hook.generate("a song")
    assert len(round_trips) == 3
    hook.get_job(job_id)
    assert len(round_trips) == 3 + 2
    clock.now += 60
    hook.get_job(job_id)
    assert len(round_trips) == 3 + 2 + 4

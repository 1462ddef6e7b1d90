"""The connection's ``max_submissions_per_day`` over machines that share a Redis, and no folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("redis")

from redis import Redis

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulBudgetExceededError,
    WhisulInvalidInputError,
    WhisulRateLimitError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.ledger.conftest import Submit
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer

SetExtra = Callable[..., None]


@pytest.fixture(autouse=True)
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis that the connection ``my_redis`` leads to."""
    server = RedisServer(tmp_path)
    connection = {"conn_type": "redis", "host": "127.0.0.1", "port": server.port}
    monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", json.dumps(connection))
    yield server
    server.kill()


@pytest.fixture
def new_machine(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], WhisulHook]:
    """Move to a machine with a ledger of its own, and return a hook there."""
    number = iter(range(100))

    def new_machine() -> WhisulHook:
        folder = tmp_path / f"machine-{next(number)}"
        folder.mkdir()
        monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(folder))
        return WhisulHook(clock=clock.clock)

    return new_machine


NewMachine = Callable[[], WhisulHook]


def posts(sandbox: Sandbox) -> list[int | None]:
    return [request.status for request in sandbox.requests if request.method == "POST"]


def counted(redis: RedisServer) -> int:
    client = Redis(port=redis.port)
    return sum(int(client.get(key) or 0) for key in client.scan_iter("whisul:submissions:*"))


def test_of_20_machines_at_a_ceiling_of_5_exactly_5_submit(
    sandbox: Sandbox, set_extra: SetExtra, submit: Submit, redis: RedisServer
) -> None:
    set_extra(max_submissions_per_day=5, rate_limit_conn_id="my_redis")
    ends = submit(*((f"song {number}", None) for number in range(20)), machines=True)
    assert Counter(end.get("error") for end in ends) == {None: 5, "WhisulBudgetExceededError": 15}
    assert posts(sandbox) == 5 * [202]
    assert counted(redis) == 5


def test_the_error_says_how_many_were_made_here_and_over_all_machines(
    sandbox: Sandbox, set_extra: SetExtra, new_machine: NewMachine
) -> None:
    set_extra(max_submissions_per_day=3, rate_limit_conn_id="my_redis")
    for _ in range(2):
        new_machine().generate("a song")
    third = new_machine()
    third.generate("a song")
    made = "3 of 3 made over all machines, of which the ledger of this one has 1: 1 by code outside of a DAG"
    with pytest.raises(WhisulBudgetExceededError, match=rf"\(UTC\): {made}\. Nothing was sent\."):
        third.generate("another song")
    with pytest.raises(WhisulBudgetExceededError, match=r"of which the ledger of this one has 0\. Nothing was sent\."):
        new_machine().generate("another song")
    assert posts(sandbox) == 3 * [202]


def test_a_refused_submission_takes_no_room_and_an_ambiguous_one_does(
    sandbox: Sandbox, set_extra: SetExtra, new_machine: NewMachine, redis: RedisServer
) -> None:
    set_extra(max_submissions_per_day=1, rate_limit_conn_id="my_redis")
    with pytest.raises(WhisulInvalidInputError):
        new_machine().generate("a song [sandbox:post-422]")
    assert counted(redis) == 0
    with pytest.raises(WhisulAmbiguousSubmitError):
        new_machine().generate("a song [sandbox:post-drop]")
    assert counted(redis) == 1
    with pytest.raises(WhisulBudgetExceededError):
        new_machine().generate("a song")


def test_a_429_takes_no_room(
    sandbox: Sandbox, set_extra: SetExtra, new_machine: NewMachine, redis: RedisServer
) -> None:
    set_extra(max_submissions_per_day=1, rate_limit_conn_id="my_redis")
    # The time of the test passes, that of Redis does not: the cool-down is not over in ten minutes.
    with pytest.raises(WhisulRateLimitError):
        new_machine().generate("a song [sandbox:post-429=1]")
    assert (posts(sandbox), counted(redis)) == ([429], 0)


def test_what_the_ledger_refuses_takes_no_place_from_other_machines(
    sandbox: Sandbox, set_extra: SetExtra, new_machine: NewMachine, redis: RedisServer
) -> None:
    set_extra(max_submissions_per_day=1)
    machine = new_machine()
    machine.generate("a song")
    set_extra(max_submissions_per_day=1, rate_limit_conn_id="my_redis")
    with pytest.raises(WhisulBudgetExceededError, match=r"\(UTC\): 1 of 1 made: 1 by"):
        WhisulHook(clock=machine.clock).generate("another song")
    assert counted(redis) == 0


def test_while_redis_is_away_each_ledger_counts_alone(
    sandbox: Sandbox, set_extra: SetExtra, new_machine: NewMachine, redis: RedisServer
) -> None:
    set_extra(max_submissions_per_day=1, rate_limit_conn_id="my_redis")
    redis.kill()
    for _ in range(2):
        machine = new_machine()
        machine.generate("a song")
        with pytest.raises(WhisulBudgetExceededError):
            machine.generate("a song")
    assert posts(sandbox) == 2 * [202]

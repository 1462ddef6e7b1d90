"""``python -m airflow_provider_whisul.limiter``, on what a store has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.rate_limit.command_line import main
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.redis_store import RedisStore
from tests.support.redis_server import RedisServer, free_port

SETTINGS = ConnectionSettings("https://api.whisul.test/api", "a-secret-key")
PASSWORD = "a-redis-password"

SetConnection = Callable[..., None]
Output = Callable[..., str]


@pytest.fixture
def set_connection(monkeypatch: pytest.MonkeyPatch) -> SetConnection:
    """Set ``whisul_default``, with an extra."""

    def set_connection(**extra: object) -> None:
        connection = {"conn_type": "whisul", "host": SETTINGS.base_url, "password": SETTINGS.api_key, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))

    set_connection()
    return set_connection


@pytest.fixture
def output(set_connection: SetConnection, capsys: pytest.CaptureFixture[str]) -> Output:
    """Run the command line, and return what it prints."""

    def output(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return output


@pytest.fixture
def error(set_connection: SetConnection, capsys: pytest.CaptureFixture[str]) -> Output:
    """Run the command line, and return the error that it ends with."""

    def error(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return error


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    pytest.importorskip("redis")
    server = RedisServer(tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", f"redis://127.0.0.1:{server.port}")
    yield server
    server.kill()


def block(limiter: RateLimiter, now: float) -> None:
    limiter.acquire(now, "poll")
    limiter.on_response(now, limiter.last_request, throttled=True)


def times_of(change: Callable[[RateLimiter, float], None]) -> tuple[float, float]:
    """Make a change of the account's file, and return between which Unix seconds."""
    began = time.time()
    FileStore(SETTINGS).update(change)
    return began, time.time()


def seconds_between(began: float, ended: float) -> range:
    """Return the whole Unix seconds of a span, and one more on each side: the store has another clock."""
    return range(int(began) - 1, int(ended) + 2)


# --- status


def test_the_status_of_an_account_that_has_sent_nothing(output: Output) -> None:
    assert output("status").splitlines() == [
        f"The rate limiter of the Airflow connection 'whisul_default' is kept in {FileStore(SETTINGS).where}.",
        f"Rate: {RateLimiter().throttle.rate:.3g} requests per second.",
        "Ceiling: none, as no 429 is known.",
        "Block: none.",
        "Requests: none has been permitted.",
        "Submissions: none waits.",
        "Durations: 0 jobs known; too few to delay a first poll.",
    ]


def test_the_status_of_a_busy_account(output: Output, set_connection: SetConnection) -> None:
    def be_busy(limiter: RateLimiter, now: float) -> None:
        limiter.configure(8.0)
        limiter.acquire(now, "submission")
        limiter.durations.add([60 + number for number in range(40)])

    set_connection(max_requests_per_second=8)
    began, ended = times_of(be_busy)
    text = output("status")
    assert "Rate: 8 requests per second. The connection sets max_requests_per_second to 8.\n" in text
    assert any(f"Requests: permitted up to {utc(at)}." in text for at in seconds_between(began, ended))
    assert "Submissions: some wait. Polls have the smaller share until 20" in text
    assert "Durations: 40 jobs known; the first poll of a job comes at an age of 6" in text


def test_the_status_of_a_blocked_key(output: Output) -> None:
    began, ended = times_of(block)
    text = output("status")
    assert any(
        f"Block: since {utc(at)}. Nothing is sent before {utc(at + 5)}, then one probe.\n" in text
        for at in seconds_between(began, ended)
    )
    assert "Ceiling: the latest block has set it to " in text
    FileStore(SETTINGS).update(lambda limiter, now: limiter.block.send_probe())
    assert "A probe has been sent, and has no response yet.\n" in output("status")


def test_the_status_of_a_key_whose_limit_is_used_up_until_it_is_reset(output: Output) -> None:
    def be_asked_to_wait(limiter: RateLimiter, now: float) -> None:
        limiter.acquire(now, "poll")
        limiter.on_response(now, limiter.last_request, throttled=False, retry_after=40)

    began, ended = times_of(be_asked_to_wait)
    text = output("status")
    assert any(
        f"Block: none. Nothing is sent before {utc(at + 40)}, since a response has asked to wait.\n" in text
        for at in seconds_between(began, ended)
    )
    value = json.loads(output("status", "--json"))
    assert (value["blocked"], value["block_began"]) == (False, None)
    assert began - 1 <= value["not_before"] - 40 <= ended + 1


def test_a_wait_that_is_over_is_not_told(output: Output) -> None:
    FileStore(SETTINGS).update(lambda limiter, now: limiter.block.wait(now - 50, 40))
    assert "Block: none.\n" in output("status")
    assert json.loads(output("status", "--json"))["not_before"] is None


def test_a_limit_that_the_user_has_just_set_is_the_rate(output: Output, set_connection: SetConnection) -> None:
    set_connection(max_requests_per_second=3)
    assert "Rate: 3 requests per second." in output("status")


def test_submissions_that_have_waited_before_do_not_wait_now(output: Output) -> None:
    def submit_earlier(limiter: RateLimiter, now: float) -> None:
        limiter.submissions_until = now - 10

    FileStore(SETTINGS).update(submit_earlier)
    assert "Submissions: none waits." in output("status")


def test_the_json_says_the_same(output: Output) -> None:
    began, ended = times_of(block)
    value: dict[str, Any] = json.loads(output("status", "--json"))
    assert value["where"] == FileStore(SETTINGS).where
    assert value["blocked"] is True
    assert began - 1 <= value["block_began"] <= ended + 1
    assert value["not_before"] == pytest.approx(value["block_began"] + 5, abs=0.01)
    assert (value["durations"], value["submissions_today"], value["max_requests_per_second"]) == (0, None, None)


def test_the_status_changes_nothing_of_what_is_known(output: Output) -> None:
    FileStore(SETTINGS).update(block)
    before = json.loads(FileStore(SETTINGS).path.read_text())
    output("status")
    assert json.loads(FileStore(SETTINGS).path.read_text()) == before


def test_the_status_in_redis_has_the_submissions_of_the_day(
    output: Output, set_connection: SetConnection, redis: RedisServer
) -> None:
    set_connection(rate_limit_conn_id="my_redis", max_submissions_per_day=500)
    store = RedisStore(SETTINGS, redis.settings)
    store.update(block)
    for _ in range(17):
        store.count_submission(500)
    text = output("status")
    assert f"is kept in Redis at 127.0.0.1:{redis.port}, database 0 (Airflow connection 'my_redis').\n" in text
    assert "Block: since 20" in text
    assert "Today: 17 of 500 submissions counted over all machines.\n" in text
    assert json.loads(output("status", "--json"))["submissions_today"] == 17
    assert SETTINGS.api_key not in text


# --- reset


def test_after_a_reset_nothing_is_known(output: Output) -> None:
    FileStore(SETTINGS).update(block)
    assert output("reset") == (
        f"What {FileStore(SETTINGS).where} knew of the rate limit of 'whisul_default' is forgotten.\n"
    )
    assert "Block: none.\nRequests: none" in output("status")


def test_a_reset_forgets_what_redis_has(output: Output, set_connection: SetConnection, redis: RedisServer) -> None:
    set_connection(rate_limit_conn_id="my_redis")
    store = RedisStore(SETTINGS, redis.settings)
    store.update(block)
    assert output("reset").startswith("What Redis at 127.0.0.1")
    assert not store.update(lambda limiter, now: limiter.block.active)


# --- errors


def test_a_connection_that_is_not_there_ends_with_1(error: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.exceptions import AirflowNotFoundException

    def not_found(conn_id: str) -> None:
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")

    monkeypatch.setattr("airflow_provider_whisul.rate_limit.command_line.server_connection", not_found)
    assert "There is no Airflow connection 'nobody'" in error("status", "--conn", "nobody")


def test_a_redis_that_is_away_ends_with_1_and_not_with_what_the_file_knows(
    error: Output, set_connection: SetConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redis")
    monkeypatch.setenv("AIRFLOW_CONN_MY_REDIS", f"redis://:{PASSWORD}@127.0.0.1:{free_port()}")
    set_connection(rate_limit_conn_id="my_redis")
    for command in ("status", "reset"):
        text = error(command)
        assert "is kept in Redis at 127.0.0.1" in text
        assert "which cannot be used: " in text
        assert "refused" in text
        assert PASSWORD not in text


def test_a_file_that_cannot_be_used_ends_with_1(error: Output) -> None:
    FileStore(SETTINGS).path.parent.write_text("")
    for command in ("status", "reset"):
        assert f"is kept in {FileStore(SETTINGS).where}, which cannot be used: File exists." in error(command)


@pytest.mark.parametrize("arguments", [[], ["forget"], ["reset", "--json"], ["status", "--nonsense"]])
def test_wrong_arguments_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m airflow_provider_whisul.limiter" in capsys.readouterr().err


def test_its_standard_output_is_the_report_alone(
    set_connection: SetConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow_provider_whisul.limiter", *arguments]
        folder, env = Path(__file__).resolve().parents[3], {**os.environ, "TMPDIR": tempfile.gettempdir()}
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)

    # Airflow warns of what it cannot mask.
    monkeypatch.setenv("AIRFLOW_CONN_SHORT", '{"conn_type": "whisul", "password": "k"}')
    ended = run("status", "--conn", "short", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["blocked"]) == (0, False), ended.stderr
    help_text = run("status", "--help")
    assert (help_text.returncode, help_text.stdout[:6]) == (0, "usage:")

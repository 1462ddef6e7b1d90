"""The rate limiter that all machines share in a Redis, on a real server."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from threading import Thread

import pytest

pytest.importorskip("redis")

from redis import Redis
from redis.exceptions import RedisError

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit import redis_store
from airflow_provider_whisul.rate_limit.limiter_store import DayIsFullError, StoreUnavailableError
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from airflow_provider_whisul.rate_limit.redis_store import RedisStore
from tests.support.redis_server import BINARY, Firewall, RedisServer, free_port
from tests.support.servers import RawServer
from tests.support.soon import soon

PASSWORD = "a-redis-password"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """A Redis that no test of this file spoils: one of the tests' own, or the machine's."""
    if BINARY is not None:
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        yield server.settings
        server.kill()
        return
    try:
        Redis(socket_timeout=10).ping()
    except RedisError:
        pytest.skip("There is no Redis on this machine.")
    yield RedisSettings("redis_test")


@pytest.fixture
def account(address: RedisSettings) -> Iterator[ConnectionSettings]:
    """An account that nothing else uses."""
    settings = ConnectionSettings("https://api.whisul.test", token_hex(8))
    yield settings
    client = Redis(address.host, address.port)
    for key in client.scan_iter(f"whisul:*{settings.fingerprint[:32]}*"):
        client.delete(key)


@pytest.fixture
def client(address: RedisSettings) -> Redis:
    return Redis(address.host, address.port)


@pytest.fixture
def new_store(address: RedisSettings, account: ConnectionSettings) -> Callable[[], RedisStore]:
    return lambda: RedisStore(account, address)


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start a Redis that the test may spoil."""
    started: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        started.append(RedisServer(tmp_path, *options))
        return started[-1]

    yield start
    for server in started:
        server.kill()


ACCOUNT = ConnectionSettings("https://api.whisul.test", "a-secret-key")


def block(limiter: RateLimiter, now: float) -> None:
    limiter.last_request += 1
    limiter.on_response(now, limiter.last_request, throttled=True)


def take_number(limiter: RateLimiter, now: float) -> int:
    limiter.last_request += 1
    return limiter.last_request


def last_number(limiter: RateLimiter, now: float) -> int:
    return limiter.last_request


def is_blocked(limiter: RateLimiter, now: float) -> bool:
    return limiter.block.active


# --- one state for all


def test_what_one_machine_has_met_the_next_one_knows(new_store: Callable[[], RedisStore]) -> None:
    new_store().update(block)
    assert new_store().update(is_blocked)


def test_another_key_has_a_rate_limiter_of_its_own(
    new_store: Callable[[], RedisStore], account: ConnectionSettings, address: RedisSettings
) -> None:
    new_store().update(block)
    assert not RedisStore(replace(account, api_key="another"), address).update(is_blocked)


def test_another_database_has_a_rate_limiter_of_its_own(
    new_store: Callable[[], RedisStore], account: ConnectionSettings, address: RedisSettings
) -> None:
    new_store().update(block)
    assert not RedisStore(account, replace(address, db=1)).update(is_blocked)


def test_no_command_is_sent_that_older_servers_do_not_know() -> None:
    with RawServer(lambda connection, request: connection.sendall(b"+OK\r\n" * 9)) as server:
        store = RedisStore(ACCOUNT, RedisSettings("redis_test", "127.0.0.1", server.port))
        with pytest.raises(StoreUnavailableError):
            store.update(is_blocked)
        assert server.requests
        assert not any(b"HELLO" in request for request in server.requests)


def test_the_time_is_that_of_the_server(new_store: Callable[[], RedisStore], client: Redis) -> None:
    before, _ = client.time()
    now = new_store().update(lambda limiter, now: now)
    after, _ = client.time()
    assert before <= now <= after + 1


def test_a_clock_of_a_machine_that_is_an_hour_off_changes_nothing(
    new_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = new_store().update(lambda limiter, now: now)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3_600)
    assert new_store().update(lambda limiter, now: now) - before < 10


#: Forks 20 processes, which begin when all are there, and print the numbers that they have taken.
DECIDE_50_TIMES = """
import os, sys
from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit import redis_store
from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings
from airflow_provider_whisul.rate_limit.redis_store import RedisStore

def take_number(limiter, now):
    limiter.last_request += 1
    return limiter.last_request

# A busy machine is no Redis that is away.
redis_store.SOCKET_TIMEOUT = redis_store.CONFLICT_TIMEOUT = 30.0
settings = ConnectionSettings("https://api.whisul.test", sys.argv[1])
redis = RedisSettings("redis_test", sys.argv[2], int(sys.argv[3]))
closed_at_start, start = os.pipe()
for _ in range(20):
    if not os.fork():
        os.close(start)
        os.read(closed_at_start, 1)
        store = RedisStore(settings, redis)
        numbers = " ".join(str(store.update(take_number)) for _ in range(50))
        os.write(1, f"{numbers}\\n".encode())
        os._exit(0)
os.close(start)
for _ in range(20):
    os.wait()
"""


def test_of_20_processes_that_decide_50_times_at_once_none_loses_a_decision(
    new_store: Callable[[], RedisStore], account: ConnectionSettings, address: RedisSettings
) -> None:
    command = [sys.executable, "-c", DECIDE_50_TIMES, account.api_key, address.host, str(address.port)]
    ended = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[3], stdout=subprocess.PIPE, text=True, timeout=100, check=True
    )
    assert sorted(map(int, ended.stdout.split())) == list(range(1, 1_001))
    assert new_store().update(last_number) == 1_000


def test_a_decision_is_made_anew_where_another_one_has_come_first(new_store: Callable[[], RedisStore]) -> None:
    other, seen = new_store(), []

    def decide(limiter: RateLimiter, now: float) -> int:
        seen.append(limiter.last_request)
        if len(seen) == 1:
            other.update(take_number)
        return take_number(limiter, now)

    assert new_store().update(decide) == 2
    assert seen == [0, 1]


def test_a_decision_that_others_always_precede_is_given_up(
    new_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "CONFLICT_TIMEOUT", 0.05)
    other = new_store()

    def decide(limiter: RateLimiter, now: float) -> int:
        other.update(take_number)
        return take_number(limiter, now)

    with pytest.raises(StoreUnavailableError, match="Others have changed it"):
        new_store().update(decide)


def test_a_decision_that_changes_nothing_writes_nothing(new_store: Callable[[], RedisStore], client: Redis) -> None:
    store = new_store()
    store.update(block)
    client.persist(store.key)
    store.update(is_blocked)
    # A write would have set it.
    assert client.ttl(store.key) == -1


def test_threads_may_share_a_store(new_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may let the others come first for seconds.
    monkeypatch.setattr(redis_store, "CONFLICT_TIMEOUT", 100.0)
    store = new_store()
    threads = [Thread(target=lambda: [store.update(take_number) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.update(last_number) == 100


# --- what is stored


def test_neither_key_nor_prompt_is_stored_and_it_is_forgotten_after_a_week(
    new_store: Callable[[], RedisStore], account: ConnectionSettings, client: Redis
) -> None:
    store = new_store()
    store.update(block)
    store.count_submission(5)
    keys = [key.decode() for key in client.scan_iter("*") if account.fingerprint[:32] in key.decode()]
    assert len(keys) == 2
    text = " ".join(keys) + client.get(store.key).decode()
    assert account.api_key not in text
    assert account.fingerprint not in text
    assert json.loads(client.get(store.key)) == RateLimiter.from_dict(json.loads(client.get(store.key))).as_dict()
    assert 7 * 86_400 - 10 < client.ttl(store.key) <= 7 * 86_400
    assert all(client.ttl(key) > 0 for key in keys)


A_BLOCK = {**RateLimiter().as_dict(), "block": {**RateLimiter().as_dict()["block"], "active": True}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"{", b"[]", b"null", b"\x00\xff", b"1e999", b"[" * 100_000),
        *(json.dumps({**A_BLOCK, **wrong}).encode() for wrong in ({"version": 99}, {"last_request": "x"})),
    ],
)
def test_a_value_that_makes_no_sense_is_replaced(
    new_store: Callable[[], RedisStore], client: Redis, value: bytes
) -> None:
    client.set(new_store().key, value)
    assert not new_store().update(is_blocked)
    new_store().update(block)
    assert new_store().update(is_blocked)


def test_a_value_that_is_no_json_does_not_make_a_process_forget_a_block(
    new_store: Callable[[], RedisStore], client: Redis
) -> None:
    store = new_store()
    store.update(block)
    client.set(store.key, b"\x00")
    assert store.update(is_blocked)


def test_something_else_at_the_key_is_left_alone(new_store: Callable[[], RedisStore], client: Redis) -> None:
    store = new_store()
    client.rpush(store.key, "another program's")
    with pytest.raises(StoreUnavailableError, match="WRONGTYPE"):
        store.update(block)
    assert client.lrange(store.key, 0, -1) == [b"another program's"]


def test_a_state_of_another_version_is_at_another_key(
    new_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store().update(block)
    monkeypatch.setattr("airflow_provider_whisul.rate_limit.limiter_store.STATE_VERSION", 99)
    assert not new_store().update(is_blocked)
    monkeypatch.undo()
    assert new_store().update(is_blocked)


# --- a server's clock that jumps


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_servers_clock_that_jumps_delays_no_request_for_long(
    new_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    new_store().update(lambda limiter, now: limiter.acquire(now, "submission"))
    read = RedisStore._read

    def jumped(self: RedisStore) -> tuple[bytes, float]:
        found, now = read(self)
        return found, now + hours * 3_600

    monkeypatch.setattr(RedisStore, "_read", jumped)
    wait = new_store().update(lambda limiter, now: limiter.acquire(now, "submission"))
    assert not isinstance(wait, float) or wait < 2


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_block_is_over_in_time_though_the_servers_clock_jumps(
    new_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    new_store().update(block)
    read = RedisStore._read

    def jumped(self: RedisStore) -> tuple[bytes, float]:
        found, now = read(self)
        return found, now + hours * 3_600

    monkeypatch.setattr(RedisStore, "_read", jumped)
    wait = new_store().update(lambda limiter, now: limiter.acquire(now, "poll"))
    # Ahead: the probe may be sent. Back: the cool-down begins anew.
    assert getattr(wait, "probe", None) is True if hours > 0 else 4 < wait < 6  # type: ignore[operator]


# --- a server that is away, slow or full


def test_a_server_that_is_not_there_is_unavailable_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "SOCKET_TIMEOUT", 60.0)
    store = RedisStore(ACCOUNT, RedisSettings("redis_test", "127.0.0.1", free_port()))
    with soon(), pytest.raises(StoreUnavailableError, match="refused"):
        store.update(is_blocked)
    assert store.where.startswith("Redis at 127.0.0.1:")


def test_a_host_without_an_address_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError):
        RedisStore(ACCOUNT, RedisSettings("redis_test", "no-such-host.invalid")).update(is_blocked)


def test_a_server_that_is_stopped_is_given_up_after_the_timeout(
    start_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "SOCKET_TIMEOUT", 2.0)
    server = start_redis()
    warm, cold = RedisStore(ACCOUNT, server.settings), RedisStore(ACCOUNT, server.settings)
    warm.update(block)
    server.freeze()
    for store in (warm, cold):
        with soon(), pytest.raises(StoreUnavailableError, match="(?i)time"):
            store.update(is_blocked)
    server.thaw()
    assert warm.update(is_blocked)
    assert cold.update(is_blocked)


def test_a_full_server_is_unavailable_and_its_state_can_be_read(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    store = RedisStore(ACCOUNT, server.settings)
    store.update(block)
    Redis(port=server.port).config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailableError, match="(?i)memory"):
        store.update(take_number)
    Redis(port=server.port).config_set("maxmemory", "0")
    assert store.update(is_blocked)


def test_a_server_that_was_restarted_empty_is_given_what_a_process_has_seen_last(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    store, newcomer = RedisStore(ACCOUNT, server.settings), RedisStore(ACCOUNT, server.settings)
    store.update(block)
    server.kill()
    with pytest.raises(StoreUnavailableError):
        store.update(is_blocked)
    server.start()
    assert store.update(is_blocked)
    assert newcomer.update(is_blocked)


def test_a_connection_that_the_server_has_closed_is_no_failure(
    new_store: Callable[[], RedisStore], client: Redis
) -> None:
    store = new_store()
    store.update(block)
    client.client_kill_filter(_type="normal", skipme=True)
    assert store.update(is_blocked)


def test_a_connection_that_a_firewall_has_silently_forgotten_is_no_failure(
    account: ConnectionSettings, address: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "SOCKET_TIMEOUT", 2.0)
    with Firewall(address) as firewall:
        store = RedisStore(account, firewall.settings)
        store.update(block)
        # What the firewall has forgotten has no effect.
        firewall.forget()
        with pytest.raises(StoreUnavailableError):
            store.update(is_blocked)
        monkeypatch.setattr(redis_store, "MAX_IDLE_SECONDS", 0.1)
        for use in (lambda: store.update(take_number), lambda: store.count_submission(9), store.submissions_today):
            firewall.forget()
            time.sleep(0.2)
            assert use()


def test_a_connection_that_is_in_use_is_kept(address: RedisSettings, account: ConnectionSettings) -> None:
    with Firewall(address) as firewall:
        store = RedisStore(account, firewall.settings)
        client = Redis(address.host, address.port)
        store.update(take_number)
        before = client.info("stats")["total_connections_received"]
        for _ in range(5):
            store.update(take_number)
        assert client.info("stats")["total_connections_received"] == before


@pytest.mark.parametrize("password", [None, PASSWORD + "-wrong"])
def test_a_wrong_password_is_in_no_message(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture, password: str | None
) -> None:
    server = start_redis("--requirepass", PASSWORD)
    settings = replace(server.settings, password=password)
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailableError) as caught:
        RedisStore(ACCOUNT, settings).update(is_blocked)
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r} {settings!r} {settings} {caplog.text}"
    assert RedisStore(ACCOUNT, replace(server.settings, password=PASSWORD)).update(is_blocked) is False


def test_what_a_server_says_is_repeated_on_one_line_and_without_the_password() -> None:
    def respond(connection: socket.socket, request: bytes) -> None:
        connection.sendall(f"-ERR no {PASSWORD}\x1b[31m here\r\n".encode() * 9)

    with RawServer(respond) as server:
        redis = RedisSettings("redis_test", "127.0.0.1", server.port, password=PASSWORD)
        with pytest.raises(StoreUnavailableError) as caught:
            RedisStore(ACCOUNT, redis).update(is_blocked)
    assert "no ***" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_user_without_permission_is_told_by_the_server(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    Redis(port=server.port).execute_command("ACL", "SETUSER", "bob", "on", f">{PASSWORD}", "~*", "+get")
    with pytest.raises(StoreUnavailableError, match="(?i)permission"):
        RedisStore(ACCOUNT, replace(server.settings, username="bob", password=PASSWORD)).update(is_blocked)


def test_a_user_with_the_rights_that_the_documents_name_is_enough(start_redis: Callable[..., RedisServer]) -> None:
    document = Path(__file__).resolve().parents[3] / "docs" / "rate_limits.md"
    (rights,) = re.findall("ACL SETUSER whisul on >PASSWORD ([^`]*)`", document.read_text())
    server = start_redis()
    Redis(port=server.port).execute_command("ACL", "SETUSER", "whisul", "on", f">{PASSWORD}", *rights.split())
    store = RedisStore(ACCOUNT, replace(server.settings, db=1, username="whisul", password=PASSWORD))
    store.update(block)
    store.reset()
    store.uncount_submission(store.count_submission(1))
    assert store.submissions_today() == 0


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"\x00\xff"]
)
def test_a_server_that_is_no_redis_is_unavailable(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "SOCKET_TIMEOUT", 1.0)

    def respond(connection: socket.socket, request: bytes) -> None:
        while request:
            # One answer for each command.
            connection.sendall(answer * request.count(b"*"))
            request = connection.recv(1 << 16)

    with RawServer(respond) as server:
        store = RedisStore(ACCOUNT, RedisSettings("redis_test", "127.0.0.1", server.port))
        with pytest.raises(StoreUnavailableError):
            store.update(is_blocked)
        # A number it might be that of a day.
        if answer != b":1\r\n":
            with pytest.raises(StoreUnavailableError):
                store.count_submission(1)


# --- reset


def test_after_a_reset_no_process_brings_the_old_state_back(new_store: Callable[[], RedisStore], client: Redis) -> None:
    store, other = new_store(), new_store()
    store.update(block)
    assert other.update(is_blocked)
    new_store().reset()
    assert not other.update(is_blocked)
    client.delete(store.key)
    assert not other.update(is_blocked)


# --- the submissions of the day


def test_submissions_are_counted_up_to_the_ceiling_over_all_machines(new_store: Callable[[], RedisStore]) -> None:
    store = new_store()
    days = [new_store().count_submission(3) for _ in range(3)]
    with pytest.raises(DayIsFullError):
        store.count_submission(3)
    assert store.submissions_today() == 3
    store.uncount_submission(days[0])
    assert store.count_submission(3) == days[0]
    # A changed ceiling holds at once.
    store.count_submission(4)
    with pytest.raises(DayIsFullError):
        store.count_submission(2)


def test_nothing_is_counted_below_zero_and_a_ceiling_of_zero_lets_nothing_through(
    new_store: Callable[[], RedisStore],
) -> None:
    store = new_store()
    with pytest.raises(DayIsFullError):
        store.count_submission(0)
    day = store.count_submission(1)
    for _ in range(3):
        store.uncount_submission(day)
    assert store.submissions_today() == 0
    store.count_submission(1)
    with pytest.raises(DayIsFullError):
        store.count_submission(1)


def test_a_reset_does_not_forget_the_submissions_of_the_day(new_store: Callable[[], RedisStore]) -> None:
    new_store().count_submission(1)
    new_store().reset()
    with pytest.raises(DayIsFullError):
        new_store().count_submission(1)


def test_the_day_is_that_of_the_server(new_store: Callable[[], RedisStore], client: Redis) -> None:
    assert new_store().count_submission(9) == str(client.time()[0] // 86_400)


def test_a_count_that_makes_no_sense_is_unavailable(
    new_store: Callable[[], RedisStore], client: Redis, account: ConnectionSettings
) -> None:
    store = new_store()
    day = store.count_submission(9)
    client.set(f"whisul:submissions:{account.fingerprint[:32]}:{day}", "x")
    with pytest.raises(StoreUnavailableError):
        store.count_submission(9)

"""The rate limiter that the task processes of a machine share in a file."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit import shared_rate_limiter
from airflow_provider_whisul.rate_limit.rate_limiter import INITIAL_RATE, RateLimiter
from airflow_provider_whisul.rate_limit.shared_rate_limiter import SharedRateLimiter
from tests.support.clock import NOON, FakeClock

SETTINGS = ConnectionSettings("https://api.whisul.test", "a-secret-key")


#: Code that holds the lock for as long as its process lives.
HOLD = "with shared.locked():\n    print('held', flush=True)\n    sys.stdin.read()"

#: The content of a file while the key is blocked.
A_BLOCK = {**RateLimiter().as_dict(), "active": True}


def shared_limiter(clock: Clock = SYSTEM_CLOCK, **others: object) -> SharedRateLimiter:
    settings = {"base_url": SETTINGS.base_url, "api_key": SETTINGS.api_key, **others}
    return SharedRateLimiter(ConnectionSettings(**settings), clock)


def block(shared: SharedRateLimiter) -> None:
    with shared.locked() as limiter:
        limiter.on_response(NOON, limiter.on_request(NOON), True)


def knows_of_a_block(shared: SharedRateLimiter) -> bool:
    with shared.locked() as limiter:
        return limiter.block.active


def the_file() -> Path:
    (file,) = Path(tempfile.gettempdir()).glob("airflow-provider-whisul-*/*.json")
    return file


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that runs some code with ``shared``, a rate limiter of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from tests.unit.rate_limit.test_shared_rate_limiter import *\nshared = shared_limiter()\n{code}",
            ],
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, "TMPDIR": tempfile.gettempdir()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_block_that_one_rate_limiter_met_is_known_to_the_next_one() -> None:
    block(shared_limiter())
    assert knows_of_a_block(shared_limiter())


def test_a_block_that_one_process_met_is_known_to_the_next_one(start: Callable[..., subprocess.Popen[str]]) -> None:
    assert start("block(shared)").wait(30) == 0
    assert knows_of_a_block(shared_limiter())


@pytest.mark.parametrize("other", [{"api_key": "another-key"}, {"base_url": "https://other.whisul.test"}])
def test_another_key_or_base_url_has_a_rate_limiter_of_its_own(other: dict[str, object]) -> None:
    block(shared_limiter())
    assert not knows_of_a_block(shared_limiter(**other))


def test_two_connections_with_the_same_key_share_one_rate_limiter() -> None:
    block(shared_limiter())
    assert knows_of_a_block(shared_limiter(timeout=5.0, verify=False))


def test_processes_at_the_same_time_lose_no_request_number(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = (
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for _ in range(500):\n    with shared.locked() as limiter:\n        limiter.on_request(NOON)"
    )
    processes = [start(code) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)
    assert [process.wait(60) for process in processes] == [0] * 4
    with shared_limiter().locked() as limiter:
        assert limiter.on_request(NOON) == 4 * 500 + 1


def test_a_process_that_is_killed_with_the_lock_releases_it(start: Callable[..., subprocess.Popen[str]]) -> None:
    block(shared_limiter())
    process = start(HOLD)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    began = time.monotonic()
    assert knows_of_a_block(shared_limiter())
    assert time.monotonic() - began < shared_rate_limiter.LOCK_TIMEOUT


def test_the_lock_of_a_stopped_process_is_waited_for_only_until_the_lock_timeout(
    start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_rate_limiter, "LOCK_TIMEOUT", 0.05)
    process = start(HOLD)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    shared = shared_limiter()
    block(shared)
    assert knows_of_a_block(shared)
    process.kill()
    process.wait()
    # It continued with a rate limiter of its own, and did not write to the locked file.
    assert not knows_of_a_block(shared_limiter())


def test_an_error_while_the_lock_is_held_releases_it_and_writes_nothing() -> None:
    def fail() -> None:
        with shared_limiter().locked() as limiter:
            limiter.on_request(NOON)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with shared_limiter().locked() as limiter:
        assert limiter.on_request(NOON) == 1


def test_a_full_disk_raises_no_error(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "block(shared)\nassert knows_of_a_block(shared)"
    )
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"rate": 1}', "\x00" * 10, "\xff"),
        *(json.dumps({**A_BLOCK, **wrong}) for wrong in ({"step": "1"}, {"step": 5}, {"step": -1}, {"rate": 0.0})),
    ],
)
def test_a_file_with_invalid_content_is_replaced_by_a_new_state(content: str) -> None:
    block(shared_limiter())
    the_file().write_text(json.dumps(A_BLOCK))
    assert knows_of_a_block(shared_limiter())
    the_file().write_text(content, encoding="latin-1")
    assert not knows_of_a_block(shared_limiter())
    block(shared_limiter())
    assert knows_of_a_block(shared_limiter())


def test_the_file_does_not_grow() -> None:
    for _ in range(3):
        block(shared_limiter())
    size = the_file().stat().st_size
    the_file().write_text(the_file().read_text() + " " * 1000)
    with shared_limiter().locked():
        pass
    assert the_file().stat().st_size <= size + 20


def test_only_the_user_may_read_the_file_and_it_has_no_key() -> None:
    block(shared_limiter())
    file = the_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert SETTINGS.api_key not in str(file) + file.read_text()
    assert set(json.loads(file.read_text())) == set(RateLimiter().as_dict())


def taken_by_a_file(folder: Path) -> None:
    folder.write_text("")


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def somewhere_else(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)


def linked_file(folder: Path) -> None:
    folder.mkdir(0o700)
    (folder / f"{SETTINGS.fingerprint[:32]}.json").symlink_to(folder.parent / "target")


@pytest.mark.parametrize("spoil", [taken_by_a_file, open_to_others, somewhere_else, linked_file])
def test_without_a_safe_folder_each_process_has_a_rate_limiter_of_its_own(
    spoil: Callable[[Path], None], task_log: Callable[[], list[str]]
) -> None:
    spoil(Path(tempfile.gettempdir()) / f"airflow-provider-whisul-{os.getuid()}")
    shared = shared_limiter()
    block(shared)
    assert knows_of_a_block(shared)
    assert not knows_of_a_block(shared_limiter())
    assert not list(Path(tempfile.gettempdir()).rglob("target"))
    # Each logs it once.
    assert sum("by itself" in line for line in task_log()) == 2


def test_a_configured_limit_replaces_a_rate_from_the_file() -> None:
    with shared_limiter().locked() as limiter:
        assert limiter.throttle.rate == INITIAL_RATE
    with shared_limiter(max_requests_per_second=8.0).locked() as limiter:
        assert limiter.throttle.rate == 8
    with shared_limiter(max_requests_per_second=1.0).locked() as limiter:
        assert limiter.throttle.rate == 1
    block(shared_limiter(max_requests_per_second=8.0))
    # A rate that was too much stays known.
    with shared_limiter(max_requests_per_second=8.0).locked() as limiter:
        assert limiter.throttle.rate == 4


# --- acquire and on_response


def test_requests_are_permitted_at_the_initial_rate(clock: FakeClock) -> None:
    shared = shared_limiter(clock.clock)
    sent = []
    for _ in range(4):
        shared.acquire(60)
        sent.append(clock.now - NOON)
    assert sent == pytest.approx([0, 0.5, 1.0, 1.5])


def test_a_request_waits_for_the_cooldown_and_is_the_only_probe(clock: FakeClock) -> None:
    first, second = shared_limiter(clock.clock), shared_limiter(clock.clock)
    assert first.on_response(first.acquire(60), throttled=True) == 5
    probe = second.acquire(60)
    assert clock.now == NOON + 5
    # While the probe has no response, no other process sends a request.
    with pytest.raises(WhisulRateLimitError):
        first.acquire(10)
    assert clock.now <= NOON + 5 + 10 + 1
    assert second.on_response(probe, throttled=False) is None
    first.acquire(1)


def test_a_request_that_waits_notices_that_another_process_ended_the_block(clock: FakeClock) -> None:
    first, second = shared_limiter(clock.clock), shared_limiter(clock.clock)
    first.on_response(first.acquire(60), throttled=True)
    probe = second.acquire(60)
    probed_at = clock.now

    def end_the_block(_: float) -> None:
        if clock.now >= probed_at + 3 and knows_of_a_block(second):
            second.on_response(probe, throttled=False)

    clock.on_sleep = end_the_block
    # It is not refused although the probe may take longer than this.
    first.acquire(10)
    assert clock.now - probed_at <= 5


def test_a_request_that_is_not_permitted_in_time_is_refused_at_once_with_the_cooldown(clock: FakeClock) -> None:
    shared = shared_limiter(clock.clock)
    shared.on_response(shared.acquire(60), throttled=True, retry_after=120.0)
    with pytest.raises(WhisulRateLimitError, match="Nothing was sent") as raised:
        shared.acquire(119)
    assert (raised.value.cooldown, raised.value.retry_after, raised.value.http_status) == (120, None, None)
    assert clock.slept == []
    shared.acquire(120)
    assert clock.now == pytest.approx(NOON + 120)


def test_a_refused_request_takes_no_permit_from_the_next_one(clock: FakeClock) -> None:
    shared = shared_limiter(clock.clock)
    number = shared.acquire(60)
    with pytest.raises(WhisulRateLimitError):
        shared.acquire(0)
    assert shared.acquire(60) == number + 1


@pytest.mark.parametrize(("throttled", "cooldown"), [(True, 5), (False, None), (None, None)])
def test_on_response_returns_a_cooldown_only_after_a_429(
    clock: FakeClock, throttled: bool | None, cooldown: float | None
) -> None:
    shared = shared_limiter(clock.clock)
    assert shared.on_response(shared.acquire(60), throttled) == cooldown


def test_a_block_and_its_end_are_logged(clock: FakeClock, task_log: Callable[[], list[str]]) -> None:
    shared = shared_limiter(clock.clock)
    shared.on_response(shared.acquire(60), throttled=True)
    shared.on_response(shared.acquire(60), throttled=False)
    lines = [line for line in task_log() if "Whisul" in line]
    assert "No request is sent before 2026-02-17 12:00:05 UTC" in lines[0]
    assert "block of this API key is over" in lines[1]

"""The rate limiter that the processes of a machine share in a file."""

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
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.rate_limit import file_store, limiter_store
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.limiter_store import StoreUnavailableError
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from tests.support.clock import NOON, FakeClock

SETTINGS = ConnectionSettings("https://api.whisul.test", "a-secret-key")

#: Code that holds the lock for as long as its process lives.
HOLD = "store.update(lambda limiter, now: (print('held', flush=True), sys.stdin.read()))"

A_BLOCK = RateLimiter()
A_BLOCK.block.active = True

Start = Callable[..., subprocess.Popen[str]]


def new_store(**others: object) -> FileStore:
    settings = {"base_url": SETTINGS.base_url, "api_key": SETTINGS.api_key, **others}
    return FileStore(ConnectionSettings(**settings))


def block(limiter: RateLimiter, now: float) -> None:
    limiter.last_request += 1
    limiter.on_response(now, limiter.last_request, throttled=True)


def take_number(limiter: RateLimiter, now: float) -> int:
    limiter.last_request += 1
    return limiter.last_request


def is_blocked(limiter: RateLimiter, now: float) -> bool:
    return limiter.block.active


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that runs some code with ``store``, a store of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        code = f"import sys\nfrom tests.unit.rate_limit.test_file_store import *\nstore = new_store()\n{code}"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
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


def wait_until_it_holds_the_lock(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stdout.readline() == "held\n"


# --- one state for all


def test_a_block_that_one_process_met_is_known_to_the_next_one(start: Start) -> None:
    assert start("store.update(block)").wait(100) == 0
    assert new_store().update(is_blocked)


@pytest.mark.parametrize("other", [{"api_key": "another-key"}, {"base_url": "https://other.whisul.test"}])
def test_another_key_or_base_url_has_a_rate_limiter_of_its_own(other: dict[str, object]) -> None:
    new_store().update(block)
    assert not new_store(**other).update(is_blocked)


def test_two_connections_with_the_same_key_share_one_rate_limiter() -> None:
    new_store().update(block)
    assert new_store(timeout=5.0, verify=False).update(is_blocked)


def test_the_time_is_the_monotonic_one_which_no_wall_clock_moves(clock: FakeClock) -> None:
    assert FileStore(SETTINGS, clock.clock).update(lambda limiter, now: now) == clock.clock.monotonic() != NOON + 1
    before = time.monotonic()
    assert before <= new_store().update(lambda limiter, now: now) <= time.monotonic()


def test_processes_at_the_same_time_lose_no_decision(start: Start) -> None:
    code = (
        "print('held', flush=True)\nsys.stdin.readline()\nfile_store.LOCK_TIMEOUT = 100\nfor _ in range(500):\n"
        "    store.update(take_number)"
    )
    processes = [start(code) for _ in range(4)]
    for process in processes:
        wait_until_it_holds_the_lock(process)
    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)
    assert [process.wait(100) for process in processes] == [0] * 4
    assert new_store().update(take_number) == 4 * 500 + 1


def test_threads_of_a_process_lose_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may make a thread wait longer than a second.
    monkeypatch.setattr(file_store, "LOCK_TIMEOUT", 100)
    store = new_store()
    threads = [Thread(target=lambda: [store.update(take_number) for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.update(take_number) == 401


def test_after_a_reset_nothing_is_known() -> None:
    other = new_store()
    other.update(block)
    new_store().reset()
    assert not other.update(is_blocked)


def test_a_state_of_another_version_is_in_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    new_store().update(block)
    monkeypatch.setattr(limiter_store, "STATE_VERSION", 99)
    assert not new_store().update(is_blocked)
    monkeypatch.undo()


# --- the lock


def test_a_task_that_is_ended_while_it_writes_leaves_a_state_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store()
    store.update(block)
    store.update(lambda limiter, now: limiter.durations.add([100.0] * 50))

    class Ended(BaseException):
        pass

    write, truncate = os.pwrite, os.ftruncate

    def end_after(function: Callable[..., int | None]) -> Callable[..., int]:
        def ended(*arguments: object) -> int:
            function(*arguments)
            raise Ended

        return ended

    # As Airflow ends a task at its timeout: between any two steps.
    for name, function in (("pwrite", write), ("ftruncate", truncate)):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, end_after(function))
            with suppress(Ended):
                store.update(lambda limiter, now: limiter.durations.seconds.clear())
        assert store.update(is_blocked)


def test_a_process_that_is_killed_with_the_lock_releases_it(start: Start) -> None:
    new_store().update(block)
    process = start(HOLD)
    wait_until_it_holds_the_lock(process)
    process.kill()
    process.wait()
    began = time.monotonic()
    assert new_store().update(is_blocked)
    assert time.monotonic() - began < file_store.LOCK_TIMEOUT


def test_the_lock_of_a_stopped_process_is_waited_for_only_until_the_lock_timeout(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "LOCK_TIMEOUT", 0.05)
    process = start(HOLD)
    wait_until_it_holds_the_lock(process)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match=r"another process has held it for 0\.05 s\."):
        new_store().update(block)
    process.kill()
    process.wait()
    assert not new_store().update(is_blocked)


def test_an_error_in_a_decision_releases_the_lock_and_writes_nothing() -> None:
    def fail(limiter: RateLimiter, now: float) -> None:
        limiter.last_request += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        new_store().update(fail)
    assert new_store().update(take_number) == 1


# --- the file


@pytest.mark.parametrize(("room", "reason"), [(0, "File too large"), (100, "No space left")])
def test_a_full_disk_makes_the_store_unavailable(start: Start, room: int, reason: str) -> None:
    process = start(
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        f"with pytest.raises(StoreUnavailableError, match='{reason}'):\n    store.update(block)"
    )
    assert process.wait(100) == 0


def test_a_decision_that_changes_nothing_writes_nothing() -> None:
    store = new_store()
    store.update(block)
    store.path.chmod(0o600)
    before = store.path.stat().st_mtime_ns
    store.update(is_blocked)
    assert store.path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"rate": 1}', "\x00" * 10, "\xff", "[" * 50_000),
        *(json.dumps({**A_BLOCK.as_dict(), **wrong}) for wrong in ({"version": 99}, {"last_request": "1"})),
    ],
)
def test_a_file_with_invalid_content_is_replaced_by_a_new_state(content: str) -> None:
    store = new_store()
    store.update(take_number)
    store.path.write_text(json.dumps(A_BLOCK.as_dict()))
    assert store.update(is_blocked)
    store.path.write_text(content, encoding="latin-1")
    assert not store.update(is_blocked)
    store.update(block)
    assert store.update(is_blocked)


def test_the_file_does_not_grow() -> None:
    store = new_store()
    for _ in range(3):
        store.update(block)
    size = store.path.stat().st_size
    store.path.write_text(store.path.read_text() + " " * 1000)
    store.update(take_number)
    assert store.path.stat().st_size <= size + 20


def test_only_the_user_may_read_the_file_and_it_has_no_key() -> None:
    store = new_store()
    store.update(block)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert SETTINGS.api_key not in str(store.path) + store.path.read_text()
    assert SETTINGS.fingerprint not in str(store.path)
    assert set(json.loads(store.path.read_text())) == set(RateLimiter().as_dict())
    assert store.where == f"the file {store.path} of this machine"


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
    new_store().path.symlink_to(folder.parent / "target")


@pytest.mark.parametrize("spoil", [taken_by_a_file, open_to_others, somewhere_else, linked_file])
def test_a_folder_that_is_not_safe_makes_the_store_unavailable(spoil: Callable[[Path], None]) -> None:
    spoil(new_store().path.parent)
    with pytest.raises(StoreUnavailableError, match=r"\.$"):
        new_store().update(block)
    with pytest.raises(StoreUnavailableError):
        new_store().reset()
    assert not list(Path(tempfile.gettempdir()).rglob("target"))

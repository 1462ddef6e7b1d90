"""The pace that the task processes of a machine share."""

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

from airflow_provider_whisul import shared_pace
from airflow_provider_whisul.account import WhisulAccount
from airflow_provider_whisul.account_pace import START_RATE, AccountPace
from airflow_provider_whisul.shared_pace import SharedPace
from tests.support import NOON

ACCOUNT = WhisulAccount("https://api.whisul.test", "a-secret-key")


#: Takes the pace, and holds it for as long as the process lives.
HOLD = "with pace.held() as held:\n    print('held', flush=True)\n    sys.stdin.read()"

#: What a file may hold.
A_BLOCK = {**AccountPace().as_dict(), "_blocked": True}


def shared(**others: object) -> SharedPace:
    return SharedPace(WhisulAccount(**{"base_url": ACCOUNT.base_url, "api_key": ACCOUNT.api_key, **others}))


def block(pace: SharedPace) -> None:
    with pace.held() as held:
        held.answered(NOON, held.sent(NOON), True)


def knows_of_a_block(pace: SharedPace) -> bool:
    with pace.held() as held:
        return held.blocked


def the_file() -> Path:
    (file,) = Path(tempfile.gettempdir()).glob("airflow-provider-whisul-*/*.json")
    return file


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that runs some code with ``pace``."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.unit.test_shared_pace import *\npace = shared()\n{code}"],
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


def test_what_one_hook_learns_the_next_one_knows() -> None:
    block(shared())
    assert knows_of_a_block(shared())


def test_what_one_process_learns_the_next_one_knows(start: Callable[..., subprocess.Popen[str]]) -> None:
    assert start("block(pace)").wait(30) == 0
    assert knows_of_a_block(shared())


@pytest.mark.parametrize("other", [{"api_key": "another-key"}, {"base_url": "https://other.whisul.test"}])
def test_another_account_is_another_matter(other: dict[str, object]) -> None:
    block(shared())
    assert not knows_of_a_block(shared(**other))


def test_another_connection_with_the_same_key_is_the_same_account() -> None:
    block(shared())
    assert knows_of_a_block(shared(timeout=5.0, verify=False))


def test_many_processes_at_once_lose_nothing(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = (
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for _ in range(500):\n    with pace.held() as held:\n        held.sent(NOON)"
    )
    processes = [start(code) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)
    assert [process.wait(60) for process in processes] == [0] * 4
    with shared().held() as held:
        assert held.sent(NOON) == 4 * 500 + 1


def test_a_process_that_is_killed_in_the_middle_holds_nobody_up(start: Callable[..., subprocess.Popen[str]]) -> None:
    block(shared())
    process = start(HOLD)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    began = time.monotonic()
    assert knows_of_a_block(shared())
    assert time.monotonic() - began < shared_pace.LOCK_PATIENCE


def test_a_process_that_is_stopped_in_the_middle_is_not_waited_for_forever(
    start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pace, "LOCK_PATIENCE", 0.05)
    process = start(HOLD)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    pace = shared()
    block(pace)
    assert knows_of_a_block(pace)
    process.kill()
    process.wait()
    # It went on alone, and took nothing from who held it.
    assert not knows_of_a_block(shared())


def test_an_error_while_it_is_held_gives_it_back_unchanged() -> None:
    def fail() -> None:
        with shared().held() as held:
            held.sent(NOON)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with shared().held() as held:
        assert held.sent(NOON) == 1


def test_a_full_disk_ends_no_task(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nblock(pace)\nassert knows_of_a_block(pace)"
    )
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"_rate": 1}', "\x00" * 10, "\xff"),
        *(json.dumps({**A_BLOCK, **wrong}) for wrong in ({"_rung": "1"}, {"_rung": 5}, {"_rung": -1}, {"_rate": 0.0})),
    ],
)
def test_a_file_that_makes_no_sense_is_begun_anew(content: str) -> None:
    block(shared())
    the_file().write_text(json.dumps(A_BLOCK))
    assert knows_of_a_block(shared())
    the_file().write_text(content, encoding="latin-1")
    assert not knows_of_a_block(shared())
    block(shared())
    assert knows_of_a_block(shared())


def test_it_grows_no_larger() -> None:
    for _ in range(3):
        block(shared())
    size = the_file().stat().st_size
    the_file().write_text(the_file().read_text() + " " * 1000)
    with shared().held():
        pass
    assert the_file().stat().st_size <= size + 20


def test_it_is_the_users_own_and_names_no_key() -> None:
    block(shared())
    file = the_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert ACCOUNT.api_key not in str(file) + file.read_text()
    assert set(json.loads(file.read_text())) == set(AccountPace().as_dict())


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
    (folder / f"{ACCOUNT.fingerprint[:32]}.json").symlink_to(folder.parent / "target")


@pytest.mark.parametrize("spoil", [taken_by_a_file, open_to_others, somewhere_else, linked_file])
def test_without_a_safe_place_each_process_has_its_own(
    spoil: Callable[[Path], None], task_log: Callable[[], list[str]]
) -> None:
    spoil(Path(tempfile.gettempdir()) / f"airflow-provider-whisul-{os.getuid()}")
    pace = shared()
    block(pace)
    assert knows_of_a_block(pace)
    assert not knows_of_a_block(shared())
    assert not list(Path(tempfile.gettempdir()).rglob("target"))
    # Said once by each.
    assert sum("for itself" in line for line in task_log()) == 2


def test_a_rate_that_the_user_tells_holds_from_then_on() -> None:
    with shared().held() as held:
        assert held.rate == START_RATE
    with shared(max_requests_per_second=8.0).held() as held:
        assert held.rate == 8
    with shared(max_requests_per_second=1.0).held() as held:
        assert held.rate == 1
    block(shared(max_requests_per_second=8.0))
    # What was too much is remembered all the same.
    with shared(max_requests_per_second=8.0).held() as held:
        assert held.rate == 4

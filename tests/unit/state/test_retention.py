"""Old records are removed once a day, by one of those who share a folder."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulStateError
from airflow_provider_whisul.state import retention
from airflow_provider_whisul.state.folder_state_store import FolderStateStore, TaskInstanceKey
from airflow_provider_whisul.state.retention import sweep_daily
from airflow_provider_whisul.storage.documents import LocalDocuments
from airflow_provider_whisul.storage.object_documents import state_errors
from tests.support.clock import NOON, FakeClock
from tests.support.documents import at_once

DAY = 86_400.0
TODAY = f"{datetime.fromtimestamp(NOON, UTC):%Y-%m-%d}"


class CountingFolder(LocalDocuments):
    """Counts the listings of a folder, which are what is slow."""

    listings = 0

    def names(self, folder: str) -> list[str]:
        type(self).listings += 1
        return super().names(folder)

    def delete_older(self, folder: str, before: float) -> int:
        type(self).listings += 1
        return super().delete_older(folder, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingFolder:
    monkeypatch.setattr(CountingFolder, "listings", 0)
    another_process()
    return CountingFolder(tmp_path)


def another_process() -> None:
    """Forget what this process knows of the day."""
    retention._asked.clear()


def write(folder: LocalDocuments, name: str, age: float, now: float = NOON) -> None:
    folder.write(name, b"{}")
    os.utime(folder.path / name, (now - age, now - age))


def files(folder: LocalDocuments, under: str) -> list[str]:
    return sorted(path.name for path in (folder.path / under).rglob("*") if path.is_file())


def test_records_expire_30_days_after_their_last_write(folder: CountingFolder) -> None:
    write(folder, "records/old.json", 30 * DAY + 1)
    write(folder, "records/young.json", 30 * DAY - 1)
    write(folder, "records/old.json.0123abcd.part", 31 * DAY)
    sweep_daily(folder, NOON)
    assert files(folder, "records") == ["young.json"]


def test_days_of_the_ledger_expire_after_400_days_by_their_names(folder: CountingFolder) -> None:
    # 17 February 2026 less 400 days is 13 January 2025.
    for day in ("2024-01-01", "2025-01-12", "2025-01-13", TODAY, "notes"):
        write(folder, f"ledger/account/{day}/s.json", 0)
        write(folder, f"ledger/other/{day}/s.json", 1_000 * DAY)
    sweep_daily(folder, NOON)
    for account in ("account", "other"):
        assert sorted(folder.names(f"ledger/{account}")) == sorted(["2025-01-13", TODAY, "notes"])


def test_nothing_else_is_removed(folder: CountingFolder) -> None:
    write(folder, "README", 1_000 * DAY)
    write(folder, "others/2001-01-01/file", 1_000 * DAY)
    sweep_daily(folder, NOON)
    assert files(folder, ".") == sorted([TODAY, "README", "file"])


def test_one_of_those_who_share_a_folder_removes_old_files_once_a_day(folder: CountingFolder) -> None:
    sweep_daily(folder, NOON)
    listings = folder.listings
    assert listings > 0
    for _ in range(3):
        another_process()
        sweep_daily(folder, NOON + 3_600)
    assert folder.listings == listings
    write(folder, "records/old.json", 40 * DAY)
    another_process()
    sweep_daily(folder, NOON + DAY)
    assert files(folder, "records") == []


def test_the_marks_of_past_days_are_removed(folder: CountingFolder) -> None:
    for day in range(20):
        another_process()
        sweep_daily(folder, NOON + day * DAY)
        for name in folder.names("swept"):
            written = datetime.fromisoformat(f"{name}T12:00:00+00:00").timestamp()
            os.utime(folder.path / "swept" / name, (written, written))
    assert len(folder.names("swept")) <= 9


def test_a_process_asks_once_a_day(folder: CountingFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr(CountingFolder, "read", lambda self, name: reads.append(name) or b"")
    for _ in range(5):
        sweep_daily(folder, NOON)
    assert reads == [f"swept/{TODAY}"]


def test_of_many_that_begin_the_day_at_once_one_removes_old_files(folder: CountingFolder) -> None:
    for number in range(300):
        write(folder, f"records/{number}.json", 40 * DAY)

    def sweep(_: int) -> None:
        another_process()
        sweep_daily(folder, NOON)

    at_once(16, sweep)
    assert files(folder, "records") == []
    # One listing of the records, one of the ledger, one of the marks.
    assert folder.listings == 3


def test_two_days_sweeps_may_run_at_once(folder: CountingFolder) -> None:
    for number in range(500):
        write(folder, f"records/{number}.json", 40 * DAY)
        write(folder, f"ledger/account/2020-01-{number % 28 + 1:02d}/{number}.json", 0)
    at_once(8, lambda index: sweep_daily(folder, NOON + index * DAY))
    assert files(folder, "records") == []
    assert folder.names("ledger/account") == []


def test_ten_thousand_records_are_swept_in_seconds(folder: CountingFolder) -> None:
    records = folder.path / "records"
    records.mkdir()
    for number in range(10_000):
        file = records / f"{number}.json"
        file.touch()
        if number % 2:
            os.utime(file, (NOON - 40 * DAY, NOON - 40 * DAY))
    # Of this thread's own: the machine may be busy with others.
    started = time.thread_time()
    sweep_daily(folder, NOON)
    assert time.thread_time() - started < 5
    assert len(files(folder, "records")) == 5_000


def test_a_store_that_fails_meanwhile_is_a_warning(
    folder: CountingFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> int:
        raise WhisulStateError("Could not list records.")

    monkeypatch.setattr(CountingFolder, "delete_older", fail)
    sweep_daily(folder, NOON)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "Old records could not be removed, which does no harm today. Could not list records."


def test_a_folder_that_refuses_the_removal_is_no_warning_of_a_song_paid_for_twice(
    folder: CountingFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> int:
        with state_errors("list records"):
            raise PermissionError("no")

    monkeypatch.setattr(CountingFolder, "delete_older", fail)
    sweep_daily(folder, NOON)
    (line,) = caplog.messages
    assert "Could not list records: no (PermissionError)." in line
    assert "paid for" not in line


def test_what_was_removed_is_logged(folder: CountingFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "airflow_provider_whisul")
    sweep_daily(folder, NOON)
    assert caplog.messages == []
    write(folder, "records/old.json", 40 * DAY)
    write(folder, "ledger/account/2020-01-01/s.json", 0)
    sweep_daily(folder, NOON + DAY)
    (line,) = caplog.messages
    assert line.startswith("Removed 1 file not written for 30 days and 1 day older than 400 days of the ledger from")


def test_a_store_that_replaces_what_it_must_only_create_is_warned_of(
    folder: CountingFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(CountingFolder, "create", lambda self, name, data: self.write(name, data) is None)
    sweep_daily(folder, NOON)
    assert [line for line in caplog.messages if "both may submit and pay" in line]


def test_a_record_is_written_before_old_ones_are_removed(folder: CountingFolder, clock: FakeClock) -> None:
    write(folder, "records/old.json", 40 * DAY)
    store = FolderStateStore(folder, TaskInstanceKey("songs", "run", "song", -1), clock=clock.clock)
    assert store.get("whisul_song") is None
    assert files(folder, "records") == ["old.json"]
    store.set("whisul_song", {"version": 1})
    assert files(folder, "records") == [f"{store.task.digest}.whisul_song.json"]

"""The record of a task instance in a folder: whose it is, and what is no record."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_whisul.exceptions import WhisulStateUnreadableError
from airflow_provider_whisul.state.folder_state_store import FolderStateStore, TaskInstanceKey
from airflow_provider_whisul.state.state_store import read_versioned, versioned
from airflow_provider_whisul.storage.documents import LocalDocuments

TASK = TaskInstanceKey("songs", "scheduled__2026-11-26T00:00:00+00:00", "song", -1)


@pytest.fixture
def folder(tmp_path: Path) -> LocalDocuments:
    return LocalDocuments(tmp_path)


@pytest.fixture
def store(folder: LocalDocuments) -> FolderStateStore:
    return FolderStateStore(folder, TASK)


def records(folder: LocalDocuments) -> list[Path]:
    return sorted((folder.path / "records").iterdir())


def context(**names: Any) -> Any:
    task = {"dag_id": "songs", "run_id": "a run", "task_id": "song", "map_index": -1, **names}
    return {"ti": SimpleNamespace(**task)}


def test_a_value_is_kept_replaced_and_removed(store: FolderStateStore, folder: LocalDocuments) -> None:
    assert store.get("whisul_song") is None
    store.set("whisul_song", versioned({"job_id": None}))
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    assert read_versioned(FolderStateStore(folder, TASK), "whisul_song") == {"version": 1, "job_id": "job-1"}
    store.delete("whisul_song")
    store.delete("whisul_song")
    assert store.get("whisul_song") is None
    assert records(folder) == []


def test_a_file_says_whose_it_is_and_is_found_by_its_location(store: FolderStateStore, folder: LocalDocuments) -> None:
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    (file,) = records(folder)
    assert file.name == f"{TASK.digest}.whisul_song.json"
    assert store.location("whisul_song") == f"file://{file}"
    assert json.loads(file.read_text()) == {
        "dag_id": "songs",
        "run_id": "scheduled__2026-11-26T00:00:00+00:00",
        "task_id": "song",
        "map_index": -1,
        "value": {"version": 1, "job_id": "job-1"},
    }


@pytest.mark.parametrize(
    "run_id",
    [
        "manual__2026-11-26T03:00:00+00:00",
        "../../etc/passwd",
        "a/b",
        "..",
        "",
        "nacht\u00a0füllt 夜 🎵",
        "lone \ud800 surrogate",
        "new\nline \x00 null",
        "r" * 5_000,
        "夜" * 250,
    ],
)
def test_any_run_id_makes_one_file_directly_in_the_folder(run_id: str, folder: LocalDocuments) -> None:
    store = FolderStateStore(folder, TaskInstanceKey("songs", run_id, "group.song", 3))
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    assert store.get("whisul_song") == {"version": 1, "job_id": "job-1"}
    (file,) = records(folder)
    assert file.name.isascii()
    assert len(file.name) < 80


def test_task_instances_that_differ_in_any_name_have_records_of_their_own(folder: LocalDocuments) -> None:
    zero, loop = UUID(int=0), UUID(int=7)
    contexts = [
        context(),
        context(dag_id="other"),
        context(run_id="other"),
        context(task_id="other"),
        context(map_index=0),
        context(map_index=1),
        # Names that read alike when they are put together.
        context(dag_id="songsa", run_id=" run"),
        # In a loop (Airflow 3.4) a task runs several times with one map index.
        context(region_id=loop, region_index=0),
        context(region_id=loop, region_index=1),
        context(region_id=UUID(int=8), region_index=0),
    ]
    for number, other in enumerate(contexts):
        FolderStateStore(folder, TaskInstanceKey.from_context(other)).set("whisul_song", {"number": number})
    for number, other in enumerate(contexts):
        store = FolderStateStore(folder, TaskInstanceKey.from_context(other))
        assert store.get("whisul_song") == {"number": number}
    # Outside of loops 3.4 says so with a zero, and what 3.3 has recorded is found.
    same = context(region_id=zero, region_index=-1)
    assert TaskInstanceKey.from_context(same) == TaskInstanceKey.from_context(context(map_index=None))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"dag_id": "songs"',
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"value": {"version": 1}}',
        b"[" * 100_000,
        b"\x00" * 200,
    ],
)
def test_a_damaged_file_is_an_error_and_never_reads_as_nothing(
    content: bytes, store: FolderStateStore, folder: LocalDocuments
) -> None:
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    (file,) = records(folder)
    file.write_bytes(content)
    with pytest.raises(WhisulStateUnreadableError, match="Nothing was sent") as caught:
        store.get("whisul_song")
    assert str(file) in str(caught.value)
    assert "remove the record and clear the task" in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "job-1", 3])
def test_a_value_that_is_no_object_is_an_error(value: Any, store: FolderStateStore, folder: LocalDocuments) -> None:
    folder.write(f"records/{TASK.digest}.whisul_song.json", json.dumps({**TASK.as_dict(), "value": value}).encode())
    with pytest.raises(WhisulStateUnreadableError):
        store.get("whisul_song")


def test_a_file_that_was_copied_from_another_task_is_an_error(store: FolderStateStore, folder: LocalDocuments) -> None:
    FolderStateStore(folder, TaskInstanceKey("songs", "other", "song", -1)).set("whisul_song", versioned({}))
    (file,) = records(folder)
    file.rename(file.with_name(f"{TASK.digest}.whisul_song.json"))
    with pytest.raises(WhisulStateUnreadableError, match="record of another task"):
        store.get("whisul_song")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"version": 2, "job_id": "job-1"}, "of version 2, and this provider reads version 1"),
        ({"version": "1"}, "of version 1, and"),
        ({"version": None}, "of version None"),
        ({"job_id": "job-1"}, "form is not the one"),
        ({}, "form is not the one"),
    ],
)
def test_a_value_of_another_version_is_an_error_that_names_the_file(
    value: dict[str, object], problem: str, store: FolderStateStore, folder: LocalDocuments
) -> None:
    store.set("whisul_song", value)
    (file,) = records(folder)
    with pytest.raises(WhisulStateUnreadableError, match=problem) as caught:
        read_versioned(store, "whisul_song")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("key", ["", "a/b", "..", "a.b", "ä", "k" * 81, "a\n"])
def test_a_key_that_is_no_word_is_refused(key: str, store: FolderStateStore) -> None:
    with pytest.raises(ValueError, match="is no key"):
        store.get(key)


def test_a_value_that_is_no_json_is_refused_and_the_old_one_stays(store: FolderStateStore) -> None:
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.set("whisul_song", {"submitted_at": float("nan")})
    assert store.get("whisul_song") == {"version": 1, "job_id": "job-1"}


def test_the_notice_is_logged_once_when_the_first_value_of_a_task_is_written(
    folder: LocalDocuments, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airflow_provider_whisul")

    def a_try() -> int:
        caplog.clear()
        store = FolderStateStore(folder, TASK, "Kept on this machine.")
        store.get("whisul_song")
        store.set("whisul_song", versioned({}))
        store.set("whisul_other", versioned({}))
        return [record.getMessage() for record in caplog.records].count("Kept on this machine.")

    assert [a_try(), a_try()] == [1, 0]

"""What must outlive a task, in S3: records and files that are created once, with s3fs, against moto's server."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulStateError, WhisulStateUnreadableError
from airflow_provider_whisul.state import retention
from airflow_provider_whisul.state.folder_state_store import FolderStateStore
from airflow_provider_whisul.state.retention import sweep_daily
from airflow_provider_whisul.state.state_path import _open, state_folder
from airflow_provider_whisul.state.state_store import read_versioned, task_state_store, versioned
from airflow_provider_whisul.storage.documents import DocumentFolder, ObjectDocuments
from tests.support.airflow import TaskContext
from tests.support.documents import assert_files_are_kept, at_once, create_in_threads, of_own_client
from tests.support.s3 import list_objects

DAY = 86_400.0


@pytest.fixture
def folder(s3: Any, monkeypatch: pytest.MonkeyPatch) -> DocumentFolder:
    """The folder that the configuration names."""
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "s3://songs_store@songs/whisul")
    retention._asked.clear()
    _open.cache_clear()
    folder = state_folder()
    assert folder is not None
    return folder


def count_calls(folder: DocumentFolder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each request to S3."""
    calls: list[str] = []
    assert isinstance(folder, ObjectDocuments)
    call = folder.fs._call_s3

    async def counted(method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await call(method, *args, **kwargs)

    monkeypatch.setattr(folder.fs, "_call_s3", counted)
    return calls


def test_a_folder_in_a_bucket_keeps_files(folder: DocumentFolder, s3: Any) -> None:
    assert_files_are_kept(folder)
    assert list_objects(s3) == {}


def test_a_record_is_kept_where_the_configuration_says(folder: DocumentFolder, s3: Any) -> None:
    store = task_state_store(TaskContext())
    assert isinstance(store, FolderStateStore)
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    location = f"s3://songs/whisul/records/{store.task.digest}.whisul_song.json"
    assert store.location("whisul_song") == location
    assert location.removeprefix("s3://songs/") in list_objects(s3)
    assert read_versioned(FolderStateStore(of_own_client(folder), store.task), "whisul_song") == {
        "version": 1,
        "job_id": "job-1",
    }
    store.delete("whisul_song")
    assert store.get("whisul_song") is None


def test_a_damaged_record_is_an_error_that_names_the_object(folder: DocumentFolder, s3: Any) -> None:
    store = task_state_store(TaskContext())
    assert isinstance(store, FolderStateStore)
    key = store.location("whisul_song").removeprefix("s3://songs/")
    for content in (b"", b"{", json.dumps({**store.task.as_dict(), "value": {"version": 2}}).encode()):
        s3.put_object(Bucket="songs", Key=key, Body=content)
        with pytest.raises(WhisulStateUnreadableError, match=f"s3://songs/{key}"):
            read_versioned(store, "whisul_song")


def test_of_twenty_threads_that_create_an_object_one_does(folder: DocumentFolder) -> None:
    folders = [of_own_client(folder) for _ in range(20)]
    for entry in range(10):
        created = at_once(20, lambda index, e=entry: folders[index].create(f"ledger/{e}", f"{index}".encode()))
        assert sum(created) == 1
        assert folder.read(f"ledger/{entry}") == f"{created.index(True)}".encode()


def test_of_twenty_that_create_an_object_in_four_processes_one_does(folder: DocumentFolder) -> None:
    # Not forked: this process has threads, whose locks a child would find held.
    spawn = multiprocessing.get_context("spawn")
    barrier, created = spawn.Barrier(4), spawn.Queue()
    arguments = (5, "ledger/entry", barrier, created)
    processes = [spawn.Process(target=create_in_threads, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    results = [created.get(timeout=110) for _ in range(20)]
    for process in processes:
        process.join()
    assert sorted(results) == [False] * 19 + [True]
    assert folder.read("ledger/entry") == b"content"


def test_a_client_that_is_too_old_checks_and_then_writes(folder: DocumentFolder) -> None:
    assert isinstance(folder, ObjectDocuments)
    old = ObjectDocuments(folder.url, folder.fs, folder.path, True, None)
    assert [old.create("ledger/entry", content) for content in (b"first", b"second")] == [True, False]
    assert folder.read("ledger/entry") == b"first"


def test_a_bucket_that_is_gone_is_an_error_and_not_an_empty_folder(folder: DocumentFolder, s3: Any) -> None:
    s3.delete_bucket(Bucket="songs")
    try:
        for act in (
            lambda: folder.read("records/a"),
            lambda: folder.write("records/a", b""),
            lambda: folder.create("records/a", b""),
        ):
            with pytest.raises(WhisulStateError, match="s3://songs/whisul/records/a"):
                act()
    finally:
        s3.create_bucket(Bucket="songs")


def test_a_store_that_does_not_respond_is_an_error(folder: DocumentFolder) -> None:
    import s3fs

    client = s3fs.S3FileSystem(
        key="testing",
        secret="testing",
        client_kwargs={"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"},
        config_kwargs={"retries": {"max_attempts": 0}},
        skip_instance_cache=True,
    )
    client.retries = 1
    with pytest.raises(WhisulStateError, match="read s3://songs/whisul/records/a"):
        ObjectDocuments("s3://songs/whisul", client, "songs/whisul", True).read("records/a")


def test_old_records_expire_in_few_requests(
    folder: DocumentFolder, s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airflow_provider_whisul")
    for number in range(50):
        s3.put_object(Bucket="songs", Key=f"whisul/records/{number}.json", Body=b"{}")
        s3.put_object(Bucket="songs", Key=f"whisul/ledger/account/2020-01-0{number % 9 + 1}/{number}.json", Body=b"{}")
    s3.put_object(Bucket="songs", Key="whisul/other", Body=b"")
    calls = count_calls(folder, monkeypatch)
    sweep_daily(folder, time.time() + 29 * DAY)
    assert sum(key.startswith("whisul/records/") for key in list_objects(s3)) == 50
    retention._asked.clear()
    calls.clear()
    sweep_daily(folder, time.time() + 31 * DAY)
    assert not any(key.startswith(("whisul/records/", "whisul/ledger/")) for key in list_objects(s3))
    assert "whisul/other" in list_objects(s3)
    assert len(calls) < 50
    assert any("Removed 50 files" in line for line in caplog.messages)


def test_a_file_that_another_machine_has_written_since_a_listing_is_read(folder: DocumentFolder) -> None:
    other = of_own_client(folder)
    folder.write("records/a", b"old")
    assert folder.names("records") == ["a"]
    other.write("records/a", b"new and longer")
    other.write("records/b", b"another")
    assert (folder.read("records/a"), folder.read("records/b")) == (b"new and longer", b"another")
    other.delete("records/a")
    assert folder.read("records/a") is None


def test_a_read_a_write_and_a_creation_are_one_request_each(
    folder: DocumentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(folder, monkeypatch)
    folder.read("records/a")
    folder.write("records/a", b"content")
    folder.read("records/a")
    folder.create("records/a", b"content")
    folder.create("records/b", b"content")
    folder.delete("records/b")
    assert calls == ["get_object", "put_object", "get_object", "put_object", "put_object", "delete_object"]

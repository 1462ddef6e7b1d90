"""Two transfers of the same songs into the same folder at once, as of a zombie worker and its task's retry."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_whisul.exceptions import WhisulStorageError
from airflow_provider_whisul.storage.new_file import NewFile
from airflow_provider_whisul.storage.object_store import ObjectStore
from tests.integration.storage.helpers import (
    PNG,
    WAV,
    MediaHost,
    Song,
    Transfer,
    assert_complete,
    check_files,
    file_names,
    respond,
)
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock

ROUNDS = 30


@pytest.fixture
def songs(host: MediaHost) -> list[Song]:
    host.responses |= {"/song": respond(200, WAV), "/cover": respond(200, PNG)}
    return [host.song(f"job-{index}", image_url=f"{host.url}/cover") for index in range(4)]


def run_at_once(*runs: Callable[[], Any]) -> list[Any]:
    """Run these at once in threads, and return their results, or raise the first error."""
    start = threading.Barrier(len(runs))

    def run(function: Callable[[], Any]) -> Any:
        start.wait(60)
        return function()

    with ThreadPoolExecutor(len(runs)) as pool:
        return [future.result() for future in [pool.submit(run, function) for function in runs]]


@pytest.mark.usefixtures("either_files")
def test_two_tries_of_one_task_at_once_both_succeed(songs: list[Song], transfer: Transfer, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / f"round-{number}"

        def run(delay: float, folder: Path = folder) -> Any:
            time.sleep(delay)
            return transfer(songs, destination=str(folder))

        # Each round begins the second try at another moment of the first one.
        one, two = run_at_once(partial(run, 0.0), partial(run, number * 0.002))
        assert one == two
        assert_complete(folder, one)


@pytest.mark.usefixtures("either_files")
def test_mapped_tasks_that_share_a_song_all_succeed(songs: list[Song], transfer: Transfer, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / f"round-{number}"

        def run(index: int, folder: Path = folder, delay: float = number * 0.001) -> Any:
            context = TaskContext()
            context.map_index = index
            time.sleep(index * delay)
            return transfer([songs[0], songs[1 + index]], context, destination=str(folder))

        manifests = run_at_once(*(partial(run, index) for index in range(3)))
        assert [manifest["count"] for manifest in manifests] == [2, 2, 2]
        assert file_names(folder) == set().union(*(check_files(folder, manifest) for manifest in manifests))


@pytest.mark.usefixtures("only_named_files")
@pytest.mark.parametrize("ending", [".wav", ".png", ".json", "manifest.json"])
def test_a_try_that_removes_the_temporary_file_of_another_does_not_fail_it(
    songs: list[Song], transfer: Transfer, folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    writing, ended = threading.Event(), threading.Event()
    put_file = LocalFileSystem.put_file

    def put_file_slowly(self: LocalFileSystem, path: str, to: str, **kwargs: Any) -> None:
        put_file(self, path, to, **kwargs)
        if f"{ending}." in to and not writing.is_set():
            writing.set()
            assert ended.wait(60)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(transfer, songs, max_concurrent_downloads=1)
        assert writing.wait(60)
        (temporary,) = [name for name in file_names(folder) if f"{ending}." in name]
        second = transfer(songs)
        assert temporary not in file_names(folder)
        ended.set()
        assert first.result(60)["songs"] == second["songs"]
    assert_complete(folder, second)


def test_a_song_that_another_try_stores_during_the_download_is_left_as_it_is(
    host: MediaHost, transfer: Transfer, folder: Path
) -> None:
    other_manifests = []

    def serve(handler: BaseHTTPRequestHandler) -> None:
        host.responses["/song"] = respond(200, WAV)
        other_manifests.append(transfer(host.song()))
        respond(200, WAV)(handler)

    host.responses["/song"] = serve
    manifest = transfer(host.song())
    assert other_manifests == [manifest]
    assert file_names(folder) == check_files(folder, manifest)
    assert host.count("/song") == 2


def respond_with_another_song_each_time(host: MediaHost) -> None:
    """Let the host send other bytes, and another length, with each response."""
    lengths = iter(range(1, 10_000))

    def serve(handler: BaseHTTPRequestHandler) -> None:
        respond(200, WAV + bytes(next(lengths)))(handler)

    host.responses |= {"/song": serve, "/cover": respond(200, PNG)}


def test_a_song_of_which_another_try_gets_other_bytes_is_taken_from_the_try_that_is_first(
    host: MediaHost, transfer: Transfer, folder: Path
) -> None:
    other_manifests = []

    def serve(handler: BaseHTTPRequestHandler) -> None:
        respond_with_another_song_each_time(host)
        other_manifests.append(transfer(host.song()))
        respond(200, WAV)(handler)

    host.responses["/song"] = serve
    assert transfer(host.song()) == other_manifests[0]
    assert_names_its_files(folder, other_manifests[0])


def test_a_song_that_another_task_replaces_after_it_was_stored_is_transferred_again(
    host: MediaHost, transfer: Transfer, folder: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    respond_with_another_song_each_time(host)
    transferred, songs = threading.Event(), [host.song("job-1"), host.song("job-2")]

    def serve(handler: BaseHTTPRequestHandler) -> None:
        if not transferred.is_set():
            transferred.set()
            # The first song is stored, and is replaced while the second one is downloaded.
            (stored,) = folder.glob("*_job-1.wav")
            stored.write_bytes(WAV + b"another")
        respond(200, WAV)(handler)

    songs[1]["song_url"] = f"{host.url}/second"
    host.responses["/second"] = serve
    manifest = transfer(songs, max_concurrent_downloads=1)
    assert_names_its_files(folder, manifest)
    assert (host.count("/song"), host.count("/second")) == (2, 1)
    assert clock.slept == [1.0]


def test_a_song_that_another_task_replaces_again_and_again_is_an_error_that_a_retry_may_pass(
    host: MediaHost, transfer: Transfer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    respond_with_another_song_each_time(host)
    publish = ObjectStore.publish

    def publish_and_replace(self: ObjectStore, new: NewFile, name: str) -> None:
        publish(self, new, name)
        if name.endswith(".json"):
            (stored,) = folder.glob("*.wav")
            stored.write_bytes(b"RIFF")

    monkeypatch.setattr(ObjectStore, "publish", publish_and_replace)
    with pytest.raises(
        WhisulStorageError, match=r"replaces or removes files .* such as midnight-grid_some-job.wav"
    ) as r:
        transfer(host.song())
    assert not isinstance(r.value, AirflowFailException)
    assert host.count("/song") == 3
    assert "manifest.json" not in file_names(folder)


@pytest.mark.usefixtures("either_files")
@pytest.mark.parametrize("mapped", [False, True])
def test_tries_that_each_get_other_bytes_agree_on_one_of_them(
    host: MediaHost, transfer: Transfer, tmp_path: Path, clock: FakeClock, mapped: bool
) -> None:
    respond_with_another_song_each_time(host)
    # As long as a few downloads here, as the pause is in earnest.
    clock.on_sleep = lambda seconds: time.sleep(random.uniform(0.1, 0.5))
    songs = [host.song(f"job-{index}", image_url=f"{host.url}/cover") for index in range(4)]
    for number in range(ROUNDS // 2):
        folder = tmp_path / f"round-{number}"

        def run(index: int, folder: Path = folder, delay: float = number * 0.004) -> Any:
            context = TaskContext()
            context.map_index = index if mapped else -1
            time.sleep(index * delay)
            return transfer(songs, context, destination=str(folder))

        run_at_once(partial(run, 0), partial(run, 1))
        # The files are of one try or of the other one, and their description with them.
        for path in folder.glob("*_job-*.json"):
            assert_names_its_files(folder, {"songs": [json.loads(path.read_text())]})
        assert not list(folder.glob("*.part"))


def assert_names_its_files(folder: Path, manifest: Any) -> None:
    """Check that the files of the manifest's songs are in the folder, each with its length."""
    for song in manifest["songs"]:
        assert (folder / song["audio"]["name"]).stat().st_size == song["audio"]["size"]

"""Two transfers of the same songs into the same folder at once, as of a zombie worker and its task's retry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

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

ROUNDS = 30


@pytest.fixture
def songs(host: MediaHost) -> list[Song]:
    host.responses |= {"/song": respond(200, WAV), "/cover": respond(200, PNG)}
    return [host.song(f"job-{index}", image_url=f"{host.url}/cover") for index in range(4)]


def run_at_once(*runs: Callable[[], Any]) -> list[Any]:
    """Run these at once in threads, and return their results, or raise the first error."""
    start = threading.Barrier(len(runs))

    def run(function: Callable[[], Any]) -> Any:
        start.wait(10)
        return function()

    with ThreadPoolExecutor(len(runs)) as pool:
        return [future.result() for future in [pool.submit(run, function) for function in runs]]


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
            assert ended.wait(20)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(transfer, songs, max_concurrent_downloads=1)
        assert writing.wait(20)
        (temporary,) = [name for name in file_names(folder) if f"{ending}." in name]
        second = transfer(songs)
        assert temporary not in file_names(folder)
        ended.set()
        assert first.result(20)["songs"] == second["songs"]
    assert_complete(folder, second)


def test_a_song_that_another_try_stores_during_the_download_is_replaced_by_the_same_files(
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

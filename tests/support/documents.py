"""What every folder of small files does, whichever store it is in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from airflow_provider_whisul.storage.documents import DocumentFolder, ObjectDocuments


def assert_files_are_kept(folder: DocumentFolder) -> None:
    """Check each method of a folder that is empty, and leave it so."""
    assert folder.read("a/b") is None
    assert folder.names("a") == []
    assert folder.delete_older("a", 1e12) == 0
    folder.delete("a/b")
    folder.remove_folder("a")

    folder.write("a/b", b"one")
    assert folder.read("a/b") == b"one"
    folder.write("a/b", b"another one")
    assert folder.read("a/b") == b"another one"

    assert folder.create("a/c", b"") is True
    assert folder.read("a/c") == b""
    assert folder.create("a/c", b"late") is False
    assert folder.create("a/b", b"late") is False
    assert (folder.read("a/b"), folder.read("a/c")) == (b"another one", b"")
    assert sorted(folder.names("a")) == ["b", "c"]

    folder.write("a/days/2026-11-26/d", b"deep")
    folder.write("a/days/2026-11-27/d", b"deep")
    assert sorted(folder.names("a")) == ["b", "c", "days"]
    folder.remove_folder("a/days/2026-11-26")
    assert folder.names("a/days") == ["2026-11-27"]
    assert folder.read("a/days/2026-11-26/d") is None
    folder.remove_folder("a/days")
    assert sorted(folder.names("a")) == ["b", "c"]

    folder.delete("a/c")
    assert folder.read("a/c") is None
    assert folder.create("a/c", b"again") is True
    assert folder.delete_older("a", 1_000_000_000) == 0
    assert folder.delete_older("a", 1e12) == 2
    assert folder.names("a") == []


def at_once(number: int, call: Callable[[int], Any]) -> list[Any]:
    """Call a function in so many threads at the same moment, and return what each call returned."""
    barrier = threading.Barrier(number)
    results: list[Any] = [None] * number

    def run(index: int) -> None:
        barrier.wait()
        results[index] = call(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def of_own_client(folder: DocumentFolder) -> ObjectDocuments:
    """Return a folder in S3 with a client of its own, as another process has it."""
    import s3fs

    assert isinstance(folder, ObjectDocuments)
    options = {**folder.fs.storage_options, "skip_instance_cache": True}
    return ObjectDocuments(folder.url, s3fs.S3FileSystem(**options), folder.path, True)


def create_in_threads(number: int, name: str, barrier: Any, created: Any) -> None:
    """Create a file of the configured folder in so many threads of a process, and put what each was told in a queue."""
    from airflow_provider_whisul.state.state_path import state_folder

    folder = state_folder()
    assert folder is not None
    folders = [of_own_client(folder) for _ in range(number)]
    for own in folders:
        # Connected, so that all begin at the same moment.
        own.read(name)
    barrier.wait(100)
    for was_created in at_once(number, lambda index: folders[index].create(name, b"content")):
        created.put(was_created)

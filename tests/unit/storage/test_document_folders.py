"""Small files in folders: local ones, and those of a store that is no object store."""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_whisul.exceptions import WhisulInvalidInputError, WhisulStateError
from airflow_provider_whisul.storage import documents, object_documents
from airflow_provider_whisul.storage.documents import DocumentFolder, LocalDocuments, ObjectDocuments, open_folder
from tests.support.documents import assert_files_are_kept, at_once

#: Starts a process with this one's memory, in milliseconds.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def local(tmp_path: Path) -> LocalDocuments:
    return LocalDocuments(tmp_path)


@pytest.fixture
def memory() -> ObjectDocuments:
    """A folder of a store in which a file is written, then moved."""
    fs = MemoryFileSystem(skip_instance_cache=True)
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return ObjectDocuments("memory://state", fs, "/state", False, None)


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


class ObjectClient(MemoryFileSystem):  # type: ignore[misc]
    """A client of an object store, which raises the errors that it is given before it writes."""

    cachable = False

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.options: list[dict[str, Any]] = []

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.options.append({"mode": mode, **options})
        if self.errors:
            raise self.errors.pop(0)

    def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None: ...

    def exists(self, path: str, **kwargs: Any) -> bool:
        return False


class OldObjectClient(ObjectClient):
    def _pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None: ...


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


def of_client(client: ObjectClient) -> ObjectDocuments:
    return ObjectDocuments("s3://state", client, "/state", True)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


# --- every method


def test_a_local_folder_keeps_files(local: LocalDocuments) -> None:
    assert_files_are_kept(local)
    assert files(local.path) == []


def test_a_folder_of_a_store_that_moves_files_keeps_files(memory: ObjectDocuments) -> None:
    assert_files_are_kept(memory)
    assert memory.fs.find("/state") == []


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_file_that_was_never_finished_is_not_listed_and_expires(kind: str, request: pytest.FixtureRequest) -> None:
    folder: DocumentFolder = request.getfixturevalue(kind)
    folder.write("records/a.json.0123abcd.part", b"half")
    folder.write("records/b.json", b"whole")
    assert folder.names("records") == ["b.json"]
    assert folder.delete_older("records", time.time() + 10) == 2


def test_only_old_files_expire_and_no_folder_does(local: LocalDocuments) -> None:
    local.write("records/old", b"")
    local.write("records/new", b"")
    local.write("records/folder/old", b"")
    for name in ("old", "folder", "folder/old"):
        os.utime(local.path / "records" / name, (1_000, 1_000))
    assert local.delete_older("records", 2_000) == 1
    assert files(local.path) == ["records/folder/old", "records/new"]


# --- two at once


def test_of_twenty_threads_that_create_a_local_file_one_does(local: LocalDocuments) -> None:
    for number in range(20):
        created = at_once(20, lambda index, n=number: local.create(f"ledger/{n}", f"{index}".encode()))
        assert sum(created) == 1
        assert local.read(f"ledger/{number}") == f"{created.index(True)}".encode()
    assert len(files(local.path)) == 20


def test_of_twenty_processes_that_create_a_local_file_one_does(local: LocalDocuments) -> None:
    barrier, created = FORK.Barrier(20), FORK.Value("i", 0)

    def create() -> None:
        barrier.wait()
        if local.create("ledger/entry", str(os.getpid()).encode()):
            with created.get_lock():
                created.value += 1

    processes = [FORK.Process(target=create) for _ in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert created.value == 1
    assert local.read("ledger/entry") in [str(process.pid).encode() for process in processes]


def test_a_folder_is_removed_while_others_remove_it(local: LocalDocuments) -> None:
    for number in range(200):
        local.write(f"ledger/day/{number}", b"")
    at_once(8, lambda _: local.remove_folder("ledger/day"))
    assert local.names("ledger") == []


def test_old_files_are_removed_while_others_remove_them(local: LocalDocuments) -> None:
    for number in range(200):
        local.write(f"records/{number}", b"")
    assert sum(at_once(8, lambda _: local.delete_older("records", time.time() + 10))) == 200
    assert local.names("records") == []


# --- interruptions


def killed_at_random(write: Callable[[int], None], chance: random.Random) -> None:
    """Have a process write again and again, and kill it soon after its first write."""
    has_begun = FORK.Event()

    def run() -> None:
        for number in itertools.count():
            write(number)
            has_begun.set()

    process = FORK.Process(target=run)
    process.start()
    assert has_begun.wait(60)
    time.sleep(chance.uniform(0, 0.02))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def unfinished(path: Path) -> list[str]:
    return [name for name in files(path) if name.endswith(".part")]


def test_a_process_killed_at_any_moment_leaves_the_old_content_or_the_new_one(local: LocalDocuments) -> None:
    contents = [bytes([number]) * 300_000 for number in range(256)]
    chance = random.Random(13)
    # Until some were killed in the middle of a write, which shows that this tests something.
    for _ in range(500):
        killed_at_random(lambda number: local.write("records/a", contents[number % 256]), chance)
        assert local.read("records/a") in contents
        if len(unfinished(local.path)) >= 5:
            return
    pytest.fail("No process was killed in the middle of a write.")


def test_a_process_killed_at_any_moment_creates_a_file_whole_or_not_at_all(local: LocalDocuments) -> None:
    content = b"x" * 300_000
    chance = random.Random(14)
    for kill in range(500):
        killed_at_random(lambda number, kill=kill: local.create(f"ledger/{kill}/{number}", content), chance)
        names = local.names(f"ledger/{kill}")
        assert names
        assert all(local.read(f"ledger/{kill}/{name}") == content for name in names)
        if len(unfinished(local.path)) >= 5:
            return
    pytest.fail("No process was killed in the middle of a write.")


def test_no_room_leaves_the_old_content_and_no_other_file(local: LocalDocuments) -> None:
    local.write("records/a", b"old")
    failed = FORK.Value("i", 0)

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
        for act in (local.write, local.create):
            with pytest.raises(WhisulStateError, match="records/"):
                act("records/a" if act == local.write else "records/b", b"n" * 5_000)
            failed.value += 1

    process = FORK.Process(target=write)
    process.start()
    process.join()
    assert failed.value == 2
    assert local.read("records/a") == b"old"
    assert files(local.path) == ["records/a"]


def test_a_store_that_fails_between_the_write_and_the_move_keeps_the_old_content(
    memory: ObjectDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    memory.write("a", b"old")
    monkeypatch.setattr(memory.fs, "mv", fail)
    with pytest.raises(WhisulStateError, match="write memory://state/a"):
        memory.write("a", b"new")
    assert memory.read("a") == b"old"
    assert memory.fs.find("/state") == ["/state/a"]


# --- folders that cannot be used


@pytest.mark.parametrize("path", ["/proc/whisul", "/dev/null/whisul"])
def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(path: str) -> None:
    folder = LocalDocuments(Path(path))
    for act in (folder.write, folder.create):
        with pytest.raises(WhisulStateError, match=rf"Could not write file://{path}/records/a: .*state_path"):
            act("records/a", b"")


def test_a_folder_in_place_of_a_file_is_an_error_and_not_a_missing_file(local: LocalDocuments) -> None:
    (local.path / "records" / "a").mkdir(parents=True)
    for act in (lambda: local.read("records/a"), lambda: local.write("records/a", b"")):
        with pytest.raises(WhisulStateError):
            act()
    assert local.create("records/a", b"") is False


def test_a_link_is_followed_and_replaced_by_a_write(local: LocalDocuments, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"moved")
    (tmp_path / "a").symlink_to(elsewhere)
    assert local.read("a") == b"moved"
    assert local.create("a", b"new") is False
    local.write("a", b"new")
    assert (local.read("a"), elsewhere.read_bytes()) == (b"new", b"moved")


def test_a_link_that_leads_nowhere_is_an_error_and_not_a_missing_file(local: LocalDocuments) -> None:
    (local.path / "a").symlink_to(local.path / "gone")
    with pytest.raises(WhisulStateError, match="read file://"):
        local.read("a")
    assert local.create("a", b"new") is False


# --- filesystems that differ


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_filesystem_without_links_creates_files_exclusively_too(
    local: LocalDocuments, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert sum(at_once(20, lambda index: local.create("a", b"content"))) == 1
    assert (files(local.path), local.read("a")) == (["a"], b"content")


def test_any_other_error_of_a_link_is_an_error_and_leaves_no_file(
    local: LocalDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(WhisulStateError, match="input/output error"):
        local.create("a", b"content")
    assert files(local.path) == []


def test_a_link_that_nfs_reports_as_there_since_it_has_made_it_itself_counts_as_made(
    local: LocalDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lose_the_response(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", lose_the_response)
    assert local.create("a", b"ours") is True
    monkeypatch.setattr(os, "link", link)
    assert local.create("a", b"theirs") is False


def test_the_names_in_a_folder_are_on_the_disk_when_a_write_returns(
    local: LocalDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    local.write("records/a", b"")
    local.create("records/b", b"")
    folder = str(local.path / "records")
    assert [path == folder for path in synced] == [False, True, False, True]


# --- clients of object stores


@pytest.mark.parametrize(
    "error",
    [
        FileExistsError("/state/a"),
        ClientError("PreconditionFailed"),
        caused_by(OSError(errno.EINVAL, "at least one of the pre-conditions"), ClientError("PreconditionFailed")),
        type("ResourceExistsError", (Exception,), {})("the blob exists"),
    ],
)
def test_a_client_that_says_that_the_object_exists_is_understood(error: Exception) -> None:
    assert of_client(ObjectClient(error)).create("a", b"") is False


def test_a_file_is_created_again_where_another_request_for_it_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(object_documents.time, "sleep", slept.append)
    conflict = caused_by(OSError(errno.EBUSY, "conflict"), ClientError("ConditionalRequestConflict"))
    assert of_client(ObjectClient(conflict, conflict)).create("a", b"") is True
    assert of_client(ObjectClient(conflict, FileExistsError())).create("a", b"") is False
    with pytest.raises(WhisulStateError, match="conflict"):
        of_client(ObjectClient(*[conflict] * 5)).create("a", b"")
    assert len(slept) == 7


def test_any_other_error_is_none_that_says_that_the_file_exists() -> None:
    with pytest.raises(WhisulStateError, match="reset by peer"):
        of_client(ObjectClient(ConnectionResetError("reset by peer"))).create("a", b"")


@pytest.mark.parametrize(
    ("protocol", "client", "botocore", "option"),
    [
        ("s3", ObjectClient, "1.35.21", ("mode", "create")),
        ("s3", ObjectClient, "1.35.20", None),
        ("s3", OldObjectClient, "1.40.0", None),
        ("gs", ObjectClient, None, ("mode", "create")),
        ("gs", OldObjectClient, None, None),
        ("abfs", OldObjectClient, None, ("overwrite", False)),
    ],
)
def test_a_client_that_would_replace_the_file_is_not_asked_to_create_it(
    protocol: str,
    client: type[ObjectClient],
    botocore: str | None,
    option: tuple[str, object] | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def version(name: str) -> str:
        if botocore is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return botocore

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(documents, "filesystem", lambda protocol, conn_id: made)
    made = client()
    folder = open_folder(f"{protocol}://bucket/state")
    assert isinstance(folder, ObjectDocuments)
    assert folder.exclusive == option
    assert folder.create("a", b"") is True
    assert made.options == [{"mode": "overwrite", **dict([option] if option else [])}]
    warned = [record.getMessage() for record in caplog.records if "both may submit and pay" in record.getMessage()]
    assert len(warned) == (option is None)


def test_a_url_that_names_no_folder_is_refused() -> None:
    with pytest.raises(WhisulInvalidInputError):
        open_folder("s3://")

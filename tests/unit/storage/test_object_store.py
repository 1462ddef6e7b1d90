"""Writing files into a store, whatever its client does."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_whisul.exceptions import WhisulStorageError
from airflow_provider_whisul.storage.object_store import ObjectStore, wrap_storage_errors


class FullFileSystem(MemoryFileSystem):
    """Has space for half a file."""

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")


class TruncatingFileSystem(MemoryFileSystem):
    """Loses the end of a file without an error."""

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:3])


class OptionsFileSystem(MemoryFileSystem):
    """Has options to send a file in chunks, and to replace another file."""

    options: dict[str, Any]

    def put_file(
        self, lpath: str, rpath: str, chunksize: int = 0, max_concurrency: int = 9, overwrite: bool = False
    ) -> None:
        self.options = {"chunksize": chunksize, "max_concurrency": max_concurrency, "overwrite": overwrite}
        self.pipe_file(rpath, Path(lpath).read_bytes())


class StaleFileSystem(MemoryFileSystem):
    """Returns what it had cached before a file was written, once for each write."""

    stale: dict[str, Any] | None = None
    is_stale = False

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())
        self.is_stale = True

    def info(self, path: str, **kwargs: Any) -> Any:
        if not self.is_stale:
            return super().info(path, **kwargs)
        self.is_stale = False
        if self.stale is None:
            raise FileNotFoundError(path)
        return self.stale


class InterruptedFileSystem(LocalFileSystem):
    """Does something else between the two halves of the first file, or of each."""

    meanwhile: Callable[[], None]
    each_time = False
    writes = 0
    # One instance for each test.
    cachable = False

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.writes += 1
        content = Path(lpath).read_bytes()
        with Path(rpath).open("wb", buffering=0) as file:
            file.write(content[:3])
            meanwhile = self.meanwhile
            if not self.each_time:
                self.meanwhile = lambda: None
            meanwhile()
            file.write(content[3:])


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "song").write_bytes(b"a song")
    return tmp_path / "song"


@pytest.fixture
def fs() -> InterruptedFileSystem:
    return InterruptedFileSystem()


@pytest.fixture
def folder(fs: InterruptedFileSystem, tmp_path: Path) -> ObjectStore:
    """A local folder whose writes are interrupted."""
    return ObjectStore("file://stored", fs, str(tmp_path / "stored"), atomic_writes=False)


def memory(fs: Any, atomic_writes: bool = False) -> ObjectStore:
    return ObjectStore("memory://songs", fs, "/songs", atomic_writes)


def contents() -> dict[str, bytes]:
    return {name: file.getvalue() for name, file in MemoryFileSystem.store.items()}


@pytest.mark.parametrize("atomic_writes", [True, False])
def test_a_file_is_written_replaced_and_removed(file: Path, atomic_writes: bool) -> None:
    store = memory(MemoryFileSystem(), atomic_writes)
    assert store.list_files() == {}
    store.put(file, "x.mp3")
    file.write_bytes(b"another song")
    store.put(file, "x.mp3")
    assert contents() == {"/songs/x.mp3": b"another song"}
    assert store.list_files() == {"x.mp3": 12}
    store.remove("x.mp3")
    store.remove("x.mp3")
    assert store.list_files() == {}


def test_two_writes_of_one_file_at_once_do_not_mix_their_bytes(
    fs: InterruptedFileSystem, folder: ObjectStore, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(b"A SONG")
    fs.meanwhile = lambda: folder.put(tmp_path / "other", "x.mp3")
    folder.put(file, "x.mp3")
    assert Path(folder.path, "x.mp3").read_bytes() == b"a song"
    assert list(folder.list_files()) == ["x.mp3"]


def remove_temporary_files(store: ObjectStore) -> None:
    for name in store.list_files():
        if name.endswith(".part"):
            store.remove(name)


def test_a_temporary_file_that_another_try_removes_is_written_again(
    fs: InterruptedFileSystem, folder: ObjectStore, file: Path
) -> None:
    fs.meanwhile = lambda: remove_temporary_files(folder)
    folder.put(file, "x.mp3")
    assert fs.writes == 2
    assert folder.list_files() == {"x.mp3": 6}


def test_a_temporary_file_that_vanishes_each_time_is_an_error_in_the_end(
    fs: InterruptedFileSystem, folder: ObjectStore, file: Path
) -> None:
    fs.each_time = True
    fs.meanwhile = lambda: remove_temporary_files(folder)
    with pytest.raises(WhisulStorageError, match="Could not write file://stored/x.mp3"):
        folder.put(file, "x.mp3")
    assert fs.writes == 5
    assert folder.list_files() == {}


def test_a_json_file_is_written_and_read(tmp_path: Path) -> None:
    store = memory(MemoryFileSystem())
    store.put_json({"title": "Café"}, "x.json", tmp_path)
    assert store.read_json("x.json") == {"title": "Café"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_a_file_that_holds_no_json_object_is_read_as_an_empty_one(content: bytes) -> None:
    store = memory(MemoryFileSystem())
    store.fs.pipe_file("/songs/x.json", content)
    assert store.read_json("x.json") == {}


def test_a_json_file_that_is_gone_is_read_as_none() -> None:
    assert memory(MemoryFileSystem()).read_json("x.json") is None


def test_a_write_that_fails_for_lack_of_space_leaves_nothing(file: Path) -> None:
    with pytest.raises(
        WhisulStorageError, match=r"Could not write memory://songs/x.mp3 \(6 bytes\).*There is no space"
    ):
        memory(FullFileSystem()).put(file, "x.mp3")
    assert contents() == {}


def test_a_truncated_file_does_not_get_its_name(file: Path) -> None:
    with pytest.raises(WhisulStorageError, match="should have 6 bytes and has 3"):
        memory(TruncatingFileSystem()).put(file, "x.mp3")
    assert contents() == {}


def test_a_truncated_file_is_an_error_also_where_files_are_not_moved(file: Path) -> None:
    with pytest.raises(WhisulStorageError, match="should have 6 bytes and has 3"):
        memory(TruncatingFileSystem(), atomic_writes=True).put(file, "x.mp3")


@pytest.mark.parametrize("stale", [None, {"size": 4}])
@pytest.mark.parametrize("atomic_writes", [True, False])
def test_a_stale_listing_in_the_cache_of_the_client_is_no_error(
    file: Path, stale: dict[str, Any] | None, atomic_writes: bool
) -> None:
    fs = StaleFileSystem()
    fs.stale = stale
    memory(fs, atomic_writes).put(file, "x.mp3")
    assert contents() == {"/songs/x.mp3": b"a song"}


def test_a_client_sends_one_chunk_at_a_time_and_replaces_files(file: Path) -> None:
    fs = OptionsFileSystem()
    memory(fs, atomic_writes=True).put(file, "x.mp3")
    assert fs.options == {"chunksize": 8 << 20, "max_concurrency": 1, "overwrite": True}


def test_a_folder_is_listed_without_a_length() -> None:
    fs = MemoryFileSystem()
    fs.makedirs("/songs/x.mp3")
    assert memory(fs).list_files() == {"x.mp3": None}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), r"Access Denied \(PermissionError\). A permission is missing"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "There is no space left"),
        (FileNotFoundError("The specified bucket does not exist"), "The folder or the bucket does not exist"),
        (ValueError(), r"ValueError \(ValueError\). Check the destination and its connection"),
    ],
)
def test_an_error_of_a_client_says_what_to_do(error: Exception, message: str) -> None:
    with (
        pytest.raises(WhisulStorageError, match=f"Could not write x: .*{message}"),
        wrap_storage_errors("write x"),
    ):
        raise error


class VanishingFileSystem(LocalFileSystem):
    """Raises as some clients do where a file vanishes while the folder is listed."""

    cachable = False
    vanishing = 2

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        if self.vanishing:
            self.vanishing -= 1
            raise FileNotFoundError(f"{path}/x.mp3.0123abcd.part")
        return super().ls(path, detail, **kwargs)


def test_a_folder_of_which_a_file_vanishes_meanwhile_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    store = ObjectStore("file://stored", VanishingFileSystem(), str(tmp_path), atomic_writes=False)
    assert store.list_files() == {"manifest.json": 2}


def test_a_folder_that_cannot_be_listed_again_and_again_is_an_error(tmp_path: Path) -> None:
    fs = VanishingFileSystem()
    fs.vanishing = 99
    with pytest.raises(WhisulStorageError, match="Could not list file://stored"):
        ObjectStore("file://stored", fs, str(tmp_path), atomic_writes=False).list_files()
    assert fs.vanishing == 94


@pytest.mark.parametrize("atomic_writes", [True, False])
def test_a_file_that_another_try_replaces_before_its_length_is_read_is_written_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, atomic_writes: bool
) -> None:
    store = memory(MemoryFileSystem(), atomic_writes)
    others, info = [b"the song of another try"], MemoryFileSystem.info

    def replace_and_return_info(self: MemoryFileSystem, path: str, **kwargs: Any) -> Any:
        if path.endswith("x.mp3") and others and path in MemoryFileSystem.store:
            self.pipe_file(path, others.pop())
        return info(self, path, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "info", replace_and_return_info)
    store.put(file, "x.mp3")
    assert contents() == {"/songs/x.mp3": b"a song"}


def test_the_digest_of_a_file_is_read_from_the_store() -> None:
    store = memory(MemoryFileSystem())
    store.fs.pipe_file("/songs/x.mp3", b"a song")
    assert store.sha256("x.mp3") == hashlib.sha256(b"a song").hexdigest()
    assert store.sha256("y.mp3") is None

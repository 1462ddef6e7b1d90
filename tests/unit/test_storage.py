"""How files get into a store, whatever its client is like."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_whisul.exceptions import WhisulStorageError
from airflow_provider_whisul.lander import SongLander
from airflow_provider_whisul.media import MediaClient
from airflow_provider_whisul.storage import Store, telling


class Full(MemoryFileSystem):
    """Has room for half a file."""

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")


class Losing(MemoryFileSystem):
    """Loses the end of a file without a word."""

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:3])


class Wary(MemoryFileSystem):
    """Takes a file in pieces, and replaces another only if it is told to."""

    told: dict[str, Any]

    def put_file(
        self, lpath: str, rpath: str, chunksize: int = 0, max_concurrency: int = 9, overwrite: bool = False
    ) -> None:
        self.told = {"chunksize": chunksize, "max_concurrency": max_concurrency, "overwrite": overwrite}
        self.pipe_file(rpath, Path(lpath).read_bytes())


class Slow(LocalFileSystem):
    """Does something else between the two halves of a file."""

    meanwhile: Callable[[], None]
    #: One of its own for each test.
    cachable = False

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        content = Path(lpath).read_bytes()
        with Path(rpath).open("wb", buffering=0) as file:
            file.write(content[:3])
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            file.write(content[3:])


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "song").write_bytes(b"a song")
    return tmp_path / "song"


def store(fs: Any, appears_whole: bool = False) -> Store:
    return Store("memory://songs", fs, "/songs", appears_whole)


def contents() -> dict[str, bytes]:
    return {name: file.getvalue() for name, file in MemoryFileSystem.store.items()}


@pytest.mark.parametrize("appears_whole", [True, False])
def test_a_file_is_put_and_replaced(file: Path, appears_whole: bool) -> None:
    kept = store(MemoryFileSystem(), appears_whole)
    assert kept.sizes() == {}
    kept.put(file, "x.mp3")
    file.write_bytes(b"another song")
    kept.put(file, "x.mp3")
    assert contents() == {"/songs/x.mp3": b"another song"}
    assert kept.sizes() == {"x.mp3": 12}
    kept.remove("x.mp3")
    kept.remove("x.mp3")
    assert kept.sizes() == {}


def test_two_that_put_a_file_at_once_do_not_splice_it(file: Path, tmp_path: Path) -> None:
    fs = Slow()
    kept = Store("file://kept", fs, str(tmp_path / "kept"), appears_whole=False)
    (tmp_path / "other").write_bytes(b"A SONG")
    fs.meanwhile = lambda: kept.put(tmp_path / "other", "x.mp3")
    kept.put(file, "x.mp3")
    assert (tmp_path / "kept" / "x.mp3").read_bytes() == b"a song"
    assert list(kept.sizes()) == ["x.mp3"]


def test_json_is_written_and_read(tmp_path: Path) -> None:
    kept = store(MemoryFileSystem())
    kept.put_json({"title": "Café"}, "x.json.part", tmp_path)
    assert kept.read_json("x.json.part") == {"title": "Café"}
    assert list(tmp_path.iterdir()) == []
    kept.fs.pipe_file("/songs/x.json.part", b"{")
    assert kept.read_json("x.json.part") is None


def test_where_there_is_no_room_nothing_is_left(file: Path) -> None:
    with pytest.raises(WhisulStorageError, match=r"Could not write memory://songs/x.mp3 \(6 bytes\).*There is no room"):
        store(Full()).put(file, "x.mp3")
    assert contents() == {}


def test_what_a_store_loses_does_not_get_its_name(file: Path) -> None:
    with pytest.raises(WhisulStorageError, match="should have 6 bytes and has 3"):
        store(Losing()).put(file, "x.mp3")
    assert contents() == {}


def test_what_a_store_loses_is_told_where_it_cannot_be_helped(file: Path) -> None:
    with pytest.raises(WhisulStorageError, match="should have 6 bytes and has 3"):
        store(Losing(), appears_whole=True).put(file, "x.mp3")


def test_a_client_is_told_to_send_a_piece_at_a_time_and_to_replace(file: Path) -> None:
    fs = Wary()
    store(fs, appears_whole=True).put(file, "x.mp3")
    assert fs.told == {"chunksize": 8 << 20, "max_concurrency": 1, "overwrite": True}


def test_a_folder_is_no_file(file: Path) -> None:
    fs = MemoryFileSystem()
    fs.makedirs("/songs/x.mp3")
    assert store(fs).sizes() == {"x.mp3": None}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("Access Denied"), r"Access Denied \(PermissionError\). The permission is missing"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "There is no room left"),
        (FileNotFoundError("The specified bucket does not exist"), "The folder, or the bucket, does not exist"),
        (ValueError(), r"ValueError \(ValueError\). Check the destination and its connection"),
    ],
)
def test_what_a_client_raises_says_what_to_do(error: Exception, said: str) -> None:
    with pytest.raises(WhisulStorageError, match=f"Could not write x: .*{said}"), telling("write x"):
        raise error


def test_what_is_unfinished_is_found_while_other_songs_land(tmp_path: Path) -> None:
    class Entry(str):
        def startswith(self, *args: Any) -> bool:
            there[f"of-another-thread-{len(there)}.wav"] = 5
            return super().startswith(*args)

    there: dict[str, int | None] = {Entry("x.part"): None, Entry("x.json"): 5, Entry("y.part"): None}
    kept = store(MemoryFileSystem())
    for name in list(there):
        kept.fs.pipe_file(f"/songs/{name}", b"{}")
    with MediaClient() as media:
        SongLander(kept, media, tmp_path, there).remove_parts("x")
    assert set(kept.sizes()) == {"x.json", "y.part"}

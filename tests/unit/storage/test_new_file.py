"""Files that are written in the store's own folder, and seen there only when they are whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_whisul.exceptions import WhisulStorageError
from airflow_provider_whisul.storage.object_store import ObjectStore

pytestmark = pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no unnamed files")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The store's folder. It does not exist yet."""
    return tmp_path / "stored" / "songs"


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def store(folder: Path) -> ObjectStore:
    return ObjectStore(f"file://{folder}", LocalFileSystem(), str(folder), atomic_writes=False)


def write(store: ObjectStore, workdir: Path, content: bytes = b"a song") -> None:
    with store.new_file(workdir, "x") as new:
        new.file.write(content)
        store.publish(new, "x.mp3")


def test_a_new_file_is_seen_only_when_it_has_its_name(store: ObjectStore, folder: Path, workdir: Path) -> None:
    with store.new_file(workdir, "x") as new:
        new.file.write(b"a song")
        assert list(folder.iterdir()) == list(workdir.iterdir()) == []
        store.publish(new, "x.mp3")
        assert store.list_files() == {"x.mp3": 6}
    assert (folder / "x.mp3").read_bytes() == b"a song"


def test_a_new_file_has_the_permissions_of_any_other_file(store: ObjectStore, folder: Path, workdir: Path) -> None:
    write(store, workdir)
    (folder / "other").write_bytes(b"")
    assert (folder / "x.mp3").stat().st_mode == (folder / "other").stat().st_mode


def test_nothing_is_left_of_a_new_file_that_gets_no_name(store: ObjectStore, folder: Path, workdir: Path) -> None:
    with store.new_file(workdir, "x") as new:
        new.file.write(b"a song")
    assert list(folder.iterdir()) == list(workdir.iterdir()) == []


def test_nothing_is_left_by_a_process_that_is_killed_while_it_writes(folder: Path, workdir: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from airflow_provider_whisul.storage.object_store import ObjectStore
store = ObjectStore.from_destination("file://{folder}", None)
with store.new_file(Path("{workdir}"), "x") as new:
    new.file.write(b"half a")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert list(folder.iterdir()) == list(workdir.iterdir()) == []


def test_a_file_of_that_name_is_replaced_and_readers_of_it_keep_the_old_one(
    store: ObjectStore, folder: Path, workdir: Path
) -> None:
    write(store, workdir)
    with (folder / "x.mp3").open("rb") as reader:
        write(store, workdir, b"another song")
        assert reader.read() == b"a song"
    assert store.list_files() == {"x.mp3": 12}
    assert (folder / "x.mp3").read_bytes() == b"another song"


def test_a_folder_that_vanishes_meanwhile_is_made_anew(store: ObjectStore, folder: Path, workdir: Path) -> None:
    with store.new_file(workdir, "x") as new:
        new.file.write(b"a song")
        folder.rmdir()
        store.publish(new, "x.mp3")
    assert (folder / "x.mp3").read_bytes() == b"a song"


@pytest.mark.parametrize("error", [errno.EPERM, errno.EXDEV, errno.ENOENT])
def test_a_file_is_copied_where_the_file_system_gives_no_names_to_open_files(
    store: ObjectStore, folder: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def link(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", link)
    write(store, workdir)
    assert store.list_files() == {"x.mp3": 6}
    assert (folder / "x.mp3").read_bytes() == b"a song"


def refuse_unnamed_files(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    open_file = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        return open_file(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


# As NFS answers, and an old kernel.
@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_a_file_is_written_on_this_machine_first_where_the_file_system_has_no_unnamed_files(
    store: ObjectStore, folder: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    refuse_unnamed_files(monkeypatch, error)
    with store.new_file(workdir, "x") as new:
        new.file.write(b"a song")
        assert [path.name for path in workdir.iterdir()] == ["x"]
        store.publish(new, "x.mp3")
    assert (folder / "x.mp3").read_bytes() == b"a song"
    assert list(workdir.iterdir()) == []


def test_a_file_for_another_store_is_written_on_this_machine_first(workdir: Path) -> None:
    fs = MemoryFileSystem()
    write(ObjectStore("memory://unnamed", fs, "/unnamed", atomic_writes=True), workdir)
    assert fs.cat_file("/unnamed/x.mp3") == b"a song"
    assert list(workdir.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_the_store(folder: Path, store: ObjectStore, workdir: Path) -> None:
    folder.parent.write_bytes(b"a file, not a folder")
    with pytest.raises(WhisulStorageError, match=f"Could not write file://{folder}/x.mp3"):
        write(store, workdir)
    assert list(workdir.iterdir()) == []


def test_a_work_folder_that_is_gone_is_an_error_of_the_store(tmp_path: Path) -> None:
    store = ObjectStore("memory://songs", MemoryFileSystem(), "/songs", atomic_writes=True)
    with pytest.raises(WhisulStorageError, match="Could not write .*gone/x, on this machine, before it goes to memory"):
        write(store, tmp_path / "gone")

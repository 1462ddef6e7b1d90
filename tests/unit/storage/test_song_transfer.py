"""The temporary files that a song's transfer removes."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_whisul.exceptions import WhisulStorageError
from airflow_provider_whisul.storage.downloader import Downloader
from airflow_provider_whisul.storage.object_store import ObjectStore
from airflow_provider_whisul.storage.song_transfer import SongTransfer

OURS = ["waltz_j-1.mp3.0123abcd.part", "manifest.json.0123abcd.part"]
OTHERS = ["manifest.mine.part", "waltz_j-1.mp3", "waltz_j-1.mp3.part", "tango_j-2.mp3.0123abcd.part"]


@pytest.fixture
def transfer(tmp_path: Path) -> SongTransfer:
    folder = tmp_path / "songs"
    folder.mkdir()
    for name in OURS + OTHERS:
        (folder / name).write_bytes(b"x")
    store = ObjectStore.from_destination(folder.as_uri(), None)
    return SongTransfer(store, Downloader(), tmp_path, store.list_files())


def test_only_temporary_files_of_these_names_are_removed(transfer: SongTransfer) -> None:
    transfer.remove_temporary_files({"waltz_j-1", "manifest.json"})
    assert sorted(transfer.store.list_files()) == sorted(OTHERS)


def test_a_temporary_file_that_cannot_be_removed_raises_nothing(
    transfer: SongTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(store: ObjectStore, name: str) -> None:
        asked.append(name)
        raise WhisulStorageError("Permission denied.")

    monkeypatch.setattr(ObjectStore, "remove", refuse)
    transfer.remove_temporary_files({"waltz_j-1", "manifest.json"})
    assert sorted(asked) == sorted(OURS)

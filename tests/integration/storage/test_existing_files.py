"""What a transfer does about the files that are in the folder already."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_whisul.exceptions import WhisulFileExistsError
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage.songs import song_name
from tests.integration.storage.helpers import (
    WAV,
    MakeSongs,
    MediaHost,
    Transfer,
    assert_complete,
    check_files,
    file_names,
    respond,
)
from tests.support.airflow import TaskContext
from tests.support.servers import fetched


class TestTheManifestOfAnotherRun:
    def test_is_not_overwritten_and_nothing_is_downloaded(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        songs = make_songs("a waltz", "a tango")
        first = transfer(songs[0])
        context = TaskContext()
        context.run_id = "another-run"
        before = len(fetched(sandbox))
        with pytest.raises(
            WhisulFileExistsError, match=r"manifest.json is the manifest of another run.*\{\{ run_id \}\}"
        ):
            transfer(songs[1], context)
        assert len(fetched(sandbox)) == before
        assert_complete(folder, first)

    def test_is_overwritten_with_overwrite(self, make_songs: MakeSongs, transfer: Transfer, folder: Path) -> None:
        songs = make_songs("a waltz", "a tango")
        first = transfer(songs[0])
        context = TaskContext()
        context.run_id = "another-run"
        second = transfer(songs[1], context, overwrite=True)
        assert second["run_id"] == "another-run"
        assert json.loads((folder / "manifest.json").read_text()) == second
        assert {file["audio"]["name"] for file in first["songs"]} < file_names(folder)

    @pytest.mark.parametrize("content", ["{}", "no JSON", "[1]", "null"])
    def test_is_not_overwritten_where_it_cannot_be_read(self, transfer: Transfer, folder: Path, content: str) -> None:
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(content)
        with pytest.raises(WhisulFileExistsError):
            transfer([])
        assert (folder / "manifest.json").read_text() == content

    def test_is_not_overwritten_where_it_was_written_during_the_transfer(
        self, host: MediaHost, transfer: Transfer, folder: Path
    ) -> None:
        def serve(handler: BaseHTTPRequestHandler) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_text("{}")
            respond(200, WAV)(handler)

        host.responses["/song"] = serve
        with pytest.raises(WhisulFileExistsError, match="is the manifest of another run"):
            transfer(host.song())
        assert (folder / "manifest.json").read_text() == "{}"

    def test_does_not_fail_the_task_where_it_is_gone_when_it_is_read(
        self, transfer: Transfer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stores that replace a file by removing it first show this while another try writes the same manifest."""
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")

        def cat_file(self: LocalFileSystem, path: str, **kwargs: Any) -> bytes:
            raise FileNotFoundError(path)

        monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
        assert transfer([])["count"] == 0


def test_mapped_tasks_share_a_folder_and_write_a_manifest_each(
    make_songs: MakeSongs, transfer: Transfer, folder: Path
) -> None:
    for index, song in enumerate(make_songs("a waltz", "a tango")):
        context = TaskContext()
        context.map_index = index
        assert transfer(song, context)["manifest"] == f"manifest-{index}.json"
    assert len(file_names(folder)) == 8


class TestIncompleteSongs:
    @pytest.mark.parametrize("missing", ["audio", "cover", "metadata"])
    def test_a_song_with_a_missing_file_is_downloaded_again_whole(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, missing: str
    ) -> None:
        songs = make_songs("a waltz", "a tango")
        first = transfer(songs)
        file = first["songs"][0][missing]
        (folder / (file if isinstance(file, str) else file["name"])).unlink()
        before = len(fetched(sandbox))
        again = transfer(songs)
        assert_complete(folder, again)
        assert again["songs"] == first["songs"]
        assert [request.path.rpartition("/")[2] for request in fetched(sandbox)[before:]] == [
            f"{songs[0]['job_id']}.wav",
            f"{songs[0]['job_id']}.png",
        ]

    @pytest.mark.parametrize("file", ["audio", "cover"])
    def test_a_file_of_another_length_is_replaced(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path, file: str
    ) -> None:
        (song,) = make_songs("a waltz")
        (folder / transfer(song)["songs"][0][file]["name"]).write_bytes(b"RIFF half")
        assert_complete(folder, transfer(song))

    @pytest.mark.parametrize("file", ["audio", "cover"])
    def test_a_file_of_the_same_length_and_other_bytes_is_replaced(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path, file: str
    ) -> None:
        (song,) = make_songs("a waltz")
        path = folder / transfer(song)["songs"][0][file]["name"]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert_complete(folder, transfer(song))

    def test_metadata_that_names_the_file_of_another_song_is_replaced(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        one, two = make_songs("a waltz", "a tango")
        stored = transfer([one, two])["songs"]
        (folder / stored[0]["metadata"]).write_text(json.dumps({**stored[0], "audio": stored[1]["audio"]}))
        again = transfer([one, two])
        assert again["songs"] == stored
        assert_complete(folder, again)

    @pytest.mark.parametrize("content", ["{}", '{"job_id": ', "no JSON", "[1]", '{"job_id": "another"}'])
    def test_metadata_that_does_not_describe_the_job_is_replaced(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path, content: str
    ) -> None:
        (song,) = make_songs("a waltz")
        folder.mkdir(parents=True)
        (folder / f"{song_name(song)}.json").write_text(content)
        assert_complete(folder, transfer(song))


@pytest.mark.parametrize("field", ["title", "tags", "metadata", "cover_error"])
@pytest.mark.parametrize("edit", [{}, {"note": "mine"}, 5])
def test_edited_metadata_does_not_change_what_the_task_returns(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, field: str, edit: Any
) -> None:
    (song,) = make_songs("a waltz")
    (first,) = transfer(song)["songs"]
    edited = {key: value for key, value in first.items() if key != field} | ({field: edit} if edit else {})
    (folder / first["metadata"]).write_text(json.dumps(edited))
    assert transfer(song)["songs"] == [first]
    assert len(fetched(sandbox)) == 2


class TestTemporaryFilesOfAKilledTry:
    def test_are_removed_beside_a_song_that_is_stored_already(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        (song,) = make_songs("a waltz")
        transfer(song)
        for ending in (".wav.0123abcd.part", ".json.0123abcd.part"):
            (folder / f"{song_name(song)}{ending}").write_bytes(b"{")
        (folder / "manifest.json.0123abcd.part").write_bytes(b"{")
        assert_complete(folder, transfer(song))
        assert len(fetched(sandbox)) == 2

    def test_are_removed_also_where_the_task_fails(self, host: MediaHost, transfer: Transfer, folder: Path) -> None:
        host.responses["/song"] = respond(404)
        folder.mkdir(parents=True)
        (folder / f"{song_name(host.song())}.wav.0123abcd.part").write_bytes(b"RIFF half")
        with pytest.raises(Exception, match="The media host answered 404"):
            transfer(host.song(), whisul_conn_id="nobody")
        assert file_names(folder) == set()

    def test_of_other_songs_and_of_users_are_left_alone(
        self, host: MediaHost, transfer: Transfer, folder: Path
    ) -> None:
        host.responses["/song"] = respond(200, WAV)
        others = {"other-song_x.wav.0123abcd.part", "manifest-3.json.0123abcd.part", "my.part", "my-notes.txt"}
        folder.mkdir(parents=True)
        for name in others:
            (folder / name).write_bytes(b"x")
        manifest = transfer(host.song())
        assert file_names(folder) == others | check_files(folder, manifest)

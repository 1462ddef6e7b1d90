"""The transfer operator, from the sandbox's media host into a folder."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException, TriggerRule
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulInvalidInputError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulStorageError,
)
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.storage.helpers import (
    PNG,
    WAV,
    MakeSongs,
    MediaHost,
    Transfer,
    assert_complete,
    file_names,
    respond,
)
from tests.support.clock import FakeClock
from tests.support.servers import fetched

#: One result of a batch.
FAILED = {"status": "failed", "job_id": None, "prompt": "a waltz", "song": None, "error": "It failed."}

#: The trigger rules of this Airflow. Airflow 2 replaces two old ones by others, with a warning.
TRIGGER_RULES = sorted({rule.value for rule in TriggerRule} - {"dummy", "none_failed_or_skipped"})
#: Those of a task that is not to run after failures, and those of a task that is. Not each Airflow has all of them.
RULES_WITHOUT_FAILURES = {"all_skipped", "all_success", "none_failed", "none_failed_min_one_success", "one_success"}
RULES_AFTER_FAILURES = {
    "all_done",
    "all_done_min_one_success",
    "all_done_setup_success",
    "all_failed",
    "always",
    "none_skipped",
    "one_done",
    "one_failed",
}


def test_audio_cover_and_metadata_are_stored_and_last_of_all_the_manifest(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path
) -> None:
    songs = make_songs("a waltz", "a tango")
    manifest = transfer(songs)
    assert_complete(folder, manifest)
    assert {key: value for key, value in manifest.items() if key not in ("songs", "stored_at")} == {
        "destination": f"file://{folder}",
        "manifest": "manifest.json",
        "dag_id": "songs",
        "task_id": "song",
        "run_id": "some-run",
        "map_index": -1,
        "count": 2,
        "failed": [],
    }
    stored = manifest["songs"][0]
    for key in ("job_id", "prompt", "title", "bpm", "duration_seconds", "tags", "started_at", "finished_at"):
        assert stored[key] == songs[0][key]
    assert stored["audio"]["name"].endswith(".wav")
    assert stored["audio"]["content_type"] == "audio/wav"
    assert stored["cover"]["name"].endswith(".png")
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert max(written, key=lambda name: written[name]) == "manifest.json"
    assert [request.status for request in fetched(sandbox)] == [200] * 4


def test_the_log_says_what_was_stored_under_which_name(
    make_songs: MakeSongs, transfer: Transfer, folder: Path, task_log: Callable[[], list[str]]
) -> None:
    (song,) = make_songs("a waltz")
    (stored,) = transfer(song)["songs"]
    size = stored["audio"]["size"] + stored["cover"]["size"]
    lines = task_log()
    for line in (
        f"Storing 1 song in file://{folder}",
        f"Stored {song['title']!r} as {stored['audio']['name']} ({size:,} bytes)",
        f"Songs in file://{folder}: 1 stored, 0 missing",
    ):
        assert any(line in logged for logged in lines)


class TestSongsFromUpstreamTasks:
    def test_the_completed_songs_of_a_batch_are_stored_and_the_failed_ones_named(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path, task_log: Callable[[], list[str]]
    ) -> None:
        (song,) = make_songs("a waltz")
        batch = [
            {"prompt": "a waltz", "job_id": song["job_id"], "status": "completed", "song": song, "error": None},
            {"prompt": "a tango", "job_id": "failed-job", "status": "failed", "song": None, "error": "Out of rhythm."},
        ]
        manifest = transfer(batch)
        assert_complete(folder, manifest)
        assert manifest["count"] == 1
        assert manifest["failed"] == [{"job_id": "failed-job", "prompt": "a tango", "error": "Out of rhythm."}]
        assert any("Skipped 'a tango': Out of rhythm." in line for line in task_log())

    def test_messages_show_the_beginning_of_a_long_title_or_prompt(
        self, make_songs: MakeSongs, transfer: Transfer, task_log: Callable[[], list[str]]
    ) -> None:
        long = "W" * 100
        songs = [{**song, "title": long, "song_url": "http://user@localhost/"} for song in make_songs("a", "b")]
        failed = {"prompt": long, "job_id": "j", "status": "failed", "song": None, "error": "Out of rhythm."}
        completed = [{**failed, "job_id": song["job_id"], "status": "completed", "song": song} for song in songs]
        shown = f"'{'W' * 59}…'"
        with pytest.raises(WhisulError, match=shown):
            transfer([failed, *completed])
        log = "\n".join(task_log())
        assert f"Skipped {shown}" in log
        assert log.count(f"Could not store {shown}") == 2

    def test_a_song_that_the_batch_had_no_room_for_is_read_from_its_job(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        (song,) = make_songs("a waltz")
        manifest = transfer([without_song(song)])
        assert_complete(folder, manifest)
        assert manifest["songs"][0]["title"] == song["title"]

    def test_a_song_whose_title_only_its_job_knew_is_found_when_the_job_cannot_be_polled(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        (song,) = make_songs("a waltz")
        first = transfer([without_song(song)])
        # Two files of the same job by their name only.
        (folder / f"mine_{song['job_id']}.json").write_text("{}")
        (folder / f"a-b_{song['job_id']}.json").write_text(json.dumps({"job_id": song["job_id"]}))
        sandbox.revoke_key()
        assert transfer([without_song(song)])["songs"] == first["songs"]
        assert len(fetched(sandbox)) == 2
        (folder / first["songs"][0]["cover"]["name"]).unlink()
        with pytest.raises(WhisulMediaExpiredError):
            transfer([without_song(song)])

    def test_each_song_of_mapped_tasks_and_mapped_batches_is_stored_once(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        one, two, three = make_songs("a waltz", "a tango", "a fado")
        manifest = transfer(iter([[one, two], iter([three, one]), None]))
        assert_complete(folder, manifest)
        assert [song["prompt"] for song in manifest["songs"]] == ["a waltz", "a tango", "a fado"]
        assert manifest["failed"][0]["error"] == "The upstream task returned no song."

    @pytest.mark.parametrize("songs", [None, [None, None], [{"status": "failed", "job_id": None, "prompt": "a waltz"}]])
    def test_a_transfer_of_songs_of_which_none_was_made_fails(
        self, transfer: Transfer, folder: Path, songs: object
    ) -> None:
        with pytest.raises(WhisulInvalidInputError, match="There is no song to store"):
            transfer(songs)
        assert not folder.exists() or not list(folder.iterdir())

    @pytest.mark.parametrize("trigger_rule", [rule for rule in TRIGGER_RULES if rule in RULES_WITHOUT_FAILURES])
    def test_a_mapped_transfer_of_a_song_that_failed_is_skipped_where_the_batch_has_succeeded(
        self, transfer: Transfer, folder: Path, trigger_rule: str
    ) -> None:
        with pytest.raises(AirflowSkipException, match="Nothing was stored"):
            transfer(FAILED, trigger_rule=trigger_rule)
        assert not folder.exists()

    @pytest.mark.parametrize("trigger_rule", [rule for rule in TRIGGER_RULES if rule in RULES_AFTER_FAILURES])
    def test_a_mapped_transfer_of_a_song_that_failed_fails_where_the_batch_may_have_failed(
        self, transfer: Transfer, folder: Path, trigger_rule: str
    ) -> None:
        """Such a run must not succeed. The batch may have made other songs, so the error speaks of this task alone."""
        with pytest.raises(WhisulInvalidInputError, match="has returned a song to it. Nothing was stored"):
            transfer(FAILED, trigger_rule=trigger_rule)
        assert not folder.exists()

    def test_each_trigger_rule_of_this_airflow_either_runs_after_failures_or_does_not(self) -> None:
        """A rule that Airflow adds needs a decision: with one that it does not know, the transfer skips the song."""
        assert set(TRIGGER_RULES) <= RULES_WITHOUT_FAILURES | RULES_AFTER_FAILURES

    @pytest.mark.parametrize("trigger_rule", ["all_success", "none_failed", "all_done"])
    def test_a_transfer_of_a_whole_batch_without_a_song_fails_with_each_trigger_rule(
        self, transfer: Transfer, folder: Path, trigger_rule: str
    ) -> None:
        with pytest.raises(WhisulInvalidInputError, match="There is no song to store"):
            transfer([FAILED, FAILED], trigger_rule=trigger_rule)
        assert not folder.exists()

    def test_a_transfer_of_an_empty_list_stores_nothing_and_succeeds(self, transfer: Transfer) -> None:
        assert transfer([])["count"] == 0

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_transfer_of_an_empty_list_keeps_the_manifest_of_the_same_run(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path, overwrite: bool
    ) -> None:
        """As where a run is cleared that is too old by now, so that its batch is skipped."""
        stored = transfer(make_songs("a waltz"))
        assert transfer([], overwrite=overwrite) == stored
        assert_complete(folder, stored)

    def test_two_songs_of_one_title_have_files_of_their_own(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        manifest = transfer([{**song, "title": "Con"} for song in make_songs("a waltz", "a tango")])
        assert_complete(folder, manifest)
        assert len({song["audio"]["name"] for song in manifest["songs"]}) == 2

    @pytest.mark.parametrize(
        "songs", ["some-job-id", 5, {"no": "song"}, [{"job_id": "../../etc", "song_url": "x"}], b"x"]
    )
    def test_what_is_not_a_song_is_refused(self, transfer: Transfer, folder: Path, songs: object) -> None:
        with pytest.raises(WhisulInvalidInputError):
            transfer(songs)
        assert not folder.exists()


def without_song(song: dict[str, Any]) -> dict[str, Any]:
    """Return a batch's result that was too large for the batch's state."""
    return {"prompt": song["prompt"], "job_id": song["job_id"], "status": "completed", "song": None, "error": None}


class TestFailedDownloads:
    def test_a_song_that_fails_does_not_stop_the_others_and_a_retry_downloads_only_that_song(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        songs = make_songs("a waltz", "a tango [sandbox:media-500=6]", "a fado")
        songs[1]["image_url"] = songs[0]["image_url"]
        with pytest.raises(WhisulMediaError, match=r"1 of 3 songs could not be stored, .* max_failures=0: .*500"):
            transfer(songs)
        assert len(file_names(folder)) == 6
        assert "manifest.json" not in file_names(folder)
        before = len(fetched(sandbox))
        assert_complete(folder, transfer(songs))
        assert [request.path.rpartition("/")[2] for request in fetched(sandbox)[before:]] == [
            f"{songs[1]['job_id']}.wav",
            f"{songs[0]['job_id']}.png",
        ]

    def test_as_many_songs_as_max_failures_may_fail(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        songs = make_songs("a waltz", "a tango [sandbox:media-gone]")
        manifest = transfer(songs, max_failures=1)
        assert_complete(folder, manifest)
        assert manifest["count"] == 1
        (failed,) = manifest["failed"]
        assert (failed["job_id"], failed["prompt"]) == (songs[1]["job_id"], songs[1]["prompt"])
        assert "The media host answered 410" in failed["error"]
        assert "the URL has expired" in failed["error"]


@pytest.mark.parametrize("limit", [1, 3])
def test_max_concurrent_downloads_is_reached_and_not_exceeded(host: MediaHost, transfer: Transfer, limit: int) -> None:
    # Those that have no response yet. After its last byte the client may send the next one before the host is done.
    waiting: set[int] = set()
    at_once: list[int] = []
    reached = threading.Event()

    def serve(handler: BaseHTTPRequestHandler) -> None:
        waiting.add(id(handler))
        at_once.append(len(waiting))
        if len(waiting) >= limit:
            reached.set()
        assert reached.wait(60)
        time.sleep(0.05)
        waiting.discard(id(handler))
        respond(200, WAV)(handler)

    host.responses["/song"] = serve
    transfer([host.song(f"job-{index}") for index in range(8)], max_concurrent_downloads=limit)
    assert len(at_once) == 8
    assert max(at_once) == limit


@pytest.mark.usefixtures("only_named_files")
def test_the_worker_s_temporary_folder_holds_only_the_songs_that_are_being_downloaded(
    host: MediaHost, transfer: Transfer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary_files: list[set[str]] = []

    def serve(handler: BaseHTTPRequestHandler) -> None:
        temporary_files.append({path.name for path in tmp_path.glob("whisul-*/*")})
        respond(200, WAV)(handler)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    host.responses["/song"] = serve
    transfer([host.song(f"job-{index}") for index in range(3)], max_concurrent_downloads=1)
    assert temporary_files == [{f"midnight-grid_job-{index}.audio"} for index in range(3)]
    assert not list(tmp_path.glob("whisul-*"))


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no unnamed files")
def test_a_song_is_written_once_and_is_nowhere_to_be_seen_before_it_is_whole(
    host: MediaHost, transfer: Transfer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def serve(handler: BaseHTTPRequestHandler) -> None:
        respond(200, WAV, Content_Length=str(2 * len(WAV)))(handler)
        seen.append({path.name for path in [*folder.iterdir(), *tmp_path.glob("whisul-*/*")]})
        handler.wfile.write(WAV)

    def copy(*args: object, **kwargs: object) -> None:
        raise AssertionError("The file is copied.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(LocalFileSystem, "put_file", copy)
    host.responses |= {"/song": serve, "/cover": respond(200, PNG)}
    manifest = transfer(host.song(image_url=f"{host.url}/cover"))
    assert seen == [set()]
    assert_complete(folder, manifest)


class TestDestinations:
    @pytest.mark.parametrize("destination", ["", "s3://", "file://relative", "songs", "file:///", None])
    def test_a_destination_that_names_no_folder_is_refused(
        self, make_songs: MakeSongs, transfer: Transfer, destination: object, sandbox: Sandbox
    ) -> None:
        with pytest.raises(WhisulInvalidInputError, match="does not name a folder"):
            transfer(make_songs("a waltz"), destination=destination)
        assert fetched(sandbox) == []

    def test_a_store_of_an_unknown_protocol_cannot_be_reached(self, make_songs: MakeSongs, transfer: Transfer) -> None:
        message = "Could not reach nowhere://bucket/songs: no installed package knows nowhere:// addresses"
        with pytest.raises(WhisulStorageError, match=message):
            transfer(make_songs("a waltz"), destination="nowhere://bucket/songs")

    def test_an_absolute_path_is_a_folder_on_the_worker(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path
    ) -> None:
        assert_complete(folder, transfer(make_songs("a waltz"), destination=f"{folder}/"))


@pytest.mark.parametrize("argument", [{"max_failures": -1}, {"max_concurrent_downloads": 0}, {"max_audio_bytes": 0}])
def test_arguments_out_of_range_are_refused_when_the_dag_is_read(transfer: Transfer, argument: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match="max_failures must be 0 or more, max_concurrent_downloads and max_audio_bytes 1"
    ):
        transfer([], **argument)


def test_a_cleared_task_writes_a_new_manifest_and_downloads_nothing_again(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, clock: FakeClock
) -> None:
    songs = make_songs("a waltz", "a tango")
    first = transfer(songs)
    clock.now += 60
    second = transfer(songs)
    assert_complete(folder, second)
    assert second["songs"] == first["songs"]
    assert second["stored_at"] > first["stored_at"]
    assert len(fetched(sandbox)) == 4

"""Transfers that are stopped, killed, or run out of space; and what they need of memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_whisul.exceptions import WhisulMediaError, WhisulStorageError
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage import object_store
from airflow_provider_whisul.storage.songs import song_name
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.integration.storage.helpers import (
    WAV,
    MakeSongs,
    MediaHost,
    StartTransfer,
    Transfer,
    assert_complete,
    file_names,
    respond,
)
from tests.support.airflow import TaskContext
from tests.support.servers import fetched, outcome_of
from tests.support.soon import soon

LARGE = "500MB" if Version(airflow_version) >= Version("3.3") else "150MB"
MAX_GROWTH_KB = 40_000


def respond_endlessly(handler: BaseHTTPRequestHandler) -> None:
    respond(200, WAV, Content_Length=str(1 << 30))(handler)
    for _ in range(400):
        handler.wfile.write(bytes(1000))
        time.sleep(0.02)


class TestAStoppedTask:
    def test_stops_its_downloads_on_an_error(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        downloading = threading.Event()

        def serve(handler: BaseHTTPRequestHandler) -> None:
            downloading.set()
            respond_endlessly(handler)

        def interrupt(*args: object, **kwargs: object) -> None:
            assert downloading.wait(60)
            raise KeyboardInterrupt

        host.responses["/song"] = serve
        monkeypatch.setattr("airflow_provider_whisul.transfers.whisul_to_object_storage.wait", interrupt)
        with soon(), pytest.raises(KeyboardInterrupt):
            transfer(host.song())
        assert file_names(folder) == set()

    @pytest.mark.usefixtures("either_files")
    @pytest.mark.parametrize("state", ["downloading", "waiting"])
    def test_stops_its_downloads_and_waits_on_kill(
        self, host: MediaHost, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
    ) -> None:
        def kill_during_download(handler: BaseHTTPRequestHandler) -> None:
            operator.on_kill()
            respond_endlessly(handler)

        def kill_during_wait(handler: BaseHTTPRequestHandler) -> None:
            respond(503, Retry_After="500")(handler)
            threading.Timer(0.2, operator.on_kill).start()

        host.responses["/song"] = kill_during_download if state == "downloading" else kill_during_wait
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        songs = [host.song(f"job-{index}") for index in range(5)]
        # On the system's clock, whose waits are to be cut short.
        operator = WhisulToObjectStorageOperator(
            task_id="keep",
            songs=songs,
            destination=f"file://{folder}",
            max_failures=5,
            max_concurrent_downloads=2,
            allow_private_media=True,
        )
        with (
            soon(),
            pytest.raises(WhisulMediaError, match="stopped with the task.*no manifest.*only the missing"),
        ):
            TaskContext().run(operator)
        assert len(host.requests) <= 2
        assert file_names(folder) == set()
        assert not list(tmp_path.glob("whisul-*"))

    def test_downloads_nothing_where_it_was_killed_before_its_first_download(
        self, host: MediaHost, folder: Path
    ) -> None:
        operator = WhisulToObjectStorageOperator(
            task_id="keep", songs=host.song(), destination=f"file://{folder}", allow_private_media=True
        )
        operator.on_kill()
        with pytest.raises(WhisulMediaError, match="stopped with the task"):
            TaskContext().run(operator)
        assert host.requests == []


def test_a_killed_process_leaves_no_incomplete_file_and_a_retry_downloads_only_what_is_not_complete(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, start_transfer: StartTransfer
) -> None:
    done, slow_to_cover, slow, slow_cover = make_songs(
        "a waltz", "a tango", "a fado [sandbox:media-slow=60]", "a ska [sandbox:media-slow=60]"
    )
    # When the process is killed, the audio of this song is stored and its cover is not.
    slow_to_cover["image_url"] = slow_cover["image_url"]
    # The fault of a song hits its cover too.
    slow["image_url"] = done["image_url"]
    songs = [done, slow_to_cover, slow]
    stored = {f"{song_name(done)}.{kind}" for kind in ("json", "wav", "png")} | {f"{song_name(slow_to_cover)}.wav"}
    process = start_transfer(songs=songs, destination=f"file://{folder}")
    deadline = time.monotonic() + 100
    while len(fetched(sandbox)) < 5 or file_names(folder) != stored:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert file_names(folder) == stored

    # A process that is killed while it writes leaves such files.
    (folder / f"{song_name(slow)}.wav.0123abcd.part").write_bytes(b"RIFF half")
    (folder / "manifest.json.0123abcd.part").write_bytes(b"{")
    assert_complete(folder, transfer(songs))
    assert Counter(request.path.rpartition("/")[2] for request in fetched(sandbox)) == {
        f"{done['job_id']}.wav": 1,
        # For the song itself, and as the cover of the slow one.
        f"{done['job_id']}.png": 2,
        f"{slow_to_cover['job_id']}.wav": 2,
        f"{slow_cover['job_id']}.png": 2,
        f"{slow['job_id']}.wav": 2,
    }


def test_a_file_that_is_larger_than_the_system_permits_is_named_in_the_error(
    make_songs: MakeSongs, transfer: Transfer, folder: Path, start_transfer: StartTransfer
) -> None:
    songs = make_songs("a waltz [sandbox:media-size=3MB]")
    outcome = outcome_of(start_transfer(songs=songs, destination=f"file://{folder}", max_file_size=1_000_000))
    assert outcome["error"] == "WhisulMediaError"
    assert f"could not be written to file://{folder}: File too large. Is there space left?" in outcome["message"]
    assert file_names(folder) == set()
    assert_complete(folder, transfer(songs))


@pytest.mark.usefixtures("only_named_files")
def test_a_full_disk_of_the_store_stops_the_transfer(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = make_songs(*(f"waltz number {number}" for number in range(20)))
    name = f"{song_name(songs[1])}.wav"
    folder.mkdir(parents=True)
    # Whatever is written to it, there is no space left.
    (folder / f"{name}.ours.part").symlink_to("/dev/full")
    with monkeypatch.context() as patched:
        patched.setattr(object_store, "token_hex", lambda _: "ours")
        with pytest.raises(WhisulStorageError) as raised:
            transfer(songs, max_concurrent_downloads=1)
    assert f"Could not write file://{folder}/{name}" in str(raised.value)
    assert "There is no space left. Free some" in str(raised.value)
    # No song is downloaded for which there is no space.
    assert len(fetched(sandbox)) < len(songs)
    assert not [entry for entry in file_names(folder) if entry.startswith(song_name(songs[1]))]
    assert_complete(folder, transfer(songs))


def test_memory_is_bounded_for_a_file_of_any_size(
    make_songs: MakeSongs, folder: Path, start_transfer: StartTransfer, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = make_songs("a waltz", f"a symphony [sandbox:media-size={LARGE}]")
    began = time.monotonic()
    outcome = outcome_of(start_transfer(songs=songs, destination=f"file://{folder}", warm_up=f"file://{folder}-first"))
    with capsys.disabled():
        print(f"\nStoring {LARGE}: {outcome['grown_kb'] / 1000:.1f} MB more memory, {time.monotonic() - began:.1f} s")
    assert_complete(folder, outcome["manifest"])
    assert outcome["manifest"]["songs"][0]["audio"]["size"] == int(LARGE[:-2]) * 1_000_000
    assert outcome["grown_kb"] < MAX_GROWTH_KB
    (folder / outcome["manifest"]["songs"][0]["audio"]["name"]).unlink()

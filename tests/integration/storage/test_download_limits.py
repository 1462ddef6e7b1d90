"""What a media host can do to a worker: how long, how large and how often a file may be."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import (
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulStorageError,
)
from airflow_provider_whisul.polling import NotFoundGrace
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage import downloader, watchdog
from airflow_provider_whisul.storage.partial_file import PartialFile
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.integration.storage.helpers import (
    PNG,
    WAV,
    MakeSongs,
    MediaHost,
    Respond,
    Transfer,
    check_files,
    file_names,
    respond,
    respond_in_turn,
)
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock
from tests.support.servers import fetched
from tests.support.soon import soon

CHUNKED = {"Content_Length": "", "Transfer_Encoding": "chunked"}


def drip(beginning: bytes) -> Respond:
    """Send this, and then a byte every 20 ms for ever."""

    def serve(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginning)
        while True:
            handler.wfile.write(b"0")
            time.sleep(0.02)

    return serve


def send_chunks_for_ever(handler: BaseHTTPRequestHandler) -> None:
    respond(200, **CHUNKED)(handler)
    while True:
        handler.wfile.write(f"{len(WAV):x}\r\n".encode() + WAV + b"\r\n")


DRIPS = {
    "status line": drip(b"HTTP/1.1 2"),
    "header": drip(b"HTTP/1.1 200 OK\r\nX-Drip: "),
    "size of a chunk": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "size of a chunk of a connection that is not kept": drip(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "trailer": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Drip: "),
    "body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n"),
    "header of a redirect": drip(b"HTTP/1.1 302 Found\r\nLocation: /"),
}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never sends a byte, as in a TLS handshake that stalls."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}/song"


class TestTime:
    @pytest.mark.parametrize("where", DRIPS)
    def test_a_host_that_drips_is_given_up(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.3)
        monkeypatch.setattr(downloader, "MAX_ATTEMPTS", 2)
        host.responses["/song"] = DRIPS[where]
        with soon(), pytest.raises(WhisulMediaError, match=r"in 2 attempts: .*only \d+ bytes in \d s"):
            transfer(host.song())
        # A host that is late may not have read one yet.
        assert len(host.requests) <= 2

    def test_a_tls_handshake_that_stalls_is_given_up(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch, silent_server: str
    ) -> None:
        monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.3)
        monkeypatch.setattr(downloader, "MAX_ATTEMPTS", 1)
        with soon(), pytest.raises(WhisulMediaError, match=r"in 1 attempt: no response from .*: only 0 bytes in \d s"):
            transfer(host.song(song_url=silent_server))

    def test_one_file_may_take_only_so_long_though_it_comes_fast_enough(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloader, "MAX_FILE_SECONDS", 0.5)
        host.responses["/song"] = send_chunks_for_ever
        with (
            soon(),
            pytest.raises(WhisulMediaError, match="in 1 attempt: .* one file may take no longer"),
        ):
            transfer(host.song(), max_audio_bytes=10**12)

    def test_a_song_that_hangs_does_not_hold_up_the_others(
        self, host: MediaHost, transfer: Transfer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others_are_stored = threading.Event()

        def hang(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while True:
                handler.wfile.write(b"0")
                time.sleep(0.02)
                # Only then is it given up: none of the others is, however slow this machine is.
                if len(list(folder.glob("*_job-*.json"))) == 20:
                    others_are_stored.set()
                    monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.3)

        monkeypatch.setattr(downloader, "MAX_ATTEMPTS", 1)
        host.responses |= {"/hangs": hang, "/song": respond(200, WAV)}
        songs = [host.song("hangs", song_url=f"{host.url}/hangs"), *(host.song(f"job-{n}") for n in range(20))]
        manifest = transfer(songs, max_failures=1, max_concurrent_downloads=2)
        assert manifest["count"] == 20
        assert [failed["job_id"] for failed in manifest["failed"]] == ["hangs"]
        assert others_are_stored.is_set()


class TestAStoppedTaskEndsWithinSeconds:
    @pytest.fixture(autouse=True)
    def _destination(self, tmp_path: Path) -> None:
        self.destination = f"file://{tmp_path}"

    def stops(self, song_url: str, began: threading.Event, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        """Check that a transfer of this URL ends soon, if it is stopped as soon as the download has begun."""
        operator = WhisulToObjectStorageOperator(
            task_id="keep",
            songs={"job_id": "a-job", "title": None, "song_url": song_url, "image_url": None},
            destination=self.destination,
            allow_private_media=True,
        )
        if how == "on_kill":
            threading.Thread(target=lambda: began.wait(60) and operator.on_kill()).start()
        else:

            def interrupt(*args: object, **kwargs: object) -> None:
                assert began.wait(60)
                raise TimeoutError("execution_timeout")

            monkeypatch.setattr("airflow_provider_whisul.transfers.whisul_to_object_storage.wait", interrupt)
        with soon(), pytest.raises((WhisulMediaError, TimeoutError), match=r"stopped with the task|execution_timeout"):
            TaskContext().run(operator)

    @pytest.mark.parametrize("how", ["on_kill", "execution_timeout"])
    @pytest.mark.parametrize("where", DRIPS)
    def test_where_the_host_drips(self, host: MediaHost, monkeypatch: pytest.MonkeyPatch, where: str, how: str) -> None:
        began = threading.Event()

        def serve(handler: BaseHTTPRequestHandler) -> None:
            began.set()
            DRIPS[where](handler)

        host.responses["/song"] = serve
        self.stops(f"{host.url}/song", began, monkeypatch, how)

    @pytest.mark.parametrize("how", ["on_kill", "execution_timeout"])
    def test_where_a_reused_connection_goes_silent(
        self, host: MediaHost, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        began, ended = threading.Event(), threading.Event()

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            respond(302, Location="/silent")(handler)
            handler.close_connection = False

        def serve(handler: BaseHTTPRequestHandler) -> None:
            began.set()
            ended.wait(60)

        host.responses |= {"/song": redirect, "/silent": serve}
        try:
            self.stops(f"{host.url}/song", began, monkeypatch, how)
        finally:
            ended.set()

    @pytest.mark.parametrize("how", ["on_kill", "execution_timeout"])
    def test_in_a_tls_handshake(self, silent_server: str, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        began = threading.Event()
        threading.Timer(0.3, began.set).start()
        self.stops(silent_server, began, monkeypatch, how)

    @pytest.mark.parametrize("how", ["on_kill", "execution_timeout"])
    def test_while_a_host_name_is_resolved(self, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        began, ended = threading.Event(), threading.Event()

        def resolve(*args: object, **kwargs: object) -> list[Any]:
            began.set()
            ended.wait(60)
            return []

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        try:
            self.stops("https://media.example/song", began, monkeypatch, how)
        finally:
            ended.set()


class TestSize:
    @pytest.mark.parametrize(
        "serve", [respond(200, WAV, Content_Length="9" * 18), send_chunks_for_ever], ids=["announced", "endless chunks"]
    )
    def test_a_file_that_is_too_large_fails_its_song_alone_and_is_not_tried_again(
        self, host: MediaHost, transfer: Transfer, folder: Path, serve: Respond
    ) -> None:
        host.responses |= {"/huge": serve, "/song": respond(200, WAV)}
        songs = [host.song("huge", song_url=f"{host.url}/huge"), *(host.song(f"job-{n}") for n in range(5))]
        manifest = transfer(songs, max_failures=1, max_audio_bytes=1_000_000)
        assert file_names(folder) == check_files(folder, manifest)
        assert manifest["count"] == 5
        assert "audio of job huge at" in manifest["failed"][0]["error"]
        assert "is larger than 1,000,000 bytes" in manifest["failed"][0]["error"]
        assert host.count("/huge") == 1
        with pytest.raises(WhisulMediaUnsafeError, match="set max_audio_bytes") as raised:
            transfer(songs[0], max_audio_bytes=2_000_000)
        assert isinstance(raised.value, AirflowFailException)

    def test_a_file_of_just_the_limit_is_stored(self, host: MediaHost, transfer: Transfer) -> None:
        host.responses["/song"] = respond(200, WAV)
        assert transfer(host.song(), max_audio_bytes=len(WAV))["count"] == 1
        with pytest.raises(WhisulMediaUnsafeError):
            transfer(host.song("other"), max_audio_bytes=len(WAV) - 1)

    def test_a_cover_that_is_too_large_is_left_out(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloader, "MAX_COVER_BYTES", len(PNG) - 1)
        host.responses |= {"/song": respond(200, WAV), "/cover": respond(200, PNG)}
        (stored,) = transfer(host.song(image_url=f"{host.url}/cover"))["songs"]
        assert stored["cover"] is None
        assert "larger than" in stored["cover_error"]

    def test_an_endless_song_of_the_sandbox_fails_alone(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer
    ) -> None:
        manifest = transfer(make_songs("a waltz [sandbox:media-endless]", "a tango"), max_failures=1)
        assert [song["prompt"] for song in manifest["songs"]] == ["a tango"]
        assert len([request for request in fetched(sandbox) if request.fault]) == 1

    @pytest.mark.usefixtures("only_named_files")
    def test_a_full_temporary_disk_fails_its_song_alone_after_six_attempts(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
    ) -> None:
        fill_disk(monkeypatch, times=6)
        host.responses["/song"] = respond(200, WAV)
        songs = [host.song(f"job-{n}") for n in range(3)]
        manifest = transfer(songs, max_failures=1, max_concurrent_downloads=1)
        assert [song["job_id"] for song in manifest["songs"]] == ["job-1", "job-2"]
        assert "in 6 attempts: there is no space left in /" in manifest["failed"][0]["error"]
        assert clock.slept == [1.0, 2.0, 4.0, 8.0, 16.0]

    @pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no unnamed files")
    def test_a_folder_of_the_store_that_has_space_for_nothing_stops_the_transfer(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        # For good: the next song may have begun before the transfer stops.
        fill_disk(monkeypatch, times=99)
        host.responses["/song"] = respond(200, WAV)
        songs = [host.song(f"job-{n}") for n in range(3)]
        with pytest.raises(WhisulStorageError, match=f"6 attempts: there is no space left in file://{folder}. Free"):
            transfer(songs, max_failures=3, max_concurrent_downloads=1)
        assert file_names(folder) == set()

    @pytest.mark.usefixtures("either_files")
    def test_a_song_that_fills_the_disk_fails_alone(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(downloader, "CHUNK_BYTES", 1000)
        fill_disk(monkeypatch, times=6, space=5000)
        host.responses["/song"] = respond(200, WAV)
        manifest = transfer([host.song(f"job-{n}") for n in range(3)], max_failures=1, max_concurrent_downloads=1)
        assert [song["job_id"] for song in manifest["songs"]] == ["job-1", "job-2"]
        assert "in 6 attempts: there is no space left in " in manifest["failed"][0]["error"]

    @pytest.mark.usefixtures("either_files")
    def test_a_disk_that_is_full_for_a_moment_loses_no_song(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill_disk(monkeypatch, times=1)
        host.responses["/song"] = respond(200, WAV)
        assert transfer(host.song())["songs"][0]["audio"]["size"] == len(WAV)


def fill_disk(monkeypatch: pytest.MonkeyPatch, times: int, space: int = 0) -> None:
    """Let the first writes of downloads fail for want of space, each after so many bytes of its file."""
    left = [times]
    append = PartialFile.append

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    def append_to_full_disk(self: PartialFile, chunk: bytes) -> None:
        if not left[0] or self.size < space:
            append(self, chunk)
            return
        left[0] -= 1
        file, self.file = self.file, Full(self.file)  # type: ignore[assignment]
        try:
            append(self, chunk)
        finally:
            self.file = file

    monkeypatch.setattr(PartialFile, "append", append_to_full_disk)


class TestFraming:
    @pytest.mark.parametrize(
        "encodings", [["gzip, chunked"], ["gzip", "chunked"], ["chunked", "gzip"], ["chunked, chunked"], ["identity"]]
    )
    def test_a_transfer_encoding_that_the_client_does_not_decode_is_refused(
        self, host: MediaHost, transfer: Transfer, encodings: list[str]
    ) -> None:
        def serve(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            for encoding in encodings:
                handler.send_header("Transfer-Encoding", encoding)
            handler.end_headers()
            handler.wfile.write(b"4e2c\r\n" + WAV[:5000])

        host.responses["/song"] = serve
        with pytest.raises(WhisulMediaError, match="has the Transfer-Encoding '.*', which was not requested"):
            transfer(host.song())

    @pytest.mark.parametrize("end", [b"0000", b"0", b"", b"0\r\n", b"0\r\nX-A: 1\r\n"])
    def test_a_chunked_body_whose_last_line_is_cut_is_not_complete(
        self, host: MediaHost, transfer: Transfer, end: bytes
    ) -> None:
        cut = f"{len(WAV):08x}\r\n".encode() + WAV + b"\r\n" + end
        host.responses["/song"] = respond_in_turn(
            respond(200, cut, **CHUNKED), respond(200, cut + b"0\r\n\r\n" if not end else cut + b"\r\n\r\n", **CHUNKED)
        )
        assert transfer(host.song())["songs"][0]["audio"]["size"] == len(WAV)
        assert len(host.requests) == 2

    def test_a_body_that_is_longer_than_announced_counts_up_to_its_announced_end(
        self, host: MediaHost, transfer: Transfer
    ) -> None:
        """That is what HTTP says, and nothing tells such a file from a whole one."""
        host.responses["/song"] = respond(200, WAV, Content_Length="9000")
        assert transfer(host.song())["songs"][0]["audio"]["size"] == 9000


class TestRedirectsThatAreCut:
    def test_a_location_that_is_cut_is_not_followed(self, host: MediaHost, transfer: Transfer) -> None:
        whole = respond(302, Location="/other")

        def cut(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /oth")

        host.responses |= {"/song": respond_in_turn(cut, whole), "/other": respond(200, WAV)}
        assert transfer(host.song())["count"] == 1
        assert host.count("/oth") == 0


class TestWaits:
    def test_a_retry_after_that_is_too_long_is_not_waited_for_and_the_attempts_are_counted(
        self, host: MediaHost, transfer: Transfer, clock: FakeClock
    ) -> None:
        host.responses["/song"] = respond(503, Retry_After="3600")
        message = r"in 1 attempt: .* answered 503\. The next attempt would be in 900 s, which is too long"
        with pytest.raises(WhisulMediaError, match=message):
            transfer(host.song())
        assert clock.slept == []

    def test_all_waits_for_one_file_together_are_bounded(
        self, host: MediaHost, transfer: Transfer, clock: FakeClock
    ) -> None:
        host.responses["/song"] = respond(503, Retry_After="250")
        with pytest.raises(WhisulMediaError, match="in 3 attempts: .* answered 503"):
            transfer(host.song())
        assert clock.slept == [250.0, 250.0]


class TestAMediaHostThatLagsBehind:
    @pytest.fixture(autouse=True)
    def _polls_each_job_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # These jobs do not exist, which would take a minute to tell.
        monkeypatch.setattr(NotFoundGrace, "next_delay", lambda *_: None)

    @pytest.mark.parametrize("status", [403, 404])
    def test_is_waited_for_where_the_job_has_only_just_ended(
        self, host: MediaHost, transfer: Transfer, clock: FakeClock, make_songs: MakeSongs, status: int
    ) -> None:
        (song,) = make_songs("a waltz")
        host.responses["/song"] = respond_in_turn(*[respond(status)] * 8, respond(200, WAV))
        # The job has the same URL, or another one that lags too.
        manifest = transfer({**song, "song_url": f"{host.url}/song", "job_id": "another"})
        assert manifest["count"] == 1
        assert clock.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]

    def test_is_waited_for_with_the_sandbox(self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer) -> None:
        assert transfer(make_songs("a waltz [sandbox:media-404=5]"))["count"] == 1

    @pytest.mark.parametrize(("age", "requests"), [(299, 3), (301, 2), (-59, 18), (-61, 2), (None, 2)])
    def test_is_waited_for_until_five_minutes_after_the_end(
        self, host: MediaHost, transfer: Transfer, clock: FakeClock, sandbox: Sandbox, age: int | None, requests: int
    ) -> None:
        finished_at = None if age is None else datetime.fromtimestamp(clock.now - age, UTC).isoformat()
        host.responses["/song"] = respond(404)
        with pytest.raises(WhisulMediaExpiredError):
            transfer(host.song(finished_at=finished_at))
        assert len(host.requests) == requests


class TestRedirects:
    @pytest.mark.parametrize("location", ["/gut\u00c3\u00a9.mp3", "/gut%C3%A9.mp3"])
    def test_a_location_in_utf8_is_followed(self, host: MediaHost, transfer: Transfer, location: str) -> None:
        host.responses |= {"/song": respond(302, Location=location), "/gut%C3%A9.mp3": respond(200, WAV)}
        assert transfer(host.song())["count"] == 1

    def test_a_location_in_latin_1_is_followed(self, host: MediaHost, transfer: Transfer) -> None:
        host.responses |= {"/song": respond(302, Location="/gut\u00e9.mp3"), "/gut%E9.mp3": respond(200, WAV)}
        assert transfer(host.song())["count"] == 1

    def test_a_space_is_encoded(self, host: MediaHost, transfer: Transfer) -> None:
        host.responses |= {"/a%20b": respond(302, Location="/c d"), "/c%20d": respond(200, WAV)}
        assert transfer(host.song(song_url=f"{host.url}/a b"))["count"] == 1

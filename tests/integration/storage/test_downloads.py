"""Downloads that break off, stall, or return something else than the song."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import WhisulMediaError
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage import downloader, media_client, watchdog
from airflow_provider_whisul.storage.partial_file import PartialFile
from tests.integration.storage.helpers import (
    WAV,
    MakeSongs,
    MediaHost,
    Transfer,
    assert_complete,
    file_names,
    respond,
    respond_in_turn,
)
from tests.support.clock import FakeClock
from tests.support.servers import fetched
from tests.support.soon import soon

#: The first 9,000 bytes of a file that can be resumed.
RESUMABLE_PART = respond(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", ETag='"1"')
REST = f"bytes 9000-{len(WAV) - 1}/{len(WAV)}"


def stored_audio(host: MediaHost, transfer: Transfer, folder: Path) -> bytes:
    (stored,) = transfer(host.song())["songs"]
    return (folder / stored["audio"]["name"]).read_bytes()


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ("media-cut", [200, 206]),
        ("media-cut=3", [200, 206, 206, 206]),
        ("media-cut][sandbox:media-no-range", [200, 200]),
        ("media-500=2", [500, 500, 200]),
        ("media-cut][sandbox:media-500", [200, 500, 206]),
        ("media-429", [429, 200]),
        ("media-drop", [None, 200]),
        ("media-html", [200, 200]),
        ("media-disguised", [200, 200]),
        ("media-empty", [200, 200]),
        ("media-wrong-length", [200, 416, 200]),
        ("media-redirect", [302, 200]),
    ],
)
def test_a_broken_download_is_resumed_or_restarted_after_1_2_and_4_seconds(
    sandbox: Sandbox,
    make_songs: MakeSongs,
    transfer: Transfer,
    folder: Path,
    fault: str,
    statuses: list[int | None],
    clock: FakeClock,
) -> None:
    (song,) = make_songs(f"a waltz [sandbox:{fault}]")
    manifest = transfer(song, max_concurrent_downloads=1)
    assert_complete(folder, manifest)
    assert [request.status for request in fetched(sandbox) if "/audio/" in request.path] == statuses
    assert clock.slept[: len(statuses) - 1] == ([] if 302 in statuses else [2.0**n for n in range(len(statuses) - 1)])


def test_a_longer_retry_after_of_the_media_host_is_waited_for(
    host: MediaHost, transfer: Transfer, clock: FakeClock
) -> None:
    host.responses["/song"] = respond_in_turn(respond(503, Retry_After="90"), respond(503), respond(200, WAV))
    transfer(host.song())
    assert clock.slept == [90.0, 2.0]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("media-cut=9", "the download broke off"),
        ("media-html=9", "no audio (Content-Type 'text/html; charset=utf-8')"),
        ("media-disguised=9", "no audio (Content-Type 'audio/wav')"),
        ("media-empty=9", "the host sent an empty file"),
        ("media-500=9", "answered 500"),
        ("media-wrong-length=99", "answered 416"),
        ("media-redirect=99", "more than 5 redirects"),
    ],
)
def test_a_download_that_fails_six_times_is_an_error_and_leaves_nothing(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, fault: str, reason: str
) -> None:
    (song,) = make_songs(f"a waltz [sandbox:{fault}]")
    with pytest.raises(WhisulMediaError) as raised:
        transfer(song)
    assert reason in str(raised.value)
    assert "in 6 attempts" in str(raised.value)
    assert song["job_id"] in str(raised.value)
    assert not isinstance(raised.value, AirflowFailException)
    assert file_names(folder) == set()


class TestResuming:
    def test_a_file_that_changed_meanwhile_is_downloaded_from_its_beginning(
        self, host: MediaHost, transfer: Transfer, folder: Path
    ) -> None:
        changed = WAV + b"new"
        host.responses["/song"] = respond_in_turn(
            RESUMABLE_PART, respond(200, changed, Accept_Ranges="bytes", ETag='"2"')
        )
        assert stored_audio(host, transfer, folder) == changed
        assert host.requests[1][1]["Range"] == "bytes=9000-"
        assert host.requests[1][1]["If-Range"] == '"1"'

    @pytest.mark.parametrize(
        "headers",
        [{"ETag": 'W/"1"', "Accept_Ranges": "bytes"}, {"ETag": '"1"'}, {"ETag": '"1"', "Accept_Ranges": "none"}],
    )
    def test_no_range_is_requested_without_a_strong_validator_and_accept_ranges(
        self, host: MediaHost, transfer: Transfer, headers: dict[str, str]
    ) -> None:
        host.responses["/song"] = respond_in_turn(
            respond(200, WAV[:9000], Content_Length=str(len(WAV)), **headers), respond(200, WAV, **headers)
        )
        transfer(host.song())
        assert "Range" not in host.requests[1][1]

    @pytest.mark.parametrize(
        "content_range", ["bytes 0-20011/20012", "bytes 9000-20011/30000", "bytes 9000-9999/20012", ""]
    )
    def test_another_range_than_was_requested_is_not_used(
        self, host: MediaHost, transfer: Transfer, folder: Path, content_range: str
    ) -> None:
        host.responses["/song"] = respond_in_turn(
            RESUMABLE_PART, respond(206, WAV[9000:], Content_Range=content_range), respond(200, WAV)
        )
        assert stored_audio(host, transfer, folder) == WAV
        assert len(host.requests) == 3

    @pytest.mark.parametrize(
        ("validator", "other"),
        [
            ({"ETag": '"1"'}, {"ETag": '"2"'}),
            ({"ETag": '"1"'}, {"ETag": 'W/"1"'}),
            (
                {"Last_Modified": "Tue, 17 Feb 2026 12:00:00 GMT"},
                {"Last_Modified": "Tue, 17 Feb 2026 12:00:01 GMT"},
            ),
        ],
    )
    def test_a_range_of_another_version_is_not_used(
        self, host: MediaHost, transfer: Transfer, folder: Path, validator: dict[str, str], other: dict[str, str]
    ) -> None:
        new = WAV[:12] + b"\x01" * (len(WAV) - 12)
        host.responses["/song"] = respond_in_turn(
            respond(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", **validator),
            respond(206, new[9000:], Content_Range=REST, **other),
            respond(200, new, **other),
        )
        assert stored_audio(host, transfer, folder) == new
        assert "Range" not in host.requests[2][1]

    @pytest.mark.parametrize("headers", [{}, {"ETag": '"1"'}])
    def test_a_range_of_the_same_version_completes_the_file(
        self, host: MediaHost, transfer: Transfer, folder: Path, headers: dict[str, str]
    ) -> None:
        host.responses["/song"] = respond_in_turn(
            RESUMABLE_PART, respond(206, WAV[9000:], Content_Range=REST, **headers)
        )
        assert stored_audio(host, transfer, folder) == WAV
        assert len(host.requests) == 2

    def test_a_range_with_too_many_bytes_is_not_used(self, host: MediaHost, transfer: Transfer, folder: Path) -> None:
        host.responses["/song"] = respond_in_turn(
            RESUMABLE_PART,
            respond(206, WAV[9000:] + b"more", Content_Range=REST),
            respond(416),
            respond(200, WAV),
        )
        assert stored_audio(host, transfer, folder) == WAV


class TestOddResponses:
    @pytest.mark.parametrize(
        ("url", "headers"),
        [
            # A label of a host name has at most 63 characters, and is never empty.
            (f"https://{'a' * 64}.example/x?signature=secret", {}),
            ("/song", {"status": "302", "Location": "https://cdn..example/x?signature=secret"}),
            ("/song", {"Content_Length": "9" * 5000}),
            ("/song", {"Content_Length": "\u00b2"}),
        ],
    )
    def test_do_not_stop_the_other_songs(
        self, host: MediaHost, transfer: Transfer, url: str, headers: dict[str, str]
    ) -> None:
        host.responses["/fine"] = respond(200, WAV)
        host.responses["/song"] = respond(int(headers.pop("status", "200")), WAV, **headers)
        odd = host.song("odd", song_url=url if url.startswith("https") else host.url + url)
        songs = [host.song("one", song_url=f"{host.url}/fine"), odd, host.song("two", song_url=f"{host.url}/fine")]
        manifest = transfer(songs, max_failures=1, max_concurrent_downloads=1)
        assert [song["job_id"] for song in manifest["songs"]] == ["one", "two"]
        (failed,) = manifest["failed"]
        assert failed["job_id"] == "odd"
        assert "The audio of job odd could not be downloaded" in failed["error"]
        assert "secret" not in failed["error"]

    def test_a_body_of_unknown_length_is_refused(self, host: MediaHost, transfer: Transfer) -> None:
        host.responses["/song"] = respond(200, WAV, Content_Length="")
        with pytest.raises(WhisulMediaError, match="has no Content-Length"):
            transfer(host.song())

    def test_an_encoded_body_is_refused(self, host: MediaHost, transfer: Transfer) -> None:
        host.responses["/song"] = respond(
            200, b"\x1f\x8b\x08 packed", Content_Encoding="gzip", Content_Type="audio/mpeg"
        )
        with pytest.raises(WhisulMediaError, match="has the Content-Encoding 'gzip'"):
            transfer(host.song())
        assert host.requests[0][1]["Accept-Encoding"] == "identity"

    @pytest.mark.parametrize("complete", [True, False])
    def test_a_chunked_body_is_complete_only_with_its_last_chunk(
        self, host: MediaHost, transfer: Transfer, complete: bool
    ) -> None:
        body = f"{len(WAV):x}\r\n".encode() + WAV + b"\r\n" + (b"0\r\n\r\n" if complete else b"")
        host.responses["/song"] = respond(200, body, Content_Length="", Transfer_Encoding="chunked")
        if complete:
            assert transfer(host.song())["songs"][0]["audio"]["size"] == len(WAV)
        else:
            with pytest.raises(WhisulMediaError, match="the download broke off"):
                transfer(host.song())


class TestSlowHosts:
    def test_a_download_that_stalls_is_given_up(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin = PartialFile.begin

        def begin_and_stall(partial: PartialFile, headers: Any, url: str) -> None:
            begin(partial, headers, url)
            # Not before, as the header may come late.
            monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.1)

        monkeypatch.setattr(PartialFile, "begin", begin_and_stall)
        monkeypatch.setattr(downloader, "MAX_ATTEMPTS", 1)

        def drip(handler: BaseHTTPRequestHandler) -> None:
            respond(200, WAV[:100], Content_Length=str(len(WAV)))(handler)
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.02)

        host.responses["/song"] = drip
        with soon(), pytest.raises(WhisulMediaError, match=r"the download broke off: only \d+ bytes in \d s"):
            transfer(host.song())

    def test_a_host_that_does_not_respond_is_given_up(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(media_client, "READ_TIMEOUT", 0.1)
        monkeypatch.setattr(downloader, "MAX_ATTEMPTS", 2)
        given_up = threading.Event()
        host.responses["/song"] = lambda handler: given_up.wait(60) and None
        with pytest.raises(WhisulMediaError, match=r"no response from .*: (timed out|Timeout)"):
            transfer(host.song())
        given_up.set()

"""A song is stored without its cover where the cover is gone for good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_whisul.exceptions import WhisulMediaError
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage import downloader
from tests.integration.storage.helpers import (
    PNG,
    WAV,
    MakeSongs,
    MediaHost,
    Transfer,
    assert_complete,
    check_files,
    file_names,
    respond,
)
from tests.support.servers import fetched

SVG_UTF_16 = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'.encode("utf-16")


def test_a_cover_whose_url_has_expired_is_left_out(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path, task_log: Callable[[], list[str]]
) -> None:
    (song,) = make_songs("a waltz")
    song["image_url"] = song["image_url"].replace(".png", ".gone")
    # The song's own job has a URL that works.
    song["job_id"] = "another"
    song["finished_at"] = None
    manifest = transfer(song)
    (stored,) = manifest["songs"]
    assert stored["cover"] is None
    assert ".gone, the cover of job another: the URL has expired" in stored["cover_error"]
    assert stored["cover_error"] in task_log()
    assert file_names(folder) == check_files(folder, manifest)
    assert [request.status for request in fetched(sandbox)] == [200, 404, 404]


def test_a_cover_that_the_job_has_no_url_of_any_more_is_left_out(
    host: MediaHost, make_songs: MakeSongs, transfer: Transfer
) -> None:
    (song,) = make_songs("a waltz [sandbox:bare-track]")
    host.responses |= {"/song": respond(200, WAV), "/gone": respond(404)}
    (stored,) = transfer({**song, "song_url": f"{host.url}/song", "image_url": f"{host.url}/gone"})["songs"]
    assert stored["cover"] is None
    assert f"answered 404 to {host.url}/gone, the cover of job {song['job_id']}" in stored["cover_error"]
    assert "Polling the job again returned no URL." in stored["cover_error"]


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", "a file of 41 bytes that is no cover"),
        (SVG_UTF_16, "image/svg+xml", f"a file of {len(SVG_UTF_16)} bytes that is no cover"),
        (SVG_UTF_16, "image/png", f"a file of {len(SVG_UTF_16)} bytes that is no cover"),
        (b"<!DOCTYPE html>", "text/html", "a file of 15 bytes that is no cover"),
        (b"", "image/png", "an empty file"),
    ],
)
def test_a_cover_that_is_no_image_in_six_attempts_is_left_out(
    host: MediaHost, transfer: Transfer, folder: Path, body: bytes, content_type: str, reason: str
) -> None:
    host.responses["/song"] = respond(200, WAV)
    host.responses["/cover"] = respond(200, body, Content_Type=content_type)
    manifest = transfer(host.song(image_url=f"{host.url}/cover?signature=secret"))
    (stored,) = manifest["songs"]
    assert stored["cover"] is None
    assert f"the host sent {reason} (Content-Type {content_type!r})" in stored["cover_error"]
    assert "secret" not in stored["cover_error"]
    assert file_names(folder) == check_files(folder, manifest)
    assert len(host.requests) == 1 + downloader.MAX_ATTEMPTS


@pytest.mark.parametrize("url", ["http://media.example/cover", "file:///etc/passwd"])
def test_a_cover_whose_url_is_not_https_is_left_out(host: MediaHost, transfer: Transfer, url: str) -> None:
    host.responses["/song"] = respond(200, WAV)
    (stored,) = transfer(host.song(image_url=url))["songs"]
    assert stored["cover"] is None
    assert "The media URL of job some-job" in stored["cover_error"]


def test_a_cover_from_a_host_whose_certificate_cannot_be_verified_is_left_out(
    host: MediaHost, transfer: Transfer, self_signed: str
) -> None:
    host.responses["/song"] = respond(200, WAV)
    (stored,) = transfer(host.song(image_url=f"{self_signed}/cover"))["songs"]
    assert stored["cover"] is None
    assert "could not be verified" in stored["cover_error"]


def test_a_later_try_does_not_request_a_cover_again_that_was_left_out(host: MediaHost, transfer: Transfer) -> None:
    host.responses |= {"/song": respond(200, WAV), "/cover": respond(200, b"<html>", Content_Type="text/html")}
    song = host.song(image_url=f"{host.url}/cover")
    first = transfer(song)
    requests = len(host.requests)
    assert transfer(song)["songs"] == first["songs"]
    assert len(host.requests) == requests


def test_a_cover_that_may_be_there_later_fails_the_song_so_that_a_retry_stores_both(
    host: MediaHost, transfer: Transfer, folder: Path
) -> None:
    host.responses |= {"/song": respond(200, WAV), "/cover": respond(500)}
    song = host.song(image_url=f"{host.url}/cover")
    with pytest.raises(WhisulMediaError, match="The cover of job some-job could not be downloaded"):
        transfer(song)
    host.responses["/cover"] = respond(200, PNG)
    assert_complete(folder, transfer(song))
    assert host.count("/song") == 2

"""What is landed under which name, and what a whole file is."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulInvalidInputError, WhisulMediaUnsafeError
from airflow_provider_whisul.landing import (
    Manifest,
    as_json,
    checked_url,
    event_extra,
    files_of,
    is_of_same_task,
    kind_of,
    landed_song,
    read_songs,
    shown,
    song_name,
)

JOB_IDS = st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
FIELDS = st.sampled_from(["job_id", "status", "track", "title", "tags", "prompt", "bpm", "error", "song_url"])
ANY_JSON = st.recursive(
    SCALARS | st.just("completed") | st.just("failed"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
)
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def song(job_id: str = "a-job", title: str | None = "Midnight Grid", **fields: Any) -> Any:
    return read_songs({"job_id": job_id, "title": title, "song_url": "https://media.example/x", **fields})[0][0]


class TestNames:
    @given(title=st.none() | st.text(), job_id=JOB_IDS)
    def test_are_safe_on_every_store(self, title: str | None, job_id: str) -> None:
        name = song_name(song(job_id, title))
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*_[a-z0-9][a-z0-9-]*", name)
        assert len(name) <= 101
        assert name not in RESERVED

    @given(one=JOB_IDS, two=JOB_IDS, titles=st.tuples(st.text(), st.text()))
    def test_tell_songs_apart_also_where_case_does_not(self, one: str, two: str, titles: tuple[str, str]) -> None:
        if one != two:
            assert song_name(song(one, titles[0])).casefold() != song_name(song(two, titles[1])).casefold()

    def test_of_other_titles_and_jobs_never_meet(self) -> None:
        assert song_name(song("b-c", "a")) != song_name(song("c", "a b"))

    @pytest.mark.parametrize(
        ("title", "job_id", "name"),
        [
            ("Midnight Grid", "81fa5ff7-6197", "midnight-grid_81fa5ff7-6197"),
            ("  ¡Olé, Café!  ", "x1", "ole-cafe_x1"),
            ("真夜中", "x1", "song_x1"),
            (None, "x1", "song_x1"),
            ("../../etc/passwd", "x1", "etc-passwd_x1"),
            ("CON", "x1", "con_x1"),
            ("a" * 300, "x1", "a" * 60 + "_x1"),
            ("a", "Job_1", "a_b304b3113116d998a221c33eef93fcb7"),
        ],
    )
    def test_are_what_people_would_expect(self, title: str | None, job_id: str, name: str) -> None:
        assert song_name(song(job_id, title)) == name


class TestSongs:
    def test_what_is_missing_is_none(self) -> None:
        assert song("a-job", None) == {
            "job_id": "a-job",
            "prompt": None,
            "title": None,
            "bpm": None,
            "duration_seconds": None,
            "song_url": "https://media.example/x",
            "image_url": None,
            "tags": [],
            "started_at": None,
            "finished_at": None,
        }

    @pytest.mark.parametrize("bpm", [float("nan"), float("inf"), 10**400, "140", True, None])
    def test_a_number_that_json_cannot_hold_is_none(self, bpm: object) -> None:
        assert song(bpm=bpm)["bpm"] is None

    @pytest.mark.parametrize("job_id", ["../x", "a b", "", "x" * 201, None, 5])
    def test_a_job_that_cannot_be_is_refused(self, job_id: object) -> None:
        with pytest.raises(WhisulInvalidInputError):
            read_songs([{"job_id": job_id, "song_url": "https://media.example/x"}])

    @given(ANY_JSON)
    def test_whatever_came_is_songs_or_refused(self, value: object) -> None:
        with suppress(WhisulInvalidInputError):
            songs, failed = read_songs(value)
            json.dumps([songs, failed], allow_nan=False)

    def test_a_text_is_told_what_it_should_be(self) -> None:
        with pytest.raises(WhisulInvalidInputError, match="render_template_as_native_obj"):
            read_songs("[{'job_id': 'x'}]")


WAV, MP3, PNG, JPEG = b"RIFF1234WAVEfmt ", b"ID3\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"


class TestKinds:
    @pytest.mark.parametrize(
        ("role", "head", "content_type", "extension"),
        [
            ("audio", WAV, "", ".wav"),
            ("audio", MP3, "application/octet-stream", ".mp3"),
            ("audio", b"\xff\xfb\x90\x00", "text/plain", ".mp3"),
            ("audio", b"\xff\xf1\x50\x80", "", ".aac"),
            ("audio", b"fLaC", "", ".flac"),
            ("audio", b"OggS", "", ".ogg"),
            ("audio", b"\0\0\0\x20ftypM4A ", "", ".m4a"),
            ("cover", b"\0\0\0\x20ftypavif", "", ".avif"),
            ("cover", PNG, "text/html", ".png"),
            ("cover", JPEG, "", ".jpg"),
            ("cover", b"RIFF1234WEBP", "", ".webp"),
            # Of a kind that is not known here.
            ("audio", b"NEWCODEC\x01", "audio/x-new; rate=1", ".bin"),
            ("cover", b"BM6\x00", "image/bmp", ".bmp"),
        ],
    )
    def test_that_are_taken(self, role: Any, head: bytes, content_type: str, extension: str) -> None:
        kind = kind_of(role, head, content_type)
        assert kind is not None
        assert kind.extension == extension

    @pytest.mark.parametrize(
        ("role", "head", "content_type"),
        [
            ("audio", b"", "audio/mpeg"),
            ("audio", b"  \n", "audio/mpeg"),
            ("audio", b"<!DOCTYPE html>", "audio/mpeg"),
            ("audio", b"\xef\xbb\xbf <html>", "audio/mpeg"),
            ("audio", b'{"error": "no"}', "audio/mpeg"),
            ("audio", b"\xff\xfe<\0h\0t\0", "text/html"),
            ("audio", b"error code: 1015", "audio/mpeg"),
            ("audio", b"error code: 1015".ljust(64, b"\n"), "audio/mpeg"),
            ("audio", b"\xef\xbb\xbfNot Found\r\n", "audio/mpeg"),
            ("cover", b"Not Found", "image/jpeg"),
            ("audio", b"NEWCODEC\x01", "application/octet-stream"),
            ("audio", b"NEWCODEC\x01", "audio/../../x"),
            ("audio", PNG, "audio/mpeg"),
            ("cover", WAV, "image/png"),
            ("cover", b"\x1f\x8b\x08", "application/gzip"),
        ],
    )
    def test_that_are_refused(self, role: Any, head: bytes, content_type: str) -> None:
        assert kind_of(role, head, content_type) is None

    @given(head=st.binary(max_size=64), content_type=st.text(max_size=40), role=st.sampled_from(["audio", "cover"]))
    def test_have_an_extension_that_is_safe(self, head: bytes, content_type: str, role: Any) -> None:
        kind = kind_of(role, head, content_type)
        assert kind is None or re.fullmatch(r"\.[a-z0-9]{1,8}", kind.extension)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "came_from"),
        [
            ("https://media.example/x?signature=1", None),
            ("http://127.0.0.1:8000/x", None),
            ("http://localhost/x", None),
            ("http://[::1]:8000/x", None),
            ("http://127.0.0.1:8001/y", "http://127.0.0.1:8000/x"),
            ("https://media.example/x", "http://127.0.0.1:8000/x"),
            ("https://other.example/x", "https://media.example/x"),
        ],
    )
    def test_that_are_safe(self, url: str, came_from: str | None) -> None:
        assert checked_url(url, "a-job", came_from=came_from) == url

    def test_a_redirect_may_be_relative(self) -> None:
        assert checked_url("/y?z=1", "a-job", came_from="https://media.example/x") == "https://media.example/y?z=1"

    @pytest.mark.parametrize(
        ("url", "came_from"),
        [
            ("http://media.example/x", None),
            ("http://127.0.0.1.media.example/x", None),
            ("http://127.0.0.1:8000/x", "https://media.example/x"),
            ("http://media.example/x", "http://127.0.0.1:8000/x"),
            ("https://user:password@media.example/x", None),
            ("https://media.example\\@127.0.0.1/x", None),
            ("https://media.example:99999/x", None),
            ("https://", None),
            ("https://media.example/x\n", None),
            ("ftp://media.example/x", None),
            ("file:///etc/passwd", None),
            ("media.example/x", None),
            ("", None),
        ],
    )
    def test_that_are_not(self, url: str, came_from: str | None) -> None:
        with pytest.raises(WhisulMediaUnsafeError, match="of job a-job"):
            checked_url(url, "a-job", came_from=came_from)

    @given(st.text())
    def test_any_text_is_safe_or_refused(self, url: str) -> None:
        with suppress(WhisulMediaUnsafeError):
            assert checked_url(url, "a-job").lower().startswith(("https://", "http://"))

    @pytest.mark.parametrize("query", ["?signature=secret", "?a=1#secret", "#secret"])
    def test_are_shown_without_what_signs_them(self, query: str) -> None:
        assert shown(f"https://user:secret@media.example:8443/x.mp3{query}") == "https://media.example:8443/x.mp3"


FILE = {"name": "x.mp3", "size": 3, "sha256": "abc", "content_type": "audio/mpeg"}


class TestWhatIsWritten:
    def test_metadata_accounts_for_its_files_and_holds_no_url(self) -> None:
        landed = landed_song(song(prompt="\ud800 half a pair"), "x", {"audio": FILE})
        content = json.loads(as_json(landed))
        assert content == landed
        assert files_of(content, "a-job") == {"audio": FILE}
        assert "media.example" not in json.dumps(content)

    @pytest.mark.parametrize("content", [None, [], "x", {}, {"job_id": "another", "audio": FILE}])
    def test_of_others_accounts_for_nothing(self, content: object) -> None:
        assert files_of(content, "a-job") is None

    def test_a_broken_account_of_a_file_counts_for_nothing(self) -> None:
        assert files_of({"job_id": "a-job", "audio": {"name": "x.mp3"}, "cover": None}, "a-job") == {}

    @pytest.mark.parametrize("change", ["dag_id", "task_id", "run_id", "map_index"])
    def test_a_manifest_is_of_one_task_and_run(self, change: str) -> None:
        manifest = make_manifest(0)
        assert is_of_same_task({**manifest, "landed_at": "later"}, manifest)
        assert not is_of_same_task({**manifest, change: "another"}, manifest)

    def test_an_event_stays_small(self) -> None:
        manifest = make_manifest(1000, title="\u2028" + "long " * 500)
        extra = event_extra(manifest)
        assert extra["count"] == 1000
        assert len(json.dumps(extra)) < 10_000

    def test_a_manifest_of_a_thousand_songs_is_of_the_size_that_the_documentation_says(self) -> None:
        tags = ["acoustic", "ambient", "bass", "chill"]
        assert (
            700_000
            < len(as_json(make_manifest(1000, prompt="a slow waltz for a rainy harbour", tags=tags)))
            < 1_000_000
        )


def make_manifest(count: int, **fields: Any) -> Manifest:
    audio = {"name": "midnight-grid_81fa5ff7-6197-4c24-8062-c0ff8b62d58d.mp3", "size": 3_000_000, "sha256": "0" * 64}
    file: Any = {**audio, "content_type": "audio/mpeg"}
    made = song("81fa5ff7-6197-4c24-8062-c0ff8b62d58d", **fields)
    return {
        "destination": "s3://bucket/songs/some-run",
        "manifest": "manifest.json",
        "dag_id": "songs",
        "task_id": "keep",
        "run_id": "some-run",
        "map_index": -1,
        "landed_at": "2026-02-17T12:00:00+00:00",
        "count": count,
        "songs": [landed_song(made, song_name(made), {"audio": file, "cover": file})] * count,
        "failed": [],
    }

"""The JSON files beside the stored songs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_whisul.storage.manifest import (
    Manifest,
    event_extra,
    is_complete,
    is_of_same_task,
    manifest_name,
    stored_files,
    stored_song,
    to_json,
)
from airflow_provider_whisul.storage.songs import read_songs, song_name

AUDIO: Any = {"name": "x.mp3", "size": 3, "sha256": "a" * 64, "content_type": "audio/mpeg"}
COVER: Any = {"name": "x.png", "size": 2, "sha256": "d" * 64, "content_type": "image/png"}


def song(job_id: str = "a-job", **fields: Any) -> Any:
    return read_songs({"job_id": job_id, "song_url": "https://media.example/x", "title": "Midnight Grid", **fields})[0][
        0
    ]


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
        "stored_at": "2026-02-17T12:00:00+00:00",
        "count": count,
        "songs": [stored_song(made, song_name(made), {"audio": file, "cover": file})] * count,
        "failed": [],
    }


class TestTheMetadataOfASong:
    def test_names_its_files_and_holds_no_url(self) -> None:
        stored = stored_song(song(prompt="\ud800 half a pair"), "x", {"audio": AUDIO})
        content = json.loads(to_json(stored))
        assert content == stored
        assert stored_files(content, "x", "a-job") == {"audio": AUDIO}
        assert "media.example" not in json.dumps(content)

    @pytest.mark.parametrize("content", [{}, {"job_id": "another", "audio": AUDIO}])
    def test_of_another_job_names_no_files(self, content: dict[str, object]) -> None:
        assert stored_files(content, "x", "a-job") == {}

    def test_names_no_file_whose_description_is_damaged(self) -> None:
        assert stored_files({"job_id": "a-job", "audio": {"name": "x.mp3"}, "cover": None}, "x", "a-job") == {}

    @pytest.mark.parametrize(
        ("role", "change"),
        [
            ("audio", {"name": "another_song.mp3"}),
            ("audio", {"name": "../x.mp3"}),
            ("audio", {"name": "x.json"}),
            ("audio", {"name": "x.wav"}),
            ("audio", {"content_type": "text/html"}),
            ("cover", {"name": "x.mp3"}),
            ("cover", {"name": "y.png"}),
            ("cover", {"name": "x.svg", "content_type": "image/svg+xml"}),
            ("cover", {"size": "2"}),
        ],
    )
    def test_that_names_a_file_that_is_not_the_songs_names_none(self, role: str, change: dict[str, object]) -> None:
        files: dict[str, Any] = {"audio": AUDIO, "cover": COVER}
        files[role] = files[role] | change
        assert stored_files({"job_id": "a-job", **files}, "x", "a-job") == {}

    def test_of_a_later_version_of_the_provider_may_have_more_fields(self) -> None:
        content = {"job_id": "a-job", "schema": 9, "audio": {**AUDIO, "codec": "new"}, "stems": [], "cover": None}
        assert stored_files(content, "x", "a-job") == {"audio": AUDIO}

    @pytest.mark.parametrize(
        ("files", "existing_files", "complete"),
        [
            ({"audio": AUDIO}, {"x.mp3": 3}, True),
            ({"audio": AUDIO, "cover": COVER}, {"x.mp3": 3, "x.png": 2}, True),
            ({"audio": AUDIO, "cover": COVER}, {"x.mp3": 3}, False),
            ({"audio": AUDIO}, {"x.mp3": 2}, False),
            ({"audio": AUDIO}, {"x.mp3": None}, False),
            ({"cover": COVER}, {"x.png": 2}, False),
            ({}, {"x.mp3": 3}, False),
        ],
    )
    def test_is_believed_only_if_all_its_files_have_their_length(
        self, files: Any, existing_files: dict[str, int | None], complete: bool
    ) -> None:
        assert is_complete(files, existing_files) is complete


class TestTheManifest:
    @pytest.mark.parametrize("change", ["dag_id", "task_id", "run_id", "map_index"])
    def test_belongs_to_one_task_of_one_run(self, change: str) -> None:
        manifest = make_manifest(0)
        assert is_of_same_task({**manifest, "stored_at": "later"}, manifest)
        assert not is_of_same_task({**manifest, change: "another"}, manifest)

    @pytest.mark.parametrize(("map_index", "name"), [(-1, "manifest.json"), (0, "manifest-0.json")])
    def test_of_a_mapped_task_has_its_index_in_its_name(self, map_index: int, name: str) -> None:
        assert manifest_name(map_index) == name

    def test_of_a_thousand_songs_has_the_size_that_the_documentation_says(self) -> None:
        tags = ["acoustic", "ambient", "bass", "chill"]
        size = len(to_json(make_manifest(1000, prompt="a slow waltz for a rainy harbour", tags=tags)))
        assert 700_000 < size < 1_000_000

    def test_of_a_thousand_songs_with_long_titles_makes_a_small_asset_event(self) -> None:
        extra = event_extra(make_manifest(1000, title="\u2028" + "long " * 500))
        assert extra["count"] == 1000
        assert len(json.dumps(extra)) < 10_000

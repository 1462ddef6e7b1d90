"""Reading the songs that a task is given, and naming their files."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.storage.songs import merge_songs, read_songs, song_name

JOB_IDS = st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
FIELDS = st.sampled_from(["job_id", "status", "song", "title", "tags", "prompt", "bpm", "error", "song_url"])
ANY_JSON = st.recursive(
    SCALARS | st.just("completed") | st.just("failed"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
)
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def song(job_id: str = "a-job", title: str | None = "Midnight Grid", **fields: Any) -> Any:
    return read_songs({"job_id": job_id, "title": title, "song_url": "https://media.example/x", **fields})[0][0]


class TestSongNames:
    @given(title=st.none() | st.text(), job_id=JOB_IDS)
    def test_are_safe_on_every_store(self, title: str | None, job_id: str) -> None:
        name = song_name(song(job_id, title))
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*_[a-z0-9][a-z0-9-]*", name)
        assert len(name) <= 101
        assert name not in RESERVED_NAMES

    @given(one=JOB_IDS, two=JOB_IDS, titles=st.tuples(st.text(), st.text()))
    def test_differ_for_two_jobs_also_on_stores_that_ignore_case(
        self, one: str, two: str, titles: tuple[str, str]
    ) -> None:
        if one != two:
            assert song_name(song(one, titles[0])).casefold() != song_name(song(two, titles[1])).casefold()

    def test_differ_where_title_and_job_id_are_split_at_another_dash(self) -> None:
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
    def test_are_the_title_in_ascii_and_the_job_id(self, title: str | None, job_id: str, name: str) -> None:
        assert song_name(song(job_id, title)) == name


class TestReadSongs:
    def test_a_missing_field_is_none(self) -> None:
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
    def test_a_malformed_job_id_is_refused(self, job_id: object) -> None:
        with pytest.raises(WhisulInvalidInputError):
            read_songs([{"job_id": job_id, "song_url": "https://media.example/x"}])

    @given(ANY_JSON)
    def test_any_json_is_read_as_songs_or_refused(self, value: object) -> None:
        with suppress(WhisulInvalidInputError):
            songs, skipped = read_songs(value)
            json.dumps([songs, skipped], allow_nan=False)

    def test_the_error_for_a_string_says_how_to_pass_songs(self) -> None:
        with pytest.raises(WhisulInvalidInputError, match=r"value of type str.*render_template_as_native_obj"):
            read_songs("[{'job_id': 'x'}]")

    def test_a_failed_result_without_a_reason_is_skipped_with_a_sentence(self) -> None:
        assert read_songs({"status": "failed", "job_id": "x", "prompt": "a waltz", "error": None}) == (
            [],
            [{"job_id": "x", "prompt": "a waltz", "error": "The song failed, and Whisul gave no reason."}],
        )


class TestMergeSongs:
    def test_only_empty_fields_are_filled(self) -> None:
        merged = merge_songs(song("x", None, prompt="a waltz", tags=[]), song("x", "Other", prompt="other", tags=["a"]))
        assert (merged["title"], merged["prompt"], merged["tags"]) == ("Other", "a waltz", ["a"])

    def test_a_field_of_a_wrong_type_fills_nothing(self) -> None:
        assert merge_songs(song("x", None), {"title": 5, "tags": "a", "bpm": "140"}) == song("x", None)

"""A job and its song, as a response body describes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_provider_whisul.api.messages import Response
from airflow_provider_whisul.api.models import Song, WhisulJob
from airflow_provider_whisul.api.outcomes import read_job
from airflow_provider_whisul.exceptions import WhisulJobFailedError, WhisulResponseError
from airflow_provider_whisul.text import MAX_QUOTED

JOB_ID = "81fa5ff7-6197-4c24-8062-c0ff8b62d58d"

RESULT: dict[str, object] = {
    "title": "Midnight Grid",
    "bpm": 140,
    "duration": "2:47",
    "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3",
    "image_url": "https://cdn.whisul.com/covers/81fa5ff7.jpg",
    "tags": "trap, dark, 808s, synth, bass",
}
JOB: dict[str, object] = {
    "status": "completed",
    "prompt": "a trap song",
    "result": RESULT,
    "error": None,
    "started_at": "2026-02-17 15:39:34",
    "finished_at": "2026-02-17 15:41:58",
}


def job(**changes: object) -> WhisulJob:
    """Return the documented job with other fields."""
    # Through JSON, as a body comes: a NaN and a surrogate are possible there, a tuple is not.
    return WhisulJob.from_json(JOB_ID, json.loads(json.dumps(JOB | changes)))


def song(**changes: object) -> Song:
    """Return the song of the documented job with other fields of the result."""
    made = job(result=RESULT | changes).song
    assert made is not None
    return made


def test_the_documented_job_is_read_whole() -> None:
    made = job()
    assert (made.started_at, made.finished_at) == (
        datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC),
        datetime(2026, 2, 17, 15, 41, 58, tzinfo=UTC),
    )
    song = made.song
    assert song == {
        "job_id": JOB_ID,
        "prompt": "a trap song",
        "title": "Midnight Grid",
        "bpm": 140,
        "duration_seconds": 167,
        "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3",
        "image_url": "https://cdn.whisul.com/covers/81fa5ff7.jpg",
        "tags": ["trap", "dark", "808s", "synth", "bass"],
        "started_at": "2026-02-17T15:39:34+00:00",
        "finished_at": "2026-02-17T15:41:58+00:00",
    }
    assert json.loads(json.dumps(song, allow_nan=False)) == song


@pytest.mark.parametrize("result", [{}, *(dict.fromkeys(RESULT, junk) for junk in (None, True, {}))])
def test_a_completed_job_with_an_empty_or_odd_result_is_still_a_song(result: dict[str, object]) -> None:
    made = WhisulJob.from_json(JOB_ID, {"status": "completed", "result": result})
    assert made.completed
    assert made.song is not None
    song = dict(made.song)
    assert (song.pop("job_id"), song.pop("tags")) == (JOB_ID, [])
    assert set(song.values()) == {None}


@pytest.mark.parametrize(
    ("status", "read_as", "completed", "failed", "known"),
    [
        ("running", "running", False, False, True),
        ("completed", "completed", True, False, True),
        ("failed", "failed", False, True, True),
        ("queued", "queued", False, False, False),
        *((word, "completed", True, False, True) for word in (" Completed\n", "COMPLETE", "done", "Finished")),
        *((word, "completed", True, False, True) for word in ("succeeded", "Success")),
        *((word, "failed", False, True, True) for word in ("Failed ", "FAILURE", "error", "Errored")),
        *((word, "failed", False, True, True) for word in ("cancelled", "Canceled", "rejected")),
        ("Running", "running", False, False, True),
        ("done with errors", "done with errors", False, False, False),
        ("", "", False, False, False),
        ("a\nb\x00", "a b�", False, False, False),
        ("x" * 5000, "x" * MAX_QUOTED + "…", False, False, False),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_the_status_of_a_job_is_read_without_regard_to_case_and_space(
    status: str, read_as: str, completed: bool, failed: bool, known: bool
) -> None:
    made = job(status=status)
    assert (made.status, made.completed, made.failed, made.status_known) == (read_as, completed, failed, known)


@pytest.mark.parametrize("envelope", [{"message": "upstream timed out"}, {"result": None, "error": "timed out"}])
def test_a_general_error_is_no_failed_job(envelope: dict[str, object]) -> None:
    with pytest.raises(WhisulResponseError, match="is not about a job"):
        WhisulJob.from_json(JOB_ID, {"status": "error", **envelope})


@pytest.mark.parametrize("status", ["running", "failed", "queued"])
def test_a_job_that_is_not_completed_has_no_song(status: str) -> None:
    assert job(status=status, result=None).song is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Generation failed due to an internal error.", "Generation failed due to an internal error."),
        ("two\nlines", "two lines"),
        ("x" * 5000, "x" * MAX_QUOTED + "…"),
        (None, "Whisul gave no reason"),
        ("", "Whisul gave no reason"),
        ({"code": 5}, "Whisul gave no reason"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_failed_job_s_error_names_the_reason(error: object, reason: str) -> None:
    failed = job(status="failed", result=None, error=error).failed_error()
    assert type(failed) is WhisulJobFailedError
    assert failed.job_id == JOB_ID
    assert str(failed).startswith(f"The song failed: {reason.rstrip('.')}. The prompt was ")
    assert f"(job {JOB_ID})" in str(failed)
    assert "cannot be resumed: only a new submission" in str(failed)


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a trap song", '"a trap song"'),
        ("two\nlines\x00", '"two lines�"'),
        ("x" * 5000, f'"{"x" * 59}…"'),
        (None, "not reported"),
        ("", "not reported"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_failed_job_s_error_names_the_prompt(prompt: object, shown: str) -> None:
    failed = job(status="failed", result=None, prompt=prompt).failed_error()
    assert f"The prompt was {shown} (job {JOB_ID})." in str(failed)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("2:47", 167),
        ("0:00", 0),
        ("0:07", 7),
        ("61:01", 3661),
        ("1:02:03", 3723),
        (" 2:47 ", 167),
        (144, 144),
        (144.5, 144.5),
        (144.0, 144),
        ("144", 144),
        ("144.5", 144.5),
        (" 144\n", 144),
        (0, 0),
        ("1e2", 100),
        ("", None),
        (":", None),
        (":47", None),
        ("2:", None),
        ("2:4x", None),
        ("-2:47", None),
        ("2:-47", None),
        ("2:47.5", None),
        ("2:447", None),
        ("1:2:3:4", None),
        ("1" * 400 + ":00", None),
        ("9" * 5000, None),
        ("a while", None),
        (-1, None),
        ("-1", None),
        (float("nan"), None),
        (float("inf"), None),
        (float("-inf"), None),
        ("nan", None),
        ("inf", None),
        (10**9, None),
        (10**400, None),
        (True, None),
        (False, None),
        (None, None),
        ([2, 47], None),
        ({"seconds": 5}, None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_duration_is_read_as_seconds_or_none(duration: object, seconds: float | None) -> None:
    made = song(duration=duration)["duration_seconds"]
    assert made == seconds
    assert type(made) is type(seconds)


@pytest.mark.parametrize(
    ("bpm", "expected"),
    [
        (140, 140),
        (92.5, 92.5),
        (140.0, 140),
        ("128", 128),
        (-1, None),
        ("fast", None),
        ("2:47", None),
        (True, None),
        (float("nan"), None),
        (None, None),
    ],
)
def test_a_tempo_is_a_number_or_none(bpm: object, expected: float | None) -> None:
    made = song(bpm=bpm)["bpm"]
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("trap, dark, 808s", ["trap", "dark", "808s"]),
        ("trap", ["trap"]),
        (" lo-fi ,, \n, hip hop ", ["lo-fi", "hip hop"]),
        ("", []),
        (",", []),
        (["trap", " dark ", "", " ", None, 5, {}], ["trap", "dark"]),
        (["a, b"], ["a, b"]),
        ("a\x00b,c\ud800", ["a�b", "c�"]),
        (None, []),
        (5, []),
        ({"trap": 1}, []),
    ],
    ids=ascii,
)
def test_tags_are_a_list_of_nonempty_texts(tags: object, expected: list[str]) -> None:
    assert song(tags=tags)["tags"] == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-02-17 15:39:34", "2026-02-17T15:39:34+00:00"),
        ("2026-02-17T15:39:34", "2026-02-17T15:39:34+00:00"),
        ("2026-02-17T15:39:34Z", "2026-02-17T15:39:34+00:00"),
        ("2026-02-17T15:39:34+02:00", "2026-02-17T13:39:34+00:00"),
        ("2026-02-17 15:39:34.5", "2026-02-17T15:39:34.500000+00:00"),
        ("2026-02-30 15:39:34", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("yesterday", None),
        ("", None),
        ("\ud800", None),
        (1771342774, None),
        (True, None),
        (None, None),
        ({}, None),
    ],
    ids=ascii,
)
def test_a_time_is_read_as_utc_or_none(time: object, expected: str | None) -> None:
    song = job(started_at=time, finished_at=time).song
    assert song is not None
    assert (song["started_at"], song["finished_at"]) == (expected, expected)


def test_characters_that_no_database_can_store_are_replaced() -> None:
    odd = "a\x00b\ud83dc 🎵"
    made = job(prompt=odd, error=odd, result=RESULT | dict.fromkeys(["title", "song_url", "image_url", "tags"], odd))
    stored = "a�b�c 🎵"
    song = made.song
    assert song is not None
    assert made.error == stored
    assert [song[field] for field in ("prompt", "title", "song_url", "image_url")] == [stored] * 4
    assert song["tags"] == [stored]
    assert json.dumps(song, ensure_ascii=False).encode("utf-8")


class TestRaw:
    def test_a_field_that_is_not_documented_can_be_reached(self) -> None:
        found = job(lyrics="la la", result=RESULT | {"stems": ["drums", {"bass": 1}]}).raw
        assert found == JOB | {"lyrics": "la la", "result": RESULT | {"stems": ["drums", {"bass": 1}]}}

    def test_it_is_what_a_database_can_hold(self) -> None:
        body = b'"a\\u0000": ["\\ud800", {"b\\u0000": NaN}, 1e999, 1.5, true, null]'
        response = Response(200, json.dumps(JOB).encode().replace(b"{", b"{" + body + b", ", 1))
        assert read_job(response, JOB_ID).raw == {"a�": ["�", {"b�": None}, None, 1.5, True, None]} | JOB

    def test_it_holds_no_key_though_a_server_echoes_it(self) -> None:
        echo = {"lyrics": "by some-secret-key", "by some-secret-key": {"some-secret-key": ["some-secret-key"]}}
        response = Response(200, json.dumps(JOB | echo).encode(), api_key="some-secret-key")
        assert "some-secret-key" not in json.dumps(read_job(response, JOB_ID).raw)

    def test_it_is_neither_in_the_song_nor_in_what_a_log_shows(self) -> None:
        found = job(lyrics="la la", result=RESULT | {"stems": "drums"})
        assert set(found.song or {}) == set(Song.__annotations__)
        assert "la la" not in repr(found)
        assert "drums" not in repr(found)
        assert found == job(result=RESULT)

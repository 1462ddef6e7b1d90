"""What the Tracks tab is given to show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.api import Song
from airflow_provider_whisul.batch import LARGEST_ENTRY, Batch, BatchSong
from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError
from airflow_provider_whisul.tracks import MOST_SONGS, BatchShow, completed, entries, failed, shows_song
from tests.support import TaskContext

SONG: Song = {
    "job_id": "81fa5ff7",
    "prompt": "a trap song",
    "title": "Midnight Grid",
    "bpm": 140,
    "duration_seconds": 167,
    "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3",
    "image_url": "https://cdn.whisul.com/covers/81fa5ff7.jpg",
    "tags": ["trap", "dark"],
    "started_at": "2026-02-17T15:39:34+00:00",
    "finished_at": "2026-02-17T15:41:58+00:00",
}
#: What an API that is not to be trusted may send, also at its largest where JSON has most to escape.
texts = st.none() | st.text() | st.integers(1, 50_000).map(lambda length: "🎵" * length)
songs = st.fixed_dictionaries(
    {
        "job_id": st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True),
        "prompt": texts,
        "title": texts,
        "bpm": st.none() | st.integers(0, 10**9),
        "duration_seconds": st.none() | st.floats(0, 1e9),
        "song_url": texts,
        "image_url": texts,
        "tags": st.lists(st.text(), max_size=5) | st.integers(0, 100).map(lambda n: ["🎵" * 100] * n),
        "started_at": st.none(),
        "finished_at": st.none(),
    }
)
outcomes = st.builds(completed, songs) | st.builds(failed, texts, st.none(), texts)


def shown(context: TaskContext) -> dict[str, list[dict[str, Any]]]:
    return {key: value for key, value in context.xcoms.items() if key.startswith("whisul_songs_")}


def test_a_card_holds_what_it_shows() -> None:
    assert completed(SONG) == {
        "status": "completed",
        "error": None,
        **{key: value for key, value in SONG.items() if not key.endswith("_at")},
    }
    card = failed("a trap song", "81fa5ff7", "It failed.")
    assert {key: value for key, value in card.items() if value} == {
        "status": "failed",
        "prompt": "a trap song",
        "job_id": "81fa5ff7",
        "error": "It failed.",
    }
    assert card.keys() == completed(SONG).keys()


def test_what_is_too_long_is_cut_but_an_address_is_left_out() -> None:
    card = completed({**SONG, "title": "W" * 1_000, "tags": ["t" * 100] * 50, "song_url": "https://" + "w" * 5_000})
    assert card["title"] == "W" * 399 + "…"
    assert card["tags"] == ["t" * 39 + "…"] * 10
    assert card["song_url"] is None
    assert card["image_url"] == SONG["image_url"]


def test_what_no_database_can_hold_is_not_shown() -> None:
    assert failed("a\x00b\ud800c", None, None)["prompt"] == "a�b�c"


@given(st.lists(outcomes, max_size=60), st.integers(0, 5_000))
@settings(max_examples=50, deadline=None)
def test_every_entry_is_small_and_its_key_counts_it(cards: list[Any], first: int) -> None:
    found = list(entries(cards, first))
    for key, entry in found:
        assert 1 <= len(entry) <= MOST_SONGS
        assert len(json.dumps(entry)) <= LARGEST_ENTRY
        match = re.fullmatch(r"whisul_songs_(\d{4,})_(\d+)_(\d+)", key)
        assert match is not None
        assert [int(part) for part in match.groups()] == [
            first,
            len(entry),
            sum(card["status"] == "failed" for card in entry),
        ]
        first += len(entry)
    assert [card for _, entry in found for card in entry] == cards


def test_a_thousand_songs_are_fifty_entries() -> None:
    assert [len(entry) for _, entry in entries([completed(SONG)] * 1_000)] == [MOST_SONGS] * 50


class _Task:
    """As much of a task as is shown."""

    prompt = "a trap song"
    job_id = "81fa5ff7"
    song_url: str | None = None

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    @shows_song
    def execute(self, context: Any) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def test_a_song_is_shown_when_it_is_returned() -> None:
    context, task = TaskContext(), _Task(SONG)
    assert task.execute(context=context) is SONG
    assert shown(context) == {"whisul_songs_0000_1_0": [completed(SONG)]}
    assert task.song_url == SONG["song_url"]
    assert context["whisul_prompt"] == "a trap song"


def test_a_job_that_another_task_waits_for_is_not_shown() -> None:
    context = TaskContext()
    assert _Task("81fa5ff7").execute(context) == "81fa5ff7"
    assert shown(context) == {}


@pytest.mark.parametrize(
    "error",
    [
        WhisulJobFailedError("It failed.", job_id="81fa5ff7"),
        WhisulError("It failed."),
        AirflowSensorTimeout("It failed."),
    ],
)
@pytest.mark.parametrize("skipped", [False, True])
def test_why_there_is_no_song_is_shown_before_it_is_raised(error: Exception, skipped: bool) -> None:
    context = TaskContext()
    raised = AirflowSkipException("Skipped.") if skipped else error
    raised.__cause__ = error if skipped else None
    with pytest.raises(type(raised)) as caught:
        _Task(raised).execute(context)
    assert caught.value is raised
    assert shown(context) == {"whisul_songs_0000_1_1": [failed("a trap song", "81fa5ff7", "It failed.")]}


def test_a_skip_for_another_reason_is_no_failed_song() -> None:
    context = TaskContext()
    with pytest.raises(AirflowSkipException):
        _Task(AirflowSkipException("Not today.")).execute(context)
    assert shown(context) == {}


class _NoXComs(TaskContext):
    def xcom_push(self, key: str, value: Any) -> None:
        raise RuntimeError("the database is away")


def test_what_cannot_be_shown_harms_no_song(task_log: Callable[[], list[str]]) -> None:
    assert _Task(SONG).execute(_NoXComs()) is SONG
    assert "The Tracks tab will not show all songs of this task, which goes on." in task_log()


def test_what_cannot_be_shown_hides_no_error() -> None:
    error = WhisulError("It failed.")
    with pytest.raises(WhisulError) as caught:
        _Task(error).execute(_NoXComs())
    assert caught.value is error


def test_a_song_that_is_no_song_harms_nothing() -> None:
    assert _Task({"no": "song"}).execute(TaskContext()) == {"no": "song"}


def _batch(*statuses: str) -> Batch:
    made = [
        BatchSong(f"prompt {index}", status, f"job-{index}", 1, SONG if status == "completed" else None, "It failed.")  # type: ignore[arg-type]
        for index, status in enumerate(statuses)
    ]
    return Batch(made, TaskContext(), 0)  # type: ignore[arg-type]


def test_a_batch_shows_each_song_once() -> None:
    context, batch = TaskContext(), _batch("completed", "running", "running")
    tab = BatchShow(context, batch, attempts=2)
    tab.show()
    tab.show()
    assert list(shown(context)) == ["whisul_songs_0000_1_0"]

    # The task is deferred, and comes back in another process.
    tab = BatchShow(context, batch, attempts=2, resumed=True)
    batch.songs[2].status, batch.songs[2].song = "completed", SONG
    batch.songs[1].status = "failed"
    tab.show()
    assert list(shown(context)) == ["whisul_songs_0000_1_0", "whisul_songs_0001_1_0"]

    # It is submitted again, and fails for good.
    batch.songs[1].submissions = 2
    tab.show()
    assert shown(context)["whisul_songs_0002_1_1"] == [failed("prompt 1", "job-1", "It failed.")]


def test_a_batch_that_ends_shows_what_came_to_nothing() -> None:
    context = TaskContext()
    BatchShow(context, _batch("failed", "submitting", "running"), attempts=2).show(ended=True)
    (entry,) = shown(context).values()
    assert [card["prompt"] for card in entry] == ["prompt 0", "prompt 1"]


def test_a_later_try_shows_again_what_it_goes_on_with() -> None:
    """Airflow removes a task's XComs when a try begins."""
    context = TaskContext()
    BatchShow(context, _batch("completed", "completed"), attempts=2).show()
    assert list(shown(context)) == ["whisul_songs_0000_2_0"]

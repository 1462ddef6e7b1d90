"""The cards that tasks push for the Tracks tab."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError
from airflow_provider_whisul.state.batch_song import BatchSong
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.tracks.cards import (
    MAX_CARDS,
    BatchCards,
    card_xcoms,
    completed_card,
    failed_card,
    pending_card,
    push_expected,
    pushes_card,
)
from tests.support.airflow import TaskContext

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
#: Texts as an untrusted API may send them, some of them large and of characters that JSON escapes.
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
cards_of_any_kind = st.builds(completed_card, songs, texts) | st.builds(failed_card, texts, st.none(), texts)


def pushed(context: TaskContext) -> dict[str, list[dict[str, Any]]]:
    return {key: value for key, value in context.xcoms.items() if key.startswith("whisul_songs_")}


def test_cards_of_completed_and_failed_songs_have_the_same_fields() -> None:
    assert completed_card(SONG) == {
        "status": "completed",
        "error": None,
        "since": None,
        "stored_as": None,
        "stored_url": None,
        **{key: value for key, value in SONG.items() if not key.endswith("_at")},
    }
    card = failed_card("a trap song", "81fa5ff7", "It failed.")
    assert {key: value for key, value in card.items() if value} == {
        "status": "failed",
        "prompt": "a trap song",
        "job_id": "81fa5ff7",
        "error": "It failed.",
    }
    assert card.keys() == completed_card(SONG).keys()


def test_a_card_truncates_long_texts_and_leaves_out_long_urls() -> None:
    card = completed_card(
        {**SONG, "title": "W" * 1_000, "tags": ["t" * 100] * 50, "song_url": "https://" + "w" * 5_000}
    )
    assert card["title"] == "W" * 399 + "…"
    assert card["tags"] == ["t" * 39 + "…"] * 10
    assert card["song_url"] is None
    assert card["image_url"] == SONG["image_url"]


def test_a_card_replaces_characters_that_no_database_can_store() -> None:
    assert failed_card("a\x00b\ud800c", None, None)["prompt"] == "a�b�c"


@given(st.lists(cards_of_any_kind, max_size=60), st.integers(0, 5_000))
@settings(max_examples=50, deadline=None)
def test_every_xcom_is_small_and_its_key_counts_its_cards(cards: list[Any], first: int) -> None:
    xcoms = list(card_xcoms(cards, first))
    for key, entry in xcoms:
        assert 1 <= len(entry) <= MAX_CARDS
        assert len(json.dumps(entry)) <= MAX_ENTRY_BYTES
        match = re.fullmatch(r"whisul_songs_(\d{4,})_(\d+)_(\d+)", key)
        assert match is not None
        assert [int(part) for part in match.groups()] == [
            first,
            len(entry),
            sum(card["status"] == "failed" for card in entry),
        ]
        first += len(entry)
    assert [card for _, entry in xcoms for card in entry] == cards


def test_a_thousand_cards_take_fifty_xcoms() -> None:
    assert [len(entry) for _, entry in card_xcoms([completed_card(SONG)] * 1_000)] == [MAX_CARDS] * 50


class _Task:
    """A task with as many attributes as a card needs."""

    prompt = "a trap song"
    job_id = "81fa5ff7"
    song_url: str | None = None

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    @pushes_card
    def execute(self, context: Any) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def test_the_card_of_a_returned_song_is_pushed() -> None:
    context, task = TaskContext(), _Task(SONG)
    assert task.execute(context=context) is SONG
    assert pushed(context) == {"whisul_songs_0000_1_0": [completed_card(SONG)]}
    assert task.song_url == SONG["song_url"]
    assert context["whisul_prompt"] == "a trap song"


def test_no_card_is_pushed_for_a_job_that_another_task_waits_for() -> None:
    context = TaskContext()
    assert _Task("81fa5ff7").execute(context) == "81fa5ff7"
    assert pushed(context) == {}


@pytest.mark.parametrize(
    "error",
    [
        WhisulJobFailedError("It failed.", job_id="81fa5ff7"),
        WhisulError("It failed."),
        AirflowSensorTimeout("It failed."),
    ],
)
@pytest.mark.parametrize("skipped", [False, True])
def test_the_card_of_a_failed_song_is_pushed_and_the_error_raised(error: Exception, skipped: bool) -> None:
    context = TaskContext()
    raised = AirflowSkipException("Skipped.") if skipped else error
    raised.__cause__ = error if skipped else None
    with pytest.raises(type(raised)) as caught:
        _Task(raised).execute(context)
    assert caught.value is raised
    assert pushed(context) == {"whisul_songs_0000_1_1": [failed_card("a trap song", "81fa5ff7", "It failed.")]}


def test_no_card_is_pushed_for_a_skip_without_a_failure() -> None:
    context = TaskContext()
    with pytest.raises(AirflowSkipException):
        _Task(AirflowSkipException("Not today.")).execute(context)
    assert pushed(context) == {}


class _BrokenXComs(TaskContext):
    def xcom_push(self, key: str, value: Any) -> None:
        raise RuntimeError("the database is away")


def test_a_song_is_returned_although_its_card_cannot_be_pushed(task_log: Callable[[], list[str]]) -> None:
    assert _Task(SONG).execute(_BrokenXComs()) is SONG
    assert "The Tracks tab will not show all songs of this task. The task continues." in task_log()


def test_an_error_is_raised_although_its_card_cannot_be_pushed() -> None:
    error = WhisulError("It failed.")
    with pytest.raises(WhisulError) as caught:
        _Task(error).execute(_BrokenXComs())
    assert caught.value is error


def test_a_result_that_is_not_a_song_is_returned_as_it_is() -> None:
    assert _Task({"no": "song"}).execute(TaskContext()) == {"no": "song"}


def _batch(*statuses: str) -> BatchState:
    songs = [
        BatchSong(f"prompt {index}", status, f"job-{index}", 1, SONG if status == "completed" else None, "It failed.")  # type: ignore[arg-type]
        for index, status in enumerate(statuses)
    ]
    return BatchState(songs, TaskContext(), 0)  # type: ignore[arg-type]


def test_a_batch_pushes_the_card_of_each_song_once() -> None:
    context, batch = TaskContext(), _batch("completed", "running", "running")
    batch_cards = BatchCards(context, batch, attempts=2)
    batch_cards.push()
    batch_cards.push()
    assert list(pushed(context)) == ["whisul_songs_0000_1_0"]

    # The task is deferred, and resumes in another process.
    batch_cards = BatchCards(context, batch, attempts=2, resumed=True)
    batch.songs[2].status, batch.songs[2].song = "completed", SONG
    batch.songs[1].status = "failed"
    batch_cards.push()
    assert list(pushed(context)) == ["whisul_songs_0000_1_0", "whisul_songs_0001_1_0"]

    # The song is submitted again, and fails for good.
    batch.songs[1].submissions = 2
    batch_cards.push()
    assert pushed(context)["whisul_songs_0002_1_1"] == [failed_card("prompt 1", "job-1", "It failed.")]


def test_a_batch_that_ends_pushes_cards_of_failed_and_ambiguous_songs() -> None:
    context = TaskContext()
    BatchCards(context, _batch("failed", "submitting", "running"), attempts=2).push(ended=True)
    (entry,) = pushed(context).values()
    assert [card["prompt"] for card in entry] == ["prompt 0", "prompt 1"]


def test_a_later_try_pushes_the_cards_of_an_earlier_try_again() -> None:
    """Airflow removes a task's XComs when a try begins."""
    context = TaskContext()
    BatchCards(context, _batch("completed", "completed"), attempts=2).push()
    assert list(pushed(context)) == ["whisul_songs_0000_2_0"]


def test_the_card_of_a_song_that_is_being_made_has_its_prompt_and_since_when() -> None:
    card = pending_card("a trap song", "81fa5ff7", 1_771_342_774.5)
    assert {key: value for key, value in card.items() if value} == {
        "status": "pending",
        "prompt": "a trap song",
        "job_id": "81fa5ff7",
        "since": "2026-02-17T15:39:34+00:00",
    }
    assert card.keys() == completed_card(SONG).keys()


def test_the_songs_that_are_being_made_are_in_one_small_xcom_whose_key_counts_all_songs() -> None:
    context = TaskContext()
    push_expected(context, 1_000, (pending_card("🎵" * 400, f"job-{index}", None) for index in range(900)))
    ((key, value),) = context.xcoms.items()
    assert key == "whisul_expected_1000"
    assert [card["job_id"] for card in value] == [f"job-{index}" for index in range(len(value))]
    assert 1 <= len(value) <= MAX_CARDS
    assert len(json.dumps(value)) <= MAX_ENTRY_BYTES


def test_a_batch_pushes_the_songs_that_are_being_made_and_replaces_them() -> None:
    context, batch = TaskContext(), _batch("completed", "running", "failed", "recheck")
    batch_cards = BatchCards(context, batch, attempts=2)
    batch_cards.push_pending()
    assert [card["prompt"] for card in context.xcoms["whisul_expected_4"]] == ["prompt 1", "prompt 3"]
    batch.songs[1].status = "failed"
    batch_cards.push_pending()
    assert [card["prompt"] for card in context.xcoms["whisul_expected_4"]] == ["prompt 3"]


def test_a_batch_that_submits_pushes_the_songs_that_are_being_made_every_half_minute() -> None:
    context = TaskContext()
    batch_cards = BatchCards(context, _batch("running", "new"), attempts=2)
    pushed_at = []
    for now in (100.0, 101.0, 129.0, 130.0, 159.0, 160.0):
        context.xcoms.clear()
        batch_cards.push_progress(now)
        if context.xcoms:
            pushed_at.append(now)
    assert pushed_at == [100, 130, 160]


def test_a_batch_that_ends_leaves_no_song_pending() -> None:
    """A song that was never submitted has no card. The page reads the entry that was pushed last."""
    context, batch = TaskContext(), _batch("completed", "new", "running")
    batch_cards = BatchCards(context, batch, attempts=2)
    batch_cards.push_pending()
    batch_cards.push(ended=True)
    assert context.xcoms["whisul_expected_1"] == []
    assert list(context.xcoms)[-1] == "whisul_expected_1"


def test_a_failed_song_takes_its_prompt_from_the_song_that_was_being_made() -> None:
    """A sensor knows the prompt from a poll, which another process may have sent before the deferral."""
    context, task = TaskContext(), _Task(WhisulJobFailedError("It failed.", job_id="81fa5ff7"))
    task.prompt = None  # type: ignore[assignment]
    push_expected(context, 1, [pending_card("a prompt of the poll", "81fa5ff7", None)])
    with pytest.raises(WhisulJobFailedError):
        task.execute(context)
    (failed,) = pushed(context)["whisul_songs_0000_1_1"]
    assert failed["prompt"] == "a prompt of the poll"


def test_a_task_continues_although_the_songs_that_are_being_made_cannot_be_pushed() -> None:
    push_expected(_BrokenXComs(), 1, [pending_card(None, None, None)])

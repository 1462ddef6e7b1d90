"""What the Tracks tab shows of a transfer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulError
from tests.integration.storage.helpers import MakeSongs, Transfer
from tests.support.airflow import TaskContext


def _cards(context: TaskContext) -> list[dict[str, Any]]:
    return [card for key in sorted(context.xcoms) if key.startswith("whisul_stored_") for card in context.xcoms[key]]


def test_the_cards_of_stored_songs_name_their_files(make_songs: MakeSongs, transfer: Transfer) -> None:
    context = TaskContext()
    manifest = transfer(make_songs("a waltz", "a tango"), context)
    assert [(card["prompt"], card["stored_as"]) for card in _cards(context)] == [
        (song["prompt"], song["audio"]["name"]) for song in manifest["songs"]
    ]
    # The tab of the run reads only these: the songs are in it already.
    assert context.shown() == []


def test_the_cards_of_stored_songs_say_where_a_browser_can_play_them(
    monkeypatch: pytest.MonkeyPatch, make_songs: MakeSongs, transfer: Transfer
) -> None:
    without = TaskContext()
    manifest = transfer(make_songs("a waltz"), without)
    assert [card["stored_url"] for card in _cards(without)] == [None]
    monkeypatch.setenv(
        "AIRFLOW__WHISUL__STORED_SONGS_URL", json.dumps({manifest["destination"]: "https://songs.example.com/"})
    )
    context = TaskContext()
    manifest = transfer(make_songs("a tango"), context)
    (card,) = _cards(context)
    assert card["stored_url"] == f"https://songs.example.com/{manifest['songs'][0]['audio']['name']}"


@pytest.mark.parametrize("max_failures", [0, 1])
def test_the_cards_say_which_song_could_not_be_stored_also_where_the_task_fails(
    make_songs: MakeSongs, transfer: Transfer, max_failures: int
) -> None:
    context = TaskContext()
    songs = make_songs("a waltz", "a tango [sandbox:media-gone]")
    try:
        transfer(songs, context, max_failures=max_failures)
    except WhisulError:
        assert max_failures == 0
    stored, failed = _cards(context)
    assert (stored["status"], stored["prompt"]) == ("completed", "a waltz")
    assert (failed["status"], failed["prompt"]) == ("failed", "a tango [sandbox:media-gone]")
    assert "410" in failed["error"]

"""What the Tracks tab shows of a batch, from the XComs of its latest try."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulJobFailedError, WhisulJobTimeoutError
from tests.integration.operators.batch_task import (
    MakeBatch,
    Simulate,
    assert_one_card_per_song,
    numbered_prompts,
)
from tests.support.airflow import Deferral


@pytest.mark.parametrize("has_store", [True, False])
def test_each_song_has_one_card(simulate: Simulate, has_store: bool) -> None:
    async def main(make: MakeBatch) -> None:
        songs = [
            *numbered_prompts(80),
            *("unlucky [sandbox:fail=1]", "doomed [sandbox:fail]", "lost [sandbox:post-drop]"),
        ]
        batch = make(songs, max_failures=2)
        batch.has_store = has_store
        results = await batch.attempt()
        assert_one_card_per_song(batch, results)
        entries = [key for key in batch.context.xcoms if key.startswith("whisul_songs_")]
        # About one for each event, of which each holds as many songs as fit.
        assert len(entries) <= 2 * len(batch.events) + 4
        assert sum(int(key.split("_")[-1]) for key in entries) == 2

    simulate(main)


def test_completed_songs_have_cards_while_other_jobs_run(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(3), "slow [sandbox:seconds=900]", "doomed [sandbox:fail]"], attempts=1)
        shown = []
        wait = batch.wait

        async def waited(deferral: Deferral) -> Any:
            shown.append(len(batch.context.shown()))
            return await wait(deferral)

        batch.wait = waited  # type: ignore[method-assign]
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        assert shown[0] == 0
        assert 0 < shown[-1] < 5
        assert len(batch.context.shown()) == 5

    simulate(main)


def test_a_later_try_has_cards_of_the_songs_of_the_earlier_one(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(30), "hopeless [sandbox:fail=2]"])
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        assert_one_card_per_song(batch, batch.context.xcoms["return_value"])
        assert_one_card_per_song(batch, await batch.attempt())

    simulate(main)


def test_songs_completed_before_the_timeout_have_cards(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(4), "endless [sandbox:forever]"], timeout=300)
        with pytest.raises(WhisulJobTimeoutError):
            await batch.attempt()
        cards = batch.cards()
        assert {prompt for prompt, card in cards.items() if card["status"] == "completed"} == set(numbered_prompts(4))
        assert "had not ended by" in cards["endless [sandbox:forever]"]["error"]

    simulate(main)

"""What the Tracks tab shows of a batch, from the XComs of its latest try."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulJobFailedError, WhisulJobTimeoutError
from tests.integration.operators.batch_task import (
    MakeBatch,
    Simulate,
    assert_one_card_per_song,
    numbered_prompts,
)
from tests.support.airflow import FAIL_METHOD, Deferral, TaskContext


@pytest.mark.parametrize("durable", [True, False])
def test_each_song_has_one_card(simulate: Simulate, durable: bool) -> None:
    async def main(make: MakeBatch) -> None:
        songs = [
            *numbered_prompts(80),
            *("unlucky [sandbox:fail=1]", "doomed [sandbox:fail]", "lost [sandbox:post-drop]"),
        ]
        batch = make(songs, max_failures=2)
        batch.arguments["durable"] = durable
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


def test_slow_jobs_hide_the_first_songs_for_five_minutes_at_most_and_later_ones_for_ten(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        slow = ["slow [sandbox:seconds=900]", "slower [sandbox:seconds=3000]"]
        batch = make([*numbered_prompts(3), *slow], timeout=3600)
        shown = []
        wait = batch.wait

        async def waited(deferral: Deferral) -> Any:
            shown.append((batch.loop.wall(), len(batch.context.shown())))
            return await wait(deferral)

        batch.wait = waited  # type: ignore[method-assign]
        await batch.attempt()
        (began, none), (first, three), (second, four) = shown
        assert (none, three, four) == (0, 3, 4)
        # The jobs of the first three take a minute or two.
        assert first - began <= 120 + 300 + 60
        assert second - began <= 900 + 600 + 60

    simulate(main)


def test_the_songs_that_a_batch_has_submitted_have_cards_while_it_submits_the_others(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[float, list[Any]]] = []

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(60))
        connection = {**json.loads(batch.sandbox.connection), "extra": {"max_requests_per_second": 0.5}}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        push = TaskContext.xcom_push

        def push_and_note(context: TaskContext, key: str, value: Any) -> None:
            if key.startswith("whisul_expected_"):
                assert key == "whisul_expected_60"
                pushed.append((batch.loop.wall(), value))
            push(context, key, value)

        monkeypatch.setattr(TaskContext, "xcom_push", push_and_note)
        await batch.attempt()
        submitted = [request.at for request in batch.sandbox.requests if request.method == "POST"]
        assert submitted[-1] - submitted[0] > 100
        early = [(at, cards) for at, cards in pushed if at < submitted[-1]]
        assert early[0][0] < submitted[1]
        assert [card["prompt"] for card in early[0][1]] == ["song 0"]
        assert all(card["job_id"] in batch.sandbox.jobs for _, cards in early for card in cards)
        # The first one, and then one in half a minute.
        assert 4 <= len(early) <= 6

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


def test_a_deferral_that_airflow_ended_leaves_no_song_pending(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2), "slow [sandbox:seconds=900]"])

        async def failing(_: Deferral) -> Any:
            raise RuntimeError("the triggerer is gone")

        batch.wait = failing  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="the triggerer is gone"):
            await batch.attempt()
        assert [len(value) for key, value in batch.context.xcoms.items() if "expected" in key] == [3]
        with pytest.raises(WhisulJobTimeoutError):
            batch.context.run(batch.operator(), FAIL_METHOD, {"error": "Trigger timeout"})
        # The page reads the entry that was pushed last.
        assert batch.context.xcoms["whisul_expected_0"] == []

    simulate(main)

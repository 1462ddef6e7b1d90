"""The prompts of a batch: those of one try, those that are refused, and none at all."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulStateUnreadableError,
)
from airflow_provider_whisul.operators.arguments import checked_prompts
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.state.batch_song import BatchSong
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.prompt_store import load_prompts, save_prompts
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES, versioned
from tests.integration.operators.batch_task import BatchTask, MakeBatch, Simulate, numbered_prompts
from tests.support.airflow import Deferral, TaskStore, through_json
from tests.support.clock import NOON


def render_prompts(batch: BatchTask) -> None:
    """Have Airflow render the task's prompts each time the task runs, with a ``random`` in their context."""
    make_operator = batch.operator
    rng = random.Random(7)

    def operator() -> WhisulGenerateBatchOperator:
        made = make_operator()
        made.render_template_fields({"macros": SimpleNamespace(random=rng.random)})  # type: ignore[typeddict-item]
        return made

    batch.operator = operator  # type: ignore[method-assign]


RANDOM_PROMPTS = [f"lo-fi {number}, seed {{{{ macros.random() }}}}" for number in range(45)]


@pytest.mark.parametrize("durable", [True, False])
def test_prompts_that_are_rendered_anew_after_each_deferral_are_those_the_try_began_with(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    # Many deferrals: a trigger polls only a few jobs.
    monkeypatch.setattr("airflow_provider_whisul.state.batch_state.MAX_POLLED_JOBS", 4)

    async def main(make: MakeBatch) -> None:
        batch = make([*RANDOM_PROMPTS, "unlucky {{ macros.random() }} [sandbox:fail]"], attempts=2, max_failures=1)
        batch.arguments["durable"] = durable
        render_prompts(batch)
        results = await asyncio.wait_for(batch.attempt(), 7200)
        assert len(batch.events) > 10
        posts = batch.posts()
        assert sum(posts.values()) == 45 + 2
        assert [result["status"] for result in results] == ["completed"] * 45 + ["failed"]
        assert [result["prompt"] for result in results] == list(posts)
        for result in results:
            assert batch.sandbox.jobs[result["job_id"]].prompt == result["prompt"]

    simulate(main)


@pytest.mark.parametrize("durable", [True, False])
def test_prompts_edited_while_the_task_waits_change_nothing_in_the_running_try(
    simulate: Simulate, durable: bool
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5))
        batch.arguments["durable"] = durable
        wait = batch.wait

        async def waited(deferral: Deferral) -> Any:
            batch.arguments["prompts"] = ["", "another"]
            return await wait(deferral)

        batch.wait = waited  # type: ignore[method-assign]
        results = await batch.attempt()
        assert [result["prompt"] for result in results] == numbered_prompts(5)
        assert batch.posts() == dict.fromkeys(numbered_prompts(5), 1)

    simulate(main)


def test_a_later_try_with_other_prompts_pays_again_and_the_log_says_how_to_avoid_it(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*RANDOM_PROMPTS[:2], "doomed [sandbox:fail]"], attempts=1)
        render_prompts(batch)
        for _ in range(2):
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
        assert sum(batch.posts().values()) == 2 * 3
        jobs.extend(list(batch.sandbox.jobs)[:2])

    jobs: list[str] = []
    simulate(main)
    (line,) = [line for line in task_log() if "no longer in the list" in line]
    assert all(job_id in line for job_id in jobs)
    assert all(words in line for words in ("submitted 2 jobs", "pays for", "{{ ds }} or a fixed seed"))


def test_a_try_whose_state_was_deleted_while_it_waited_submits_nothing(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        wait = batch.wait

        async def waited(deferral: Deferral) -> Any:
            batch.store.clear()
            return await wait(deferral)

        batch.wait = waited  # type: ignore[method-assign]
        with pytest.raises(WhisulError, match="what this try has submitted is not there.*submitted again"):
            await asyncio.wait_for(batch.attempt(), 7200)
        assert sum(batch.posts().values()) == 3

    simulate(main)


class TestStoredPrompts:
    @pytest.mark.parametrize(
        "prompts",
        [
            ["one"],
            [f"{random.Random(number).random()} 🎵 \ud800" for number in range(5_000)],
            ["".join(map(chr, random.Random(3).choices(range(0x4E00, 0x9F00), k=50_000)))],
        ],
        ids=["one", "many", "long"],
    )
    def test_prompts_of_any_number_and_length_fit_into_the_store(self, prompts: list[str]) -> None:
        store = TaskStore()
        pieces = save_prompts(store, 0, prompts)
        assert load_prompts(store, 0, pieces) == prompts
        assert all(len(repr(value)) < MAX_ENTRY_BYTES for value in store.values())

    def test_prompts_of_which_a_piece_is_missing_or_broken_are_not_read(self) -> None:
        store = TaskStore()
        pieces = save_prompts(store, 0, [random.Random(7).randbytes(60_000).hex()])
        assert pieces > 1
        key, value = next(iter(store.items()))
        store.set(key, versioned({"prompts": "no base64"}))
        with pytest.raises(WhisulStateUnreadableError):
            load_prompts(store, 0, pieces)
        store.delete(key)
        with pytest.raises(WhisulStateUnreadableError):
            load_prompts(store, 0, pieces)
        store.set(key, through_json(value))
        assert load_prompts(store, 0, pieces)

    def test_a_state_of_which_a_segment_is_missing_is_not_resumed(self) -> None:
        store = TaskStore()
        state = BatchState([BatchSong(prompt) for prompt in numbered_prompts(50)], store, 0)
        state.begin_try(NOON)
        resumed = BatchState.resume(store, 0)
        assert resumed is not None
        assert [song.prompt for song in resumed.songs] == numbered_prompts(50)
        del store["whisul_batch_1_0001"]
        with pytest.raises(WhisulStateUnreadableError, match="whisul_batch_1_0001"):
            BatchState.resume(store, 0)


class TestRefusedPrompts:
    def test_a_long_one_is_named_by_its_beginning_with_an_ellipsis(self) -> None:
        with pytest.raises(WhisulInvalidInputError, match=rf"prompts\[1\], {re.escape(repr(['x' * 99])[:59])}…, is"):
            checked_prompts(["song", ["x" * 99]])

    def test_one_empty_prompt_among_a_thousand_is_named(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(700), "  ", *numbered_prompts(299)])
            with pytest.raises(WhisulInvalidInputError, match=r"prompts\[700\], ' ', is refused.*prompt is empty"):
                await batch.attempt()
            assert batch.sandbox.requests == []

        simulate(main)

    def test_a_refused_prompt_is_refused_before_what_an_earlier_try_did_is_compared(
        self, simulate: Simulate, task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(["fine", "doomed [sandbox:fail]"], attempts=1)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            batch.arguments["prompts"] = ["another", ""]
            with pytest.raises(WhisulInvalidInputError):
                await batch.attempt()

        simulate(main)
        assert not any("no longer in the list" in line for line in task_log())


class TestNoPrompts:
    @pytest.mark.parametrize("prompts", [[], ()])
    def test_the_task_fails_and_says_what_to_set(self, simulate: Simulate, prompts: Any) -> None:
        async def main(make: MakeBatch) -> None:
            with pytest.raises(WhisulInvalidInputError, match='prompts is an empty list.*on_empty="skip"'):
                await make(prompts).attempt()

        simulate(main)

    def test_the_task_is_skipped(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([], on_empty="skip")
            with pytest.raises(AirflowSkipException, match="prompts is an empty list"):
                await batch.attempt()
            # A transfer with trigger_rule="all_done" takes it for what it is: no song was asked for.
            assert batch.context.xcoms["return_value"] == []

        simulate(main)

    def test_the_task_succeeds_without_songs(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            assert await make([], on_empty="succeed").attempt() == []

        simulate(main)

    def test_a_text_in_place_of_a_list_is_never_an_empty_list(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            with pytest.raises(WhisulInvalidInputError, match="a list of texts, not str"):
                await make("", on_empty="succeed").attempt()

        simulate(main)


def test_a_prompt_that_no_database_can_hold_is_in_no_result(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["a \x00 waltz", "another [sandbox:fail=2]"], max_failures=1)
        results = await batch.attempt()
        assert [result["status"] for result in results] == ["completed", "failed"]
        assert results[0]["prompt"] == results[0]["song"]["prompt"] == "a � waltz"

    simulate(main)

"""docs/batch.md, "Stop a running night": what still submits, and how the songs that are paid for are fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_whisul.exceptions import WhisulBudgetExceededError, WhisulInvalidInputError
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts
from tests.integration.operators.test_whisul_batch_paid_once import kill_at
from tests.support.airflow import TaskContext
from tests.support.connection import set_extra


@pytest.fixture
def simulate(simulate_at_home: Simulate) -> Simulate:
    """Let the record of each batch be kept in each of the homes."""
    return simulate_at_home


@pytest.mark.parametrize("max_submissions", [3, 1])
def test_a_batch_that_was_stopped_and_is_cleared_takes_its_songs_and_submits_none_beyond_max_submissions(
    simulate: Simulate, max_submissions: int
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5))
        await kill_at(batch, "song 2", sent=True)
        batch.clear()
        batch.arguments["max_submissions"] = max_submissions
        with pytest.raises(WhisulBudgetExceededError, match="2 of 5 songs failed"):
            await batch.attempt()
        results = batch.context.xcoms["return_value"]
        assert [result["status"] for result in results] == ["completed"] * 3 + ["failed"] * 2
        assert batch.posts() == {"song 0": 1, "song 1": 1, "song 2": 1}

    simulate(main)


def test_without_max_submissions_it_submits_those_that_are_missing(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5))
        await kill_at(batch, "song 2", sent=True)
        batch.clear()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate(main)


def test_a_new_ceiling_is_no_brake_for_a_task_that_runs(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        operator = batch.operator()
        generate = operator.hook.generate

        def generate_and_set_the_ceiling(prompt: str, **options: object) -> str:
            job_id = generate(prompt, **options)  # type: ignore[arg-type]
            set_extra(monkeypatch, max_submissions_per_day=0)
            return job_id

        operator.hook.generate = generate_and_set_the_ceiling  # type: ignore[method-assign]
        await batch.attempt(operator)
        assert sum(batch.posts().values()) == 3
        with pytest.raises(WhisulBudgetExceededError, match="0 submissions a day"):
            await make(["another"]).attempt()

    simulate(main)


def test_a_transfer_after_a_batch_without_a_result_fails_and_leaves_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    keep = WhisulToObjectStorageOperator(
        task_id="keep", songs=None, destination=f"file://{tmp_path}", trigger_rule="all_done"
    )
    with pytest.raises(WhisulInvalidInputError, match="Nothing was stored"):
        keep.execute(TaskContext())  # type: ignore[arg-type]
    assert (tmp_path / "manifest.json").read_text() == "{}"

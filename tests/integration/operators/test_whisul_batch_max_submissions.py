"""``max_submissions`` caps what one batch submits over all of its tries and attempts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulBudgetExceededError,
    WhisulConfigurationError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts
from tests.support.homes import HOMES, keep_no_record


@pytest.fixture
def simulate(simulate_at_home: Simulate) -> Simulate:
    """Let the record of each batch be kept in each of the homes."""
    return simulate_at_home


def test_nothing_is_submitted_beyond_it_and_the_jobs_that_run_are_waited_for(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5), max_submissions=3)
        with pytest.raises(WhisulBudgetExceededError) as caught:
            await batch.attempt()
        assert isinstance(caught.value, AirflowFailException)
        message = str(caught.value)
        assert message.startswith("2 of 5 songs failed, more than max_failures=0")
        assert "submitted 3 times in all of its tries, and max_submissions=3 permits no more" in message
        assert "Raise max_submissions" in message
        results = batch.context.xcoms["return_value"]
        assert [result["status"] for result in results] == ["completed"] * 3 + ["failed"] * 2
        assert "max_submissions=3 is used up" in results[4]["error"]
        assert sum(batch.posts().values()) == 3
        batch.arguments["max_submissions"] = 5
        batch.clear()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate(main)
    assert sum("2 songs are not submitted" in line for line in task_log()) == 1


def test_attempts_count(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["doomed [sandbox:fail]", "fine"], attempts=5, max_submissions=4)
        with pytest.raises(WhisulBudgetExceededError, match="1 of 2 songs failed"):
            await batch.attempt()
        assert batch.posts() == {"doomed [sandbox:fail]": 3, "fine": 1}

    simulate(main)


def test_earlier_tries_count_and_so_do_prompts_that_are_no_longer_in_the_list(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["doomed [sandbox:fail]", "dropped"], attempts=1, max_submissions=4)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        batch.arguments["prompts"] = ["doomed [sandbox:fail]"]
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        with pytest.raises(WhisulBudgetExceededError, match="submitted 4 times"):
            await batch.attempt()
        with pytest.raises(WhisulBudgetExceededError, match=r"was not submitted again, since.*submitted 4 times"):
            await batch.attempt()
        assert sum(batch.posts().values()) == 4

    simulate(main)


def test_a_task_that_is_cleared_after_its_songs_makes_new_ones_of_all_prompts_or_of_none(simulate: Simulate) -> None:
    """Some of them would replace all the songs that are there in XCom, and in the manifest of a transfer after it."""

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(2), max_submissions=3)
        await batch.attempt()
        batch.clear()
        for _ in range(2):
            with pytest.raises(WhisulBudgetExceededError, match="set max_submissions to 4 or more") as caught:
                await batch.attempt()
            assert "Nothing was submitted" in str(caught.value)
        assert sum(batch.posts().values()) == 2
        batch.arguments["max_submissions"] = 4
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 4

    simulate(main)


def test_ambiguous_submissions_count_and_refused_ones_do_not(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["lost [sandbox:post-drop]", "refused [sandbox:post-422]", "fine"], max_submissions=3)
        with pytest.raises(WhisulAmbiguousSubmitError):
            await batch.attempt()
        with pytest.raises(WhisulBudgetExceededError, match="submitted 3 times"):
            await batch.attempt()
        assert batch.posts() == {"lost [sandbox:post-drop]": 2, "refused [sandbox:post-422]": 1, "fine": 1}

    simulate(main)


def test_within_max_failures_the_task_succeeds_without_a_useless_retry(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5), max_submissions=3, max_failures=2)
        results = await batch.attempt()
        assert [result["status"] for result in results] == ["completed"] * 3 + ["failed"] * 2
        assert sum(batch.posts().values()) == 3

    simulate(main)


def test_a_retry_still_waits_for_jobs_that_may_complete(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["endless [sandbox:seconds=2500]", "too many"], max_submissions=1, max_failures=1)
        with pytest.raises(WhisulJobFailedError, match="A retry waits again for jobs.*max_submissions=1") as caught:
            await batch.attempt()
        assert not isinstance(caught.value, AirflowFailException)
        assert [result["status"] for result in await batch.attempt()] == ["completed", "failed"]
        assert sum(batch.posts().values()) == 1

    simulate(main)


def test_a_batch_whose_songs_all_may_complete_has_timed_out(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["endless [sandbox:seconds=2500]"], max_submissions=1)
        with pytest.raises(WhisulJobTimeoutError, match="A retry waits again"):
            await batch.attempt()
        assert [result["status"] for result in await batch.attempt()] == ["completed"]

    simulate(main)


@pytest.mark.parametrize(
    ("home", "durable"), [*((name, False) for name in HOMES), ("machine", True)], indirect=["home"]
)
def test_where_no_record_is_kept_it_is_refused_before_anything_is_sent(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Any, durable: bool
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(2), max_submissions=2, durable=durable)
        with pytest.raises(WhisulConfigurationError, match="durable=True.*Nothing was sent"):
            await batch.attempt()
        assert not batch.posts()

    if durable:
        keep_no_record(monkeypatch, tmp_path)
    simulate(main)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3"])
def test_a_value_that_makes_no_sense_is_refused_when_the_dag_file_is_read(value: Any) -> None:
    with pytest.raises(ValueError, match="max_submissions is .*an integer, 1 or more"):
        WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"], max_submissions=value)
    with pytest.raises(ValueError, match="max_submissions"):
        WhisulGenerateBatchOperator.partial(task_id="songs", max_submissions=value)


def test_a_refused_prompt_within_it_is_an_error_of_its_own(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        with pytest.raises(WhisulInvalidInputError):
            await make(["fine", " "], max_submissions=1).attempt()

    simulate(main)

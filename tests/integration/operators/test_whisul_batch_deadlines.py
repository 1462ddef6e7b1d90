"""What a batch does at its deadline: it pays for nothing more, and looks at each job once before it gives it up."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_whisul.exceptions import WhisulError
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts
from tests.support.airflow import TaskContext
from tests.support.clock import NOON


@pytest.fixture
def _try_began_at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskContext, "start_date", datetime.fromtimestamp(NOON, UTC), raising=False)


@pytest.mark.usefixtures("_try_began_at_noon")
def test_nothing_is_submitted_once_the_execution_timeout_is_over(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(
            ["endless [sandbox:forever]", "unlucky [sandbox:fail=1] [sandbox:seconds=590]"],
            execution_timeout=timedelta(minutes=10),
        )
        with pytest.raises(WhisulError):
            await batch.attempt()
        assert sum(batch.posts().values()) == 2

    simulate(main)


def test_jobs_that_completed_while_no_triggerer_ran_are_all_delivered(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(300), timeout=600)
        wait = batch.wait

        async def wait_late(deferral: object) -> object:
            if not batch.triggers:
                await asyncio.sleep(700)
            return await wait(deferral)  # type: ignore[arg-type]

        batch.wait = wait_late  # type: ignore[method-assign, assignment]
        assert Counter(result["status"] for result in await batch.attempt()) == {"completed": 300}

    simulate(main)

"""A batch that waits: outages, jobs that are not found for a while, late songs, and the task's own timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from airflow_provider_whisul.exceptions import WhisulError, WhisulJobTimeoutError
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts


def test_an_outage_is_two_lines_in_the_log_of_a_batch(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([f"{prompt} [sandbox:get-500=3]" for prompt in numbered_prompts(50)])
        assert {result["status"] for result in await batch.attempt()} == {"completed"}

    simulate(main)
    lines = [line for line in task_log() if "answered 500" in line or "answers again" in line]
    assert len(lines) == 2
    assert "150 polls of 50 jobs had failed" in lines[1]


def test_a_404_for_less_than_a_minute_fails_no_song(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["hidden [sandbox:get-404=5]", "late [sandbox:song-late=20]"])
        results = await batch.attempt()
        assert {result["status"] for result in results} == {"completed"}
        assert all(result["song"]["song_url"] for result in results)

    simulate(main)


def test_a_completed_job_without_a_song_is_waited_for_by_a_later_try(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["late [sandbox:song-late=900]"])
        with pytest.raises(WhisulError, match="is completed, but has given n"):
            await batch.attempt()
        await asyncio.sleep(900)
        assert [result["status"] for result in await batch.attempt()] == ["completed"]
        assert sum(batch.posts().values()) == 1

    simulate(main)


def test_an_execution_timeout_ends_the_wait_and_is_named(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["endless [sandbox:forever]"], execution_timeout=timedelta(minutes=10))
        with pytest.raises(WhisulJobTimeoutError, match=r"had not ended by [-: 0-9]+ UTC \(execution_timeout\)"):
            await batch.attempt()
        assert 500 < batch.loop.time() < 620

    simulate(main)
    assert any("Waiting for 1 Whisul job in the triggerer" in line for line in task_log())


def test_a_batch_tells_its_trigger_when_each_job_was_submitted_but_not_of_those_that_were_polled_before(
    simulate: Simulate,
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["fails once [sandbox:fail=1]", *numbered_prompts(5)], attempts=2)
        await batch.attempt()
        first, second = batch.triggers[:2]
        jobs = batch.sandbox.jobs
        submitted = [first.submitted_at - before for before in first.submitted_before]
        assert submitted == pytest.approx([jobs[job_id].started_at for job_id in first.job_ids], abs=0.1)
        assert submitted[0] < submitted[-1]
        # The failed song is submitted again. The jobs of the others have been polled.
        assert [before is not None for before in second.submitted_before] == [
            job_id not in first.job_ids for job_id in second.job_ids
        ]
        assert any(before is not None for before in second.submitted_before)
        assert {trigger.dag_id for trigger in batch.triggers} == {batch.operator().dag_id}

    simulate(main)

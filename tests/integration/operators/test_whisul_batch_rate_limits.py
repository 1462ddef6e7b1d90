"""A batch whose API key is rate-limited while it submits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulJobTimeoutError, WhisulRateLimitError
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger
from tests.integration.operators.batch_task import (
    MakeBatch,
    Simulate,
    assert_one_card_per_song,
    numbered_prompts,
)
from tests.support.clock import loop_clock


def test_running_jobs_are_waited_for_before_throttled_submissions_continue(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2, "[sandbox:seconds=400]"), "limited [sandbox:post-429=6]", "last"])
        batch.arguments["durable"] = False
        results = await batch.attempt()
        assert {result["status"] for result in results} == {"completed"}
        assert sum(batch.posts().values()) == 2 + 7 + 1
        assert_one_card_per_song(batch, results)

    simulate(main)
    assert sum("2 of 4 songs must wait to be submitted" in line and "429" in line for line in task_log()) == 1


def test_no_request_is_sent_during_the_cooldown_that_a_submission_met(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(12))
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        limited = [(one, two) for one, two in pairwise(batch.sandbox.requests) if one.status == 429]
        assert limited
        assert all(after.at - before.at >= 700 for before, after in limited)
        assert batch.triggers[0].not_before[:2] == pytest.approx((limited[0][0].at + 700, 700), abs=1)
        assert batch.triggers[-1].not_before is None

    # Longer than a worker waits.
    simulate(main, rate_limit=6, rate_window=4.0, block_seconds=700.0, retry_after=True)


def test_a_cooldown_that_a_submission_met_pauses_other_triggers_too(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([])
        generate = batch.operator().hook.generate
        until = batch.loop.wall() + 30

        async def wait(prompt: str, not_before: list[float] | None) -> Any:
            job_id = await batch.loop.run_in_executor(None, generate, prompt)
            trigger = WhisulBatchTrigger([job_id], "whisul_default", 10, until + 600, not_before=not_before)
            trigger.clock = loop_clock(batch.loop)
            return [event.payload async for event in trigger.run()]

        await asyncio.gather(wait("one", [until, 30]), wait("another", None))
        assert min(request.at for request in batch.sandbox.requests if request.method == "GET") >= until

    simulate(main)


def test_a_cooldown_longer_than_the_timeout_leaves_the_jobs_to_a_later_try(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(12), timeout=300)
        with pytest.raises(WhisulJobTimeoutError):
            await batch.attempt()
        polls = [request for request in batch.sandbox.requests if request.method == "GET"]
        throttled_at = next(request.at for request in batch.sandbox.requests if request.status == 429)
        assert min(request.at for request in polls) >= throttled_at + 700
        delivered = batch.context.xcoms["return_value"]
        # The first ones were given up at their deadline, and the others submitted once the cool-down was over.
        made = [result["job_id"] for result in delivered]
        first = sum(job.started_at < throttled_at for job in batch.sandbox.jobs.values())
        assert 0 < first < 12
        assert [result["status"] for result in delivered] == ["failed"] * first + ["completed"] * (12 - first)
        assert all("may still complete" in result["error"] for result in delivered[:first])
        batch.arguments["timeout"] = 1800
        results = await batch.attempt()
        assert {result["status"] for result in results} == {"completed"}
        assert [result["job_id"] for result in results[: len(made)]] == made
        assert len(batch.sandbox.jobs) == 12

    simulate(main, rate_limit=6, rate_window=4.0, block_seconds=700.0, retry_after=True)


def test_throttled_submissions_fail_the_try_where_no_job_runs_and_the_next_try_continues(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2), "limited [sandbox:post-429=12]", "last"])
        with pytest.raises(WhisulRateLimitError):
            await batch.attempt()
        delivered = batch.context.xcoms["return_value"]
        assert [result["status"] for result in delivered] == ["completed", "completed", "failed", "failed"]
        assert delivered[-1]["error"] == "The song was not submitted."
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 2 + 13 + 1

    simulate(main)


def test_songs_of_an_earlier_try_have_cards_though_nothing_can_be_submitted(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2), "refused [sandbox:no-such-directive]", "limited [sandbox:post-429=18]"])
        for _ in range(2):
            with pytest.raises(WhisulRateLimitError):
                await batch.attempt()
            assert {prompt: card["status"] for prompt, card in batch.cards().items()} == {
                **dict.fromkeys(numbered_prompts(2), "completed"),
                "refused [sandbox:no-such-directive]": "failed",
            }

    simulate(main)

"""A batch that waits on the worker: its tries, its end by Airflow, its connection and its log."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulJobTimeoutError
from airflow_provider_whisul.hooks import whisul_async
from airflow_provider_whisul.operators import whisul_batch
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.polling import JobPoller
from airflow_provider_whisul.triggers import whisul_batch as whisul_batch_trigger
from airflow_provider_whisul.triggers.whisul_batch import PROGRESS_SECONDS
from tests.integration.operators.batch_task import (
    BatchTask,
    MakeBatch,
    Simulate,
    assert_one_card_per_song,
    numbered_prompts,
)
from tests.support.airflow import Killed, TaskContext
from tests.support.clock import NOON
from tests.support.connection import change_connection


def ended_after(batch: BatchTask, seconds: float) -> WhisulGenerateBatchOperator:
    """Return an operator that is ended when it has waited for some seconds, as by Airflow."""
    operator = batch.operator()
    run = operator.clock.run

    async def cut_off(waiting: Coroutine[Any, Any, Any]) -> Any:
        async with asyncio.timeout(seconds):
            return await waiting

    def run_and_die(waiting: Coroutine[Any, Any, Any]) -> Any:
        try:
            return run(cut_off(waiting))
        except TimeoutError:
            operator.on_kill()
            raise Killed from None

    operator.clock = replace(operator.clock, run=run_and_die)
    return operator


def test_all_songs_of_a_batch_are_made_without_a_deferral(
    simulate_at_home: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(20), "unlucky [sandbox:fail=1]"], deferrable=False)
        results = await batch.attempt()
        assert [result["prompt"] for result in results] == batch.arguments["prompts"]
        assert {result["status"] for result in results} == {"completed"}
        assert_one_card_per_song(batch, results)
        assert batch.posts()["unlucky [sandbox:fail=1]"] == 2
        assert batch.events == []

    simulate_at_home(main)
    log = "\n".join(task_log())
    assert "Waiting for 21 Whisul jobs on the worker until" in log
    assert "Polling 21 Whisul jobs, each every 10 s" in log
    assert "triggerer" not in log


def test_a_try_that_is_ended_while_it_waits_names_its_jobs_and_the_next_one_pays_for_nothing(
    simulate_at_home: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5, "[sandbox:seconds=100]"), deferrable=False)
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(ended_after(batch, 60))
        results = await batch.attempt()
        assert {result["status"] for result in results} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate_at_home(main)
    log = "\n".join(task_log())
    assert "Whisul cannot cancel jobs: these 5 continue" in log
    assert "Re-attaching to 5 songs" in log


def test_a_try_may_wait_on_the_worker_for_the_jobs_of_one_that_deferred_and_the_other_way_round(
    simulate_at_home: Simulate,
) -> None:
    async def main(make: MakeBatch) -> None:
        for first in (True, False):
            prompts = [f"{prompt} where first={first}" for prompt in numbered_prompts(3, "[sandbox:seconds=100]")]
            batch = make(prompts, timeout=30, deferrable=first)
            with pytest.raises(WhisulJobTimeoutError):
                await batch.attempt()
            batch.arguments |= {"timeout": 600, "deferrable": not first}
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert [batch.posts()[prompt] for prompt in prompts] == [1, 1, 1]

    simulate_at_home(main)


def test_the_wait_ends_before_airflow_ends_the_task_at_its_execution_timeout(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskContext, "start_date", datetime.fromtimestamp(NOON, UTC), raising=False)

    async def main(make: MakeBatch) -> None:
        batch = make(
            ["endless [sandbox:forever]", *numbered_prompts(20)],
            execution_timeout=timedelta(minutes=10),
            deferrable=False,
        )
        with pytest.raises(WhisulJobTimeoutError, match=r"had not ended by [-: 0-9]+ UTC \(execution_timeout\)"):
            await batch.attempt()
        assert 560 < batch.loop.time() < 580
        delivered = batch.context.xcoms["return_value"]
        assert [result["status"] for result in delivered] == ["failed"] + ["completed"] * 20
        assert_one_card_per_song(batch, delivered)

    simulate(main)


def test_the_songs_that_are_there_are_in_xcom_where_something_else_goes_wrong(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(
            ["refused [sandbox:no-such-directive]", *numbered_prompts(2)], deferrable=False, attempts=1, max_failures=1
        )
        next_delay = JobPoller.next_delay

        def fail(poller: JobPoller, *arguments: Any) -> Any:
            delay = next_delay(poller, *arguments)
            if delay is None:
                raise ZeroDivisionError("a bug")
            return delay

        monkeypatch.setattr(JobPoller, "next_delay", fail)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await batch.attempt()
        delivered = batch.context.xcoms["return_value"]
        assert [result["prompt"] for result in delivered] == batch.arguments["prompts"]
        assert {card["status"] for card in batch.cards().values()} == {"failed"}

    simulate(main)


def test_connections_are_looked_up_as_on_a_worker_also_when_a_key_is_replaced_meanwhile(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def only_in_the_triggerer(conn_id: str) -> None:
        raise AssertionError(conn_id)

    monkeypatch.setattr(whisul_async, "get_async_connection", only_in_the_triggerer)

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5, "[sandbox:seconds=100]"), deferrable=False)
        attempt = asyncio.ensure_future(batch.attempt())
        await asyncio.sleep(40)
        batch.sandbox.restore_key("another-secret-key")
        change_connection(monkeypatch, password="another-secret-key")
        assert {result["status"] for result in await attempt} == {"completed"}
        assert [request.status for request in batch.sandbox.requests].count(401) >= 1

    simulate(main)


def test_lines_of_progress_are_half_a_minute_apart_from_one_wait_to_the_next_too(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([f"song {number} [sandbox:seconds={30 * number}]" for number in range(40)], deferrable=False)
        logged_at = []

        def progress(*numbers: int) -> str:
            logged_at.append(batch.loop.time())
            return line(*numbers)

        for module in (whisul_batch, whisul_batch_trigger):
            monkeypatch.setattr(module, "progress", progress)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert len(logged_at) >= 20
        assert min(later - earlier for earlier, later in pairwise(logged_at)) >= PROGRESS_SECONDS

    line = whisul_batch_trigger.progress
    simulate(main)


def test_a_batch_that_waits_many_times_does_not_nest_its_waits(simulate: Simulate) -> None:
    depths = []

    async def main(make: MakeBatch) -> None:
        batch = make(
            [f"song {number} [sandbox:seconds={700 * number}]" for number in range(6)], deferrable=False, timeout=9000
        )
        operator = batch.operator()
        run = operator.clock.run

        def run_and_measure(waiting: Coroutine[Any, Any, Any]) -> Any:
            depths.append(len(inspect.stack(0)))
            return run(waiting)

        operator.clock = replace(operator.clock, run=run_and_measure)
        await batch.attempt(operator)

    simulate(main)
    assert len(depths) >= 4
    assert len(set(depths)) == 1

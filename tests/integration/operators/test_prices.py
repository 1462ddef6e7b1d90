"""What log and Tracks tab are told about the cost of songs, where the connection has a price."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.operators.batch_task import MakeBatch, Simulate
from tests.support.airflow import AirflowTask, TaskContext, TaskStore
from tests.support.clock import FakeClock
from tests.support.connection import api_key

Log = Callable[[], list[str]]
SetPrice = Callable[[object], None]


@pytest.fixture
def set_price(monkeypatch: pytest.MonkeyPatch) -> SetPrice:
    """Give the connection to the sandbox a price."""

    def set_price(price: object) -> None:
        connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
        connection["extra"] = {**(connection.get("extra") or {}), "price_per_song": price}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))

    return set_price


class SongTask(AirflowTask):
    """A task that makes one song, with a store that outlives its tries."""

    def __init__(self, clock: FakeClock, **arguments: Any) -> None:
        super().__init__(store=TaskStore())
        self.clock = clock
        self.arguments = {"prompt": "a song", "wait_for_completion": True, "deferrable": False, **arguments}
        self.context = TaskContext()

    def attempt(self) -> Any:
        self.context = self.start_try(TaskContext())
        operator = WhisulGenerateOperator(task_id="song", retries=self.retries, **self.arguments)
        operator.clock = self.clock.clock
        return self.context.run(operator)


def submitted(context: TaskContext) -> list[str]:
    return [key for key in context.xcoms if key.startswith("whisul_submitted_")]


def test_the_log_says_what_a_song_cost_and_the_tab_counts_it(
    sandbox: Sandbox, clock: FakeClock, set_price: SetPrice, task_log: Log
) -> None:
    set_price("0.08 USD")
    task = SongTask(clock)
    task.attempt()
    assert submitted(task.context) == ["whisul_submitted_1_0.08_USD"]
    (line,) = [line for line in task_log() if "Whisul accepted the prompt" in line]
    assert "(0.08 USD)" in line


def test_a_task_that_only_submits_is_counted_too(sandbox: Sandbox, clock: FakeClock, set_price: SetPrice) -> None:
    set_price(1)
    task = SongTask(clock, wait_for_completion=False)
    task.attempt()
    assert submitted(task.context) == ["whisul_submitted_1_1_"]


def test_a_song_that_failed_and_was_submitted_again_counts_twice(
    sandbox: Sandbox, clock: FakeClock, set_price: SetPrice
) -> None:
    set_price("0.08 USD")
    task = SongTask(clock, prompt="a song [sandbox:fail=1]")
    with pytest.raises(WhisulJobFailedError):
        task.attempt()
    assert submitted(task.context) == ["whisul_submitted_1_0.08_USD"]
    task.attempt()
    assert submitted(task.context) == ["whisul_submitted_2_0.08_USD"]


def test_a_song_to_which_a_retry_re_attaches_counts_once(
    sandbox: Sandbox, clock: FakeClock, set_price: SetPrice
) -> None:
    set_price("0.08 USD")
    task = SongTask(clock, deferrable=True)
    for _ in range(2):
        with pytest.raises(TaskDeferred):
            task.attempt()
        assert submitted(task.context) == ["whisul_submitted_1_0.08_USD"]


def test_a_submission_whose_response_was_lost_counts_since_it_may_be_paid_for(
    sandbox: Sandbox, clock: FakeClock, set_price: SetPrice
) -> None:
    set_price("0.08 USD")
    task = SongTask(clock, prompt="a song [sandbox:post-drop=1]")
    with pytest.raises(WhisulAmbiguousSubmitError):
        task.attempt()
    assert submitted(task.context) == ["whisul_submitted_1_0.08_USD"]


@pytest.mark.parametrize("price", ["0.08 USD", None])
def test_the_errors_of_a_submission_whose_response_was_lost_name_the_prompt_and_what_it_may_have_cost(
    sandbox: Sandbox, clock: FakeClock, set_price: SetPrice, price: str | None
) -> None:
    set_price(price)
    task = SongTask(clock, prompt="a song [sandbox:post-drop=1]", on_ambiguous_submit="fail")
    named = 'The prompt was "a song [sandbox:post-drop=1]". ' + ("A song costs 0.08 USD. " if price else "")
    for said in ("may have been paid for", "An earlier try began to submit this prompt"):
        with pytest.raises(WhisulAmbiguousSubmitError, match=said) as caught:
            task.attempt()
        assert f"{named}{caught.value.outlook}" in str(caught.value)


@pytest.mark.parametrize("fault", ["nonsense", "post-drop=1"])
@pytest.mark.parametrize("before", [0, 45])
def test_an_error_that_names_a_prompt_shows_no_part_of_a_key_in_it(
    sandbox: Sandbox, clock: FakeClock, fault: str, before: int
) -> None:
    key = api_key()
    task = SongTask(clock, prompt=f"{'x' * before} {key} [sandbox:{fault}]", on_ambiguous_submit="fail")
    for _ in range(2):
        with pytest.raises(WhisulError, match="The prompt was") as caught:
            task.attempt()
        assert key[:6] not in str(caught.value)


def test_a_prompt_that_is_refused_costs_nothing(sandbox: Sandbox, clock: FakeClock, set_price: SetPrice) -> None:
    set_price("0.08 USD")
    task = SongTask(clock, prompt="a song [sandbox:nonsense]")
    with pytest.raises(WhisulInvalidInputError, match=r'The prompt was "a song \[sandbox:nonsense\]"\.$') as caught:
        task.attempt()
    assert caught.value.http_status == 400
    assert "USD" not in str(caught.value)
    assert submitted(task.context) == []


def test_without_a_price_songs_are_counted_and_nothing_is_said_of_cost(
    sandbox: Sandbox, clock: FakeClock, task_log: Log
) -> None:
    task = SongTask(clock)
    task.attempt()
    assert submitted(task.context) == ["whisul_submitted_1"]
    (line,) = [line for line in task_log() if "Whisul accepted the prompt" in line]
    assert "(" not in line.partition("as job")[2].partition("[")[0]


def test_a_price_that_makes_no_sense_submits_nothing(sandbox: Sandbox, clock: FakeClock, set_price: SetPrice) -> None:
    set_price("eight cents")
    with pytest.raises(WhisulError, match="price_per_song"):
        SongTask(clock).attempt()
    assert sandbox.requests == []


def test_the_log_of_a_batch_says_what_its_songs_cost_and_what_all_tries_came_to(
    simulate: Simulate, set_price: SetPrice, task_log: Log
) -> None:
    async def main(make: MakeBatch) -> None:
        set_price("0.08 USD")
        batch = make(["one", "two [sandbox:fail=1]", "three"])
        await batch.attempt()
        assert submitted(batch.context) == ["whisul_submitted_3_0.08_USD", "whisul_submitted_4_0.08_USD"]
        lines = task_log()
        assert any(" Submitted 3 songs (0.24 USD)" in f" {line}" for line in lines)
        assert any(" Submitted 1 song (0.08 USD)" in f" {line}" for line in lines)
        (closing,) = [line for line in lines if "delivered, 0 failed" in line and "submitted" in line]
        assert "3 of 3 songs delivered, 0 failed; submitted 4 songs (0.32 USD) in all of its tries" in closing

    simulate(main)


def test_a_batch_does_not_count_what_was_refused_and_counts_what_earlier_tries_have_submitted(
    simulate: Simulate, set_price: SetPrice, task_log: Log
) -> None:
    async def main(make: MakeBatch) -> None:
        set_price("1 credit")
        batch = make(["one", "two [sandbox:fail]", "three [sandbox:nonsense]"], attempts=1, max_failures=0)
        for tries in (1, 2):
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            assert submitted(batch.context) == [f"whisul_submitted_{1 + tries}_1_credit"]
        lines = task_log()
        assert any("Submitted 2 songs (2 credits)" in line for line in lines)
        assert any("Submitted 1 song (1 credit)" in line for line in lines)
        assert any("submitted 3 songs (3 credits) in all of its tries" in line for line in lines)

    simulate(main)


@pytest.mark.parametrize("words", ["", " and a prompt of so many words that the reason is truncated"])
def test_the_error_of_a_batch_says_what_all_tries_have_cost_and_names_each_job_once(
    simulate: Simulate, set_price: SetPrice, words: str
) -> None:
    async def main(make: MakeBatch) -> None:
        set_price("0.08 USD")
        batch = make(["one", "[sandbox:fail]" + words, "three [sandbox:nonsense]"], attempts=1)
        for tries in (1, 2):
            with pytest.raises(WhisulJobFailedError) as caught:
                await batch.attempt()
            times = "2 times in all of its tries (0.16 USD)" if tries == 1 else "3 times in all of its tries (0.24 USD)"
            assert f"This task has submitted {times}." in str(caught.value)
            job_id = list(batch.sandbox.jobs)[-1]
            assert str(caught.value).count(job_id) == 1
            assert re.search(rf"'\[sandbox:fail\][^;]*{job_id}", str(caught.value))
            assert "'three [sandbox:nonsense]': Whisul refused the prompt: " in str(caught.value)

    simulate(main)


def test_a_batch_whose_key_is_refused_on_the_way_counts_those_that_it_has_submitted(
    simulate: Simulate, set_price: SetPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = WhisulHook.generate

    def until_the_key_is_revoked(hook: WhisulHook, prompt: str, **kwargs: Any) -> str:
        if prompt == "two":
            raise WhisulUnauthorizedError("The key is not accepted.")
        return generate(hook, prompt, **kwargs)

    async def main(make: MakeBatch) -> None:
        set_price("0.08 USD")
        monkeypatch.setattr(WhisulHook, "generate", until_the_key_is_revoked)
        batch = make(["one", "two"])
        with pytest.raises(WhisulUnauthorizedError):
            await batch.attempt()
        assert submitted(batch.context) == ["whisul_submitted_1_0.08_USD"]

    simulate(main)

"""What the operators do in a run for a date in the past: nothing is submitted, unless an earlier try has begun."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException, TaskDeferred

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
)
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.batch_state import BatchState
from tests.support.airflow import AirflowTask, TaskContext, TaskStore
from tests.support.clock import NOON, FakeClock
from tests.support.run_context import run_context

DAY = timedelta(days=1)

Log = Callable[[], list[str]]


class DatedTask(AirflowTask):
    """A task of one song or of a batch, in a run whose date was three days ago when the test began."""

    def __init__(self, clock: FakeClock, run: dict[str, Any], operator: Any, **arguments: Any) -> None:
        super().__init__(store=TaskStore())
        self.clock = clock
        self.run = run
        self.operator = operator
        self.arguments = arguments
        self.context = TaskContext()

    def attempt(self) -> Any:
        """Run the next try; a deferral returns its trigger."""
        self.context = self.start_try(TaskContext(None, **self.run))
        operator = self.operator(task_id="song", retries=self.retries, **self.arguments)
        operator.clock = self.clock.clock
        try:
            return self.context.run(operator)
        except TaskDeferred as deferred:
            return deferred.trigger


Make = Callable[..., DatedTask]


@pytest.fixture
def run() -> dict[str, Any]:
    end = datetime.fromtimestamp(NOON, UTC) - 3 * DAY
    return run_context("backfill", logical_date=end - DAY, interval=(end - DAY, end), catchup=True)


@pytest.fixture
def song(clock: FakeClock, run: dict[str, Any]) -> Make:
    def song(**arguments: Any) -> DatedTask:
        arguments = {"prompt": "a song", "skip_if_older_than": 2 * DAY, **arguments}
        return DatedTask(clock, run, WhisulGenerateOperator, **arguments)

    return song


@pytest.fixture
def batch(clock: FakeClock, run: dict[str, Any]) -> Make:
    def batch(**arguments: Any) -> DatedTask:
        arguments = {"prompts": ["a song", "another song"], "skip_if_older_than": 2 * DAY, **arguments}
        return DatedTask(clock, run, WhisulGenerateBatchOperator, **arguments)

    return batch


@pytest.fixture(params=["song", "batch"])
def either(request: pytest.FixtureRequest, song: Make, batch: Make) -> Make:
    return partial(song, wait_for_completion=True) if request.param == "song" else batch


def posts(sandbox: Sandbox) -> int:
    return sum(request.method == "POST" for request in sandbox.requests)


def test_a_run_for_an_old_date_is_skipped_and_nothing_is_sent(sandbox: Sandbox, either: Make) -> None:
    task = either()
    with pytest.raises(
        AirflowSkipException, match="3 days ago, and skip_if_older_than is 2 days. Nothing was submitted"
    ):
        task.attempt()
    assert sandbox.requests == []
    assert task.context.xcoms in ({}, {"return_value": []})
    assert task.store == {}


def test_a_run_for_a_date_within_the_limit_is_submitted_without_a_warning(
    sandbox: Sandbox, either: Make, task_log: Log
) -> None:
    task = either(skip_if_older_than=4 * DAY)
    task.attempt()
    assert posts(sandbox) >= 1
    assert not any("are about to be submitted" in line for line in task_log())


def test_without_a_limit_the_log_warns_once_before_it_is_submitted(
    sandbox: Sandbox, either: Make, task_log: Log
) -> None:
    either(skip_if_older_than=None).attempt()
    lines = task_log()
    (warned,) = [number for number, line in enumerate(lines) if "are about to be submitted" in line]
    accepted = [number for number, line in enumerate(lines) if "Whisul accepted the prompt" in line]
    assert warned < min(accepted)


def test_a_retry_is_not_warned_of_again(sandbox: Sandbox, either: Make, task_log: Log) -> None:
    task = either(skip_if_older_than=None)
    task.attempt()
    task.attempt()
    assert sum("are about to be submitted" in line for line in task_log()) == 1


@pytest.mark.parametrize("cleared", [False, True])
def test_a_later_try_re_attaches_however_old_the_date_is_by_then(
    sandbox: Sandbox, either: Make, clock: FakeClock, cleared: bool
) -> None:
    task = either(skip_if_older_than=3 * DAY + timedelta(minutes=1))
    task.attempt()
    submitted = posts(sandbox)
    clock.now += 120
    if cleared:
        task.clear()
    task.attempt()
    assert posts(sandbox) == submitted


def test_a_song_that_failed_is_submitted_again_by_a_retry_however_old_the_date_is_by_then(
    sandbox: Sandbox, song: Make, clock: FakeClock
) -> None:
    limit = 3 * DAY + timedelta(seconds=10)
    task = song(prompt="a song [sandbox:fail=1]", skip_if_older_than=limit, wait_for_completion=True, deferrable=False)
    with pytest.raises(WhisulJobFailedError):
        task.attempt()
    assert task.attempt()["prompt"] == "a song [sandbox:fail=1]"
    assert posts(sandbox) == 2


def test_a_song_that_was_delivered_and_then_cleared_is_not_paid_for_once_more(sandbox: Sandbox, song: Make) -> None:
    task = song(skip_if_older_than=None)
    task.attempt()
    task.clear()
    task.arguments["skip_if_older_than"] = 2 * DAY
    with pytest.raises(AirflowSkipException):
        task.attempt()
    assert posts(sandbox) == 1


def test_a_batch_that_was_delivered_and_then_cleared_is_not_paid_for_once_more(sandbox: Sandbox, batch: Make) -> None:
    task = batch(skip_if_older_than=None)
    task.attempt()
    state = BatchState.resume(task.store, 0)
    assert state is not None
    state.record_delivery()
    task.clear()
    task.arguments["skip_if_older_than"] = 2 * DAY
    with pytest.raises(AirflowSkipException):
        task.attempt()
    assert posts(sandbox) == 2


def test_a_batch_whose_prompts_were_edited_since_it_began_is_not_skipped(sandbox: Sandbox, batch: Make) -> None:
    task = batch(skip_if_older_than=None)
    task.attempt()
    task.arguments.update(skip_if_older_than=2 * DAY, prompts=["a third song"])
    task.attempt()
    assert posts(sandbox) == 3


def test_an_ambiguous_submission_is_settled_and_not_skipped(sandbox: Sandbox, song: Make, clock: FakeClock) -> None:
    task = song(prompt="a song [sandbox:post-drop=1]", skip_if_older_than=3 * DAY + timedelta(seconds=10))
    with pytest.raises(WhisulAmbiguousSubmitError):
        task.attempt()
    clock.now += 120
    assert task.attempt() in sandbox.jobs


def test_what_is_refused_anyway_fails_and_is_not_skipped(sandbox: Sandbox, song: Make, batch: Make) -> None:
    with pytest.raises(WhisulInvalidInputError):
        song(prompt=" ").attempt()
    with pytest.raises(WhisulInvalidInputError):
        batch(prompts=["a song", ""]).attempt()
    with pytest.raises(WhisulInvalidInputError):
        batch(prompts=[]).attempt()
    assert sandbox.requests == []

"""A task on the sandbox with its record in each of the stores that it can be in, and with stores that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.exceptions import WhisulStateError, WhisulStateUnreadableError
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state import state_store
from tests.support.airflow import AirflowTask, TaskContext, TaskStore
from tests.support.clock import FakeClock

MakeOperator = Callable[[FakeClock], Any]


class ForgetfulTask(AirflowTask):
    """A task whose store Airflow empties when a user clears the task, as from 3.4 on."""

    def clear(self) -> None:
        super().clear()
        if self.store is not None:
            self.store.clear()


def song(clock: FakeClock) -> WhisulGenerateOperator:
    operator = WhisulGenerateOperator(task_id="song", prompt="a song", wait_for_completion=True, retries=2)
    operator.clock = clock.clock
    return operator


def batch(clock: FakeClock) -> WhisulGenerateBatchOperator:
    operator = WhisulGenerateBatchOperator(task_id="song", prompts=["one", "two", "three"], retries=2)
    operator.clock = clock.clock
    return operator


both = pytest.mark.parametrize(("operator", "songs"), [(song, 1), (batch, 3)], ids=["one song", "a batch"])


@pytest.fixture(params=["Airflow's", "a folder", "the machine's folder", "both, of which Airflow's forgets"])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AirflowTask:
    """A task whose record is in one of the homes."""
    forgets = "forgets" in request.param
    monkeypatch.setattr(state_store, "CLEARING_EMPTIES_TASK_STATE", forgets)
    if request.param == "a folder":
        (tmp_path / "shared").mkdir()
        monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(tmp_path / "shared"))
    return (ForgetfulTask if forgets else AirflowTask)(
        store=None if request.param == "the machine's folder" else TaskStore()
    )


def run(task: AirflowTask, operator: Any) -> Any:
    """Run the next try until it defers or ends."""
    try:
        return task.start_try(TaskContext()).run(operator)
    except TaskDeferred as deferred:
        return deferred.trigger


def posts(sandbox: Sandbox) -> int:
    return sum(request.method == "POST" for request in sandbox.requests)


@both
def test_a_later_try_submits_nothing_that_runs_already(
    operator: MakeOperator, songs: int, task: AirflowTask, sandbox: Sandbox, clock: FakeClock
) -> None:
    run(task, operator(clock))
    run(task, operator(clock))
    assert posts(sandbox) == songs


@both
def test_a_running_task_that_is_cleared_submits_nothing_again(
    operator: MakeOperator, songs: int, task: AirflowTask, sandbox: Sandbox, clock: FakeClock
) -> None:
    run(task, operator(clock))
    task.clear()
    run(task, operator(clock))
    assert posts(sandbox) == songs
    # And so in a third round, in which only the copy tells of the first one.
    task.clear()
    run(task, operator(clock))
    assert posts(sandbox) == songs


def test_a_task_that_had_its_song_makes_a_new_one_when_it_is_cleared(
    task: AirflowTask, sandbox: Sandbox, clock: FakeClock
) -> None:
    run(task, song(clock))
    clock.now += 100
    assert run(task, song(clock))["title"]
    assert posts(sandbox) == 1
    task.clear()
    run(task, song(clock))
    assert posts(sandbox) == 2


@both
def test_nothing_is_submitted_while_the_folder_is_away(
    operator: MakeOperator,
    songs: int,
    tmp_path: Path,
    sandbox: Sandbox,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(shared))
    task = AirflowTask()
    with pytest.raises(WhisulStateError, match="does not exist"):
        run(task, operator(clock))
    # It is there, but no record can be written.
    shared.mkdir()
    (shared / "records").write_text("in the way")
    with pytest.raises(WhisulStateError, match="records"):
        run(task, operator(clock))
    assert posts(sandbox) == 0
    (shared / "records").unlink()
    run(task, operator(clock))
    assert posts(sandbox) == songs


@both
@pytest.mark.parametrize("content", ["", "{}", '{"half": '])
def test_nothing_is_submitted_where_the_record_is_damaged(
    operator: MakeOperator,
    songs: int,
    content: str,
    tmp_path: Path,
    sandbox: Sandbox,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(tmp_path))
    task = AirflowTask()
    run(task, operator(clock))
    for file in (tmp_path / "records").iterdir():
        file.write_text(content)
    with pytest.raises(WhisulStateUnreadableError, match=f"file://{tmp_path}/records/"):
        run(task, operator(clock))
    assert posts(sandbox) == songs


def test_two_machines_with_folders_of_their_own_pay_twice_and_with_a_shared_one_once(
    tmp_path: Path, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_on(machine: str, task: AirflowTask) -> None:
        monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / machine))
        run(task, song(clock))

    task = AirflowTask()
    for machine in ("one", "other"):
        run_on(machine, task)
    assert posts(sandbox) == 2
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(tmp_path / "shared"))
    task = AirflowTask()
    for machine in ("one", "other"):
        run_on(machine, task)
    assert posts(sandbox) == 3


def test_no_record_holds_the_key_or_the_prompt(
    tmp_path: Path, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(tmp_path))
    run(AirflowTask(), song(clock))
    (file,) = (tmp_path / "records").iterdir()
    text = file.read_text()
    assert "secret-sandbox-key" not in text
    assert "a song" not in text
    assert json.loads(text)["task_id"] == "song"

"""What the Tracks tab shows of the sensor's song before it is there, and after it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred

from airflow_provider_whisul.exceptions import WhisulJobFailedError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from tests.support.airflow import TaskContext, through_json
from tests.support.clock import FakeClock

MODES = [{"deferrable": True}, {"deferrable": False, "mode": "poke"}, {"deferrable": False, "mode": "reschedule"}]


@pytest.fixture
def submit(sandbox: Sandbox, clock: FakeClock) -> Callable[[str], str]:
    return WhisulHook(clock=clock.clock).generate


def make(clock: FakeClock, job_id: str, **kwargs: Any) -> WhisulJobSensor:
    sensor = WhisulJobSensor(task_id="song", job_id=job_id, **kwargs)
    sensor.clock = clock.clock
    return sensor


@pytest.mark.parametrize("mode", MODES)
def test_the_card_of_a_song_that_is_being_made_has_the_prompt_of_the_poll(
    submit: Callable[[str], str], clock: FakeClock, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any]
) -> None:
    monkeypatch.setattr("time.sleep", clock.sleep)
    monkeypatch.setattr("time.monotonic", clock.time)
    job_id = submit("a slow waltz [sandbox:forever]")
    context = TaskContext()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - it defers, runs out of time or is rescheduled
        context.run(make(clock, job_id, timeout=30, **mode))
    (card,) = context.xcoms["whisul_expected_1"]
    assert (card["status"], card["job_id"]) == ("pending", job_id)
    assert card["prompt"] == "a slow waltz [sandbox:forever]"
    assert card["since"] is not None


@pytest.mark.parametrize("mode", MODES)
def test_the_card_of_a_job_that_failed_has_the_prompt_of_the_poll(
    submit: Callable[[str], str], clock: FakeClock, mode: dict[str, Any]
) -> None:
    job_id = submit("a doomed waltz [sandbox:fail]")
    clock.now += 60
    context = TaskContext()
    with pytest.raises(AirflowException):
        context.run(make(clock, job_id, **mode))
    (card,) = context.shown()
    assert (card["status"], card["prompt"]) == ("failed", "a doomed waltz [sandbox:fail]")


def test_the_card_of_a_job_that_fails_during_the_deferral_has_the_prompt_of_the_first_poll(
    submit: Callable[[str], str], clock: FakeClock
) -> None:
    job_id = submit("a doomed waltz [sandbox:fail]")
    context = TaskContext()
    with pytest.raises(TaskDeferred):
        context.run(make(clock, job_id))
    error = WhisulJobFailedError(f"Whisul job {job_id} failed: boom.", job_id=job_id)
    event = {"status": "error", "job_id": job_id, "error": error.as_dict()}
    with pytest.raises(AirflowException):
        # In another process.
        context.run(make(clock, job_id), "execute_complete", {"event": event, "try_number": 1})
    (card,) = context.shown()
    assert (card["status"], card["prompt"]) == ("failed", "a doomed waltz [sandbox:fail]")


def test_the_card_of_a_failed_job_has_its_prompt_where_the_first_poll_has_failed(
    submit: Callable[[str], str], clock: FakeClock
) -> None:
    prompt = "a doomed waltz [sandbox:fail] [sandbox:get-500]"
    job_id = submit(prompt)
    context = TaskContext()
    with pytest.raises(TaskDeferred):
        context.run(make(clock, job_id))
    assert "whisul_expected_1" not in context.xcoms
    clock.now += 60
    error = WhisulHook(clock=clock.clock).get_job(job_id).failed_error()
    event = through_json({"status": "error", "job_id": job_id, "error": error.as_dict()})
    with pytest.raises(AirflowException):
        context.run(make(clock, job_id), "execute_complete", {"event": event, "try_number": 1})
    (card,) = context.shown()
    assert (card["status"], card["prompt"]) == ("failed", prompt)

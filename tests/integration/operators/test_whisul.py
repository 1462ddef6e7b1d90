"""The operator, executed against the sandbox; what Airflow itself decides is in the end-to-end suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.polling import FRAMEWORK_TIMEOUT_MARGIN
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS
from tests.support.airflow import TaskContext
from tests.support.clock import NOON, FakeClock


@pytest.fixture
def make(clock: FakeClock) -> Callable[..., WhisulGenerateOperator]:
    def make(**kwargs: Any) -> WhisulGenerateOperator:
        operator = WhisulGenerateOperator(task_id="song", **{"prompt": "a trap song", **kwargs})
        operator.clock = clock.clock
        return operator

    return make


Make = Callable[..., WhisulGenerateOperator]


def test_returns_the_job_id_without_waiting(sandbox: Sandbox, make: Make) -> None:
    context = TaskContext()
    job_id = context.run(make())
    assert list(sandbox.jobs) == [job_id]
    assert context.xcoms == {"job_id": job_id, "whisul_submitted_1": "1 song"}
    assert [request.method for request in sandbox.requests] == ["POST"]


def test_waits_on_the_worker(sandbox: Sandbox, make: Make, clock: FakeClock) -> None:
    context = TaskContext()
    song = context.run(make(wait_for_completion=True, deferrable=False, poll_interval=20))
    assert set(song) == set(Song.__annotations__)
    assert song["prompt"] == "a trap song"
    assert song["started_at"] == "2026-02-17T12:00:00+00:00"
    assert song["finished_at"] == "2026-02-17T12:01:00+00:00"
    assert isinstance(song["tags"], list)
    assert json.loads(json.dumps(song, allow_nan=False)) == song
    assert context.xcoms["job_id"] == song["job_id"]
    assert [card["title"] for card in context.shown()] == [song["title"]]
    assert clock.slept == [20, 20, 20]


def test_the_log_shows_the_beginning_of_a_long_title(make: Make, task_log: Callable[[], list[str]]) -> None:
    event = {"status": "completed", "job_id": "some-job", "song": {"job_id": "some-job", "title": "W" * 1_000}}
    make().resume_execution("execute_complete", {"event": event, "job_id": "some-job"}, TaskContext())
    assert any(f"Whisul job some-job is completed: '{'W' * 59}…'" in line for line in task_log())


def test_the_trigger_holds_only_ids_and_times(sandbox: Sandbox, make: Make) -> None:
    context = TaskContext()
    with pytest.raises(TaskDeferred) as deferred:
        context.run(make(wait_for_completion=True, poll_interval=timedelta(seconds=7), timeout=timedelta(minutes=10)))
    job_id = context.xcoms["job_id"]
    trigger = deferred.value.trigger
    assert isinstance(trigger, WhisulJobTrigger)
    assert trigger.serialize()[1] == {
        "job_id": job_id,
        "whisul_conn_id": "whisul_default",
        "poll_interval": 7,
        "deadline": NOON + 600,
        "deadline_source": "timeout",
        "not_before": None,
        "submitted_at": NOON,
        "dag_id": make().dag_id,
    }
    # Airflow's own timeout comes later, so that the clear message wins.
    assert deferred.value.timeout == timedelta(seconds=600 + FRAMEWORK_TIMEOUT_MARGIN)
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.kwargs == {"job_id": job_id, "try_number": 1, "prompt": "a trap song"}
    # A job that was just submitted is not polled yet.
    assert [request.method for request in sandbox.requests] == ["POST"]


def test_returns_the_song_in_the_triggers_event(sandbox: Sandbox, make: Make) -> None:
    song = {"job_id": "some-job", "title": "Midnight Grid"}
    event = {"status": "completed", "job_id": "some-job", "song": song}
    assert make().execute_complete(TaskContext(), event=event, job_id="some-job") == song


@pytest.mark.parametrize("event", [None, {"status": "odd"}])
def test_the_error_about_an_unreadable_event_names_the_job(make: Make, event: object) -> None:
    with pytest.raises(WhisulError, match="some-job"):
        make().execute_complete(TaskContext(), event=event, job_id="some-job")


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        ("Trigger timeout", WhisulJobTimeoutError, "some-job did not report in time. Is a triggerer running"),
        ("Trigger failure", WhisulError, "some-job ended with an error of its own"),
    ],
)
def test_the_error_about_a_deferral_that_airflow_ended_names_the_job(
    make: Make, reason: str, error: type[WhisulError], message: str
) -> None:
    context = TaskContext(xcoms={"job_id": "some-job"})
    with pytest.raises(error, match=message) as caught:
        make().resume_execution("__fail__", {"error": reason}, context)
    assert isinstance(caught.value.__cause__, DEFERRAL_ERRORS)
    assert [(card["prompt"], card["error"]) for card in context.shown()] == [("a trap song", str(caught.value))]
    assert caught.value.job_id == "some-job"


def test_a_failed_job_fails_the_try_and_the_next_try_submits_again(sandbox: Sandbox, make: Make) -> None:
    operator = make(prompt="a song [sandbox:fail=1]", wait_for_completion=True, deferrable=False)
    with pytest.raises(WhisulJobFailedError):
        TaskContext().run(operator)
    # What Airflow's next try does:
    assert TaskContext().run(operator)["title"]
    assert len(sandbox.jobs) == 2


@pytest.mark.parametrize("prompt", ["", {"not": "a string"}])
def test_a_prompt_that_is_empty_or_no_string_sends_nothing(sandbox: Sandbox, make: Make, prompt: Any) -> None:
    with pytest.raises(WhisulInvalidInputError):
        TaskContext().run(make(prompt=prompt))
    assert sandbox.requests == []


class TestRefusedWhenTheDagIsRead:
    @pytest.mark.parametrize("interval", [4, 0, -1, timedelta(seconds=4)])
    def test_poll_interval_under_5_s(self, make: Make, interval: object) -> None:
        with pytest.raises(ValueError, match="poll_interval is .* once every 5 to 10 s"):
            make(poll_interval=interval)

    def test_poll_interval_under_5_s_of_mapped_tasks(self) -> None:
        with pytest.raises(ValueError, match="poll_interval is 4 s"):
            WhisulGenerateOperator.partial(task_id="songs", poll_interval=4)

    @pytest.mark.parametrize("timeout", [0, -5, float("inf")])
    def test_timeout_that_is_no_positive_number(self, make: Make, timeout: float) -> None:
        with pytest.raises(ValueError, match="timeout is .* positive number of seconds"):
            make(timeout=timeout)


@pytest.mark.parametrize(
    ("airflow", "resubmits"), [("2.11.2", 0), ("3.0.6", 1), ("3.1.0", 1), ("3.1.1", 0), ("3.3.2", 0)]
)
def test_a_retry_that_is_resumed_with_an_earlier_trys_event_submits_again(
    sandbox: Sandbox, make: Make, monkeypatch: pytest.MonkeyPatch, airflow: str, resubmits: int
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.version_compat.__version__", airflow)
    context = TaskContext(xcoms={"job_id": "some-job"})
    context.try_number = 2
    failed = WhisulJobFailedError("Whisul job some-job failed.", job_id="some-job")
    event = {"status": "error", "job_id": "some-job", "error": failed.as_dict()}
    resumed = {"event": event, "job_id": "some-job", "try_number": 1}
    if resubmits:
        assert make().resume_execution("execute_complete", resumed, context) in sandbox.jobs
    else:
        with pytest.raises(WhisulJobFailedError):
            make().resume_execution("execute_complete", resumed, context)
    assert len(sandbox.jobs) == resubmits


def test_a_try_that_is_resumed_with_its_own_event_submits_nothing(
    sandbox: Sandbox, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.version_compat.__version__", "3.0.6")
    event = {"status": "completed", "job_id": "some-job", "song": {"job_id": "some-job", "title": "Midnight Grid"}}
    resumed = {"event": event, "job_id": "some-job", "try_number": 1}
    assert make().resume_execution("execute_complete", resumed, TaskContext()) == event["song"]
    assert sandbox.requests == []


@pytest.mark.parametrize(("fail", "word"), [("", "COMPLETED"), ("", "succeeded"), ("[sandbox:fail]", "Error")])
def test_another_word_for_the_end_of_a_job_ends_the_wait(
    sandbox: Sandbox, make: Make, clock: FakeClock, fail: str, word: str
) -> None:
    prompt = f"a song {fail}[sandbox:end-status={word}]"
    operator = make(prompt=prompt, wait_for_completion=True, deferrable=False)
    if fail:
        with pytest.raises(WhisulJobFailedError, match="Generation failed"):
            TaskContext().run(operator)
    else:
        assert TaskContext().run(operator)["song_url"]
    assert sum(clock.slept) < 100


def test_a_refused_prompt_ends_the_task_for_good(sandbox: Sandbox, make: Make) -> None:
    for status in (413, 422):
        with pytest.raises(WhisulInvalidInputError, match=f"answered {status}"):
            TaskContext().run(make(prompt=f"a song [sandbox:post-{status}]"))
    assert len(sandbox.requests) == 2

"""The trigger's arguments, and how its events are read."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError, WhisulJobTimeoutError
from airflow_provider_whisul.triggers.events import deferral_error, song_from_event
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger, last_max_wait
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS

OUTLOOK = "The job may still be running."


def test_the_trigger_is_recreated_from_its_serialised_arguments() -> None:
    path, kwargs = WhisulJobTrigger(
        "some-job",
        "whisul_default",
        10,
        1_771_329_600.0,
        "execution_timeout",
        [1_771_329_000.0, 60.0, 7, 1_771_328_940.25],
        1_771_328_900.0,
        "nightly",
    ).serialize()
    assert path == "airflow_provider_whisul.triggers.whisul.WhisulJobTrigger"
    assert kwargs == {
        "job_id": "some-job",
        "whisul_conn_id": "whisul_default",
        "poll_interval": 10,
        "deadline": 1_771_329_600.0,
        "deadline_source": "execution_timeout",
        "not_before": [1_771_329_000.0, 60.0, 7, 1_771_328_940.25],
        "submitted_at": 1_771_328_900.0,
        "dag_id": "nightly",
    }
    assert WhisulJobTrigger(**kwargs).serialize() == (path, kwargs)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, None),
        ([1_771_329_000.0, 60.0], [1_771_329_000.0, 60.0, None, None]),
        ([1_771_329_000.0, 60.0, 7], [1_771_329_000.0, 60.0, 7, None]),
    ],
)
def test_a_trigger_of_an_older_version_that_waits_in_a_database_is_recreated(
    stored: list[float] | None, expected: list[float | None] | None
) -> None:
    kwargs = {
        "job_id": "some-job",
        "whisul_conn_id": "whisul_default",
        "poll_interval": 10,
        "deadline": 1_771_329_600.0,
        "deadline_source": "timeout",
        "not_before": stored,
    }
    _, recreated = WhisulJobTrigger(**kwargs).serialize()
    assert recreated == {**kwargs, "not_before": expected, "submitted_at": None, "dag_id": ""}


@pytest.mark.parametrize("interval", [0, 4.999, float("nan")])
def test_an_interval_under_5_s_is_refused(interval: float) -> None:
    with pytest.raises(ValueError, match="poll_interval is .* once every 5 to 10 s"):
        WhisulJobTrigger("some-job", "whisul_default", interval, 0)


@pytest.mark.parametrize(
    "event",
    [
        None,
        "completed",
        [],
        {},
        {"status": "success"},
        {"status": "completed"},
        {"status": "completed", "job_id": "some-job", "song": None},
        {"status": "completed", "job_id": "some-job", "song": {}},
        {"status": "error"},
        {"status": "error", "error": "boom"},
        {"status": "error", "error": {"type": 5, "message": "boom", "job_id": None, "http_status": None}},
    ],
)
def test_an_event_that_makes_no_sense_is_an_error_that_names_the_job(event: Any) -> None:
    with pytest.raises(WhisulError, match="some-job reported an event that is not one of this provider's") as caught:
        song_from_event(event, "some-job")
    assert type(caught.value) is WhisulError
    assert len(str(caught.value)) < 600


def test_the_error_in_an_event_is_raised_as_its_own_class() -> None:
    error = WhisulJobFailedError("Whisul job some-job failed.", job_id="some-job")
    with pytest.raises(WhisulJobFailedError, match="some-job failed") as caught:
        song_from_event({"status": "error", "job_id": "some-job", "error": error.as_dict()}, "some-job")
    assert caught.value.job_id == "some-job"


def test_the_error_about_a_deferral_that_timed_out() -> None:
    error = deferral_error(DEFERRAL_ERRORS[-1]("Trigger timeout"), "Whisul job some-job", OUTLOOK, "some-job")
    assert isinstance(error, WhisulJobTimeoutError)
    assert "Is a triggerer running?" in str(error)
    assert str(error).startswith("The trigger that waited for Whisul job some-job ")
    assert str(error).endswith(OUTLOOK)
    assert error.job_id == "some-job"


def test_the_error_about_a_trigger_that_failed() -> None:
    error = deferral_error(DEFERRAL_ERRORS[0]("Trigger failure"), "Whisul job some-job", OUTLOOK, "some-job")
    assert type(error) is WhisulError
    assert "Whisul job some-job ended with an error of its own: Trigger failure" in str(error)
    assert str(error).endswith(OUTLOOK)
    assert error.job_id == "some-job"


@pytest.mark.parametrize(
    ("begins", "ends_at", "expected"),
    [
        (0, None, 240),
        (0, 3900, 240),
        # Airflow 2.11 counts the execution_timeout in.
        (0, 3700, 40),
        (0, 3610, 5),
        # No triggerer has run until now: the trigger is created anew after its deadline.
        (3800, 3900, 40),
        (3890, 3900, 5),
        # A task that defers after the deadline has a deferral of its own.
        (3800, 4100, 240),
    ],
)
@pytest.mark.parametrize("attribute", ["timeout_after", "task_instance", "naive"])
def test_last_polls_do_not_wait_until_airflow_ends_the_deferral(
    begins: float, ends_at: float | None, expected: float, attribute: str
) -> None:
    batch = WhisulBatchTrigger(["some-job"] * 1_000, "whisul_default", 10, 3600)
    for trigger in (WhisulJobTrigger("some-job", "whisul_default", 10, 3600), batch):
        trigger.clock = Clock(time=lambda: begins)
        at = None if ends_at is None else datetime.fromtimestamp(ends_at, UTC)
        if attribute == "timeout_after":
            trigger.timeout_after = at  # type: ignore[attr-defined]
        else:
            at = at and at.replace(tzinfo=None) if attribute == "naive" else at
            trigger.task_instance = SimpleNamespace(task_id="wait", trigger_timeout=at)  # type: ignore[assignment]
        assert last_max_wait(trigger, 1_000) == expected
    assert {poller.last_max_wait for poller in batch._pollers()} == {expected}


_RUN_TRIGGER = """
import asyncio, sys, threading, time
from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger

loaded_in = []

def on_event(event, arguments):
    if event == "import" and arguments[0] == "airflow_provider_whisul.hooks.whisul_async":
        loaded_in.append(threading.current_thread() is threading.main_thread())

async def main():
    trigger = WhisulJobTrigger("some-job", "whisul_default", 5, time.time() + 60)
    trigger.clock = Clock(async_sleep=lambda seconds: asyncio.sleep(0))
    return [event.payload["error"]["type"] async for event in trigger.run()]

sys.addaudithook(on_event)
print(asyncio.run(main()), loaded_in)
not_needed = ("hooks.whisul", "hooks.submission_thread", "ledger.submitting")
print([name for name in not_needed if f"airflow_provider_whisul.{name}" in sys.modules])
"""


def test_a_trigger_imports_its_http_client_in_a_thread_and_nothing_that_submits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", '{"conn_type": "whisul"}')
    done = subprocess.run([sys.executable, "-c", _RUN_TRIGGER], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["['WhisulConfigurationError'] [False]", "[]"]

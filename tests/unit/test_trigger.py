"""What the trigger is made of, and what is made of its events."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError, WhisulJobTimeoutError
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger, deferral_error, song_from_event
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS


def test_is_made_again_from_what_it_serialises() -> None:
    path, kwargs = WhisulJobTrigger(
        "some-job", "whisul_default", 10, 1_771_329_600.0, 1_771_320_000.0, 1_771_329_000.0
    ).serialize()
    assert path == "airflow_provider_whisul.triggers.whisul.WhisulJobTrigger"
    assert kwargs == {
        "job_id": "some-job",
        "whisul_conn_id": "whisul_default",
        "poll_interval": 10,
        "deadline": 1_771_329_600.0,
        "submitted_at": 1_771_320_000.0,
        "not_before": 1_771_329_000.0,
    }
    assert WhisulJobTrigger(**kwargs).serialize() == (path, kwargs)


@pytest.mark.parametrize("interval", [0, 4.999, float("nan")])
def test_refuses_to_poll_too_fast(interval: float) -> None:
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
def test_an_event_that_is_none_of_ours(event: Any) -> None:
    with pytest.raises(WhisulError, match="some-job reported something that is no event") as caught:
        song_from_event(event, "some-job")
    assert type(caught.value) is WhisulError
    assert len(str(caught.value)) < 600


def test_an_error_comes_out_as_itself() -> None:
    error = WhisulJobFailedError("Whisul job some-job failed.", job_id="some-job")
    with pytest.raises(WhisulJobFailedError, match="some-job failed") as caught:
        song_from_event({"status": "error", "job_id": "some-job", "error": error.as_dict()}, "some-job")
    assert caught.value.job_id == "some-job"


def test_a_deferral_that_airflow_timed_out() -> None:
    error = deferral_error(DEFERRAL_ERRORS[-1]("Trigger timeout"), "some-job")
    assert isinstance(error, WhisulJobTimeoutError)
    assert "Is a triggerer running?" in str(error)
    assert "may still be running" in str(error)


def test_a_trigger_that_broke() -> None:
    error = deferral_error(DEFERRAL_ERRORS[0]("Trigger failure"), "some-job")
    assert type(error) is WhisulError
    assert "some-job" in str(error)


_LOAD = """
import asyncio, sys, threading, time
from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger

loaded_in = []

def note(event, arguments):
    if event == "import" and arguments[0] == "airflow_provider_whisul.hooks.whisul_async":
        loaded_in.append(threading.current_thread() is threading.main_thread())

async def main():
    trigger = WhisulJobTrigger("some-job", "whisul_default", 5, time.time() + 60)
    trigger.clock = Clock(asleep=lambda seconds: asyncio.sleep(0))
    return [event.payload["error"]["type"] async for event in trigger.run()]

sys.addaudithook(note)
print(asyncio.run(main()), loaded_in)
"""


def test_the_event_loop_is_not_held_up_while_the_client_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", '{"conn_type": "whisul"}')
    done = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['WhisulConfigurationError'] [False]"

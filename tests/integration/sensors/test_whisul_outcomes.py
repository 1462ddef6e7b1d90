"""What a sensor writes into the ledger about how its job ended."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_whisul.exceptions import WhisulJobFailedError, WhisulJobNotFoundError
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from tests.support.airflow import TaskContext
from tests.support.ledger import outcomes


def failed(error: Any) -> dict[str, Any]:
    return {"status": "error", "job_id": "job-1", "error": error.as_dict()}


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        ({"status": "completed", "job_id": "job-1", "song": {"job_id": "job-1", "title": "x"}}, "delivered"),
        (failed(WhisulJobFailedError("It failed.", job_id="job-1")), "failed"),
        (failed(WhisulJobNotFoundError("It is gone.", job_id="job-1")), "not_found"),
    ],
)
@pytest.mark.parametrize("soft_fail", [True, False])
def test_after_a_deferral_the_ledger_says_how_the_job_ended(
    sandbox: Sandbox, event: dict[str, Any], outcome: str, soft_fail: bool
) -> None:
    sensor = WhisulJobSensor(task_id="song", job_id="job-1", soft_fail=soft_fail)
    try:
        sensor.resume_execution("execute_complete", {"event": event, "try_number": 1}, TaskContext())
    except AirflowException:
        assert outcome != "delivered"
    assert outcomes() == {outcome: 1}


def test_an_event_of_a_timeout_is_no_end_of_a_job(sandbox: Sandbox) -> None:
    sensor = WhisulJobSensor(task_id="song", job_id="job-1")
    with pytest.raises(AirflowException):
        sensor.resume_execution("__fail__", {"error": "Trigger timeout"}, TaskContext())
    assert not outcomes()

"""A task that submits prompts, by either operator, and what ends it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.exceptions import WhisulStateError
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from tests.support.airflow import AirflowTask, TaskContext, TaskStore
from tests.support.clock import FakeClock

BY = ["operator", "batch"]
POLICIES = ["retry", "fail"]


class Ended(BaseException):
    """As Airflow ends a task at its timeout."""


class Night:
    """A task that submits prompts, by either operator, over its tries."""

    def __init__(self, by: str, clock: FakeClock, prompt: str, **arguments: Any) -> None:
        self.by, self.clock, self.prompt, self.arguments = by, clock, prompt, arguments
        self.task = AirflowTask(store=TaskStore())

    def attempt(self) -> None:
        """Run a try to its end, or until it waits for its jobs."""
        operator: WhisulGenerateOperator | WhisulGenerateBatchOperator
        if self.by == "batch":
            operator = WhisulGenerateBatchOperator(task_id="song", prompts=[self.prompt], retries=2, **self.arguments)
        else:
            operator = WhisulGenerateOperator(
                task_id="song", prompt=self.prompt, wait_for_completion=True, retries=2, **self.arguments
            )
        operator.clock = self.clock.clock
        try:
            self.task.start_try(TaskContext()).run(operator)
        except TaskDeferred:
            pass
        else:
            raise AssertionError("It does not wait.")


def set_connection(monkeypatch: pytest.MonkeyPatch, **extra: object) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
    connection["extra"] = {**connection["extra"], **extra}
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))


def end(*_: object, **__: object) -> None:
    """Stand in for a function in which the task is ended."""
    raise Ended


def away(*_: object, **__: object) -> None:
    """Stand in for a function of a store that is away."""
    raise WhisulStateError("The store is away.")

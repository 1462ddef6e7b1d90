"""A task in Airflow that makes one song."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.song_state import SongRecord
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from tests.support.airflow import AirflowTask, TaskContext, TaskStore
from tests.support.clock import FakeClock
from tests.support.homes import store_of

DEFERRED, ON_WORKER, SUBMIT_ONLY = (
    {"wait_for_completion": True},
    {"wait_for_completion": True, "deferrable": False},
    {"wait_for_completion": False},
)


class SongTask(AirflowTask):
    """A task that makes one song, with a record that outlives its tries."""

    def __init__(self, clock: FakeClock, store: TaskStore | None = None, **arguments: Any) -> None:
        super().__init__(store=store)
        self.clock = clock
        self.arguments = {"prompt": "a song", **arguments}
        self.context = TaskContext()

    @property
    def record(self) -> SongRecord | None:
        return SongRecord.read(store_of(self))

    def operator(self) -> WhisulGenerateOperator:
        operator = WhisulGenerateOperator(task_id="song", retries=self.retries, **self.arguments)
        operator.clock = self.clock.clock
        return operator

    def attempt(self, operator: WhisulGenerateOperator | None = None) -> Any:
        """Run the next try; a deferral returns its trigger."""
        self.context = self.start_try(TaskContext())
        try:
            return self.context.run(operator or self.operator())
        except TaskDeferred as deferred:
            self.deferred = deferred
            return deferred.trigger

    def resume(self, event: object) -> Any:
        """Continue the try that deferred."""
        return self.context.run(self.operator(), self.deferred.method_name, {"event": event, **self.deferred.kwargs})

    def attempt_with(self, event: object) -> Any:
        """Run the next try to its end, with this event where it defers."""
        outcome = self.attempt()
        return self.resume(event) if isinstance(outcome, WhisulJobTrigger) else outcome

    @property
    def numbered(self) -> tuple[str, int] | None:
        """The record's status and number."""
        return self.record and (self.record.status, self.record.number)


#: Makes a :class:`SongTask` with these arguments.
MakeTask = Callable[..., SongTask]


def posts(sandbox: Sandbox) -> int:
    """Return how many prompts were submitted."""
    return sum(request.method == "POST" for request in sandbox.requests)


def completed_event(job_id: str) -> dict[str, Any]:
    return {"status": "completed", "job_id": job_id, "song": {"job_id": job_id, "title": "Midnight Grid"}}


def error_event(error: Any) -> dict[str, Any]:
    return {"status": "error", "job_id": error.job_id, "error": error.as_dict()}

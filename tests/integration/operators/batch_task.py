"""A batch task in Airflow, with the sandbox in the same event loop, both on its virtual time."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger
from tests.support.airflow import (
    AirflowTask,
    Deferral,
    Killed,
    TaskContext,
    TaskStore,
    allow_tasks_in_threads,
    event_of,
)
from tests.support.clock import VirtualLoop, loop_clock, thread_clock


class BatchTask(AirflowTask):
    """
    A batch task in Airflow.

    :param sandbox: The API that its connection leads to.
    :param loop: The event loop whose time all of it keeps.
    :param prompts: The prompts.
    :param arguments: Other arguments of the operator; a test may change them between tries.
    """

    def __init__(self, sandbox: Sandbox, loop: VirtualLoop, prompts: list[str], **arguments: Any) -> None:
        super().__init__(retries=2, store=TaskStore())
        self.sandbox = sandbox
        self.loop = loop
        self.arguments = {"prompts": prompts, "timeout": 1800, **arguments}
        self.context = TaskContext()
        self.events: list[Any] = []
        self.triggers: list[WhisulBatchTrigger] = []

    def operator(self) -> WhisulGenerateBatchOperator:
        operator = WhisulGenerateBatchOperator(task_id="songs", retries=self.retries, **self.arguments)
        operator.clock = thread_clock(self.loop)
        return operator

    async def attempt(self, operator: WhisulGenerateBatchOperator | None = None) -> list[dict[str, Any]]:
        """
        Run the next try to its end, deferrals included, and return the batch's results.

        :param operator: The operator that begins the try, None for a new one.
        """
        self.context = self.start_try(TaskContext())
        self.context.task_id = "songs"
        resume_with: tuple[Any, ...] = ()
        while True:
            try:
                return await self.loop.run_in_executor(
                    None, _run_in_thread, self.context.run, operator or self.operator(), *resume_with
                )
            except TaskDeferred as exception:
                deferral = Deferral.from_exception(exception)
            operator = None
            resume_with = deferral.resume_with(await self.wait(deferral))

    async def wait(self, deferral: Deferral) -> Any:
        """Run the trigger of a deferral, and return its event."""
        jitter = (number * 0.618 % 1 for number in itertools.count(len(self.events)))
        trigger = deferral.trigger(replace(loop_clock(self.loop), random=lambda: next(jitter)))
        event = await event_of(trigger)
        stored = (deferral.trigger_kwargs, deferral.kwargs, event)
        assert max(len(json.dumps(value)) for value in stored) < MAX_ENTRY_BYTES
        self.triggers.append(trigger)
        self.events.append(event)
        return event

    def posts(self) -> Counter[str | None]:
        """Return how often each prompt was submitted."""
        return Counter(request.prompt for request in self.sandbox.requests if request.method == "POST")

    def cards(self) -> dict[str, dict[str, Any]]:
        """Return the cards that the Tracks tab shows of the latest try, by prompt."""
        return {card["prompt"]: card for card in self.context.shown()}


#: Makes a :class:`BatchTask` for these prompts and arguments.
MakeBatch = Callable[..., BatchTask]
#: Runs a test's coroutine function; the keyword arguments are options of the sandbox.
Simulate = Callable[..., None]
Main = Callable[[MakeBatch], Awaitable[None]]


def numbered_prompts(count: int, directive: str = "") -> list[str]:
    return [f"song {number} {directive}".strip() for number in range(count)]


def assert_one_card_per_song(batch: BatchTask, results: list[dict[str, Any]]) -> None:
    cards = batch.cards()
    assert len(cards) == len(batch.context.shown()) == len(results)
    for result in results:
        card = cards[result["prompt"]]
        assert (card["status"], card["job_id"], card["error"]) == (
            result["status"],
            result["job_id"],
            result["error"],
        )


def _run_in_thread(run: Callable[..., Any], *arguments: Any) -> Any:
    allow_tasks_in_threads()
    try:
        return run(*arguments)
    except Killed as killed:
        # Killed is no Exception, and would end the executor's thread.
        raise RuntimeError("killed") from killed

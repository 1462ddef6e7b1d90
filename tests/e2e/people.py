"""Runs of the example DAGs that ask a person, and the person who answers. Airflow 3.1 and later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_whisul.version_compat import HAS_REQUIRED_ACTIONS
from dev.airflow_runner.local import LocalAirflow
from dev.demo import read_prompts

APPROVE, ASK = "whisul_approve_songs", "whisul_ask_before_paying"
ASK_ABOVE = 2
#: The states in which a task waits for a person, and holds no worker: the first one until Airflow 3.2.
WAITING = ("deferred", "awaiting_input")
ANSWER_TIMEOUT = 1200.0

CHOOSE_FROM = read_prompts(Path(__file__).resolve().parents[2] / "example_dags" / f"{APPROVE}.py")
JINGLES = [f"a jingle for door number {number}" for number in range(1, 5)]


@dataclass(frozen=True)
class Case:
    """
    A run that asks a person, or none.

    :param dag_id: The DAG.
    :param conf: The configuration of the run.
    :param task_id: The task that asks; blank for none.
    :param map_index: Its map index.
    :param answer: Which of the options the person chooses, counted from 0.
    """

    dag_id: str
    conf: Mapping[str, object]
    task_id: str = ""
    map_index: int = -1
    answer: tuple[int, ...] = ()


CASES = {
    "choose": Case(APPROVE, {}, "choose", 0, (0, 2)),
    "approve": Case(ASK, {"songs": 3}, "ask", answer=(0,)),
    "reject": Case(ASK, {"songs": 4}, "ask", answer=(1,)),
    "small": Case(ASK, {"songs": ASK_ABOVE}),
}

#: How often each prompt of these runs is submitted. The fourth jingle is only in the batch that is rejected.
SUBMITTED = Counter([*CHOOSE_FROM, *JINGLES[:3], *JINGLES[:ASK_ABOVE]] if HAS_REQUIRED_ACTIONS else [])


@dataclass(frozen=True)
class Answered:
    """
    A run that is over.

    :param run_id: The run.
    :param state: Its state.
    :param question: What the person was asked; empty where none was.
    :param waiting_state: The task's state before the answer; None where no person was asked.
    """

    run_id: str
    state: str
    question: dict[str, Any]
    waiting_state: str | None


def start(airflow: LocalAirflow) -> dict[str, str]:
    """Start a run of each case, and return the runs' ids."""
    return {name: airflow.trigger(case.dag_id, case.conf) for name, case in CASES.items()}


def answer(airflow: LocalAirflow, run_ids: Mapping[str, str], timeout: float) -> dict[str, Answered]:
    """Answer the questions one after the other, and wait for the ends of the runs."""
    asked = {name: _answer(airflow, CASES[name], run_id) for name, run_id in run_ids.items() if CASES[name].task_id}
    return {
        name: Answered(run_id, airflow.wait(CASES[name].dag_id, run_id, timeout), *asked.get(name, ({}, None)))
        for name, run_id in run_ids.items()
    }


def _answer(airflow: LocalAirflow, case: Case, run_id: str) -> tuple[dict[str, Any], str | None]:
    task = (case.dag_id, run_id, case.task_id)

    def state() -> str | None:
        found = airflow.task_instances(case.dag_id, run_id)
        return {(task.task_id, task.map_index): task.state for task in found}.get((case.task_id, case.map_index))

    airflow.wait_until(lambda: state() in WAITING, ANSWER_TIMEOUT, f"the question of {case.task_id} in run {run_id}")
    waiting_state = state()
    # A person takes longer. Airflow fails a task that is resumed before its scheduler has heard of the process
    # that began to wait.
    key = (
        f"dag_id={case.dag_id!r}, task_id={case.task_id!r}, run_id={run_id!r}, try_number=1, map_index={case.map_index}"
    )
    log = airflow.process("scheduler").log
    airflow.wait_until(
        lambda: any("Received executor event" in line and key in line for line in log.read_text().splitlines()),
        ANSWER_TIMEOUT,
        f"the scheduler to hear of {case.task_id} in run {run_id}",
    )
    question = airflow.question(*task, map_index=case.map_index)
    airflow.answer(*task, *(question["options"][option] for option in case.answer), map_index=case.map_index)
    return question, waiting_state

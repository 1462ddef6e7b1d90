"""
Crashes on purpose: a real Airflow makes songs while processes are killed, the sandbox is stopped and a key is revoked.

Each song is made by a task of its own, and so is each batch; see dags/. The sandbox counts the submissions.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from airflow_provider_whisul.ledger.reader import LedgerContent
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.sandbox.state import LoggedRequest
from airflow_provider_whisul.storage.documents import open_folder
from dev.airflow_runner.client import FINISHED, TaskInstance
from dev.airflow_runner.local import LocalAirflow
from dev.airflow_runner.processes import LocalAirflowError, free_port
from tests.support.reconciliation import read_ledger, read_machine_ledger

AIRFLOW = version("apache-airflow")

#: Whether the executor's late report of a killed try can fail the next one, while that is still queued.
MAY_FAIL_A_QUEUED_TRY = Version(AIRFLOW) < Version("3.1")

CRASH_DAGS = Path(__file__).parent / "dags"
CRASHES, OUTAGE = "whisul_crashes", "whisul_outage"
SCHEDULER_KILLED, TRIGGERER_KILLED = "whisul_scheduler_killed", "whisul_triggerer_killed"
OUTAGE_SECONDS = 60.0
TIMEOUT = 1200.0

#: Seconds that a request may take, longer than a busy machine stands still: a submission that is given up is paid for
#: again. A try after a lost response waits five more than that.
REQUEST_TIMEOUT = 15

#: What the tasks of each sandbox do beside what the others do, as the extra of its Airflow connection.
EXTRAS: dict[str, dict[str, object]] = {
    "default": {"timeout": REQUEST_TIMEOUT},
    "outage": {},
    "revoked": {},
}

SETTINGS = {
    "CORE__PARALLELISM": "8",
    # How soon a killed scheduler or triggerer counts as dead; the defaults are 30 s, and 300 s for the check.
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
}

# With the one slot that Airflow 2 allows on SQLite, each task that polls on a worker would hold up all others.
SETTINGS_OF_2 = {
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
}

# There the whole worker of a task is killed, so that the task is retried: by default after five minutes.
SETTINGS_OF_3_0 = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "25",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}


@dataclass(frozen=True)
class Row:
    """
    How one crash ended.

    :param crash: What was killed, stopped or revoked.
    :param task_id: The task.
    :param songs: How many songs were delivered, in XCom.
    :param posts: How many prompts were submitted, that is, paid for.
    :param tries: The number of the task's last try.
    :param state: How the task ended.
    """

    crash: str
    task_id: str
    songs: int
    posts: int
    tries: int
    state: str | None


#: What is the same wherever the record is kept, and on every Airflow.
TABLE = (
    Row("task killed before the POST, its intent recorded", "before_post", 1, 1, 2, "success"),
    # The one gap that cannot be closed: the API has no idempotency key.
    Row("task killed between the response and the ledger", "response", 1, 2, 2, "success"),
    Row('the same with on_ambiguous_submit="fail"', "response_fail", 0, 1, 2, "failed"),
    Row("task killed between the ledger and its record", "in_ledger", 1, 1, 2, "success"),
    Row("task killed after its record, before it deferred", "recorded", 1, 1, 2, "success"),
    Row("task cleared by a user while deferred", "cleared", 1, 1, 2, "success"),
    Row("task killed while it resumed", "resuming", 1, 1, 2, "success"),
    Row("task killed between the song and its XCom", "delivered", 1, 1, 2, "success"),
    Row("task killed while polling in the worker", "polling_on_worker", 1, 1, 2, "success"),
    Row("the same, between the song and its XCom", "delivered_on_worker", 1, 1, 2, "success"),
    Row("task that does not wait, killed before its XCom", "not_waiting", 1, 1, 2, "success"),
    Row("batch killed between two submissions", "batch_submitting", 3, 3, 2, "success"),
    Row("batch killed between a response and the ledger", "batch_response", 3, 4, 2, "success"),
    Row("batch killed between the ledger and its record", "batch_in_ledger", 3, 3, 2, "success"),
    Row("batch cleared by a user while deferred", "batch_cleared", 3, 3, 2, "success"),
    Row("batch killed while it resumed", "batch_resuming", 3, 3, 2, "success"),
    Row("batch killed between its songs and their XCom", "batch_delivered", 3, 3, 2, "success"),
    Row("batch killed while polling in the worker", "batch_on_worker", 3, 3, 2, "success"),
    Row("triggerer killed mid-poll", "triggerer", 1, 1, 1, "success"),
    Row("the same, polling for a batch", "batch_triggerer", 3, 3, 1, "success"),
    Row("scheduler killed while the task was deferred", "scheduler_deferred", 1, 1, 1, "success"),
    Row("scheduler killed, with the worker that polled", "scheduler_on_worker", 1, 1, 2, "success"),
)
KEY_REVOKED = Row("key revoked mid-poll", "key_revoked", 0, 1, 1, "failed")
OUTAGE_TABLE = (
    Row("Whisul down for 60 s while deferred", "outage_deferred", 1, 1, 1, "success"),
    Row("Whisul down for 60 s while polling in the worker", "outage_on_worker", 1, 1, 1, "success"),
    KEY_REVOKED,
    Row("then the key restored and the task cleared", "key_revoked", 1, 1, 2, "success"),
)

#: The moments at which each task must have killed itself, by its id.
KILLS = {
    "before_post": "before POST",
    "response": "response",
    "response_fail": "response",
    "in_ledger": "in ledger",
    "recorded": "recorded",
    "resuming": "resumed",
    "delivered": "delivered",
    "polling_on_worker": "polled",
    "delivered_on_worker": "delivered",
    "not_waiting": "recorded",
    "batch_submitting": "next song",
    "batch_response": "response",
    "batch_in_ledger": "in ledger",
    "batch_resuming": "resumed",
    "batch_delivered": "delivered",
    "batch_on_worker": "polled",
}
CLEARED = ("cleared", "batch_cleared")
TRIGGERED = ("triggerer", "batch_triggerer")


class Stage:
    """
    Airflow, the sandboxes, and what has happened so far.

    :param airflow: The Airflow.
    :param sandboxes: The sandboxes, by the names of their Airflow connections without ``whisul_``.
    :param table: The rows that are expected.
    """

    def __init__(self, airflow: LocalAirflow, sandboxes: dict[str, Sandbox], table: tuple[Row, ...]) -> None:
        self.airflow = airflow
        self.sandboxes = sandboxes
        self.table = table
        self.measured: dict[str, Row] = {}
        #: When a try of a task was ended from outside, in Unix seconds.
        self.ended: dict[str, list[float]] = defaultdict(list)
        #: When the sandbox was stopped and started again, in Unix seconds.
        self.outage = (0.0, 0.0)
        self.seconds = 0.0
        self._run_ids: dict[str, str] = {}
        self._tasks: dict[str, tuple[str, TaskInstance]] = {}

    def start(self, dag_id: str) -> None:
        self._run_ids[dag_id] = self.airflow.trigger(dag_id)

    def refresh(self) -> None:
        for dag_id, run_id in self._run_ids.items():
            for task in self.airflow.task_instances(dag_id, run_id):
                self._tasks[task.task_id] = (dag_id, task)

    def states(self) -> dict[str, str | None]:
        return {task_id: task.state for task_id, (_, task) in self._tasks.items()}

    def state(self, task_id: str) -> str | None:
        return self.states().get(task_id)

    def is_over(self, *task_ids: str) -> bool:
        return all(self.state(task_id) in FINISHED for task_id in task_ids)

    def clear(self, task_id: str) -> None:
        self.ended[task_id].append(time.time())
        self.airflow.clear(*self._where(task_id), task_id)
        self.refresh()

    def requests(self) -> list[LoggedRequest]:
        return [request for sandbox in self.sandboxes.values() for request in sandbox.requests]

    def posts(self, task_id: str) -> list[LoggedRequest]:
        return [request for request in self.requests() if request.prompt and request.prompt.split()[-1] == task_id]

    def polls(self, task_id: str) -> list[LoggedRequest]:
        """Return every poll of a job of the task."""
        jobs = {post.job_id for post in self.posts(task_id)}
        return [request for request in self.requests() if request.method == "GET" and request.job_id in jobs]

    def is_polled(self, *task_ids: str) -> bool:
        polled = {task_id for task_id in task_ids if self.polls(task_id)}
        # Else it would be waited for until the timeout.
        over = [task_id for task_id in task_ids if task_id not in polled and self.is_over(task_id)]
        assert not over, f"Tasks have ended without a poll: {over}.\n{self.states()}"
        return len(polled) == len(task_ids)

    def xcom(self, task_id: str) -> Any:
        """Return what the task has returned, None for nothing."""
        try:
            return self.airflow.xcom(*self._where(task_id), task_id)
        except KeyError:
            return None

    def songs(self, task_id: str) -> int:
        """Return how many songs, or jobs of a task that does not wait, the task has returned."""
        returned = self.xcom(task_id)
        if isinstance(returned, list):
            return sum(result["status"] == "completed" for result in returned)
        return 0 if returned is None else 1

    def log(self, task_id: str, try_number: int) -> str:
        return self.airflow.task_log(*self._where(task_id), task_id, try_number=try_number)

    def later_log(self, task_id: str) -> str:
        """Return the log of the tries that followed the first. Airflow's executor may lose one before it begins."""
        last = self._tasks[task_id][1].try_number
        return "\n".join(self.log(task_id, number) for number in range(2, last + 1))

    def kills(self) -> list[dict[str, Any]]:
        """Return how the tasks have killed themselves: ``task_id``, ``moment``, and ``at`` in Unix seconds."""
        return [json.loads(line) for line in (self.airflow.home / "kills.jsonl").read_text().splitlines()]

    def ledger(self) -> LedgerContent:
        """Return what the ledgers of all accounts have."""
        url = self.airflow.env.get("AIRFLOW__WHISUL__STATE_PATH")
        return read_machine_ledger(self.airflow.home) if url is None else read_ledger(open_folder(url))

    def measure(self, row: Row) -> None:
        """Record how a crash has ended so far."""
        task = self._tasks[row.task_id][1]
        tries = task.try_number
        if MAY_FAIL_A_QUEUED_TRY and tries > row.tries > 1:
            tries = row.tries
        self.measured[row.crash] = replace(
            row,
            songs=self.songs(row.task_id),
            posts=len(self.posts(row.task_id)),
            tries=tries,
            state=task.state,
        )

    def as_text(self) -> str:
        """Return the table of what has happened."""
        rows = [self.measured[row.crash] for row in self.table]
        lines = [("CRASH", "SONGS", "POSTS", "TRIES", "STATE")]
        lines += [(row.crash, str(row.songs), str(row.posts), str(row.tries), str(row.state)) for row in rows]
        width = max(len(line[0]) for line in lines)
        return "\n".join(f"{line[0]:<{width}}  {line[1]:>5}  {line[2]:>5}  {line[3]:>5}  {line[4]}" for line in lines)

    def _where(self, task_id: str) -> tuple[str, str]:
        dag_id = self._tasks[task_id][0]
        return dag_id, self._run_ids[dag_id]


# Each script causes one crash. It is resumed every half second and yields while it waits, so that all run side by side.
Script = Callable[[Stage], Iterator[None]]


def clear_while_deferred(stage: Stage) -> Iterator[None]:
    left = list(CLEARED)
    while left:
        for task_id in left:
            if stage.state(task_id) == "deferred" and stage.is_polled(task_id):
                stage.clear(task_id)
                left.remove(task_id)
                break
        yield
    while not stage.is_over(*CLEARED):
        yield


def stop_whisul(stage: Stage) -> Iterator[None]:
    sandbox = stage.sandboxes["outage"]
    while not stage.is_polled("outage_deferred", "outage_on_worker"):
        yield
    sandbox.__exit__(None, None, None)
    stopped_at = time.time()
    while time.time() < stopped_at + OUTAGE_SECONDS:
        yield
    stage.outage = (stopped_at, time.time())
    sandbox.__enter__()
    while not stage.is_over("outage_deferred", "outage_on_worker"):
        yield


def revoke_the_key(stage: Stage) -> Iterator[None]:
    sandbox = stage.sandboxes["revoked"]
    while not stage.is_polled("key_revoked"):
        yield
    sandbox.revoke_key()
    while not stage.is_over("key_revoked") and stage.state("key_revoked") != "up_for_retry":
        yield
    stage.measure(KEY_REVOKED)
    sandbox.restore_key()
    stage.clear("key_revoked")
    while not stage.is_over("key_revoked"):
        yield


def kill_the_scheduler(stage: Stage) -> Iterator[None]:
    stage.start(SCHEDULER_KILLED)
    while not stage.is_polled("scheduler_deferred", "scheduler_on_worker"):
        yield
    stage.airflow.process("scheduler").kill9()
    # Not before: until then its worker may poll.
    stage.ended["scheduler_on_worker"].append(time.time())
    stage.airflow.process("scheduler").start()
    # Only now, since the workers were killed with the scheduler.
    if KEY_REVOKED in stage.table:
        stage.start(OUTAGE)
    stage.start(CRASHES)
    while not stage.is_over("scheduler_deferred", "scheduler_on_worker"):
        yield


def kill_the_triggerer(stage: Stage) -> Iterator[None]:
    # All triggers are killed with it, so that no other task may be deferred.
    others = {row.task_id for row in stage.table} - {*TRIGGERED, "outage_on_worker"}
    while not stage.is_over(*others):
        yield
    stage.start(TRIGGERER_KILLED)
    while not stage.is_polled(*TRIGGERED):
        yield
    stage.airflow.process("triggerer").kill9()
    for task_id in TRIGGERED:
        stage.ended[task_id].append(time.time())
    stage.airflow.process("triggerer").start()
    while not stage.is_over(*TRIGGERED):
        yield


SCRIPTS: tuple[Script, ...] = (kill_the_scheduler, clear_while_deferred, kill_the_triggerer)
OUTAGE_SCRIPTS: tuple[Script, ...] = (stop_whisul, revoke_the_key)


@contextmanager
def crashes(
    env: Mapping[str, str], table: tuple[Row, ...] = TABLE, scripts: Sequence[Script] = SCRIPTS
) -> Iterator[Stage]:
    """
    Run crashes, all side by side, and yield how they ended.

    :param env: Environment variables for Airflow, which say where records are kept.
    :param table: The rows that are expected.
    :param scripts: What causes the crashes.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        env = {**{f"AIRFLOW__{name}": value for name, value in SETTINGS.items()}, **env}
        if AIRFLOW.startswith("2."):
            env |= SETTINGS_OF_2
        elif AIRFLOW.startswith("3.0."):
            env |= SETTINGS_OF_3_0
        sandboxes = {}
        for name, extra in EXTRAS.items():
            # On a port of its own choice, where it can be served again.
            sandbox = Sandbox(SandboxOptions(api_key=f"e2e-{secrets.token_hex(16)}"), port=free_port())
            sandboxes[name] = stack.enter_context(sandbox)
            connection = {**json.loads(sandbox.connection), "extra": extra}
            env[f"AIRFLOW_CONN_WHISUL_{name.upper()}"] = json.dumps(connection)
        stage = Stage(stack.enter_context(LocalAirflow(CRASH_DAGS, env=env)), sandboxes, table)
        stage.airflow.wait_for_dags(CRASHES, OUTAGE, SCHEDULER_KILLED, TRIGGERER_KILLED)
        running = {script.__name__: script(stage) for script in scripts}

        def all_done() -> bool:
            stage.refresh()
            for name, script in list(running.items()):
                if next(script, script) is script:
                    del running[name]
            return not running

        try:
            stage.airflow.wait_until(all_done, TIMEOUT, "all crashes and their recovery")
        except LocalAirflowError as error:
            error.add_note(f"Not done: {', '.join(running)}.\n{stage.states()}")
            raise
        stage.refresh()
        for row in table:
            if row is not KEY_REVOKED:
                stage.measure(row)
        stage.seconds = time.monotonic() - started
        yield stage


def ambiguous_posts(table: Sequence[Row]) -> Counter[str]:
    """
    Return by task how many of its submissions nobody knows the job of, though they made one.

    :param table: The rows.
    """
    return Counter(row.task_id for row in table if KILLS.get(row.task_id) == "response")

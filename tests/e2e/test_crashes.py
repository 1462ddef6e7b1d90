"""
Crashes on purpose: what a song costs where a process dies while the song is made.

A real Airflow makes songs, each by a task of its own (see crash_dags/), while processes are killed, the sandbox is
stopped and a key is revoked. The sandbox counts the submissions.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.sandbox.state import LoggedRequest
from dev.airflow_runner.client import FINISHED, TaskInstance
from dev.airflow_runner.local import LocalAirflow
from dev.airflow_runner.processes import LocalAirflowError, free_port

# The first test also waits for Airflow and for all the songs.
pytestmark = pytest.mark.timeout(900)

CRASH_DAGS = Path(__file__).parent / "crash_dags"
CRASHES, SCHEDULER_KILLED, TRIGGERER_KILLED = "whisul_crashes", "whisul_scheduler_killed", "whisul_triggerer_killed"
OUTAGE_SECONDS = 60.0
TIMEOUT = 480.0

SETTINGS = {
    "CORE__PARALLELISM": "8",
    # How soon a killed scheduler or triggerer counts as dead; the defaults are 30 s, and 300 s for the check.
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
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


TABLE = [
    Row("task killed before the POST, its intent stored", "before_post", 1, 1, 2, "success"),
    # The one gap that cannot be closed: the API has no idempotency key.
    Row("task killed between the POST's response and the store", "before_store", 1, 2, 2, "success"),
    Row('the same with on_ambiguous_submit="fail"', "before_store_fail", 0, 1, 2, "failed"),
    Row("task killed after the store, before it deferred", "after_store", 1, 1, 2, "success"),
    Row("task cleared by a user while deferred", "cleared", 1, 1, 2, "success"),
    Row("task killed while it resumed", "resuming", 1, 1, 2, "success"),
    Row("task killed between the song and its XCom", "delivered", 1, 1, 2, "success"),
    Row("task killed while polling in the worker", "polling_on_worker", 1, 1, 2, "success"),
    Row("the same, between the song and its XCom", "delivered_on_worker", 1, 1, 2, "success"),
    Row("task that does not wait, killed before its XCom", "not_waiting", 1, 1, 2, "success"),
    Row("triggerer killed mid-poll", "triggerer", 1, 1, 1, "success"),
    Row("scheduler killed while the task was deferred", "scheduler_deferred", 1, 1, 1, "success"),
    Row("scheduler killed, with the worker that polled", "scheduler_on_worker", 1, 1, 2, "success"),
    Row("Whisul down for 60 s while deferred", "outage_deferred", 1, 1, 1, "success"),
    Row("Whisul down for 60 s while polling in the worker", "outage_on_worker", 1, 1, 1, "success"),
    Row("key revoked mid-poll", "key_revoked", 0, 1, 1, "failed"),
    Row("then the key restored and the task cleared", "key_revoked", 1, 1, 2, "success"),
]
SEEN_MIDWAY = next(row for row in TABLE if row.crash == "key revoked mid-poll")

#: The moments at which each task must have killed itself, by its id.
KILLS = {
    "before_post": "before POST",
    "before_store": "after POST",
    "before_store_fail": "after POST",
    "after_store": "job stored",
    "resuming": "resumed",
    "delivered": "delivered",
    "polling_on_worker": "polled",
    "delivered_on_worker": "delivered",
    "not_waiting": "job stored",
}
AMBIGUOUS = ("before_post", "before_store", "before_store_fail")
REATTACHED = [row.task_id for row in TABLE if row.tries == 2 and row.task_id not in AMBIGUOUS]


class Stage:
    """Airflow, the sandboxes, and what has happened so far."""

    def __init__(self, airflow: LocalAirflow, sandboxes: dict[str, Sandbox]) -> None:
        self.airflow = airflow
        self.sandboxes = sandboxes
        self.measured: dict[str, Row] = {}
        #: When a try of a task was ended from outside, in Unix seconds.
        self.ended: dict[str, list[float]] = defaultdict(list)
        #: When the sandbox was stopped and started again, in Unix seconds.
        self.outage = (0.0, 0.0)
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
        return all(self.polls(task_id) for task_id in task_ids)

    def xcom(self, task_id: str) -> Any:
        """Return what the task has returned, None for nothing."""
        try:
            return self.airflow.xcom(*self._where(task_id), task_id)
        except KeyError:
            return None

    def log(self, task_id: str, try_number: int) -> str:
        return self.airflow.task_log(*self._where(task_id), task_id, try_number=try_number)

    def kills(self) -> list[dict[str, Any]]:
        """Return how the tasks have killed themselves: ``task_id``, ``moment``, and ``at`` in Unix seconds."""
        return [json.loads(line) for line in (self.airflow.home / "kills.jsonl").read_text().splitlines()]

    def measure(self, row: Row) -> None:
        """Record how a crash has ended so far."""
        task = self._tasks[row.task_id][1]
        songs = 0 if self.xcom(row.task_id) is None else 1
        self.measured[row.crash] = replace(
            row, songs=songs, posts=len(self.posts(row.task_id)), tries=task.try_number, state=task.state
        )

    def _where(self, task_id: str) -> tuple[str, str]:
        dag_id = self._tasks[task_id][0]
        return dag_id, self._run_ids[dag_id]


# Each script causes one crash. It is resumed every half second and yields while it waits, so that all run side by side.


def clear_while_deferred(stage: Stage) -> Iterator[None]:
    while not (stage.state("cleared") == "deferred" and stage.is_polled("cleared")):
        yield
    stage.clear("cleared")
    while not stage.is_over("cleared"):
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
    stage.measure(SEEN_MIDWAY)
    sandbox.restore_key()
    stage.clear("key_revoked")
    while not stage.is_over("key_revoked"):
        yield


def kill_the_scheduler(stage: Stage) -> Iterator[None]:
    stage.start(SCHEDULER_KILLED)
    while not stage.is_polled("scheduler_deferred", "scheduler_on_worker"):
        yield
    stage.ended["scheduler_on_worker"].append(time.time())
    stage.airflow.process("scheduler").restart()
    # Only now, since the workers were killed with the scheduler.
    stage.start(CRASHES)
    while not stage.is_over("scheduler_deferred", "scheduler_on_worker"):
        yield


def kill_the_triggerer(stage: Stage) -> Iterator[None]:
    # All triggers are killed with it, so that no other task may be deferred.
    while not stage.is_over(*KILLS, "cleared", "key_revoked", "outage_deferred", "scheduler_deferred"):
        yield
    stage.start(TRIGGERER_KILLED)
    while not stage.is_polled("triggerer"):
        yield
    stage.airflow.process("triggerer").restart()
    while not stage.is_over("triggerer"):
        yield


SCRIPTS: list[Callable[[Stage], Iterator[None]]] = [
    kill_the_scheduler,
    stop_whisul,
    revoke_the_key,
    clear_while_deferred,
    kill_the_triggerer,
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Run all the crashes, and return how they ended."""
    with ExitStack() as stack:
        env = {f"AIRFLOW__{name}": value for name, value in SETTINGS.items()}
        sandboxes = {}
        for name in ("default", "outage", "revoked"):
            # On a port of its own choice, where it can be served again.
            sandbox = Sandbox(SandboxOptions(api_key=f"e2e-{secrets.token_hex(16)}"), port=free_port())
            sandboxes[name] = stack.enter_context(sandbox)
            env[f"AIRFLOW_CONN_WHISUL_{name.upper()}"] = sandbox.connection
        stage = Stage(stack.enter_context(LocalAirflow(CRASH_DAGS, env=env)), sandboxes)
        stage.airflow.wait_for_dags(CRASHES, SCHEDULER_KILLED, TRIGGERER_KILLED)
        running = {script.__name__: script(stage) for script in SCRIPTS}

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
        for row in TABLE:
            if row is not SEEN_MIDWAY:
                stage.measure(row)
        yield stage


def _as_text(rows: list[Row]) -> str:
    lines = [("CRASH", "SONGS", "POSTS", "TRIES", "STATE")]
    lines += [(row.crash, str(row.songs), str(row.posts), str(row.tries), str(row.state)) for row in rows]
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{line[0]:<{width}}  {line[1]:>5}  {line[2]:>5}  {line[3]:>5}  {line[4]}" for line in lines)


def test_no_song_is_paid_for_twice(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    measured = [stage.measured[row.crash] for row in TABLE]
    with capsys.disabled():
        print(f"\n{_as_text(measured)}")
    assert measured == TABLE


def test_every_task_was_killed_at_its_moment_and_only_once(stage: Stage) -> None:
    assert sorted((kill["task_id"], kill["moment"]) for kill in stage.kills()) == sorted(KILLS.items())


@pytest.mark.parametrize("task_id", sorted({row.task_id for row in TABLE if row.songs}))
def test_the_song_is_that_of_the_only_submission_or_after_the_gap_of_the_second(stage: Stage, task_id: str) -> None:
    posts = stage.posts(task_id)
    assert [post.status for post in posts] == [202] * (2 if task_id == "before_store" else 1)
    returned = stage.xcom(task_id)
    if task_id == "not_waiting":
        assert returned == posts[-1].job_id
    else:
        assert (returned["job_id"], returned["prompt"]) == (posts[-1].job_id, posts[-1].prompt)


@pytest.mark.parametrize("task_id", REATTACHED)
def test_the_second_try_logs_that_it_reattaches(stage: Stage, task_id: str) -> None:
    log = stage.log(task_id, 2)
    assert f"Re-attaching to an earlier try's job {stage.posts(task_id)[0].job_id}" in log
    assert "nothing is submitted" in log


@pytest.mark.parametrize("task_id", AMBIGUOUS)
def test_the_try_after_an_ambiguous_submission_warns_of_it(stage: Stage, task_id: str) -> None:
    log = stage.log(task_id, 2)
    assert "A song may already have been paid for" in log
    assert ("Submitting it again." in log) == (task_id != "before_store_fail")
    assert ("WhisulAmbiguousSubmitFinalError" in log) == (task_id == "before_store_fail")


def test_a_revoked_key_fails_the_task_at_once_with_the_reason(stage: Stage) -> None:
    assert "WhisulUnauthorizedError" in stage.log("key_revoked", 1)
    assert [poll.status for poll in stage.polls("key_revoked")].count(401) == 1


def test_polling_continues_through_an_outage(stage: Stage) -> None:
    stopped_at, restarted_at = stage.outage
    for task_id in ("outage_deferred", "outage_on_worker"):
        polls = [poll.at for poll in stage.polls(task_id)]
        assert min(polls) < stopped_at
        assert max(polls) > restarted_at
        assert "No response to GET" in stage.log(task_id, 1)


def test_a_new_triggerer_continues_the_trigger(stage: Stage) -> None:
    assert stage.log("triggerer", 1).count("Polling Whisul job") >= 2


def test_clearing_a_deferred_task_logs_that_the_job_continues(stage: Stage) -> None:
    assert f"Whisul cannot cancel a job: job {stage.posts('cleared')[0].job_id} continues" in stage.log("cleared", 1)


def test_no_try_polls_a_job_twice_within_five_seconds(stage: Stage) -> None:
    intervals = []
    for task_id in {row.task_id for row in TABLE}:
        # A try that re-attaches cannot know when the killed try before it polled last.
        ended = stage.ended[task_id] + [kill["at"] for kill in stage.kills() if kill["task_id"] == task_id]
        polls = sorted(poll.at for poll in stage.polls(task_id))
        intervals += [
            (later - earlier, task_id)
            for earlier, later in pairwise(polls)
            if not any(earlier <= at <= later for at in ended)
        ]
    assert len(intervals) > len(TABLE)
    assert min(intervals)[0] >= 5, min(intervals)


def test_the_api_key_is_only_in_the_authorization_header(stage: Stage) -> None:
    assert not [request for request in stage.requests() if request.key_elsewhere]
    keys = [json.loads(sandbox.connection)["password"].encode() for sandbox in stage.sandboxes.values()]
    # The logs, the database with its task states, XComs and trigger arguments, and whatever else Airflow has written.
    files = [path for path in stage.airflow.home.rglob("*") if path.is_file()]
    assert any("task_id=after_store" in str(path) for path in files)
    assert not [path for path in files if any(key in path.read_bytes() for key in keys)]

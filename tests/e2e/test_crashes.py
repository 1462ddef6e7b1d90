"""
Breaking it on purpose: what a song costs where something dies while it is made.

A real Airflow makes songs, each by a task of its own (see crash_dags/), while processes are killed, the sandbox goes
away and a key is revoked. The sandbox counts the submissions.
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
from dev.local_airflow import FINISHED, LocalAirflow, LocalAirflowError, TaskInstance, free_port

# The first test also waits for Airflow and for all the songs.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CRASH_DAGS = Path(__file__).parent / "crash_dags"
CRASHES, SCHEDULER_KILLED, TRIGGERER_KILLED = "whisul_crashes", "whisul_scheduler_killed", "whisul_triggerer_killed"
OUTAGE_SECONDS = 60.0
TIMEOUT = 480.0

SETTINGS = {
    "CORE__PARALLELISM": "8",
    # How soon the others believe a killed scheduler or triggerer dead; the defaults are 30 s, and 300 s for the look.
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
}


@dataclass(frozen=True)
class Row:
    """What became of a song.

    :param broken: What was done to it.
    :param task_id: Its task.
    :param songs: How many songs were delivered, in XCom.
    :param posts: How many were submitted, that is, paid for.
    :param tries: Which try of the task was its last.
    :param state: How the task ended.
    """

    broken: str
    task_id: str
    songs: int
    posts: int
    tries: int
    state: str | None


TABLE = [
    Row("task killed before the POST, its intent stored", "before_post", 1, 1, 2, "success"),
    # The one gap that cannot be closed.
    Row("task killed between the POST's answer and the store", "before_store", 1, 2, 2, "success"),
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
    Row("Whisul away for 60 s while deferred", "outage_deferred", 1, 1, 1, "success"),
    Row("Whisul away for 60 s while polling in the worker", "outage_on_worker", 1, 1, 1, "success"),
    Row("key revoked mid-poll", "key_revoked", 0, 1, 1, "failed"),
    Row("then the key restored and the task cleared", "key_revoked", 1, 1, 2, "success"),
]
SEEN_MIDWAY = next(row for row in TABLE if row.broken == "key revoked mid-poll")

#: The moments at which each task must have killed itself, by its id.
KILLS = {
    "before_post": "before POST",
    "before_store": "after POST",
    "before_store_fail": "after POST",
    "after_store": "job stored",
    "resuming": "resumed",
    "delivered": "delivered",
    "polling_on_worker": "looked",
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
        #: While the sandbox was away.
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

    def looks(self, task_id: str) -> list[LoggedRequest]:
        """Every look at a job of the task."""
        jobs = {post.job_id for post in self.posts(task_id)}
        return [request for request in self.requests() if request.method == "GET" and request.job_id in jobs]

    def is_polled(self, *task_ids: str) -> bool:
        return all(self.looks(task_id) for task_id in task_ids)

    def xcom(self, task_id: str) -> Any:
        """What the task has returned, None for nothing."""
        try:
            return self.airflow.xcom(*self._where(task_id), task_id)
        except KeyError:
            return None

    def log(self, task_id: str, try_number: int) -> str:
        return self.airflow.task_log(*self._where(task_id), task_id, try_number=try_number)

    def kills(self) -> list[dict[str, Any]]:
        """How the tasks have killed themselves: ``task_id``, ``moment``, and ``at`` in Unix seconds."""
        return [json.loads(line) for line in (self.airflow.home / "kills.jsonl").read_text().splitlines()]

    def measure(self, row: Row) -> None:
        """Put what has become of a song so far into the table."""
        task = self._tasks[row.task_id][1]
        songs = 0 if self.xcom(row.task_id) is None else 1
        self.measured[row.broken] = replace(
            row, songs=songs, posts=len(self.posts(row.task_id)), tries=task.try_number, state=task.state
        )

    def _where(self, task_id: str) -> tuple[str, str]:
        dag_id = self._tasks[task_id][0]
        return dag_id, self._run_ids[dag_id]


# Each script breaks one thing. It is asked to go on every half second and yields while it waits, so that they all go
# on side by side.


def clear_while_deferred(stage: Stage) -> Iterator[None]:
    while not (stage.state("cleared") == "deferred" and stage.is_polled("cleared")):
        yield
    stage.clear("cleared")
    while not stage.is_over("cleared"):
        yield


def take_whisul_away(stage: Stage) -> Iterator[None]:
    sandbox = stage.sandboxes["outage"]
    while not stage.is_polled("outage_deferred", "outage_on_worker"):
        yield
    sandbox.__exit__(None, None, None)
    began = time.time()
    while time.time() < began + OUTAGE_SECONDS:
        yield
    stage.outage = (began, time.time())
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
    # Only now, since the workers went down with the scheduler.
    stage.start(CRASHES)
    while not stage.is_over("scheduler_deferred", "scheduler_on_worker"):
        yield


def kill_the_triggerer(stage: Stage) -> Iterator[None]:
    # All triggers go down with it, so that nothing else may be waiting in one.
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
    take_whisul_away,
    revoke_the_key,
    clear_while_deferred,
    kill_the_triggerer,
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """All that was broken, and what has become of it."""
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
        going_on = {script.__name__: script(stage) for script in SCRIPTS}

        def all_done() -> bool:
            stage.refresh()
            for name, script in list(going_on.items()):
                if next(script, script) is script:
                    del going_on[name]
            return not going_on

        try:
            stage.airflow.wait_until(all_done, TIMEOUT, "all to be broken and mended")
        except LocalAirflowError as error:
            error.add_note(f"Not done: {', '.join(going_on)}.\n{stage.states()}")
            raise
        stage.refresh()
        for row in TABLE:
            if row is not SEEN_MIDWAY:
                stage.measure(row)
        yield stage


def _as_text(rows: list[Row]) -> str:
    lines = [("WHAT WAS BROKEN", "SONGS", "POSTS", "TRIES", "STATE")]
    lines += [(row.broken, str(row.songs), str(row.posts), str(row.tries), str(row.state)) for row in rows]
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{line[0]:<{width}}  {line[1]:>5}  {line[2]:>5}  {line[3]:>5}  {line[4]}" for line in lines)


def test_no_song_is_paid_for_twice(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    measured = [stage.measured[row.broken] for row in TABLE]
    with capsys.disabled():
        print(f"\n{_as_text(measured)}")
    assert measured == TABLE


def test_every_task_was_killed_at_its_moment_and_only_once(stage: Stage) -> None:
    assert sorted((kill["task_id"], kill["moment"]) for kill in stage.kills()) == sorted(KILLS.items())


@pytest.mark.parametrize("task_id", sorted({row.task_id for row in TABLE if row.songs}))
def test_the_song_is_that_of_the_last_submission_which_is_the_first_but_for_the_gap(stage: Stage, task_id: str) -> None:
    posts = stage.posts(task_id)
    assert [post.status for post in posts] == [202] * (2 if task_id == "before_store" else 1)
    returned = stage.xcom(task_id)
    if task_id == "not_waiting":
        assert returned == posts[-1].job_id
    else:
        assert (returned["job_id"], returned["prompt"]) == (posts[-1].job_id, posts[-1].prompt)


@pytest.mark.parametrize("task_id", REATTACHED)
def test_the_second_try_says_that_it_goes_on_with_the_job(stage: Stage, task_id: str) -> None:
    log = stage.log(task_id, 2)
    assert f"Going on with an earlier try's job {stage.posts(task_id)[0].job_id}" in log
    assert "nothing is submitted" in log


@pytest.mark.parametrize("task_id", AMBIGUOUS)
def test_a_lost_submission_is_not_lost_silently(stage: Stage, task_id: str) -> None:
    log = stage.log(task_id, 2)
    assert "A song may already have been paid for" in log
    assert ("Submitting it again." in log) == (task_id != "before_store_fail")
    assert ("WhisulAmbiguousSubmitFinalError" in log) == (task_id == "before_store_fail")


def test_a_revoked_key_fails_the_task_at_once_with_the_reason(stage: Stage) -> None:
    assert "WhisulUnauthorizedError" in stage.log("key_revoked", 1)
    assert [look.status for look in stage.looks("key_revoked")].count(401) == 1


def test_an_outage_is_lived_through_by_looking_again(stage: Stage) -> None:
    began, ended = stage.outage
    for task_id in ("outage_deferred", "outage_on_worker"):
        looks = [look.at for look in stage.looks(task_id)]
        assert min(looks) < began
        assert max(looks) > ended
        assert "No answer to GET" in stage.log(task_id, 1)


def test_a_new_triggerer_takes_the_trigger_over(stage: Stage) -> None:
    assert stage.log("triggerer", 1).count("Looking at Whisul job") >= 2


def test_clearing_a_deferred_task_says_that_the_job_goes_on(stage: Stage) -> None:
    assert f"Whisul cannot cancel a job: job {stage.posts('cleared')[0].job_id} goes on" in stage.log("cleared", 1)


def test_no_job_is_looked_at_twice_within_five_seconds_in_a_try(stage: Stage) -> None:
    pauses = []
    for task_id in {row.task_id for row in TABLE}:
        # A try that takes over cannot know when the one before it, which was killed, has last looked.
        ended = stage.ended[task_id] + [kill["at"] for kill in stage.kills() if kill["task_id"] == task_id]
        looks = sorted(look.at for look in stage.looks(task_id))
        pauses += [
            (later - earlier, task_id)
            for earlier, later in pairwise(looks)
            if not any(earlier <= at <= later for at in ended)
        ]
    assert len(pauses) > len(TABLE)
    assert min(pauses)[0] >= 5, min(pauses)


def test_the_key_is_nowhere_but_in_the_authorization_header(stage: Stage) -> None:
    assert not [request for request in stage.requests() if request.key_elsewhere]
    keys = [json.loads(sandbox.connection)["password"].encode() for sandbox in stage.sandboxes.values()]
    # The logs, the database with its task states, XComs and trigger arguments, and whatever else Airflow has written.
    files = [path for path in stage.airflow.home.rglob("*") if path.is_file()]
    assert any("task_id=after_store" in str(path) for path in files)
    assert not [path for path in files if any(key in path.read_bytes() for key in keys)]

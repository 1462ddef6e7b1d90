"""Starts runs on an Airflow of this machine and reads their results, on every supported version in the same way."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

from dev.airflow_runner.processes import LocalAirflowError, run_python

#: The states in which a run or a task is over.
FINISHED = frozenset({"success", "failed"})

#: Seconds between two checks, and between two tries of a request.
CHECK_SECONDS = 0.5

#: SQLite has one writer at a time: on a busy machine the API server may find it locked, and responds with 500.
MAX_BUSY_TRIES = 10

# On Airflow 2 the web server computes the links, and none is run here.
_EXTRA_LINKS_OF_2 = """
import json, sys
from airflow.models.dagbag import DagBag
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
dag_id, run_id, task_id, map_index = sys.argv[1:]
task = DagBag(read_dags_from_db=True).get_dag(dag_id).get_task(task_id)
with create_session() as session:
    instances = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id, task_id=task_id)
    instance = instances.filter_by(map_index=int(map_index)).one()
    links = {name: task.get_extra_links(instance, name) or None for name in task.extra_links}
print(json.dumps(links))
"""

# What the button of Airflow 2's UI does.
_CLEAR_OF_2 = """
import sys
from airflow.models.dagbag import DagBag
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.utils.session import create_session
dag_id, run_id, *task_ids = sys.argv[1:]
dag = DagBag(read_dags_from_db=True).get_dag(dag_id)
with create_session() as session:
    instances = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id)
    clear_task_instances(instances.filter(TaskInstance.task_id.in_(task_ids)).all(), session, dag=dag)
"""


@dataclass(frozen=True)
class TaskInstance:
    """
    A task of a run.

    :param task_id: The task's id.
    :param map_index: The index of a mapped task; -1 for an unmapped one.
    :param state: Airflow's state of it; None before it is scheduled.
    :param try_number: The number of its latest try, from 1 on.
    :param rendered_map_index: The label of a mapped task, if it has one.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    rendered_map_index: str | None

    @property
    def label(self) -> str:
        """The task as Airflow's UI shows it, such as ``song[a slow waltz]``."""
        if self.map_index < 0:
            return self.task_id
        return f"{self.task_id}[{self.rendered_map_index or self.map_index}]"


class AirflowClient:
    """
    Starts runs and reads their results.

    Airflow 3 is used through its REST API. Of Airflow 2 no web server is run: its database is read, and its command
    line is called.

    :param port: The port of the API server on loopback.
    :param login: Name and password for the API; None where Airflow lets everybody in.
    """

    def __init__(self, port: int, login: tuple[str, str] | None = None) -> None:
        self.airflow_version = version("apache-airflow")
        self.ui_url = f"http://127.0.0.1:{port}"
        #: Airflow's home directory, and the environment of its processes.
        self.home = Path()
        self.env: dict[str, str] = {}
        self.is_2 = self.airflow_version.startswith("2.")
        self._login = login
        self._session = requests.Session()
        # A proxy of the environment could not reach our server on loopback.
        self._session.trust_env = False

    def token(self, login: tuple[str, str] | None = None) -> str:
        """
        Return a token for the API, which is also the UI's cookie ``_token``. Airflow 3 only.

        :param login: Name and password; None where Airflow lets everybody in.
        """
        url = f"{self.ui_url}/auth/token"
        if login is None:
            response = self._session.get(url, timeout=30)
        else:
            response = self._session.post(url, json={"username": login[0], "password": login[1]}, timeout=30)
        response.raise_for_status()
        return str(response.json()["access_token"])

    def close(self) -> None:
        """Close the connections to the API."""
        self._session.close()

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run a DAG, and begin its schedule."""
        if self.is_2:
            self._command_line("dags", "unpause", "--yes", dag_id)
        else:
            self._request("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, object] | None = None,
        run_id: str | None = None,
        run_after: datetime | None = None,
    ) -> str:
        """
        Unpause a DAG and start a run of it, on Airflow 3 without a logical date.

        :param dag_id: The DAG.
        :param conf: The configuration of the run.
        :param run_id: The id of the run; None for a new one.
        :param run_after: When the run is due, in UTC; None for now. Airflow 3.1 and later only.
        :return: The id of the run.
        """
        run_id = run_id or f"manual__{datetime.now(UTC):%Y%m%dT%H%M%S}_{secrets.token_hex(3)}"
        self.unpause(dag_id)
        if self.is_2:
            self._command_line("dags", "trigger", "--run-id", run_id, "--conf", json.dumps(conf or {}), dag_id)
        else:
            body: dict[str, object] = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf or {})}
            if run_after is not None:
                body["run_after"] = run_after.isoformat()
            self._request("POST", f"/dags/{dag_id}/dagRuns", json=body)
        return run_id

    def clear(self, dag_id: str, run_id: str, *task_ids: str) -> None:
        """Clear tasks of a run, as a user does to run them again."""
        if self.is_2:
            run_python("python", ["-c", _CLEAR_OF_2, dag_id, run_id, *task_ids], self.env)
            return
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": task_ids}
        self._request("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

    def backfill(self, dag_id: str, since: datetime, until: datetime) -> None:
        """
        Unpause a DAG and start a backfill of it. Airflow 3 only.

        :param dag_id: The DAG.
        :param since: The first date.
        :param until: The last date.
        """
        self.unpause(dag_id)
        body = {"dag_id": dag_id, "from_date": since.isoformat(), "to_date": until.isoformat(), "max_active_runs": 10}
        for _ in range(MAX_BUSY_TRIES):
            # What Airflow responds where another process writes to SQLite; it has made nothing then.
            if (response := self._send("POST", "/backfills", json=body)).status_code != 503:
                break
            time.sleep(CHECK_SECONDS)
        if not response.ok:
            raise LocalAirflowError(f"The response to a backfill was {response.status_code}: {response.text[:500]}")

    def has_dag(self, dag_id: str) -> bool:
        """
        Return whether Airflow has read a DAG.

        :raises LocalAirflowError: Airflow cannot import a DAG file. The message has the traceback.
        """
        if self.is_2:
            errors = [tuple(row) for row in self._rows("SELECT filename, stacktrace FROM import_error")]
            found = bool(self._rows("SELECT 1 FROM serialized_dag WHERE dag_id = ?", dag_id))
        else:
            listed = self._request("GET", "/importErrors")["import_errors"]
            errors = [(error["filename"], error["stack_trace"]) for error in listed]
            found = self._send("GET", f"/dags/{dag_id}").ok
        if errors:
            raise LocalAirflowError("\n".join(f"Airflow cannot import {name}:\n{trace}" for name, trace in errors))
        return found

    def is_healthy(self) -> bool:
        """Return whether all parts of Airflow are up."""
        if self.is_2:
            alive = {row[0] for row in self._rows("SELECT job_type FROM job WHERE state = 'running'")}
            return {"SchedulerJob", "TriggererJob"} <= alive
        try:
            self._session.get(f"{self.ui_url}/api/v2/version", timeout=10)
        except (requests.ConnectionError, requests.Timeout):
            return False
        health = self._request("GET", "/monitor/health")
        return all(health[part]["status"] == "healthy" for part in ("scheduler", "triggerer", "dag_processor"))

    def run_ids(self, dag_id: str) -> list[str]:
        """Return the ids of a DAG's runs, those that its schedule has made included."""
        if self.is_2:
            return [row[0] for row in self._rows("SELECT run_id FROM dag_run WHERE dag_id = ?", dag_id)]
        return [run["dag_run_id"] for run in self._request("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"]]

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return ``queued``, ``running``, ``success`` or ``failed``."""
        if self.is_2:
            rows = self._rows("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
            return str(rows[0][0])
        return str(self._request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the tasks of a run, in the order of task id and map index."""
        if self.is_2:
            query = (
                "SELECT task_id, map_index, state, try_number, rendered_map_index FROM task_instance"
                " WHERE dag_id = ? AND run_id = ?"
            )
            found = [TaskInstance(*row) for row in self._rows(query, dag_id, run_id)]
        else:
            names = TaskInstance.__dataclass_fields__
            path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
            found = []
            while True:
                page = self._request("GET", path, params={"limit": 100, "offset": len(found)})
                found += [TaskInstance(**{name: row[name] for name in names}) for row in page["task_instances"]]
                if not page["task_instances"] or len(found) >= page["total_entries"]:
                    break
        return sorted(found, key=lambda task: (task.task_id, task.map_index))

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
        """
        Return the value of an XCom.

        :raises KeyError: The task has no XCom of this key.
        """
        if self.is_2:
            query = (
                "SELECT value FROM xcom WHERE dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND key = ?"
            )
            rows = self._rows(query, dag_id, run_id, task_id, map_index, key)
            if not rows:
                raise KeyError(key)
            return json.loads(rows[0][0])
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        response = self._response("GET", path, params={"map_index": map_index})
        if response.status_code == 404:
            raise KeyError(key)
        response.raise_for_status()
        return response.json()["value"]

    def question(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return what a waiting task asks a person. Airflow 3.1 and later."""
        return dict(self._request("GET", _question_path(dag_id, run_id, task_id, map_index)))

    def answer(self, dag_id: str, run_id: str, task_id: str, *options: str, map_index: int = -1) -> None:
        """Answer what a task asks, as the UI does. Airflow 3.1 and later."""
        body = {"chosen_options": options, "params_input": {}}
        self._request("PATCH", _question_path(dag_id, run_id, task_id, map_index), json=body)

    def extra_links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """Return the URLs of a task's extra links by their names; None for a link that leads nowhere."""
        links: dict[str, str | None]
        if self.is_2:
            arguments = ["-c", _EXTRA_LINKS_OF_2, dag_id, run_id, task_id, str(map_index)]
            links = json.loads(run_python("python", arguments, self.env).splitlines()[-1])
        else:
            path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
            links = self._request("GET", path, params={"map_index": map_index})["extra_links"]
        return links

    def logs(self) -> list[Path]:
        """Return every log file that Airflow has written, of processes and of tasks."""
        return sorted(path for path in (self.home / "logs").rglob("*.log*") if path.is_file())

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, try_number: int = 1) -> str:
        """Return the log of one try as readable text; an empty text if there is none."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        # A deferred task's file is followed by those that the triggerer wrote, `….log.trigger.N.log`.
        files = sorted(folder.glob(f"attempt={try_number}.log*"))
        return "\n".join(_readable(line) for file in files for line in file.read_text(errors="replace").splitlines())

    def _command_line(self, *arguments: str) -> None:
        run_python(f"airflow {' '.join(arguments[:2])}", ["-m", "airflow", *arguments], self.env)

    def _rows(self, query: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(query, values).fetchall()

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        if "Authorization" not in self._session.headers:
            self._session.headers["Authorization"] = f"Bearer {self.token(self._login)}"
        return self._session.request(method, f"{self.ui_url}/api/v2{path}", timeout=60, **options)

    def _response(self, method: str, path: str, **options: Any) -> requests.Response:
        for _ in range(MAX_BUSY_TRIES):
            # What Airflow responds where SQLite has been locked for five seconds. It has rolled back what it did.
            if (response := self._send(method, path, **options)).status_code != 500:
                break
            time.sleep(CHECK_SECONDS)
        return response

    def _request(self, method: str, path: str, **options: Any) -> Any:
        response = self._response(method, path, **options)
        if not response.ok:
            raise LocalAirflowError(f"{method} {path}: the response was {response.status_code}: {response.text[:500]}")
        return response.json()


def _question_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    return f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/{map_index}/hitlDetails"


def _readable(line: str) -> str:
    """Return a line of a log as text. Airflow 3 writes a JSON object per line."""
    try:
        entry = json.loads(line)
        text = f"{entry['timestamp'][:19]} {entry.get('level', '').upper()} {entry['event']}"
    except (ValueError, KeyError, TypeError):
        return line
    for error in entry.get("error_detail") or ():
        text += f"\n    {error.get('exc_type')}: {error.get('exc_value')}"
    return re.sub(r"\x1b\[[0-9;]*m", "", text)

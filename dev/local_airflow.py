"""A real Airflow on this machine, for as long as a ``with`` block lasts.

The Airflow of the running Python's environment: its own database (SQLite), scheduler, triggerer and API server, each a
process of its own, on loopback and free ports, in a home directory that is removed afterwards.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import requests

POLL_SECONDS = 0.5
START_SECONDS = 180.0
BUSY_TRIES = 10
# The home is thrown away, so there is nothing to wait longer for.
STOP_SECONDS = 5.0
FINISHED = frozenset({"success", "failed"})

# What the web server does, which is not run here.
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


class LocalAirflowError(RuntimeError):
    """Airflow did not start, or went down; the message holds the end of the log that says why."""


@dataclass(frozen=True)
class TaskInstance:
    """What Airflow says of one task of a run; ``map_index`` is -1 for an unmapped one."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    rendered_map_index: str | None

    @property
    def label(self) -> str:
        """The task as people read it: ``song[a slow waltz]``."""
        if self.map_index < 0:
            return self.task_id
        return f"{self.task_id}[{self.rendered_map_index or self.map_index}]"


class AirflowProcess:
    """One long-running Airflow command and everything it has started.

    :param name: How it is named here and in its log file's name.
    :param arguments: The ``airflow`` command's arguments.
    :param env: Its whole environment.
    :param log: The file that its output is appended to.
    """

    def __init__(self, name: str, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", "airflow", *arguments]
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        # Airflow moves its children to process groups of their own, but they stay in our session, as orphans too.
        self._sessions: set[int] = set()

    @property
    def pid(self) -> int:
        """The process id of the main process."""
        if self._process is None:
            raise LocalAirflowError(f"The {self.name} has not been started.")
        return self._process.pid

    def start(self) -> None:
        """Start it, in a session of its own so that a Ctrl-C in the terminal reaches only us."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.add(self._process.pid)

    def check(self) -> None:
        """Raise LocalAirflowError if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise LocalAirflowError(
                f"Airflow's {self.name} ended with status {self._process.returncode}. The end of its log:\n"
                + tail(self.log.read_text(errors="replace"))
            )

    def pids(self) -> list[int]:
        """The processes of all its starts that are still alive."""
        return [pid for pid in psutil.pids() if _session_of(pid) in self._sessions and _is_alive(pid)]

    def terminate(self) -> None:
        """Ask the main process to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill9(self) -> None:
        """End it and all that it has started with SIGKILL, as a machine that loses its power would."""
        # A process may be starting another one at this moment, which then shows on the next look.
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process is not None:
                self._process.wait()
            time.sleep(0.05)
        self._process = None

    def wait(self, seconds: float) -> bool:
        """Wait until the main process has ended; False if it has not in that time."""
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, 0.0))
            return True
        return False

    def restart(self) -> None:
        """Start it again; what is left of the last start is killed first."""
        self.kill9()
        self.start()


class LocalAirflow:
    """A running Airflow; a context manager.

    :param dags_folder: The DAG files.
    :param env: Environment variables for all its processes beside ours, such as ``AIRFLOW_CONN_WHISUL_DEFAULT``.
    :param port: The API server's port; None for a free one. Airflow 2's tasks need no web server, so it gets none here.
    :param login: Name and password to ask the API with, where ``env`` has set up users; None where everybody may all.
    """

    def __init__(
        self,
        dags_folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self.airflow_version = version("apache-airflow")
        self.home = Path()
        self._is_2 = self.airflow_version.startswith("2.")
        self._dags_folder = dags_folder
        self._extra_env = dict(env or {})
        self._port = port
        self._login = login
        self._env: dict[str, str] = {}
        self._processes: dict[str, AirflowProcess] = {}
        self._api = requests.Session()
        # Only ever asks our own server on loopback, which a proxy could not reach.
        self._api.trust_env = False

    @property
    def ui_url(self) -> str:
        """The address of the web interface."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.home = Path(tempfile.mkdtemp(prefix="whisul-airflow-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def token(self, login: tuple[str, str] | None = None) -> str:
        """A token of the API, and of the UI as the cookie ``_token``. Airflow 3 only.

        :param login: Name and password; None where everybody may all.
        """
        url = f"{self.ui_url}/auth/token"
        if login is None:
            answer = self._api.get(url, timeout=30)
        else:
            answer = self._api.post(url, json={"username": login[0], "password": login[1]}, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def stop(self) -> None:
        """End every process and remove the home directory."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            process.wait(deadline - time.monotonic())
            process.kill9()
        self._api.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def process(self, name: str) -> AirflowProcess:
        """One of ``scheduler``, ``triggerer``, and on Airflow 3 ``api-server`` and ``dag-processor``."""
        return self._processes[name]

    def check(self) -> None:
        """Raise LocalAirflowError if one of the processes has ended by itself."""
        for process in self._processes.values():
            process.check()

    def logs(self) -> list[Path]:
        """Every log file that Airflow has written, of processes and of tasks."""
        return sorted(path for path in (self.home / "logs").rglob("*.log*") if path.is_file())

    def wait_for_dags(self, *dag_ids: str, timeout: float = 60.0) -> None:
        """Wait until the DAGs have been read.

        :raises LocalAirflowError: A DAG file cannot be read, with Airflow's reason, or the time is over.
        """
        self.wait_until(
            lambda: all(self._has_dag(dag_id) for dag_id in dag_ids), timeout, f"the DAGs {', '.join(dag_ids)}"
        )

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run the DAG, and begin its schedule."""
        if self._is_2:
            self._airflow("dags", "unpause", "--yes", dag_id)
        else:
            self._request("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None, run_id: str | None = None) -> str:
        """Start a run (on Airflow 3 without a logical date) and return its id, which is made up unless given."""
        run_id = run_id or f"manual__{datetime.now(UTC):%Y%m%dT%H%M%S}_{secrets.token_hex(3)}"
        self.unpause(dag_id)
        if self._is_2:
            self._airflow("dags", "trigger", "--run-id", run_id, "--conf", json.dumps(conf or {}), dag_id)
        else:
            body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf or {})}
            self._request("POST", f"/dags/{dag_id}/dagRuns", json=body)
        return run_id

    def run_ids(self, dag_id: str) -> list[str]:
        """The runs of a DAG, also those that its schedule has made."""
        if self._is_2:
            return [row[0] for row in self._rows("SELECT run_id FROM dag_run WHERE dag_id = ?", dag_id)]
        return [run["dag_run_id"] for run in self._request("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"]]

    def wait_for_scheduled_run(self, dag_id: str, timeout: float = 60.0) -> str:
        """Wait until the scheduler has made a run of the (unpaused) DAG and return its id."""
        self.wait_until(lambda: bool(self.run_ids(dag_id)), timeout, f"the scheduled run of {dag_id}")
        return self.run_ids(dag_id)[0]

    def run_state(self, dag_id: str, run_id: str) -> str:
        """``queued``, ``running``, ``success`` or ``failed``."""
        if self._is_2:
            rows = self._rows("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
            return str(rows[0][0])
        return str(self._request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """The tasks of a run, by task id and map index."""
        if self._is_2:
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
        """An XCom's value.

        :raises KeyError: There is none.
        """
        if self._is_2:
            query = (
                "SELECT value FROM xcom WHERE dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND key = ?"
            )
            rows = self._rows(query, dag_id, run_id, task_id, map_index, key)
            if not rows:
                raise KeyError(key)
            return json.loads(rows[0][0])
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        response = self._raw_request("GET", path, params={"map_index": map_index})
        if response.status_code == 404:
            raise KeyError(key)
        response.raise_for_status()
        return response.json()["value"]

    def extra_links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """A task's buttons in the UI: the address of each by its name, None where it leads nowhere."""
        if self._is_2:
            shown = self._python(_EXTRA_LINKS_OF_2, dag_id, run_id, task_id, str(map_index))
            links_of_2: dict[str, str | None] = json.loads(shown.splitlines()[-1])
            return links_of_2
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        links: dict[str, str | None] = self._request("GET", path, params={"map_index": map_index})["extra_links"]
        return links

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, try_number: int = 1) -> str:
        """The log of one try as readable text, or an empty text if it wrote none."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        # A deferred task's file is followed by those that the triggerer wrote, `….log.trigger.N.log`.
        files = sorted(folder.glob(f"attempt={try_number}.log*"))
        return "\n".join(_readable(line) for file in files for line in file.read_text(errors="replace").splitlines())

    def wait(
        self,
        dag_id: str,
        run_id: str,
        timeout: float,
        on_progress: Callable[[list[TaskInstance]], None] | None = None,
    ) -> str:
        """Wait until a run is over and return its state.

        :param timeout: Seconds to wait.
        :param on_progress: Called with the run's tasks whenever one of them has changed.
        :raises LocalAirflowError: An Airflow process has ended, or the time is over.
        """
        last: list[TaskInstance] = []

        def is_over() -> bool:
            nonlocal last
            state = self.run_state(dag_id, run_id)
            tasks = self.task_instances(dag_id, run_id)
            if on_progress is not None and tasks != last:
                on_progress(tasks)
            last = tasks
            return state in FINISHED

        self.wait_until(is_over, timeout, f"the end of run {run_id} of {dag_id}")
        return self.run_state(dag_id, run_id)

    def clear(self, dag_id: str, run_id: str, *task_ids: str) -> None:
        """Clear tasks of a run, as a user does to have them run once more. Airflow 3 only."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": task_ids}
        self._request("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

    def wait_until(self, is_so: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until something is so.

        :param is_so: Whether it is; asked every half second.
        :param timeout: Seconds to wait.
        :param what: What is waited for, for the error.
        :raises LocalAirflowError: An Airflow process has ended by itself, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            if is_so():
                return
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {process.name}\n{tail(process.log.read_text(errors='replace'))}"
                    for process in self._processes.values()
                )
                raise LocalAirflowError(f"Waited {timeout:.0f} s in vain for {what}.\n{logs}")
            time.sleep(POLL_SECONDS)

    def _start(self) -> None:
        self._port = self._port or free_port()
        self._env = self._environment()
        (self.home / "logs").mkdir()
        self._airflow("db", "migrate")
        for name, arguments in self._commands().items():
            self._begin(name, arguments)
        self.wait_until(self._is_ready, START_SECONDS, "Airflow to start")

    def _begin(self, name: str, arguments: list[str]) -> None:
        # What tasks of one machine share, as the pace of an account, lies in its temporary folder.
        temporary = self.home / "tmp" / self._machine(name)
        temporary.mkdir(parents=True, exist_ok=True)
        env = {**self._env, "TMPDIR": str(temporary)}
        self._processes[name] = AirflowProcess(name, arguments, env, self.home / "logs" / f"{name}.log")
        self._processes[name].start()

    def _machine(self, name: str) -> str:
        """The machine that a process is on, as its tasks can tell."""
        return "machine"

    def _commands(self) -> dict[str, list[str]]:
        # The log servers of scheduler and triggerer have fixed ports, and all logs are on this machine anyway.
        commands = {
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
        }
        if self._is_2:
            return commands
        return {"api-server": ["api-server", "--port", str(self._port)], "dag-processor": ["dag-processor"], **commands}

    def _environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        # Without byte code on disk every start of Airflow takes three to five times as long.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        # Airflow 2 starts each task as `airflow`, which is on nobody's path unless the environment is activated.
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        # The key goes to Airflow in its connection only.
        env.pop("WHISUL_API_KEY", None)
        loopback = "127.0.0.1,localhost"
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = f"{env[name]},{loopback}" if env.get(name) else loopback
        settings = {
            "CORE__DAGS_FOLDER": str(self._dags_folder.resolve()),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "SequentialExecutor" if self._is_2 else "LocalExecutor",
            "CORE__PARALLELISM": "4",
            # A DAG that a schedule starts by itself would submit songs that nobody asked for.
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__EXECUTION_API_SERVER_URL": f"{self.ui_url}/execution/",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "LOGGING__COLORED_CONSOLE_LOG": "False",
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": self.ui_url,
            "API__WORKERS": "1",
            # The processes must agree on these; each would make up its own.
            "API__SECRET_KEY": secrets.token_hex(16),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        if self._is_2:
            settings |= {
                "SCHEDULER__DAG_DIR_LIST_INTERVAL": "10",
                # One file at a time, as SQLite wants it.
                "SCHEDULER__PARSING_PROCESSES": "1",
            }
        env |= {f"AIRFLOW__{name}": value for name, value in settings.items()}
        return {**env, "AIRFLOW_HOME": str(self.home), **self._extra_env}

    def _airflow(self, *arguments: str) -> None:
        self._run(f"airflow {' '.join(arguments[:2])}", "-m", "airflow", *arguments)

    def _python(self, code: str, *arguments: str) -> str:
        return self._run("python", "-c", code, *arguments)

    def _run(self, what: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        if done.returncode != 0:
            raise LocalAirflowError(f"`{what}` failed:\n{tail(done.stdout)}")
        return done.stdout

    def _is_ready(self) -> bool:
        if self._is_2:
            alive = {row[0] for row in self._rows("SELECT job_type FROM job WHERE state = 'running'")}
            return {"SchedulerJob", "TriggererJob"} <= alive
        try:
            self._api.get(f"{self.ui_url}/api/v2/version", timeout=10)
        except requests.ConnectionError:
            return False
        health = self._request("GET", "/monitor/health")
        return all(health[part]["status"] == "healthy" for part in ("scheduler", "triggerer", "dag_processor"))

    def _has_dag(self, dag_id: str) -> bool:
        if self._is_2:
            errors = [tuple(row) for row in self._rows("SELECT filename, stacktrace FROM import_error")]
            has = bool(self._rows("SELECT 1 FROM serialized_dag WHERE dag_id = ?", dag_id))
        else:
            listed = self._request("GET", "/importErrors")["import_errors"]
            errors = [(error["filename"], error["stack_trace"]) for error in listed]
            has = self._raw_request("GET", f"/dags/{dag_id}").ok
        if errors:
            raise LocalAirflowError("\n".join(f"Airflow cannot read {name}:\n{trace}" for name, trace in errors))
        return has

    def _rows(self, query: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(query, values).fetchall()

    def _raw_request(self, method: str, path: str, **options: Any) -> requests.Response:
        if "Authorization" not in self._api.headers:
            self._api.headers["Authorization"] = f"Bearer {self.token(self._login)}"
        return self._api.request(method, f"{self.ui_url}/api/v2{path}", timeout=30, **options)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        response = self._raw_request(method, path, **options)
        # SQLite has one writer at a time: on a busy machine the API may find it locked, and says 500.
        again = 0 if method == "POST" else BUSY_TRIES - 1
        while again and response.status_code == 500:
            again -= 1
            time.sleep(POLL_SECONDS)
            response = self._raw_request(method, path, **options)
        if not response.ok:
            raise LocalAirflowError(f"{method} {path} was answered {response.status_code}: {response.text[:500]}")
        return response.json()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a TCP port on loopback can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def tail(text: str, lines: int = 30) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _readable(line: str) -> str:
    # Airflow 3 writes a JSON object per line.
    try:
        entry = json.loads(line)
        text = f"{entry['timestamp'][:19]} {entry.get('level', '').upper()} {entry['event']}"
    except (ValueError, KeyError, TypeError):
        return line
    for error in entry.get("error_detail") or ():
        text += f"\n    {error.get('exc_type')}: {error.get('exc_value')}"
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

"""
A real Airflow on this machine, for as long as a ``with`` block lasts.

It is the Airflow of the running Python's environment, with its own SQLite database and home directory. Scheduler,
triggerer, API server and DAG processor are processes of their own, on loopback and free ports.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dev.airflow_runner.client import CHECK_SECONDS, FINISHED, AirflowClient, TaskInstance
from dev.airflow_runner.processes import START_SECONDS, AirflowProcess, LocalAirflowError, free_port, tail

# The home is removed afterwards, so there is nothing to wait longer for.
STOP_SECONDS = 5.0

DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"

# SQLite allows one writer: a process that ends where it cannot write waits longer than the five seconds of the default.
SQLITE_TIMEOUT = "?timeout=60"


class LocalAirflow(AirflowClient):
    """
    A running Airflow, and its client; a context manager.

    :param dags_folder: The folder of the DAG files.
    :param env: Environment variables for all its processes beside ours, such as ``AIRFLOW_CONN_WHISUL_DEFAULT``.
    :param port: The API server's port; None for a free one. On Airflow 2 no web server is started, as tasks need none.
    :param login: Name and password for the API, where ``env`` has set up users; None where Airflow lets everybody in.
    """

    def __init__(
        self,
        dags_folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self._port = port or free_port()
        super().__init__(self._port, login)
        self._dags_folder = dags_folder
        self._extra_env = dict(env or {})
        self._processes: dict[str, AirflowProcess] = {}

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

    def stop(self) -> None:
        """End every process and remove the home directory."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            process.wait(deadline - time.monotonic())
            process.kill9()
        self.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def process(self, name: str) -> AirflowProcess:
        """Return one of ``scheduler``, ``triggerer``, and on Airflow 3 ``api-server`` and ``dag-processor``."""
        return self._processes[name]

    def files(self) -> dict[Path, bytes]:
        """Return the content of each file in the home: logs, the database, and whatever else Airflow has written."""
        found = {}
        for path in self.home.rglob("*"):
            # SQLite's log of what is written comes and goes.
            with suppress(FileNotFoundError):
                if path.is_file():
                    found[path] = path.read_bytes()
        return found

    def check(self) -> None:
        """
        Check that all processes still run.

        :raises LocalAirflowError: One of the processes has ended by itself.
        """
        for process in self._processes.values():
            process.check()

    def wait_for_dags(self, *dag_ids: str, timeout: float = START_SECONDS) -> None:
        """
        Wait until Airflow has read DAGs.

        :param timeout: Seconds to wait.
        :raises LocalAirflowError: Airflow cannot import a DAG file, or has not read the DAGs in time.
        """
        self.wait_until(
            lambda: all(self.has_dag(dag_id) for dag_id in dag_ids), timeout, f"the DAGs {', '.join(dag_ids)}"
        )

    def wait_for_scheduled_run(self, dag_id: str, timeout: float = START_SECONDS) -> str:
        """
        Wait until the scheduler has made a run of an unpaused DAG.

        :param timeout: Seconds to wait.
        :return: The id of the run.
        :raises LocalAirflowError: There is none in time.
        """
        self.wait_until(lambda: bool(self.run_ids(dag_id)), timeout, f"the scheduled run of {dag_id}")
        return self.run_ids(dag_id)[0]

    def wait(
        self,
        dag_id: str,
        run_id: str,
        timeout: float,
        on_progress: Callable[[list[TaskInstance]], None] | None = None,
    ) -> str:
        """
        Wait until a run is over.

        :param timeout: Seconds to wait.
        :param on_progress: Called with the run's tasks whenever one of them has changed.
        :return: The state of the run.
        :raises LocalAirflowError: An Airflow process has ended by itself, or the run is not over in time.
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

    def wait_until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """
        Wait until a condition holds.

        :param condition: Whether it holds; called every half second.
        :param timeout: Seconds to wait.
        :param what: What is waited for, for the error.
        :raises LocalAirflowError: An Airflow process has ended by itself, or the condition does not hold in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            if condition():
                return
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {process.name}\n{tail(process.log.read_text(errors='replace'))}"
                    for process in self._processes.values()
                )
                raise LocalAirflowError(f"Waited {timeout:.0f} s in vain for {what}.\n{logs}")
            time.sleep(CHECK_SECONDS)

    def _start(self) -> None:
        self.env = self._environment()
        (self.home / "logs").mkdir()
        self._command_line("db", "migrate")
        database = self.home / "airflow.db"
        if database.exists():
            # Kept in the file. Readers and the writer no longer wait for each other.
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        for name, arguments in self._commands().items():
            self._start_process(name, arguments)
        self.wait_until(self.is_healthy, START_SECONDS, "Airflow to start")

    def _start_process(self, name: str, arguments: list[str]) -> None:
        # What the tasks of one machine share, as the rate limiter of an account, is in its temporary folder.
        temporary = self.home / "tmp" / self._machine(name)
        temporary.mkdir(parents=True, exist_ok=True)
        env = {**self.env, "TMPDIR": str(temporary)}
        if name == "scheduler" and env[DATABASE].startswith("sqlite") and not self.is_2:
            # The API server can lock itself and all others out until its own timeout, which is shorter.
            env[DATABASE] += SQLITE_TIMEOUT
        self._processes[name] = AirflowProcess(name, arguments, env, self.home / "logs" / f"{name}.log")
        self._processes[name].start()

    def _machine(self, name: str) -> str:
        """Return the machine that a process is on, as its tasks can tell."""
        return "machine"

    def _commands(self) -> dict[str, list[str]]:
        # The log servers of scheduler and triggerer have fixed ports, and all logs are on this machine anyway.
        commands = {
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
        }
        if self.is_2:
            return commands
        return {"api-server": ["api-server", "--port", str(self._port)], "dag-processor": ["dag-processor"], **commands}

    def _environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        # Without byte code on disk every start of Airflow takes three to five times as long.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        # Airflow 2 starts each task as `airflow`, which is on nobody's path unless the environment is activated.
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        # Airflow gets the key in its connection only.
        env.pop("WHISUL_API_KEY", None)
        loopback = "127.0.0.1,localhost"
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = f"{env[name]},{loopback}" if env.get(name) else loopback
        env |= {f"AIRFLOW__{name}": value for name, value in self._settings().items()}
        return {**env, "AIRFLOW_HOME": str(self.home), **self._extra_env}

    def _settings(self) -> dict[str, str]:
        settings = {
            "CORE__DAGS_FOLDER": str(self._dags_folder.resolve()),
            "CORE__LOAD_EXAMPLES": "False",
            # A busy machine takes longer than the defaults, 30 s and 50 s, to import Airflow with a DAG file.
            "CORE__DAGBAG_IMPORT_TIMEOUT": "200",
            "DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "250",
            "CORE__EXECUTOR": "SequentialExecutor" if self.is_2 else "LocalExecutor",
            "CORE__PARALLELISM": "4",
            # A DAG that a schedule starts by itself would submit songs that no test has asked for.
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
            # Its provider is installed for the tests that enable it, and has work of its own at each task.
            "OPENLINEAGE__DISABLED": "True",
        }
        if self.is_2:
            # Each process writes to the database by itself, and one DAG file is parsed at a time.
            settings |= {
                "SCHEDULER__DAG_DIR_LIST_INTERVAL": "10",
                "SCHEDULER__PARSING_PROCESSES": "1",
                "CORE__DAG_FILE_PROCESSOR_TIMEOUT": "250",
                "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}{SQLITE_TIMEOUT}",
            }
        return settings

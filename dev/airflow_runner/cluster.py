"""
A real Airflow as on several machines: PostgreSQL, Celery over Redis, two workers and two triggerers.

It uses a PostgreSQL and a Redis that run already, with a database and a key prefix of its own, both removed afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dev.airflow_runner.local import LocalAirflow
from dev.airflow_runner.processes import START_SECONDS, AirflowProcess, LocalAirflowError
from dev.airflow_runner.services import HOW_TO_GET_THEM, Services

WORKERS = ("worker-1", "worker-2")
TRIGGERERS = ("triggerer-1", "triggerer-2")
CONCURRENCY = 6

SETTINGS = {
    "CORE__EXECUTOR": "CeleryExecutor",
    # Twice what the workers hold, so that tasks that were sent to a killed worker do not block the rest.
    "CORE__PARALLELISM": str(2 * CONCURRENCY * len(WORKERS)),
    "CELERY__WORKER_CONCURRENCY": str(CONCURRENCY),
    # On Celery a task mostly keeps its slot for so many seconds after it has ended, since the end of its process is not
    # noticed sooner once its sockets are closed. With the default, 5, a task of half a second takes ten times as long.
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    # How soon Airflow notices that a worker or a triggerer was killed. The defaults are several minutes.
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    # For the tasks that Celery had given to a worker that was killed before it began them.
    "SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "20",
}


class ClusterAirflow(LocalAirflow):
    """
    A running Airflow whose processes could each be on a machine of its own; a context manager.

    :param dags_folder: The folder of the DAG files.
    :param services: The PostgreSQL and the Redis to use.
    :param env: Environment variables for all its processes beside ours.
    """

    def __init__(self, dags_folder: Path, services: Services, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(dags_folder, env=env)
        self._services = services
        self._name = f"whisul_test_{secrets.token_hex(6)}"
        self._database = urlunsplit(urlsplit(services.postgres)._replace(path=f"/{self._name}"))

    def stop(self) -> None:
        """End every process, and remove the home directory, the database and the keys in Redis."""
        try:
            super().stop()
        finally:
            self._clear_services()

    def rows(self, query: str, *values: object) -> list[Any]:
        """Return the rows of a query of Airflow's database."""
        import psycopg2

        with closing(psycopg2.connect(self._database)) as connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            rows: list[Any] = cursor.fetchall()
        return rows

    def worker_of(self, pid: int) -> AirflowProcess | None:
        """Return the worker that runs the task process of this id; None if none does."""
        return next((worker for name in WORKERS if pid in (worker := self.process(name)).pids()), None)

    def triggerer_of(self, job_id: int) -> AirflowProcess:
        """Return a triggerer by its id in Airflow's database, where only their order tells them apart."""
        return self.process(TRIGGERERS[self._triggerer_ids().index(job_id)])

    def _start(self) -> None:
        self._administer(f'CREATE DATABASE "{self._name}"')
        super()._start()
        self._start_process(TRIGGERERS[1], ["triggerer", "--skip-serve-logs"])
        self.wait_until(lambda: len(self._triggerer_ids()) == len(TRIGGERERS), START_SECONDS, "the second triggerer")

    def _commands(self) -> dict[str, list[str]]:
        commands = super()._commands()
        commands[TRIGGERERS[0]] = commands.pop("triggerer")
        for name in WORKERS:
            commands[name] = ["celery", "worker", "--skip-serve-logs", "--celery-hostname", name]
        return commands

    def _machine(self, name: str) -> str:
        return name

    def _settings(self) -> dict[str, str]:
        url = urlunsplit(urlsplit(self._database)._replace(scheme="postgresql+psycopg2"))
        return {
            **super()._settings(),
            **SETTINGS,
            "DATABASE__SQL_ALCHEMY_CONN": url,
            "CELERY__BROKER_URL": self._services.redis,
            "CELERY__RESULT_BACKEND": f"db+{url}",
            "CELERY_BROKER_TRANSPORT_OPTIONS__GLOBAL_KEYPREFIX": f"{self._name}:",
        }

    def is_healthy(self) -> bool:
        """Return whether all parts of Airflow are up, the workers included."""
        return super().is_healthy() and all(f"{name} ready" in self.process(name).log.read_text() for name in WORKERS)

    def _triggerer_ids(self) -> list[int]:
        return [row[0] for row in self.rows("SELECT id FROM job WHERE job_type = 'TriggererJob' ORDER BY id")]

    def _clear_services(self) -> None:
        from redis import Redis

        self._administer(f'DROP DATABASE IF EXISTS "{self._name}" WITH (FORCE)')
        with closing(Redis.from_url(self._services.redis)) as redis:
            for key in redis.scan_iter(match=f"{self._name}:*", count=1000):
                redis.delete(key)

    def _administer(self, statement: str) -> None:
        import psycopg2

        try:
            connection = psycopg2.connect(self._services.postgres)
        except psycopg2.OperationalError as error:
            raise LocalAirflowError(f"PostgreSQL cannot be used: {error}\n{HOW_TO_GET_THEM}") from error
        with closing(connection):
            # A database can be neither created nor dropped inside a transaction.
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)

"""A real Airflow as on several machines: PostgreSQL, Celery over Redis, two workers and two triggerers.

It uses the PostgreSQL and the Redis that it is told of, with a database and a key prefix of its own there, both removed
afterwards. ``python -m dev.cluster_airflow`` says whether the two answer, and how to get them if not.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dev.local_airflow import START_SECONDS, AirflowProcess, LocalAirflow, LocalAirflowError

WORKERS = ("worker-1", "worker-2")
TRIGGERERS = ("triggerer-1", "triggerer-2")
CONCURRENCY = 4
PROBE_SECONDS = 3.0
HOW_TO_GET_THEM = """\
Airflow on several machines needs a PostgreSQL and a Redis, for example:
  docker run -d -p 127.0.0.1:5432:5432 -e POSTGRES_USER=postgres -e POSTGRES_HOST_AUTH_METHOD=trust postgres:16
  docker run -d -p 127.0.0.1:6379:6379 redis:7
  apt-get install postgresql redis-server
Others than those at localhost are named by environment variables:
  WHISUL_TEST_POSTGRES=postgresql://USER:PASSWORD@HOST:5432/postgres     a user who may create databases
  WHISUL_TEST_REDIS=redis://HOST:6379/0
A database and a key prefix of random names are made there, and removed afterwards; nothing else is touched."""

SETTINGS = {
    "CORE__EXECUTOR": "CeleryExecutor",
    # Twice what the workers hold, so that what was sent to a worker that is gone does not block the rest.
    "CORE__PARALLELISM": str(2 * CONCURRENCY * len(WORKERS)),
    "CELERY__WORKER_CONCURRENCY": str(CONCURRENCY),
    # On Celery a task mostly keeps its slot for so many seconds after it has ended: the end of its process is not
    # noticed sooner once its sockets are closed. The default, 5, makes ten times of a task of half a second.
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    # How soon a worker or a triggerer that is gone is missed; the defaults are made for longer nights.
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    # For the tasks that Celery had handed to a worker that is gone, before it began them.
    "SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "20",
}


@dataclass(frozen=True)
class Services:
    """Where the services are.

    :param postgres: The URL of a PostgreSQL database from which another one can be created.
    :param redis: The URL of a Redis database.
    """

    postgres: str
    redis: str

    @classmethod
    def from_environment(cls) -> Services:
        """Those that the environment names, or else those at localhost."""
        return cls(
            os.environ.get("WHISUL_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres"),
            os.environ.get("WHISUL_TEST_REDIS", "redis://127.0.0.1:6379/0"),
        )

    def missing(self) -> list[str]:
        """What does not answer, and why, without needing a client library for either."""
        # The questions that each protocol begins with: whether TLS can be had, and a ping.
        probes = [
            ("PostgreSQL", self.postgres, 5432, b"\x00\x00\x00\x08\x04\xd2\x16\x2f", (b"S", b"N")),
            ("Redis", self.redis, 6379, b"PING\r\n", (b"+PONG", b"-NOAUTH")),
        ]
        found = []
        for name, url, port, question, answers in probes:
            parts = urlsplit(url)
            address = (parts.hostname or "127.0.0.1", parts.port or port)
            try:
                with socket.create_connection(address, PROBE_SECONDS) as connection:
                    connection.sendall(question)
                    answer = connection.recv(16)
            except OSError as error:
                found.append(f"No {name} answers at {address[0]}:{address[1]} ({error}).")
            else:
                if not answer.startswith(answers):
                    found.append(f"What answers at {address[0]}:{address[1]} is no {name}.")
        return found


class ClusterAirflow(LocalAirflow):
    """A running Airflow whose parts could each be on a machine of its own; a context manager.

    :param dags_folder: The DAG files.
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
        """What a query of Airflow's database returns."""
        import psycopg2

        with closing(psycopg2.connect(self._database)) as connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall()

    def worker_of(self, pid: int) -> AirflowProcess | None:
        """The worker that a task's process is of."""
        return next((worker for name in WORKERS if pid in (worker := self.process(name)).pids()), None)

    def triggerer_of(self, job_id: int) -> AirflowProcess:
        """The triggerer by its id in Airflow's database, in which nothing but their order tells them apart."""
        return self.process(TRIGGERERS[self._triggerer_ids().index(job_id)])

    def _start(self) -> None:
        self._administer(f'CREATE DATABASE "{self._name}"')
        super()._start()
        self._begin(TRIGGERERS[1], ["triggerer", "--skip-serve-logs"])
        self.wait_until(lambda: len(self._triggerer_ids()) == len(TRIGGERERS), START_SECONDS, "the second triggerer")

    def _commands(self) -> dict[str, list[str]]:
        commands = super()._commands()
        commands[TRIGGERERS[0]] = commands.pop("triggerer")
        for name in WORKERS:
            commands[name] = ["celery", "worker", "--skip-serve-logs", "--celery-hostname", name]
        return commands

    def _machine(self, name: str) -> str:
        return name

    def _environment(self) -> dict[str, str]:
        url = urlunsplit(urlsplit(self._database)._replace(scheme="postgresql+psycopg2"))
        settings = SETTINGS | {
            "DATABASE__SQL_ALCHEMY_CONN": url,
            "CELERY__BROKER_URL": self._services.redis,
            "CELERY__RESULT_BACKEND": f"db+{url}",
            "CELERY_BROKER_TRANSPORT_OPTIONS__GLOBAL_KEYPREFIX": f"{self._name}:",
        }
        return super()._environment() | {f"AIRFLOW__{name}": value for name, value in settings.items()}

    def _is_ready(self) -> bool:
        return super()._is_ready() and all(f"{name} ready" in self.process(name).log.read_text() for name in WORKERS)

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


def main() -> int:
    """Say whether the services answer; the status is 0 if they do."""
    missing = Services.from_environment().missing()
    if missing:
        print(*missing, HOW_TO_GET_THEM, sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

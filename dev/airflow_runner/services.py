"""
The PostgreSQL and the Redis that an Airflow on several machines needs.

``python -m dev.airflow_runner.services`` says whether the two respond, and how to get them if not. It needs no package.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

PROBE_SECONDS = 3.0
HOW_TO_GET_THEM = """\
Airflow on several machines needs a PostgreSQL and a Redis, for example:
  docker run -d -p 127.0.0.1:5432:5432 -e POSTGRES_USER=postgres -e POSTGRES_HOST_AUTH_METHOD=trust postgres:16
  docker run -d -p 127.0.0.1:6379:6379 redis:7
  apt-get install postgresql redis-server
Environment variables name others than those at localhost:
  WHISUL_TEST_POSTGRES=postgresql://USER:PASSWORD@HOST:5432/postgres     a user who may create databases
  WHISUL_TEST_REDIS=redis://HOST:6379/0
A database and a key prefix of random names are made there and removed afterwards. Nothing else is touched."""


@dataclass(frozen=True)
class Services:
    """
    The URLs of the two services.

    :param postgres: The URL of a PostgreSQL database from which another one can be created.
    :param redis: The URL of a Redis database.
    """

    postgres: str
    redis: str

    @classmethod
    def from_environment(cls) -> Services:
        """Return those that the environment names, or else those at localhost."""
        return cls(
            os.environ.get("WHISUL_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres"),
            os.environ.get("WHISUL_TEST_REDIS", "redis://127.0.0.1:6379/0"),
        )

    def missing(self) -> list[str]:
        """Return a sentence for each service that does not respond. No client library is needed."""
        # What each protocol begins with: whether TLS is available, and a ping.
        probes = [
            ("PostgreSQL", self.postgres, 5432, b"\x00\x00\x00\x08\x04\xd2\x16\x2f", (b"S", b"N")),
            ("Redis", self.redis, 6379, b"PING\r\n", (b"+PONG", b"-NOAUTH")),
        ]
        found = []
        for name, url, port, request, responses in probes:
            parts = urlsplit(url)
            address = (parts.hostname or "127.0.0.1", parts.port or port)
            try:
                with socket.create_connection(address, PROBE_SECONDS) as connection:
                    connection.sendall(request)
                    response = connection.recv(16)
            except OSError as error:
                found.append(f"No {name} responds at {address[0]}:{address[1]} ({error}).")
            else:
                if not response.startswith(responses):
                    found.append(f"The server at {address[0]}:{address[1]} is no {name}.")
        return found


def main() -> int:
    """Print which services do not respond. Return the exit status: 0 if both do."""
    missing = Services.from_environment().missing()
    if missing:
        print(*missing, HOW_TO_GET_THEM, sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

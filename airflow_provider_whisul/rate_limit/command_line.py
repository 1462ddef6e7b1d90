"""The command that prints what is known of an account's rate limit, and the one that forgets it."""

# ruff: noqa: T201 - printing is what a command line is for

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings, read_connection
from airflow_provider_whisul.command_line.report import Parser
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.rate_limit.file_store import FileStore
from airflow_provider_whisul.rate_limit.limiter_store import StoreUnavailableError
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.redis_store import RedisStore
from airflow_provider_whisul.rate_limit.status import LimiterStatus
from airflow_provider_whisul.rate_limit.store_choice import find_redis
from airflow_provider_whisul.version_compat import server_connection


def main(argv: Sequence[str] | None = None, out: TextIO | None = None) -> int:
    """
    Run the command line.

    :param argv: The arguments; None for those of the process.
    :param out: Where to print; None for the standard output.
    :return: The exit status: 0, or 1 where an Airflow connection, the file or Redis cannot be used. Wrong arguments end
        the process with 2.
    """
    arguments = _parser(out).parse_args(argv)
    try:
        settings = read_connection(arguments.conn, server_connection)
        redis = find_redis(settings, server_connection)
    except WhisulError as error:
        print(error, file=sys.stderr)
        return 1
    # Not the one in its place: what that knows is not what was asked for.
    store = FileStore(settings) if redis is None else RedisStore(settings, redis)
    try:
        if arguments.command == "reset":
            store.reset()
            print(f"What {store.where} knew of the rate limit of {arguments.conn!r} is forgotten.", file=out)
            return 0
        status = _status(store, settings)
    except StoreUnavailableError as error:
        print(f"The rate limiter is kept in {store.where}, which cannot be used: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(status), indent=2) if arguments.json else "\n".join(status.lines(arguments.conn)), file=out)
    return 0


def _status(store: FileStore | RedisStore, settings: ConnectionSettings) -> LimiterStatus:
    submissions_today = store.submissions_today() if isinstance(store, RedisStore) else None

    def read(limiter: RateLimiter, now: float) -> LimiterStatus:
        # As each process does that sends requests.
        limiter.configure(settings.max_requests_per_second)
        return LimiterStatus.of(
            limiter, now, where=store.where, settings=settings, submissions_today=submissions_today, wall=time.time()
        )

    return store.update(read)


def _parser(out: TextIO | None) -> Parser:
    parser = Parser(
        prog="python -m airflow_provider_whisul.limiter",
        description="Print what is known of the rate limit of a Whisul account, or forget it. Sends nothing to Whisul. "
        "Without a Redis it is about the tasks and the triggerer of this user on this machine.",
    )
    parser.out = out
    commands = parser.add_subparsers(dest="command", required=True, metavar="status|reset")
    status = commands.add_parser("status", help="print what is known: rate, block, who waits, durations of jobs")
    reset = commands.add_parser("reset", help="forget what is known, as after the account has got another limit")
    for command in (status, reset):
        command.out = out
        command.add_argument(
            "--conn",
            default=DEFAULT_CONN_ID,
            metavar="ID",
            help="the Airflow connection whose account is meant (default: %(default)s)",
        )
    status.add_argument("--json", action="store_true", help="print it as a JSON object, with times in Unix seconds")
    return parser

"""The command that prints what was submitted, and which paid songs no task has taken."""

# ruff: noqa: T201 - printing is what a command line is for

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from typing import TextIO

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, ConnectionSettings, read_connection
from airflow_provider_whisul.api.price import Price
from airflow_provider_whisul.command_line.report import Parser
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.ledger.account_ledger import AccountLedger, account_of, day_of
from airflow_provider_whisul.ledger.printing import Scope, as_json, as_table
from airflow_provider_whisul.ledger.reader import all_ledgers, read_ledgers
from airflow_provider_whisul.ledger.report import make_report
from airflow_provider_whisul.state.retention import LEDGER
from airflow_provider_whisul.state.state_path import state_folder
from airflow_provider_whisul.version_compat import server_connection


def main(argv: Sequence[str] | None = None, out: TextIO | None = None) -> int:
    """
    Run the command line.

    :param argv: The arguments; None for those of the process.
    :param out: Where to print; None for the standard output.
    :return: The exit status: 0, or 1 where the folder or the Airflow connection cannot be read. Wrong arguments end the
        process with 2.
    """
    now = time.time()
    today = day_of(now)
    parser = _parser(today, out)
    arguments = parser.parse_args(argv)
    if arguments.until < arguments.since:
        parser.error(
            f"--until {arguments.until} is before --since {arguments.since}. Either is today, {today} (UTC), where it "
            "is not given."
        )
    try:
        folder = state_folder()
        if folder is None:
            print("There is no folder to read. The warning above says why.", file=sys.stderr)
            return 1
        settings = None if arguments.all_accounts else _settings(arguments.conn)
        ledgers = all_ledgers(folder) if settings is None else [AccountLedger(folder, account_of(settings))]
        content = read_ledgers(ledgers, arguments.since, arguments.until)
    except WhisulError as error:
        print(error, file=sys.stderr)
        return 1
    scope = Scope(
        folder=f"{folder.url}/{LEDGER}" if settings is None else ledgers[0].url,
        conn_id=None if settings is None else arguments.conn,
        since=arguments.since,
        until=arguments.until,
        prompts=arguments.prompts,
        price=_price(settings),
    )
    report = make_report(content.entries, content.outcomes, now)
    to_text = as_json if arguments.format == "json" else as_table
    print(to_text(report, content.unreadable, scope), file=out)
    return 0


def _settings(conn_id: str) -> ConnectionSettings:
    return read_connection(conn_id, server_connection)


def _price(settings: ConnectionSettings | None) -> Price | None:
    return None if settings is None else settings.price_per_song


def _parser(today: str, out: TextIO | None) -> Parser:
    parser = Parser(
        prog="python -m airflow_provider_whisul.ledger",
        description="Print what was submitted to Whisul per DAG and day (UTC), and which paid songs no task has taken. "
        "Sends nothing to Whisul. Reads the folder of [whisul] state_path in Airflow's configuration, or else the one "
        "of this machine.",
    )
    parser.out = out
    add = parser.add_argument
    add("--since", type=_day, default=today, metavar="DATE", help="the first day, such as 2026-11-01 (default: today)")
    add("--until", type=_day, default=today, metavar="DATE", help="the last day (default: today)")
    accounts = parser.add_mutually_exclusive_group()
    accounts.add_argument(
        "--conn",
        default=DEFAULT_CONN_ID,
        metavar="ID",
        help="the Airflow connection whose account is meant (default: %(default)s)",
    )
    accounts.add_argument("--all-accounts", action="store_true", help="all accounts that the folder has")
    add("--format", choices=("table", "json"), default="table", help="how to print it (default: %(default)s)")
    add("--prompts", action="store_true", help="print the prompts too, not only their fingerprints")
    return parser


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2026-11-01") from None

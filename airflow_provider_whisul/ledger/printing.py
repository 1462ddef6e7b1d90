"""A report of the ledger as text: a table to read, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from airflow_provider_whisul.api.price import Price, count_songs, format_price
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.ledger.entries import Entry, iso
from airflow_provider_whisul.ledger.report import Report, Row, sensor_line
from airflow_provider_whisul.text import count, quote

_HEADINGS = ("day", "DAG", "submitted", "delivered", "failed", "not found", "ambiguous", "no outcome yet")

#: How many jobs that no task has taken the text lists: while a night goes on, they are all that it has submitted.
MAX_NOT_TAKEN = 50


@dataclass(frozen=True)
class Scope:
    """
    What a report is about.

    :param folder: The URL of the folder that was read.
    :param conn_id: The Airflow connection whose account it is, None for all accounts.
    :param since: The first day.
    :param until: The last day.
    :param prompts: Whether to print prompts.
    :param price: What a song costs, None where that is not known.
    """

    folder: str
    conn_id: str | None
    since: str
    until: str
    prompts: bool = False
    price: Price | None = None


def as_table(report: Report, unreadable: Sequence[str], scope: Scope) -> str:
    """
    Return a report as text to read.

    :param report: The report.
    :param unreadable: Why files could not be read.
    :param scope: What the report is about.
    """
    return "\n".join(_lines(report, unreadable, scope))


def as_json(report: Report, unreadable: Sequence[str], scope: Scope) -> str:
    """
    Return a report as a JSON object.

    :param report: The report.
    :param unreadable: Why files could not be read.
    :param scope: What the report is about.
    """
    total = asdict(report.total())
    del total["day"], total["dag_id"]
    value = {
        "folder": scope.folder,
        "conn_id": scope.conn_id,
        "since": scope.since,
        "until": scope.until,
        "rows": [asdict(row) for row in report.rows],
        "total": total,
        "price": format_price(scope.price, total["submitted"]) or None,
        "not_taken": [{**_plain(entry, scope), "sensor": sensor_line(entry)} for entry in report.not_taken],
        "ambiguous": [_plain(entry, scope) for entry in report.ambiguous],
        "unreadable": list(unreadable),
    }
    return json.dumps(value, indent=2)


def _lines(report: Report, unreadable: Sequence[str], scope: Scope) -> Iterator[str]:
    whose = "all accounts" if scope.conn_id is None else f"the account of the Airflow connection {scope.conn_id!r}"
    yield f"Read {quote(scope.folder)}: {whose}, {scope.since} to {scope.until} (UTC)."
    yield f"{count(len(unreadable), 'file')} could not be read:" if unreadable else "All files could be read."
    yield from (f"  {reason}" for reason in unreadable)
    yield ""
    if not report.rows:
        yield "Nothing was submitted."
        return
    total = report.total()
    yield from _table([_HEADINGS, *map(_cells, report.rows), ("total", *_cells(total)[1:])])
    if scope.price is not None:
        yield f"At the price of the connection, {count_songs(total.submitted, scope.price)}."
    # First: of these nobody but the reader can find out, and the other list is as long as what tasks still wait for.
    if report.ambiguous:
        yield ""
        unknown = "whether it made a job" if len(report.ambiguous) == 1 else "which of them made a job"
        yield f"{count(len(report.ambiguous), 'ambiguous submission')}: nobody knows {unknown}."
        yield "If in doubt, see your Whisul dashboard."
        yield ""
        yield from (f"  {_described(entry, scope)}" for entry in report.ambiguous)
    if report.not_taken:
        yield ""
        yield f"{count(len(report.not_taken), 'paid job')} that no task has taken. While a run goes on, its tasks wait"
        yield "for such jobs. In a DAG, the line below each fetches its song."
        for entry in report.not_taken[:MAX_NOT_TAKEN]:
            yield from ("", f"  {_described(entry, scope)}", f"  {quote(sensor_line(entry))}")
        if len(report.not_taken) > MAX_NOT_TAKEN:
            yield ""
            yield f"  {len(report.not_taken) - MAX_NOT_TAKEN:,} more are listed with --format json."


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.submitted, row.delivered, row.failed, row.not_found, row.ambiguous, row.no_outcome)
    name = quote(row.dag_id) or ("" if not row.day else "(no DAG)")
    return row.day, name, *(f"{number:,}" for number in numbers)


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        # The two names to the left, the numbers to the right.
        names = (cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
        numbers = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        yield "  ".join((*names, *numbers)).rstrip()


def _described(entry: Entry, scope: Scope) -> str:
    submission = entry.submission
    parts = [utc(entry.at)]
    if submission.dag_id:
        parts += [f"DAG {quote(submission.dag_id)}", f"task {quote(submission.task_id)}"]
        parts.append(f"run {quote(submission.run_id)}")
    if submission.map_index >= 0:
        parts.append(f"map index {submission.map_index}")
    if submission.index:
        parts.append(f"prompts[{submission.index}]")
    if entry.job_id is not None:
        parts.append(f"job {quote(entry.job_id)}")
    parts.append(f"prompt {quote(entry.prompt) if scope.prompts else quote(entry.prompt_fingerprint)}")
    return ", ".join(parts)


def _plain(entry: Entry, scope: Scope) -> dict[str, object]:
    submission = entry.submission
    plain: dict[str, object] = {
        "at": iso(entry.at),
        "dag_id": submission.dag_id,
        "task_id": submission.task_id,
        "run_id": submission.run_id,
        "map_index": submission.map_index,
        "index": submission.index,
        "number": submission.number,
        "conn_id": entry.conn_id,
        "job_id": entry.job_id,
        "prompt_fingerprint": entry.prompt_fingerprint,
    }
    return {**plain, "prompt": entry.prompt} if scope.prompts else plain

"""What the ledger says of some days: entries and outcomes in, rows out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from airflow_provider_whisul.ledger.account_ledger import day_of
from airflow_provider_whisul.ledger.entries import Entry, Outcome

#: Where two outcomes of one job are known, the first of these counts: a song that was taken stays taken.
_ORDER: tuple[Outcome, ...] = ("delivered", "failed", "not_found")


@dataclass
class Row:
    """
    What one DAG has submitted in one day.

    :param day: The day, in UTC.
    :param dag_id: The DAG; blank outside of one.
    :param submitted: All submissions: the sum of the other numbers.
    :param delivered: Those whose song a task has taken.
    :param failed: Those whose job failed.
    :param not_found: Those whose job Whisul no longer found.
    :param ambiguous: Those of which nobody knows whether they made a job.
    :param no_outcome: Those that were accepted, or are just being made, and of whose end no task has told.
    """

    day: str
    dag_id: str
    submitted: int = 0
    delivered: int = 0
    failed: int = 0
    not_found: int = 0
    ambiguous: int = 0
    no_outcome: int = 0


@dataclass
class Report:
    """
    What was submitted in some days.

    :param rows: One per day and DAG, by day and then by the DAG's id.
    :param not_taken: The accepted submissions of whose job's end no task has told, the oldest first.
    :param ambiguous: The submissions of which nobody knows whether they made a job, the oldest first.
    """

    rows: list[Row] = field(default_factory=list)
    not_taken: list[Entry] = field(default_factory=list)
    ambiguous: list[Entry] = field(default_factory=list)

    def total(self) -> Row:
        """Return the sum of all rows."""
        total = Row("", "")
        for row in self.rows:
            total.submitted += row.submitted
            total.delivered += row.delivered
            total.failed += row.failed
            total.not_found += row.not_found
            total.ambiguous += row.ambiguous
            total.no_outcome += row.no_outcome
        return total


def make_report(entries: Iterable[Entry], outcomes: Mapping[str, Iterable[Outcome]], now: float) -> Report:
    """
    Count what was submitted, and find what no task has taken.

    :param entries: The submissions.
    :param outcomes: How jobs ended, by job id.
    :param now: The time, in Unix seconds: a response that is due by then is lost.
    """
    rows: dict[tuple[str, str], Row] = {}
    report = Report()
    for entry in sorted(entries, key=lambda entry: entry.at):
        place = day_of(entry.at), entry.submission.dag_id
        row = rows.setdefault(place, Row(*place))
        row.submitted += 1
        if entry.job_id is None and not entry.is_in_progress(now):
            row.ambiguous += 1
            report.ambiguous.append(entry)
            continue
        match _outcome(outcomes.get(entry.job_id or "", ())):
            case "delivered":
                row.delivered += 1
            case "failed":
                row.failed += 1
            case "not_found":
                row.not_found += 1
            case None:
                row.no_outcome += 1
                if entry.job_id is not None:
                    report.not_taken.append(entry)
    report.rows = [rows[place] for place in sorted(rows)]
    return report


def sensor_line(entry: Entry) -> str:
    """
    Return the line of a DAG file that fetches the song of an accepted submission.

    :param entry: The submission.
    """
    job_id = entry.job_id or ""
    return f'WhisulJobSensor(task_id="fetch_{job_id}", job_id="{job_id}", whisul_conn_id={_literal(entry.conn_id)})'


def _outcome(known: Iterable[Outcome]) -> Outcome | None:
    found = set(known)
    return next((outcome for outcome in _ORDER if outcome in found), None)


def _literal(text: str) -> str:
    """Return a text as Python's literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)

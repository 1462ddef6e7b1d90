"""The report: entries and outcomes in, rows out."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from airflow_provider_whisul.ledger.entries import Entry, EntryState, Outcome
from airflow_provider_whisul.ledger.report import Row, make_report, sensor_line
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from tests.support.clock import NOON

NOW = NOON + 1_000


def entry(dag_id: str = "songs", job_id: str | None = None, state: EntryState = "ambiguous", at: float = NOON) -> Entry:
    submission = SubmissionId(dag_id, "make", "some-run", -1, 0)
    made = Entry.of(submission, "a song", conn_id="whisul_default", attempt="0123", api_key="some-key")
    made = replace(made, at=at, response_due=at + 35, state=state)
    return made.accepted(job_id) if job_id else made


def test_each_submission_is_counted_once_by_its_day_and_dag() -> None:
    outcomes: dict[str, set[Outcome]] = {"1": {"delivered"}, "2": {"failed"}, "3": {"not_found"}}
    entries = [*(entry(job_id=str(number)) for number in range(1, 5)), entry(), entry("b"), entry(at=NOON + 86_400)]
    report = make_report(entries, outcomes, NOW + 86_400)
    assert report.rows == [
        Row("2026-02-17", "b", submitted=1, ambiguous=1),
        Row("2026-02-17", "songs", submitted=5, delivered=1, failed=1, not_found=1, ambiguous=1, no_outcome=1),
        Row("2026-02-18", "songs", submitted=1, ambiguous=1),
    ]
    assert report.total() == Row("", "", 7, delivered=1, failed=1, not_found=1, ambiguous=3, no_outcome=1)
    assert [found.job_id for found in report.not_taken] == ["4"]
    assert len(report.ambiguous) == 3


def test_what_was_not_taken_comes_in_the_order_of_submission() -> None:
    entries = [entry(job_id="2", at=NOON + 2), entry(job_id="1", at=NOON + 1)]
    assert [found.job_id for found in make_report(entries, {}, NOW).not_taken] == ["1", "2"]


@pytest.mark.parametrize(("now", "row"), [(NOON + 34, {"no_outcome": 1}), (NOON + 35, {"ambiguous": 1})])
def test_a_submission_without_a_response_is_ambiguous_once_the_response_is_due(now: float, row: dict[str, int]) -> None:
    report = make_report([entry(state="submitting")], {}, now)
    assert report.rows == [Row("2026-02-17", "songs", submitted=1, **row)]
    # Nobody can fetch the song of a job without an id.
    assert report.not_taken == []


def test_a_song_that_was_taken_stays_taken_when_its_job_has_expired() -> None:
    report = make_report([entry(job_id="1")], {"1": ["not_found", "delivered"]}, NOW)
    assert report.rows == [Row("2026-02-17", "songs", submitted=1, delivered=1)]


def test_nothing_gives_an_empty_report() -> None:
    report = make_report([], {"1": ["delivered"]}, NOW)
    assert (report.rows, report.total()) == ([], Row("", ""))


@pytest.mark.parametrize("conn_id", ["whisul_default", 'a"b', "a\\b", "ü", "a\nb"])
def test_the_sensor_line_is_python_that_names_job_and_connection(conn_id: str) -> None:
    line = sensor_line(replace(entry(job_id="883f-0858_x"), conn_id=conn_id))
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == "WhisulJobSensor"
    assert {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords} == {
        "task_id": "fetch_883f-0858_x",
        "job_id": "883f-0858_x",
        "whisul_conn_id": conn_id,
    }


def test_the_sensor_takes_the_line() -> None:
    from airflow_provider_whisul.sensors.whisul import WhisulJobSensor

    sensor = eval(sensor_line(entry(job_id="883f-0858")), {"WhisulJobSensor": WhisulJobSensor})
    assert (sensor.job_id, sensor.task_id) == ("883f-0858", "fetch_883f-0858")

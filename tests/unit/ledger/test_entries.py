"""The files of the ledger: their names, and what they hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulStateUnreadableError
from airflow_provider_whisul.ledger.entries import (
    Entry,
    dag_of_submission,
    outcome_file,
    outcome_of,
    outcome_to_bytes,
    submission_file,
)
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from tests.support.clock import NOON

SONG = SubmissionId("songs", "make", "some-run", 3, 7, 2, "loop/4")
ENTRY = replace(
    Entry.of(SONG, "a song", conn_id="whisul_default", attempt="0123", api_key="some-key"),
    at=NOON,
    response_due=NOON + 35,
)


@pytest.mark.parametrize(
    "entry", [ENTRY, ENTRY.accepted("job-1"), replace(ENTRY, state="ambiguous"), replace(ENTRY, prompt="\x7f„é“\n")]
)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert Entry.from_bytes(entry.to_bytes(), "file") == entry


def test_the_file_of_an_entry_has_its_version_and_its_time_in_utc() -> None:
    value = json.loads(ENTRY.to_bytes())
    assert (value["version"], value["at"]) == (1, "2026-02-17T12:00:00+00:00")


@pytest.mark.parametrize("name", sorted(json.loads(ENTRY.to_bytes())))
def test_an_entry_with_a_missing_or_wrong_field_is_not_read(name: str) -> None:
    value = json.loads(ENTRY.to_bytes())
    del value[name]
    with pytest.raises(WhisulStateUnreadableError, match="s3://b/file"):
        Entry.from_bytes(json.dumps(value).encode(), "s3://b/file")
    value[name] = [1]
    with pytest.raises(WhisulStateUnreadableError, match="s3://b/file"):
        Entry.from_bytes(json.dumps(value).encode(), "s3://b/file")


@pytest.mark.parametrize("data", [b"", b"\xff", b"null", b"[]", b"{", b"[" * 100_000, ENTRY.to_bytes()[:-9]])
def test_a_damaged_file_is_not_read(data: bytes) -> None:
    with pytest.raises(WhisulStateUnreadableError, match="a song may have been paid for"):
        Entry.from_bytes(data, "file")


def test_an_accepted_entry_has_a_job_and_no_other_has() -> None:
    for entry in (replace(ENTRY, state="accepted"), replace(ENTRY, job_id="job-1")):
        with pytest.raises(WhisulStateUnreadableError):
            Entry.from_bytes(entry.to_bytes(), "file")


def test_a_time_that_is_none_is_not_read() -> None:
    data = ENTRY.to_bytes().replace(b"2026-02-17T12:00:00+00:00", b"yesterday")
    with pytest.raises(WhisulStateUnreadableError, match="a time in it is none"):
        Entry.from_bytes(data, "file")


def test_the_response_of_an_entry_may_come_until_it_is_due() -> None:
    assert ENTRY.is_in_progress(NOON + 34)
    assert not ENTRY.is_in_progress(NOON + 35)
    assert not ENTRY.accepted("job-1").is_in_progress(NOON)


@given(st.text(max_size=100))
def test_the_name_of_a_submissions_file_tells_its_dag(dag_id: str) -> None:
    name = submission_file("0" * 32, dag_id)
    assert len(name) <= 160
    assert name.isascii()
    assert not set(name) & set("/\\ ?*:\n")
    found = dag_of_submission(name)
    assert found is not None
    shown = dag_id.encode("utf-8", "replace").decode()
    assert shown.startswith(found) if len(name) > 140 else found == shown


@pytest.mark.parametrize("name", ["lock", "o.delivered.job.json", "s.0.dag", "x.0.dag.json", "s.0.dag.json.1a.part"])
def test_no_other_file_is_a_submissions(name: str) -> None:
    assert dag_of_submission(name) is None


@pytest.mark.parametrize("outcome", ["delivered", "failed", "not_found"])
def test_the_name_of_an_outcomes_file_tells_the_job_and_how_it_ended(outcome: str) -> None:
    assert outcome_of(outcome_file("job_-1", outcome)) == ("job_-1", outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lock", "o.json", "o.eaten.job.json", "o.failed.job", submission_file("0", "failed")])
def test_no_other_file_is_an_outcomes(name: str) -> None:
    assert outcome_of(name) is None


def test_the_file_of_an_outcome_can_be_read_by_a_person() -> None:
    value = json.loads(outcome_to_bytes("job-1", "failed", NOON))
    assert value == {"version": 1, "at": "2026-02-17T12:00:00+00:00", "job_id": "job-1", "outcome": "failed"}


def test_a_submission_has_one_key_whatever_the_process() -> None:
    assert SONG.key("a song") == "096e432862ad7da0588604a651f2cfa5"

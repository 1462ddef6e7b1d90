"""Whether the comparison of the ledger with the sandbox's log finds what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_provider_whisul.ledger.entries import Entry
from airflow_provider_whisul.ledger.reader import LedgerContent
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import LoggedRequest
from tests.support.reconciliation import differences

ACCEPTED = Entry.of(
    SubmissionId("dag", "task", "run", -1, 0), "a waltz", conn_id="whisul_default", attempt="1", api_key="key"
).accepted("job-1")
AMBIGUOUS = replace(ACCEPTED, state="ambiguous", job_id=None)
POST = LoggedRequest(0.0, "POST", "/api/generate", 202, "job-1", "a waltz", "ok", False, "", None, 1)
REFUSED = replace(POST, status=429, job_id=None)


@pytest.mark.parametrize(
    ("entries", "posts", "found"),
    [
        ([ACCEPTED], [POST], []),
        ([ACCEPTED], [REFUSED, POST], []),
        ([AMBIGUOUS], [POST], []),
        ([AMBIGUOUS], [REFUSED], []),
        ([], [REFUSED], []),
        ([], [POST], ["Job job-1 is not in the ledger."]),
        ([AMBIGUOUS], [POST, replace(POST, job_id="job-2")], ["Job job-2 is not in the ledger."]),
        ([AMBIGUOUS], [replace(POST, prompt="a polka")], ["Job job-1 is not in the ledger."]),
        ([ACCEPTED, ACCEPTED], [POST], ["Job job-1 is in the ledger 2 times."]),
        ([ACCEPTED], [REFUSED], ["Job job-1 of the ledger was not made."]),
        ([ACCEPTED], [], []),
    ],
)
def test_each_difference_between_ledger_and_sandbox_is_found(
    entries: list[Entry], posts: list[LoggedRequest], found: list[str]
) -> None:
    assert differences(LedgerContent(entries), posts) == found


def test_a_file_that_cannot_be_read_is_a_difference() -> None:
    assert differences(LedgerContent(unreadable=["x.json is no JSON"]), []) == ["Cannot be read: x.json is no JSON"]

"""Many processes that submit at once, and processes that are killed, against the sandbox and a local folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple

import pytest

from airflow_provider_whisul.exceptions import WhisulAmbiguousSubmitError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.reader import LedgerContent
from airflow_provider_whisul.ledger.report import Row, make_report
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.ledger.conftest import Submit
from tests.support.clock import FakeClock

PROMPT = "a song"
SONG = SubmissionId("songs", "make", "some-run", -1, 0)

Read = Callable[[], LedgerContent]


def posts(sandbox: Sandbox) -> list[int | None]:
    return [request.status for request in sandbox.requests if request.method == "POST"]


def test_of_40_processes_at_a_ceiling_of_10_exactly_10_submit(
    sandbox: Sandbox, set_extra: Callable[..., None], submit: Submit, read: Read
) -> None:
    set_extra(max_submissions_per_day=10)
    ends = submit(*((f"song {number}", ["songs", "make", "some-run", number, 0]) for number in range(40)))
    assert Counter(end.get("error") for end in ends) == {None: 10, "WhisulBudgetExceededError": 30}
    assert posts(sandbox) == 10 * [202]
    assert {entry.job_id for entry in read().entries} == set(sandbox.jobs)


def test_of_20_processes_that_make_the_same_submission_one_submits_and_all_get_its_job(
    sandbox: Sandbox, submit: Submit
) -> None:
    prompt = "a song [sandbox:post-slow=0.3]"
    ends = submit(*(20 * [(prompt, list(astuple(SONG)))]))
    assert posts(sandbox) == [202]
    assert ends == 20 * [{"job_id": job_id} for job_id in sandbox.jobs]


@pytest.mark.parametrize(
    ("death", "requests", "job_is_known"),
    [
        ("before the entry", 0, None),
        ("after the entry", 0, False),
        ("after the response", 1, False),
        ("after the job is written", 1, True),
    ],
)
def test_the_ledger_tells_the_truth_of_a_process_that_was_killed_and_nothing_is_paid_twice(
    sandbox: Sandbox, submit: Submit, read: Read, death: str, requests: int, job_is_known: bool | None
) -> None:
    """``job_is_known`` is None where there is no entry: certainly nothing was sent."""
    assert submit((PROMPT, list(astuple(SONG))), die=death) == []
    assert len(posts(sandbox)) == requests

    content = read()
    report = make_report(content.entries, content.outcomes, time.time() + 36)
    (row,) = report.rows or [Row("", "")]
    told = (row.submitted, row.ambiguous, row.no_outcome, len(report.not_taken))
    assert told == {None: (0, 0, 0, 0), False: (1, 1, 0, 0), True: (1, 0, 1, 1)}[job_is_known]

    # The next try, whose waiting takes no time.
    hook = WhisulHook(clock=FakeClock(now=time.time()).clock)
    found = hook.find_submission(SONG, PROMPT, since=time.time())
    assert (found is None) == (job_is_known is None)
    assert found is None or found.job_id == (next(iter(sandbox.jobs)) if job_is_known else None)
    if job_is_known is False:
        with pytest.raises(WhisulAmbiguousSubmitError):
            hook.generate(PROMPT, submission=SONG)
        assert len(posts(sandbox)) == requests
    else:
        assert [hook.generate(PROMPT, submission=SONG)] == list(sandbox.jobs)
        assert len(posts(sandbox)) == 1

"""The ledger against the sandbox's own request log, after some hundred submissions that meet faults at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from airflow_provider_whisul.exceptions import WhisulAmbiguousSubmitError, WhisulError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.reader import LedgerContent
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.sandbox.options import POST_FAULTS
from tests.support.clock import FakeClock

SONGS = 300


def test_every_request_that_made_a_job_is_in_the_ledger_and_none_is_there_twice(
    start_sandbox: Callable[..., Sandbox], clock: FakeClock, read: Callable[[], LedgerContent]
) -> None:
    rates = dict.fromkeys(POST_FAULTS, 0.02)
    sandbox = start_sandbox(seed=1, fault_rates={**rates, "post-429": 0.1}, slow_seconds=0.0)
    hook = WhisulHook(clock=clock.clock)
    ends: Counter[str] = Counter()
    for index in range(SONGS):
        # As a task does: an ambiguous submission is followed by one of the next number.
        for number in range(1, 4):
            submission = SubmissionId("songs", "make", "some-run", -1, index, number)
            try:
                hook.generate(f"song {index}", submission=submission)
                ends["accepted"] += 1
                break
            except WhisulError as error:
                ends[type(error).__name__] += 1
                if not isinstance(error, WhisulAmbiguousSubmitError):
                    break
        clock.now += 1.0

    content = read()
    entries = content.entries
    assert not content.unreadable
    accepted = [entry for entry in entries if entry.state == "accepted"]
    ambiguous = [entry for entry in entries if entry.state == "ambiguous"]
    assert len(accepted) + len(ambiguous) == len(entries)
    assert (len(accepted), len(ambiguous)) == (ends["accepted"], ends["WhisulAmbiguousSubmitError"])
    assert min(ends["accepted"], ends["WhisulAmbiguousSubmitError"], len(ends)) > 3

    # Each job of the sandbox is an accepted entry, or one of the ambiguous ones of its prompt.
    jobs = {entry.job_id for entry in accepted}
    assert len(jobs) == len(accepted)
    assert jobs <= set(sandbox.jobs)
    lost = Counter(job.prompt for job_id, job in sandbox.jobs.items() if job_id not in jobs)
    assert lost <= Counter(entry.prompt for entry in ambiguous)

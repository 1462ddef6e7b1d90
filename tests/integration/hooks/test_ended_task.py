"""A task that is ended in the moment in which its submission has a response: nothing but that names the job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.reader import all_ledgers, read_ledgers
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.state_path import state_folder
from tests.support.clock import FakeClock

SONG = SubmissionId("songs", "make", "some-run", 3, 0)


class Ended(BaseException):
    """As Airflow ends a task at its timeout."""


@pytest.fixture
def ended_task(sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Submit a prompt, and end the task while the rate limiter learns from the response."""

    def end(*_: object) -> None:
        raise Ended

    def submit(prompt: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(WorkerRateLimiter, "on_response", end)
            with pytest.raises(Ended):
                WhisulHook(clock=clock.clock).generate(prompt, submission=SONG)

    return submit


def test_a_paid_job_is_in_the_ledger_and_in_the_log_and_a_later_try_takes_it(
    sandbox: Sandbox, clock: FakeClock, ended_task: Callable[[str], None], task_log: Callable[[], list[str]]
) -> None:
    ended_task("a song")
    [job_id] = sandbox.jobs
    assert any(f"submitted job {job_id}, which is paid for" in line for line in task_log())
    assert WhisulHook(clock=clock.clock).generate("a song", submission=SONG) == job_id
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("fault", ["post-429=1", "post-422", "post-402"])
def test_a_submission_that_was_refused_is_not_ambiguous(ended_task: Callable[[str], None], fault: str) -> None:
    ended_task(f"a song [sandbox:{fault}]")
    folder = state_folder()
    assert folder is not None
    assert read_ledgers(all_ledgers(folder), "2000-01-01", "2999-12-31").entries == []

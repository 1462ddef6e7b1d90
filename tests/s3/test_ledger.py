"""The ledger in S3, at moto's server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulBudgetExceededError, WhisulStateError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.command_line import main
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.s3 import list_objects

TASKS = 20
SONG = SubmissionId("songs/ü", "make", "some-run", -1, 0)


@pytest.fixture(autouse=True)
def _state_path(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "s3://songs_store@songs/state")


@pytest.fixture
def set_ceiling(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_ceiling(ceiling: int) -> None:
        extra = {"max_requests_per_second": 1e6, "max_submissions_per_day": ceiling}
        connection = {**json.loads(sandbox.connection), "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))

    return set_ceiling


def posts(sandbox: Sandbox) -> list[int | None]:
    return [request.status for request in sandbox.requests if request.method == "POST"]


def submit_at_once(submissions: list[SubmissionId]) -> list[str]:
    def submit(submission: SubmissionId) -> str:
        try:
            return WhisulHook().generate("a song", submission=submission)
        except WhisulBudgetExceededError:
            return "refused"

    WhisulHook().generate("the first one, which opens the folder")
    with ThreadPoolExecutor(len(submissions)) as pool:
        return list(pool.map(submit, submissions))


def test_of_many_tasks_at_once_never_more_submit_than_the_ceiling_permits(
    sandbox: Sandbox, set_ceiling: Callable[[int], None], s3: Any
) -> None:
    set_ceiling(10)
    ends = Counter(submit_at_once([SubmissionId("songs", "make", "run", number, 0) for number in range(TASKS)]))
    accepted = posts(sandbox)
    # One more is the first one. Near the ceiling, tasks that come at once may refuse each other.
    assert 1 <= len(accepted) <= 10
    assert accepted == [202] * len(accepted)
    assert ends["refused"] == TASKS + 1 - len(accepted)
    assert len([name for name in list_objects(s3) if "/s." in name]) == len(accepted)


def test_one_after_the_other_as_many_submit_as_the_ceiling_permits(
    sandbox: Sandbox, set_ceiling: Callable[[int], None]
) -> None:
    set_ceiling(3)
    hook = WhisulHook()
    for _ in range(3):
        hook.generate("a song", submission=None)
    with pytest.raises(WhisulBudgetExceededError, match="3 of 3 made"):
        hook.generate("a song")
    assert posts(sandbox) == 3 * [202]


def test_of_many_tries_of_one_submission_one_submits_and_all_get_its_job(sandbox: Sandbox) -> None:
    jobs = set(submit_at_once(8 * [SONG]))
    assert len(posts(sandbox)) == 2
    assert len(jobs) == 1


def test_the_command_line_reads_it(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = WhisulHook().generate("a song", submission=SONG)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "Read s3://songs/state/ledger/" in out
    assert "DAG songs/ü, task make" in out
    assert f'WhisulJobSensor(task_id="fetch_{job_id}"' in out


def test_a_bucket_that_is_gone_stops_the_submission(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "s3://songs_store@no-such-bucket/state")
    with pytest.raises(WhisulStateError, match="Nothing was sent"):
        WhisulHook().generate("a song", submission=SONG)
    assert posts(sandbox) == []

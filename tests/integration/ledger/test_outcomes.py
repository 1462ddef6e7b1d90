"""How jobs end, as the hook of the workers writes it into the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_whisul.exceptions import WhisulJobFailedError, WhisulJobNotFoundError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock


@pytest.fixture
def outcomes(state_path: Path) -> Callable[[], list[str]]:
    """Return the names of the files that say how jobs ended."""
    return lambda: sorted(path.name for path in state_path.rglob("o.*"))


def test_a_completed_job_is_delivered_to_whoever_gets_it(
    sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, outcomes: Callable[[], list[str]]
) -> None:
    job_id = hook.generate("a song")
    hook.get_job(job_id)
    assert outcomes() == []
    clock.now += 100
    hook.get_job(job_id)
    assert outcomes() == [f"o.delivered.{job_id}.json"]


def test_it_is_written_once_by_a_hook_that_gets_it_often(
    sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(AccountLedger, "record_outcome", lambda self, job_id, outcome, now: written.append(outcome))
    job_id = hook.generate("a song")
    clock.now += 100
    for _ in range(3):
        hook.get_job(job_id)
    assert written == ["delivered"]


def test_a_job_without_its_songs_url_is_not_delivered(
    sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, outcomes: Callable[[], list[str]]
) -> None:
    job_id = hook.generate("a song [sandbox:song-late]")
    clock.now += 100
    hook.get_job(job_id)
    assert outcomes() == []


def test_a_failed_job_has_failed(sandbox: Sandbox, hook: WhisulHook, outcomes: Callable[[], list[str]]) -> None:
    job_id = hook.generate("a song [sandbox:fail]")
    with pytest.raises(WhisulJobFailedError):
        hook.wait_for_job(job_id)
    assert outcomes() == [f"o.failed.{job_id}.json"]


def test_a_job_that_stays_unknown_for_a_minute_is_not_found(
    sandbox: Sandbox, hook: WhisulHook, outcomes: Callable[[], list[str]]
) -> None:
    with pytest.raises(WhisulJobNotFoundError):
        hook.get_job("no-such-job", retry=False)
    assert outcomes() == []
    with pytest.raises(WhisulJobNotFoundError):
        hook.wait_for_job("no-such-job")
    assert outcomes() == ["o.not_found.no-such-job.json"]


@pytest.fixture
def unusable(state_path: Path) -> None:
    (state_path / "ledger").write_text("no folder")


@pytest.mark.usefixtures("unusable")
def test_a_store_that_is_away_costs_no_song(
    sandbox: Sandbox, hook: WhisulHook, task_log: Callable[[], list[str]]
) -> None:
    hook.record_outcome("some-job", "delivered")
    (line,) = [line for line in task_log() if "does not say how job some-job has ended" in line]
    assert "Could not write file://" in line


@pytest.mark.usefixtures("sandbox")
def test_neither_does_a_connection_that_is_gone(
    hook: WhisulHook, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_WHISUL_DEFAULT")
    hook.record_outcome("some-job", "delivered")
    assert any("does not say how job some-job has ended" in line for line in task_log())


@pytest.mark.usefixtures("sandbox")
def test_an_id_that_cannot_be_a_jobs_names_no_file(
    hook: WhisulHook, state_path: Path, task_log: Callable[[], list[str]]
) -> None:
    hook.record_outcome("../../elsewhere", "delivered")
    assert list(state_path.rglob("*")) == []
    assert any("has ended" in line for line in task_log())

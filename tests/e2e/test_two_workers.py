"""Two workers, each a process with an AIRFLOW_HOME of its own as on another machine, run the tries of one task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.storage.documents import LocalDocuments
from tests.support.reconciliation import differences, read_ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def real_sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(api_key="secret-sandbox-key")) as sandbox:
        yield sandbox


def _run_try(sandbox: Sandbox, home: Path, number: int, *arguments: str, state_path: Path | None = None) -> str:
    """Run a try on the machine that a home is on; return what it prints, its log included."""
    home.mkdir(exist_ok=True)
    env = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW_CONN_WHISUL_DEFAULT": sandbox.connection}
    if state_path is not None:
        env["AIRFLOW__WHISUL__STATE_PATH"] = str(state_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.try_in_process", str(number), *arguments],
        cwd=ROOT,
        env={**env, "TMPDIR": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == (-signal.SIGKILL if "die" in arguments else 0), done.stdout
    return done.stdout


def _posts(sandbox: Sandbox) -> list[str | None]:
    return [request.job_id for request in sandbox.requests if request.method == "POST"]


def _song(output: str) -> str:
    return str(json.loads(output.splitlines()[-1])["job_id"])


def test_on_a_shared_folder_the_second_worker_reattaches_and_one_song_is_paid_for(
    real_sandbox: Sandbox, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    first = _run_try(real_sandbox, tmp_path / "one", 1, "die", state_path=shared)
    second = _run_try(real_sandbox, tmp_path / "two", 2, state_path=shared)
    (job_id,) = _posts(real_sandbox)
    assert _song(second) == job_id
    assert f"Re-attaching to an earlier try's job {job_id}" in second
    assert "state_path" not in first + second
    assert differences(read_ledger(LocalDocuments(shared)), real_sandbox.requests) == []


def test_on_two_folders_both_workers_pay_and_the_log_says_what_to_set(real_sandbox: Sandbox, tmp_path: Path) -> None:
    first = _run_try(real_sandbox, tmp_path / "one", 1, "die")
    second = _run_try(real_sandbox, tmp_path / "two", 2)
    jobs = _posts(real_sandbox)
    assert len(jobs) == 2
    assert _song(second) == jobs[1]
    for home, log in (("one", first), ("two", second)):
        assert f"is kept in {LocalDocuments(tmp_path / home / 'whisul_state').url}." in log
        assert "Where tasks run on several machines, set [whisul] state_path in Airflow's configuration" in log
        assert "or else a retry on another machine knows nothing: one that submits pays again" in log
    # Each machine's ledger has its own submission.
    for home, job_id in zip(("one", "two"), jobs, strict=True):
        entries = read_ledger(LocalDocuments(tmp_path / home / "whisul_state")).entries
        assert [entry.job_id for entry in entries] == [job_id]


def test_on_one_machine_nothing_need_be_set(real_sandbox: Sandbox, tmp_path: Path) -> None:
    _run_try(real_sandbox, tmp_path / "one", 1, "die")
    second = _run_try(real_sandbox, tmp_path / "one", 2)
    assert [_song(second)] == _posts(real_sandbox)

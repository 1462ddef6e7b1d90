from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.reader import LedgerContent, all_ledgers, read_ledgers
from airflow_provider_whisul.state.state_path import state_folder
from tests.support.clock import FakeClock

Submit = Callable[..., list[dict[str, str]]]


@pytest.fixture(autouse=True)
def state_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    path = tmp_path / "state"
    path.mkdir()
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(path))
    return path


@pytest.fixture
def hook(clock: FakeClock) -> WhisulHook:
    return WhisulHook(clock=clock.clock)


@pytest.fixture
def set_extra(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set extras of the connection that leads to the sandbox."""

    def set_extra(**extra: object) -> None:
        connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
        connection["extra"] = {**connection["extra"], **extra}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))

    return set_extra


@pytest.fixture
def read() -> Callable[[], LedgerContent]:
    """Read all that the folder has."""

    def read() -> LedgerContent:
        folder = state_folder()
        assert folder is not None
        return read_ledgers(all_ledgers(folder), "2000-01-01", "2999-12-31")

    return read


@pytest.fixture
def ledger(hook: WhisulHook) -> AccountLedger:
    """The ledger of the connection's account."""
    found = AccountLedger.open(hook.settings)
    assert found is not None
    return found


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """
    Submit prompts from processes of their own, at the same moment, and return what each has got.

    With ``machines`` each process has folders of its own.
    """
    started: list[subprocess.Popen[str]] = []

    def submit(
        *submissions: tuple[str, list[Any] | None], die: str | None = None, machines: bool = False
    ) -> list[dict[str, str]]:
        file = tmp_path / f"arguments-{len(started)}.json"
        folder = str(tmp_path / f"machines-{len(started)}") if machines else None
        file.write_text(json.dumps({"submissions": submissions, "die": die, "machines": folder}))
        (tmp_path / "tmp").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.ledger.submit_in_processes", str(file)],
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        out, _ = process.communicate(timeout=100)
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    yield submit
    for process in started:
        process.kill()
        process.wait()

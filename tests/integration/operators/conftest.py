from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from tests.integration.operators.batch_task import BatchTask, Main, MakeBatch, Simulate
from tests.integration.operators.song_task import MakeTask, SongTask
from tests.support.clock import FakeClock, VirtualLoop, run_virtually
from tests.support.homes import HOMES, Home

KEY = "secret-sandbox-key"


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Home:
    """Each of the places where a task's record can be kept."""
    (tmp_path / "state").mkdir()
    return Home.set_up(request.param, monkeypatch, tmp_path / "state")


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Run a coroutine function on virtual time, with a function that makes a :class:`BatchTask`."""

    def simulate(main: Main, **options: Any) -> None:
        async def with_sandbox(loop: VirtualLoop) -> None:
            sandbox = Sandbox(SandboxOptions(**{"api_key": KEY, "job_seconds": (60, 120), **options}), clock=loop.wall)
            async with sandbox.serve():
                monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", sandbox.connection)
                await main(lambda prompts, **arguments: BatchTask(sandbox, loop, prompts, **arguments))

        run_virtually(with_sandbox)

    return simulate


@pytest.fixture
def simulate_at_home(simulate: Simulate, home: Home) -> Simulate:
    """The same with the record of each batch in each of the homes."""

    def simulate_at_home(main: Main, **options: Any) -> None:
        async def at_home(make: MakeBatch) -> None:
            def make_at_home(prompts: list[str], **arguments: Any) -> BatchTask:
                batch = make(prompts, **arguments)
                batch.store = home.task_store()
                return batch

            await main(make_at_home)

        simulate(at_home, **options)

    return simulate_at_home


@pytest.fixture
def task(sandbox: Sandbox, clock: FakeClock, home: Home) -> MakeTask:
    """Make a :class:`SongTask` whose record is kept in each of the homes."""
    return lambda **arguments: SongTask(clock, home.task_store(), **arguments)

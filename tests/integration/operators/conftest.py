from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from tests.integration.operators.batch_task import BatchTask, Main, Simulate
from tests.support.clock import VirtualLoop, run_virtually

KEY = "secret-sandbox-key"


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

"""What a batch does where somebody sets the clock: real HTTP, a real trigger, and virtual time."""

from __future__ import annotations

import aiohttp
import pytest

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.triggers.events import chunk_from_event
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger
from tests.support.airflow import event_of
from tests.support.clock import VirtualLoop, run_virtually

KEY = "secret-sandbox-key"


def test_a_failed_song_is_reported_within_two_minutes_though_the_clock_is_put_back_by_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(loop: VirtualLoop) -> None:
        def wall() -> float:
            return loop.wall() - (3600 if loop.time() > 40 else 0)

        sandbox = Sandbox(SandboxOptions(api_key=KEY, job_seconds=(20, 20)), clock=loop.wall)
        async with sandbox.serve():
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", sandbox.connection)
            headers = {"Authorization": f"Bearer {KEY}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                for directive in ("fail", "forever"):
                    prompt = {"prompt": f"a song [sandbox:{directive}]"}
                    await session.post(sandbox.base_url + "/generate", json=prompt)
            failing, endless = sandbox.jobs
            trigger = WhisulBatchTrigger([failing, endless], "whisul_default", 10, loop.wall() + 7200)
            trigger.clock = Clock(time=wall, monotonic=loop.time, random=lambda: 0.0)
            chunk, error = chunk_from_event(await event_of(trigger))
        assert error is None
        assert list(chunk["failed"]) == [failing]
        assert loop.time() < 120

    run_virtually(main)

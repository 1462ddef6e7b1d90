"""A task that defers on one machine, and that Airflow resumes on another, whose AIRFLOW_HOME is its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulJobFailedError
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.operators.batch_task import BatchTask, MakeBatch, Simulate, numbered_prompts
from tests.integration.operators.song_task import MakeTask, SongTask, completed_event, error_event, posts
from tests.support.clock import FakeClock


class TestBatch:
    @pytest.mark.parametrize("prompts", [numbered_prompts(45), ["good", "doomed once [sandbox:fail=1]"]])
    def test_it_finds_its_songs_there_and_pays_for_none_again(
        self, simulate_at_home: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: list[str]
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(prompts)
            machines = _machines(monkeypatch, tmp_path)
            wait = batch.wait

            async def move(deferral: Any) -> Any:
                event = await wait(deferral)
                next(machines)
                return event

            batch.wait = move  # type: ignore[method-assign]
            results = await batch.attempt()
            assert [result["status"] for result in results] == ["completed"] * len(prompts)
            assert batch.posts() == {prompt: 1 + ("fail=1" in prompt) for prompt in prompts}

        simulate_at_home(main)

    def test_a_retry_on_the_first_machine_continues_there(
        self, simulate_at_home: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch: BatchTask = make(numbered_prompts(5))
            wait = batch.wait

            async def killed(deferral: Any) -> Any:
                await wait(deferral)
                raise RuntimeError("killed")

            batch.wait = killed  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="killed"):
                await batch.attempt()
            batch.wait = wait  # type: ignore[method-assign]
            results = await batch.attempt()
            assert [result["status"] for result in results] == ["completed"] * 5
            assert batch.posts() == dict.fromkeys(numbered_prompts(5), 1)

        simulate_at_home(main)


def test_one_song_is_returned_there(
    task: MakeTask, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    song = task(wait_for_completion=True)
    job_id = song.attempt().job_id
    next(_machines(monkeypatch, tmp_path))
    assert song.resume(completed_event(job_id))["job_id"] == job_id
    assert posts(sandbox) == 1


def _machines(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Yield a new machine each time, on which the task is from then on."""
    number = 0
    while True:
        number += 1
        monkeypatch.setenv("AIRFLOW_HOME", str(folder / f"machine {number}"))
        yield number


def test_the_end_of_another_machine_s_job_says_nothing_of_the_own_one(
    sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    song = SongTask(clock, wait_for_completion=True)
    ours = song.attempt().job_id
    home = os.environ["AIRFLOW_HOME"]
    next(_machines(monkeypatch, tmp_path))
    theirs = song.attempt().job_id
    assert theirs != ours
    monkeypatch.setenv("AIRFLOW_HOME", home)
    with pytest.raises(WhisulJobFailedError):
        song.resume(error_event(WhisulJobFailedError("failed", job_id=theirs)))
    assert song.attempt().job_id == ours
    assert posts(sandbox) == 2

"""When a batch that submits stores what it knows: one write for each song, and a paid job is never long without one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulStateError, WhisulUnauthorizedError
from airflow_provider_whisul.ledger.submitting import SHORT_WAIT
from airflow_provider_whisul.operators import whisul_batch
from tests.integration.operators.batch_task import BatchTask, MakeBatch, Simulate, numbered_prompts
from tests.support.airflow import Deferral, mortal_batch
from tests.support.connection import set_extra
from tests.support.homes import fail_before_set, store_of


@pytest.fixture
def simulate(simulate_at_home: Simulate) -> Simulate:
    """Let the record of each batch be kept in each of the homes."""
    return simulate_at_home


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of each segment that is stored, in turn."""
    keys: list[str] = []

    def note(key: str, value: Any) -> None:
        if re.fullmatch(r"whisul_batch_[01]_\d{4}", key):
            keys.append(key)

    fail_before_set(monkeypatch, whisul_batch, note)
    return keys


def recorded(batch: BatchTask) -> set[str]:
    """The jobs that a later try of a batch of up to 20 songs would find in its record."""
    found: Any = store_of(batch, task_id="songs").get("whisul_batch_1_0000")
    return {song[2] for song in found["songs"] if song[2] is not None}


def test_a_song_costs_one_write(simulate: Simulate, monkeypatch: pytest.MonkeyPatch, segments: list[str]) -> None:
    async def main(make: MakeBatch) -> None:
        set_extra(monkeypatch, max_requests_per_second=1000)
        batch = make(numbered_prompts(30))
        wait, written = batch.wait, []

        async def waited(deferral: Deferral) -> Any:
            written.extend(segments)
            return await wait(deferral)

        batch.wait = waited  # type: ignore[method-assign]
        await batch.attempt()
        # Both segments when the try begins, one for each song, and one more after the first song, at the end of the
        # first segment and after the last song.
        assert len(written) == 2 + 30 + 3
        assert written.count("whisul_batch_1_0001") == 1 + 10 + 1

    simulate(main)


@pytest.mark.parametrize("rate", [1, 3, 9, 11])
def test_a_job_is_stored_before_its_task_waits(simulate: Simulate, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    unstored_for: Counter[str] = Counter()

    async def main(make: MakeBatch) -> None:
        set_extra(monkeypatch, max_requests_per_second=rate)
        batch = make([*numbered_prompts(5), "limited [sandbox:post-429]", "last"])
        operator = batch.operator()
        sleep = operator.clock.sleep

        def observed(seconds: float) -> None:
            for job_id in set(batch.sandbox.jobs) - recorded(batch):
                unstored_for[job_id] += seconds  # type: ignore[assignment]
            sleep(seconds)

        operator.clock = replace(operator.clock, sleep=observed)
        await batch.attempt(operator)
        assert len(batch.sandbox.jobs) == 7

    simulate(main)
    assert max(unstored_for.values(), default=0.0) <= SHORT_WAIT + 1e-6


@pytest.mark.parametrize("moment", ["response recorded in the ledger", "permit", "ledger", "intent"])
@pytest.mark.parametrize("number", [2, 19, 20])
def test_a_worker_killed_between_two_submissions_costs_nothing(
    simulate: Simulate,
    monkeypatch: pytest.MonkeyPatch,
    task_log: Callable[[], list[str]],
    moment: str,
    number: int,
) -> None:
    async def main(make: MakeBatch) -> None:
        set_extra(monkeypatch, max_requests_per_second=1000)
        prompts = numbered_prompts(number + 2)
        batch = make(prompts)
        operator = batch.operator()
        generate, acquire = operator.hook.generate, operator.hook._rate_limiter.acquire

        def dying_generate(prompt: str, *, before_send: Callable[[], None], **options: Any) -> str:
            dies = prompt == f"song {number}"

            def dying_acquire(*arguments: Any) -> Any:
                permit = acquire(*arguments)
                if dies and moment == "permit":
                    die()
                return permit

            def dying_before_send() -> None:
                if dies and moment == "ledger":
                    die()
                before_send()
                if dies:
                    die()

            operator.hook._rate_limiter.acquire = dying_acquire  # type: ignore[method-assign]
            if dies and moment == "response recorded in the ledger":
                die()
            return generate(prompt, before_send=dying_before_send, **options)

        operator.hook.generate = dying_generate  # type: ignore[method-assign, assignment]
        with mortal_batch() as die, pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)
        assert sum(batch.posts().values()) == number
        # Only the ledger has the last job, until the intent of the next song is stored.
        assert len(set(batch.sandbox.jobs) - recorded_in_all(batch)) == (moment != "intent")
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert batch.posts() == dict.fromkeys(prompts, 1)

    def recorded_in_all(batch: BatchTask) -> set[str]:
        store, found = store_of(batch, task_id="songs"), set()
        for segment in ("0000", "0001"):
            value: Any = store.get(f"whisul_batch_1_{segment}")
            found |= {song[2] for song in (value or {"songs": []})["songs"]}
        return found

    simulate(main)
    assert sum("The ledger has it" in line for line in task_log()) == (moment != "intent")


def test_a_job_is_stored_where_the_next_submission_ends_the_task(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(make: MakeBatch) -> None:
        set_extra(monkeypatch, max_requests_per_second=1000)
        batch = make(numbered_prompts(5))
        operator = batch.operator()
        generate = operator.hook.generate

        def revoke(prompt: str, **options: Any) -> str:
            if prompt == "song 3":
                batch.sandbox.revoke_key()
            return generate(prompt, **options)

        operator.hook.generate = revoke  # type: ignore[method-assign, assignment]
        with pytest.raises(WhisulUnauthorizedError):
            await batch.attempt(operator)
        assert recorded(batch) == set(batch.sandbox.jobs)
        assert len(batch.sandbox.jobs) == 3

    simulate(main)


def test_a_job_whose_write_fails_with_the_intent_of_the_next_song_is_logged(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
) -> None:
    jobs: list[str] = []

    def refuse(key: str, value: Any) -> None:
        songs = value.get("songs")
        if not jobs and isinstance(songs, list) and [song[1] for song in songs].count("running") == 3:
            raise WhisulStateError("no response from the API server")

    async def main(make: MakeBatch) -> None:
        set_extra(monkeypatch, max_requests_per_second=1000)
        batch = make(numbered_prompts(5))
        fail_before_set(monkeypatch, whisul_batch, refuse)
        with pytest.raises(WhisulStateError, match="no response from the API server"):
            await batch.attempt()
        jobs.extend(batch.sandbox.jobs)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate(main)
    assert len(jobs) == 3
    (line,) = [line for line in task_log() if "could not be recorded" in line]
    assert "song 2" in line
    assert jobs[-1] in line

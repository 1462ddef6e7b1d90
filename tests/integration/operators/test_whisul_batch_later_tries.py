"""What a later try of a batch does about what an earlier one has submitted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import (
    TaskRetry,
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
    WhisulStateError,
)
from airflow_provider_whisul.operators import whisul_batch
from airflow_provider_whisul.rate_limit.rate_limiter import Kind, Permit
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts
from tests.support.airflow import Deferral, Killed, mortal_batch
from tests.support.homes import HOMES, Home, fail_before_set, keep_no_record


@pytest.fixture
def simulate(simulate_at_home: Simulate) -> Simulate:
    """Let the record of each batch be kept in each of the homes."""
    return simulate_at_home


@pytest.mark.parametrize("after", [0, 7, 25])
@pytest.mark.parametrize("sent", [True, False])
def test_a_retry_after_a_kill_while_submitting_continues_there(simulate: Simulate, after: int, sent: bool) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(30))
        operator = batch.operator()
        generate = operator.hook.generate
        left = iter(range(after))

        def dying(prompt: str, *, before_send: Callable[[], None], **options: Any) -> str:
            if next(left, None) is not None:
                return generate(prompt, before_send=before_send, **options)
            if sent:
                generate(prompt, before_send=before_send, **options)
            else:
                before_send()
            return die()

        operator.hook.generate = dying  # type: ignore[method-assign]
        with mortal_batch() as die, pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        # What was sent is in the ledger, though the task has not recorded it.
        assert batch.posts() == dict.fromkeys(numbered_prompts(30), 1)

    simulate(main)


def test_a_kill_while_waiting_for_the_rate_limiter_is_no_ambiguous_submission(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(10), on_ambiguous_submit="fail")
        operator = batch.operator()
        acquire = operator.hook._rate_limiter.acquire
        left = iter(range(7))

        def dying(kind: Kind, max_wait: float) -> Permit:
            if next(left, None) is None:
                die()
            return acquire(kind, max_wait)

        operator.hook._rate_limiter.acquire = dying  # type: ignore[method-assign]
        with mortal_batch() as die, pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate(main)
    assert not any("already have been paid for" in line for line in task_log())


def test_a_job_that_cannot_be_recorded_is_logged_and_found_in_the_ledger(
    simulate: Simulate, task_log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(key: str, value: Any) -> None:
        songs = value.get("songs")
        if not jobs and isinstance(songs, list) and any(song[1] == "running" for song in songs):
            raise WhisulStateError("no response from the API server")

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        fail_before_set(monkeypatch, whisul_batch, refuse)
        with pytest.raises(WhisulStateError, match="no response from the API server"):
            await batch.attempt()
        jobs.extend(batch.sandbox.jobs)
        await batch.attempt()
        assert set(batch.posts().values()) == {1}

    jobs: list[str] = []
    simulate(main)
    (job_id,) = jobs
    assert sum("song 0" in line and job_id in line and "paid for" in line for line in task_log()) == 1


@pytest.mark.parametrize("prompt", ["song", "song [sandbox:fail=1]"])
def test_the_error_of_an_interrupted_submission_says_that_it_may_have_been_paid_for(
    simulate: Simulate, prompt: str
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([prompt], on_ambiguous_submit="fail", max_failures=1)
        operator = batch.operator()
        generate = operator.hook.generate

        def dying(prompt: str, *, before_send: Callable[[], None], **options: Any) -> str:
            if batch.posts()[prompt] == ("fail" in prompt):
                before_send()
                raise Killed
            return generate(prompt, before_send=before_send, **options)

        unharmed = batch.operator
        operator.hook.generate = dying  # type: ignore[method-assign]
        batch.operator = lambda: operator  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt()
        batch.operator = unharmed  # type: ignore[method-assign]
        (result,) = await batch.attempt()
        assert (result["status"], result["job_id"]) == ("failed", None)
        assert "may have been paid for" in result["error"]

    simulate(main)


def test_an_ambiguous_submission_is_left_to_the_next_try(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(3), "lost [sandbox:post-drop]"])
        with pytest.raises(WhisulAmbiguousSubmitError, match="may have been paid for") as caught:
            await batch.attempt()
        assert caught.value.task_retry is TaskRetry.TRANSIENT
        assert batch.posts()["lost [sandbox:post-drop]"] == 1
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert batch.posts()["lost [sandbox:post-drop]"] == 2

    simulate(main)
    assert sum("may already have been paid for" in line for line in task_log()) == 1


def test_an_ambiguous_submission_stays_failed_until_the_task_is_cleared(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["lost [sandbox:post-drop]", "fine"], on_ambiguous_submit="fail")
        for _ in range(2):
            with pytest.raises(WhisulAmbiguousSubmitFinalError, match="may have been paid for") as caught:
                await batch.attempt()
            # The error ends Airflow's retries, so that it must not say what one would do.
            assert str(caught.value).endswith("nothing is submitted until you clear this task.")
            assert "retry" not in str(caught.value)
            assert str(caught.value).count("on_ambiguous_submit") == 1
        assert batch.posts()["lost [sandbox:post-drop]"] == 1
        batch.clear()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}

    simulate(main)


def test_a_retry_after_the_result_was_lost_submits_nothing(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(25))
        first = await batch.attempt()
        assert await batch.attempt() == first
        assert sum(batch.posts().values()) == 25

    simulate(main)


def test_a_cleared_batch_makes_new_songs_and_says_so(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        first = await batch.attempt()
        batch.clear()
        second = await batch.attempt()
        assert not {result["job_id"] for result in first} & {result["job_id"] for result in second}

    simulate(main)
    assert sum("was cleared since: this try pays for new ones" in line for line in task_log()) == 1


def test_a_changed_prompt_is_submitted_and_the_other_songs_are_kept(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["one", "two [sandbox:fail]"], attempts=1)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        batch.arguments["prompts"] = ["one", "another two"]
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert batch.posts() == {"one": 1, "two [sandbox:fail]": 1, "another two": 1}

    simulate(main)


@pytest.mark.parametrize("edit", ["removed", "added", "reversed", "repeated"])
def test_an_edited_list_of_prompts_submits_only_the_new_ones(simulate: Simulate, edit: str) -> None:
    async def main(make: MakeBatch) -> None:
        songs = [*numbered_prompts(30), "bad [sandbox:no-such-directive]"]
        songs.insert(3, songs.pop())
        batch = make(songs)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        good = numbered_prompts(30)
        edited = {
            "removed": good,
            "added": ["one more", *good],
            "reversed": good[::-1],
            "repeated": [*good] * 2,
        }
        batch.arguments["prompts"] = edited[edit]
        batch.clear()
        results = await batch.attempt()
        assert [(result["prompt"], result["status"]) for result in results] == [
            (prompt, "completed") for prompt in edited[edit]
        ]
        assert all(batch.sandbox.jobs[result["job_id"]].prompt == result["prompt"] for result in results)
        assert batch.posts() - Counter({songs[3]: 1}) == Counter(edited[edit])

    simulate(main)


def test_jobs_whose_prompts_are_removed_are_logged(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["twice", "twice", "dropped", "doomed [sandbox:fail]"], attempts=1)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        first = batch.context.xcoms["return_value"]
        batch.arguments["prompts"] = ["twice"]
        (result,) = await batch.attempt()
        assert result["job_id"] == first[0]["job_id"]
        left.extend(other["job_id"] for other in first[1:])

    left: list[str] = []
    simulate(main)
    (line,) = [line for line in task_log() if "no longer" in line]
    assert len(left) == 3
    assert all(job_id in line for job_id in left)


def test_a_later_try_whose_list_is_empty_logs_the_jobs_of_the_earlier_one(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["endless [sandbox:forever]"], on_empty="succeed", timeout=60)
        with pytest.raises(WhisulJobTimeoutError):
            await batch.attempt()
        job_ids.append(batch.context.xcoms["return_value"][0]["job_id"])
        batch.arguments["prompts"] = []
        assert await batch.attempt() == []

    job_ids: list[str] = []
    simulate(main)
    (line,) = [line for line in task_log() if "no longer" in line]
    assert job_ids[0] in line


def test_a_prompt_added_while_the_task_is_deferred_makes_no_song_paid_for_twice(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        songs = [*numbered_prompts(40), "doomed [sandbox:fail][sandbox:seconds=20]"]
        batch = make(songs)
        wait = batch.wait

        async def waited(deferral: Deferral) -> Any:
            batch.arguments["prompts"] = ["one more", *songs]
            return await wait(deferral)

        batch.wait = waited  # type: ignore[method-assign]
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        assert {batch.posts()[prompt] for prompt in [*numbered_prompts(40), "one more"]} == {1}

    simulate(main)


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_while_the_state_is_rewritten_loses_no_song(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left = itertools.repeat(0)

    def die(key: str, value: Any) -> None:
        if next(left, None) is None:
            raise Killed

    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(40), "doomed [sandbox:fail]"], attempts=1)
        fail_before_set(monkeypatch, whisul_batch, die)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        batch.arguments["prompts"] = numbered_prompts(40)[::-1]
        nonlocal left
        left = itertools.repeat(0, writes)
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt()
        left = itertools.repeat(0)
        await batch.attempt()
        assert {batch.posts()[prompt] for prompt in numbered_prompts(40)} == {1}

    simulate(main)


@pytest.mark.parametrize(
    ("home", "durable"), [*((name, False) for name in HOMES), ("machine", True)], indirect=["home"]
)
def test_where_no_record_is_kept_a_retry_submits_all_songs_and_warns(
    simulate: Simulate,
    task_log: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    home: Home,
    durable: bool,
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(2), durable=durable)
        await batch.attempt()
        assert not paid_again()
        await batch.attempt()
        assert sum(batch.posts().values()) == 4

    def paid_again() -> list[str]:
        return [line for line in task_log() if "submits, and pays for, all of 2 songs" in line]

    if durable:
        keep_no_record(monkeypatch, tmp_path)
    simulate(main)
    assert len(paid_again()) == 1

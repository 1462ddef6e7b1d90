"""What a later try of a batch does about what an earlier one has submitted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulJobFailedError
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts
from tests.support.airflow import Deferral, Killed, TaskStore


@pytest.mark.parametrize("after", [0, 7, 25])
@pytest.mark.parametrize("sent", [True, False])
def test_a_retry_after_a_kill_while_submitting_continues_there(simulate: Simulate, after: int, sent: bool) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(30))
        operator = batch.operator()
        generate = operator.hook.generate
        left = iter(range(after))

        def dying(prompt: str, *, before_send: Callable[[], None]) -> str:
            if next(left, None) is not None:
                return generate(prompt, before_send=before_send)
            if sent:
                generate(prompt, before_send=before_send)
            else:
                before_send()
            raise Killed

        operator.hook.generate = dying  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        twice = [prompt for prompt, times in batch.posts().items() if times > 1]
        assert twice == ([f"song {after}"] if sent else [])

    simulate(main)


def test_a_kill_while_waiting_for_the_rate_limiter_is_no_ambiguous_submission(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(10), on_ambiguous_submit="fail")
        operator = batch.operator()
        acquire = operator.hook._rate_limiter.acquire
        left = iter(range(7))

        def dying(max_wait: float) -> int:
            if next(left, None) is None:
                raise Killed
            return acquire(max_wait)

        operator.hook._rate_limiter.acquire = dying  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate(main)
    assert not any("already have been paid for" in line for line in task_log())


def test_a_job_that_cannot_be_recorded_is_logged(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    class Refusing(TaskStore):
        def set(self, key: str, value: Any) -> None:
            if "running" in json.dumps(value):
                raise ConnectionError("no response from the API server")
            super().set(key, value)

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        batch.store = Refusing()
        with pytest.raises(ConnectionError, match="no response from the API server"):
            await batch.attempt()
        jobs.extend(batch.sandbox.jobs)

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

        def dying(prompt: str, *, before_send: Callable[[], None]) -> str:
            if batch.posts()[prompt] == ("fail" in prompt):
                before_send()
                raise Killed
            return generate(prompt, before_send=before_send)

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
        with pytest.raises(WhisulJobFailedError, match="may have been paid for"):
            await batch.attempt()
        assert batch.posts()["lost [sandbox:post-drop]"] == 1
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert batch.posts()["lost [sandbox:post-drop]"] == 2

    simulate(main)
    assert sum("may already have been paid for" in line for line in task_log()) == 1


def test_an_ambiguous_submission_stays_failed_until_the_task_is_cleared(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["lost [sandbox:post-drop]", "fine"], on_ambiguous_submit="fail")
        for _ in range(2):
            with pytest.raises(WhisulJobFailedError, match="may have been paid for"):
                await batch.attempt()
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


def test_a_cleared_batch_makes_new_songs(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        first = await batch.attempt()
        batch.clear()
        second = await batch.attempt()
        assert not {result["job_id"] for result in first} & {result["job_id"] for result in second}

    simulate(main)


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
def test_a_kill_while_the_state_is_rewritten_loses_no_song(simulate: Simulate, writes: int) -> None:
    class Dying(TaskStore):
        left = 1_000_000

        def set(self, key: str, value: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed
            super().set(key, value)

    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(40), "doomed [sandbox:fail]"], attempts=1)
        batch.store = store = Dying()
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        batch.arguments["prompts"] = numbered_prompts(40)[::-1]
        store.left = writes
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt()
        store.left = 1_000_000
        await batch.attempt()
        assert {batch.posts()[prompt] for prompt in numbered_prompts(40)} == {1}

    simulate(main)


@pytest.mark.parametrize("durable", [True, False])
def test_without_durable_or_a_state_store_a_retry_submits_all_songs_and_warns(
    simulate: Simulate, task_log: Callable[[], list[str]], durable: bool
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(2), durable=durable)
        batch.has_store = not durable
        await batch.attempt()
        assert not paid_again()
        await batch.attempt()
        assert sum(batch.posts().values()) == 4
        assert batch.store == {}

    def paid_again() -> list[str]:
        return [line for line in task_log() if "submits, and pays for, all 2 songs" in line]

    simulate(main)
    assert len(paid_again()) == 1

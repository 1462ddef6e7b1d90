"""Songs of a batch that fail, and errors that end the batch."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.api.messages import Response
from airflow_provider_whisul.api.outcomes import read_job
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
    WhisulOutOfCreditsError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from tests.integration.operators.batch_task import (
    MakeBatch,
    Simulate,
    assert_one_card_per_song,
    numbered_prompts,
)
from tests.support.airflow import FAIL_METHOD, TaskContext, TaskStore


def test_a_failed_song_is_submitted_again_within_the_try(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(5), "unlucky [sandbox:fail=1]"])
        results = await batch.attempt()
        assert results[-1]["status"] == "completed"
        assert batch.posts()["unlucky [sandbox:fail=1]"] == 2
        assert sum(batch.posts().values()) == 7

    simulate(main)


def test_more_failures_than_max_failures_fail_the_task_and_lose_no_song(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(5), "hopeless [sandbox:fail=2]"])
        with pytest.raises(WhisulJobFailedError, match=r"1 of 6 songs failed.*'hopeless .*Generation failed") as caught:
            await batch.attempt()
        assert not isinstance(caught.value, AirflowFailException)
        delivered = batch.context.xcoms["return_value"]
        assert [result["status"] for result in delivered] == ["completed"] * 5 + ["failed"]
        assert delivered[-1]["song"] is None
        # A retry submits only what failed.
        results = await batch.attempt()
        assert {result["status"] for result in results} == {"completed"}
        assert batch.posts() == {**dict.fromkeys(numbered_prompts(5), 1), "hopeless [sandbox:fail=2]": 3}
        assert [result["job_id"] for result in results[:5]] == [result["job_id"] for result in delivered[:5]]

    simulate(main)


def test_max_failures_failed_songs_do_not_fail_the_task(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(3), "hopeless [sandbox:fail]"], max_failures=1, attempts=1)
        results = await batch.attempt()
        assert [result["status"] for result in results] == ["completed"] * 3 + ["failed"]
        assert "Generation failed" in results[-1]["error"]

    simulate(main)


def test_a_success_with_failed_songs_warns_that_clearing_the_task_pays_for_all(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        said = "Clearing this task submits all of its prompts again"
        await make(numbered_prompts(2), max_failures=1).attempt()
        assert not any(said in line for line in task_log())
        await make([*numbered_prompts(2), "hopeless [sandbox:fail]"], max_failures=1).attempt()
        assert sum(said in line for line in task_log()) == 1

    simulate(main)


def test_a_job_that_is_not_found_is_a_failed_song(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["vanishing [sandbox:expired][sandbox:seconds=90]"], max_failures=1)
        results = await batch.attempt()
        assert results[0]["status"] == "failed"
        assert "404" in results[0]["error"]
        assert sum(batch.posts().values()) == 1

    simulate(main)


def test_a_job_that_is_not_found_is_polled_again_before_its_song_is_submitted_again(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["vanishing [sandbox:expired][sandbox:seconds=90]", "fine"])
        for submissions in (1, 2):
            with pytest.raises(WhisulJobFailedError, match="404"):
                await batch.attempt()
            # The second try polls first, and may then submit; if that job is not found either, the third try polls it.
            assert batch.posts() == {"vanishing [sandbox:expired][sandbox:seconds=90]": submissions, "fine": 1}
        assert {prompt: card["status"] for prompt, card in batch.cards().items()} == {
            "vanishing [sandbox:expired][sandbox:seconds=90]": "failed",
            "fine": "completed",
        }

    simulate(main)
    assert sum("Submitting 'vanishing" in line and "404" in line for line in task_log()) == 1


def test_a_gateway_that_answers_404_for_a_while_makes_no_song_paid_for_twice(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = False

    def read(response: Response, job_id: str) -> Any:
        return read_job(Response(404, b"<html>no route</html>") if wave else response, job_id)

    def begin(begun: bool) -> None:
        nonlocal wave
        wave = begun

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(10, "[sandbox:seconds=600]"))
        asyncio.get_running_loop().call_later(200, begin, True)
        asyncio.get_running_loop().call_later(400, begin, False)
        with pytest.raises(WhisulJobFailedError, match="10 of 10 songs failed"):
            await batch.attempt()
        begin(False)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    monkeypatch.setattr("airflow_provider_whisul.hooks.whisul_async.read_job", read)
    simulate(main)


def test_a_prompt_refused_with_400_fails_only_its_own_song(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2), "refused [sandbox:no-such-directive]"], max_failures=1)
        results = await batch.attempt()
        assert [result["status"] for result in results] == ["completed", "completed", "failed"]
        assert "400" in results[-1]["error"]
        assert sum(batch.posts().values()) == 3

    simulate(main)


@pytest.mark.parametrize("bad", ["a string", [], ["fine", ""], ["fine", None], 7])
def test_invalid_prompts_are_refused_before_anything_is_sent(simulate: Simulate, bad: Any) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(bad)
        with pytest.raises(WhisulInvalidInputError):
            await batch.attempt()
        assert batch.sandbox.requests == []

    simulate(main)


def test_a_revoked_key_ends_the_task_and_loses_no_job(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(10))
        asyncio.get_running_loop().call_later(40, batch.sandbox.revoke_key)
        with pytest.raises(WhisulUnauthorizedError):
            await batch.attempt()
        assert all(result["song"] or result["error"] for result in batch.context.xcoms["return_value"])
        batch.sandbox.restore_key()
        batch.clear()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 10

    simulate(main)


def test_a_timeout_names_the_jobs_that_may_still_complete_and_a_retry_waits_for_them(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(3), "slow [sandbox:seconds=300]"], timeout=200)
        with pytest.raises(WhisulJobTimeoutError, match="1 of 4 songs.*had not ended by.*may still complete"):
            await batch.attempt()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 4

    simulate(main)


def test_an_unforeseen_error_in_a_poll_ends_the_trigger(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    get_job = WhisulAsyncHook.get_job
    polls = itertools.count()

    async def breaking(hook: WhisulAsyncHook, *arguments: Any, **options: Any) -> Any:
        if next(polls) == 2:
            raise RuntimeError("some library's own")
        return await get_job(hook, *arguments, **options)

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(5))
        with pytest.raises(RuntimeError, match="some library's own"):
            await asyncio.wait_for(batch.attempt(), 7200)
        # Its traceback is in the log: Airflow fails the deferral, and a later try waits for the jobs.
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 5

    monkeypatch.setattr(WhisulAsyncHook, "get_job", breaking)
    simulate(main)


@pytest.mark.parametrize(
    ("directive", "reason"), [("[sandbox:forever]", "had not ended by"), ("[sandbox:get-500=500]", "answered 500")]
)
@pytest.mark.parametrize("durable", [True, False])
def test_a_job_that_never_ends_fails_only_its_own_song(
    simulate: Simulate, directive: str, reason: str, durable: bool
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([f"stuck {directive}", *numbered_prompts(20), "doomed [sandbox:fail]"], max_failures=2)
        batch.arguments["durable"] = durable
        results = await batch.attempt()
        assert [result["status"] for result in results] == ["failed", *["completed"] * 20, "failed"]
        assert reason in results[0]["error"]
        assert "may still complete" in results[0]["error"]
        assert batch.posts()[f"stuck {directive}"] == 1
        assert_one_card_per_song(batch, results)

    simulate(main)


def test_a_later_try_polls_a_job_that_never_ends_and_does_not_submit_its_song_again(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        # A job is given up after 20 failures, of which the next trigger counts anew: after 20 to 39 in a try.
        batch = make(["stuck [sandbox:seconds=9000]", "poisoned [sandbox:get-500=39]", *numbered_prompts(20)])
        with pytest.raises(WhisulJobTimeoutError, match="2 of 22 songs"):
            await batch.attempt()
        assert [result["status"] for result in batch.context.xcoms["return_value"]].count("completed") == 20
        with pytest.raises(WhisulJobTimeoutError, match="1 of 22 songs"):
            await batch.attempt()
        batch.arguments["timeout"] = 9000
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    simulate(main)


def test_hundreds_of_jobs_that_never_end_time_out_in_few_deferrals(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(300, "[sandbox:forever]"), timeout=200)
        began = batch.loop.time()
        with pytest.raises(WhisulJobTimeoutError, match="300 of 300 songs"):
            await batch.attempt()
        assert batch.loop.time() - began < 500
        assert len(batch.events) < 12

    simulate(main)


def test_an_event_that_is_not_one_of_the_triggers_is_refused(simulate: Simulate) -> None:
    operator = WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"])
    with pytest.raises(WhisulError, match="not one of this provider"):
        TaskContext(task_state_store=TaskStore()).run(operator, "execute_complete", {"event": {"status": "odd"}})


@pytest.mark.parametrize("status", [413, 422])
def test_a_prompt_refused_with_another_status_fails_only_its_own_song(simulate: Simulate, status: int) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([f"refused [sandbox:post-{status}]", *numbered_prompts(2)], max_failures=1)
        results = await batch.attempt()
        assert [result["status"] for result in results] == ["failed", "completed", "completed"]
        assert str(status) in results[0]["error"]
        assert sum(batch.posts().values()) == 3

    simulate(main)


@pytest.mark.parametrize("fault", ["post-402", "post-no-credits"])
def test_without_credits_a_batch_stops_submitting_and_keeps_what_runs(simulate: Simulate, fault: str) -> None:
    prompts = [*numbered_prompts(3), *numbered_prompts(5, f"[sandbox:{fault}=2]")]

    async def main(make: MakeBatch) -> None:
        batch = make(prompts)
        began = batch.loop.time()
        with pytest.raises(WhisulOutOfCreditsError, match="Top up the account"):
            await batch.attempt()
        delivered = [bool(result["song"]) for result in batch.context.xcoms["return_value"]]
        assert delivered == [True] * 3 + [False] * 5
        # Once, and once more when the jobs that ran had ended.
        assert batch.posts()[prompts[3]] == 2
        assert sum(batch.posts().values()) == 5
        assert batch.loop.time() - began < 300
        batch.arguments["prompts"] = prompts[:4]
        batch.clear()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 6

    simulate(main)


def test_a_cdn_s_refusal_of_a_poll_ends_no_batch(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2), "challenged [sandbox:get-403-html=2]"])
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert sum(batch.posts().values()) == 3

    simulate(main)


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        ("Trigger timeout", WhisulJobTimeoutError, "Is a triggerer running"),
        ("Trigger failure", WhisulError, "ended with an error of its own"),
    ],
)
def test_the_error_for_a_deferral_that_airflow_ended_says_what_happens_to_the_jobs(
    reason: str, error: type[WhisulError], message: str
) -> None:
    operator = WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"])
    with pytest.raises(error, match=f"{message}.*a retry of this task waits for them again"):
        TaskContext().run(operator, FAIL_METHOD, {"error": reason})


def test_a_deferral_that_airflow_ended_leaves_partial_results_in_xcom(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make([*numbered_prompts(2), "doomed [sandbox:fail]"], attempts=1)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        delivered = batch.context.xcoms.pop("return_value")
        with pytest.raises(WhisulJobTimeoutError):
            batch.context.run(batch.operator(), FAIL_METHOD, {"error": "Trigger timeout"})
        assert batch.context.xcoms["return_value"] == delivered

    simulate(main)

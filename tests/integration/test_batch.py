"""The batch operator and its trigger, with the sandbox in the same event loop and all of them on its virtual time."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_whisul.api import Answer, WhisulJob, WhisulTrack, read_job, read_submission
from airflow_provider_whisul.batch import LARGEST_ENTRY, LARGEST_SONG, MOST_WATCHED, Batch, BatchSong
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger, part_from_event
from tests.support import TaskContext, TaskStore, VirtualLoop, loop_clock, run_virtually, thread_clock

KEY = "secret-sandbox-key"


class Killed(BaseException):
    """The worker dies."""


class Night:
    """A batch task in Airflow: its tries, its deferrals, and the store that outlives them."""

    def __init__(self, sandbox: Sandbox, loop: VirtualLoop, prompts: list[str], **arguments: Any) -> None:
        self.sandbox = sandbox
        self.loop = loop
        self.arguments = {"prompts": prompts, "timeout": 1800, **arguments}
        self.store = TaskStore()
        self.durable_airflow = True
        self.tries = 0
        self.clears = 0
        self.context = TaskContext()
        self.parts: list[Any] = []
        self.triggers: list[WhisulBatchTrigger] = []

    def operator(self) -> WhisulGenerateBatchOperator:
        operator = WhisulGenerateBatchOperator(task_id="songs", retries=2, **self.arguments)
        operator.clock = thread_clock(self.loop)
        return operator

    async def attempt(self, operator: WhisulGenerateBatchOperator | None = None) -> list[dict[str, Any]]:
        """Run one try to its end, deferrals included."""
        self.tries += 1
        store = {"task_state_store": self.store} if self.durable_airflow else {}
        self.context = TaskContext(**store)
        self.context.task_id = "songs"
        self.context.try_number = self.tries
        self.context.max_tries = self.clears + 2
        resumed: tuple[Any, ...] = ()
        while True:
            try:
                # Killed is no Exception, and would end the executor's thread.
                return await self.loop.run_in_executor(
                    None, _returning, self.context.run, operator or self.operator(), *resumed
                )
            except TaskDeferred as exception:
                deferred = exception
            operator = None
            event = await self.wait(deferred)
            resumed = (deferred.method_name, {"event": event, **(deferred.kwargs or {})})

    async def wait(self, deferred: TaskDeferred) -> Any:
        """Run the trigger of a deferral, made from what Airflow stores of it, and return its event."""
        assert isinstance(deferred.trigger, WhisulBatchTrigger)
        _, kwargs = deferred.trigger.serialize()
        trigger = WhisulBatchTrigger(**json.loads(json.dumps(kwargs)))
        chances = (number * 0.618 % 1 for number in itertools.count(len(self.parts)))
        trigger.clock = replace(loop_clock(self.loop), random=lambda: next(chances))
        (event,) = [event.payload async for event in trigger.run()]
        assert max(len(json.dumps(stored)) for stored in (kwargs, deferred.kwargs, event)) < LARGEST_ENTRY
        self.triggers.append(trigger)
        self.parts.append(event)
        return event

    def clear(self) -> None:
        self.clears = self.tries

    def posts(self) -> Counter[str | None]:
        return Counter(request.prompt for request in self.sandbox.requests if request.method == "POST")


def _returning(run: Callable[..., Any], *arguments: Any) -> Any:
    if airflow_version.startswith("2."):
        from airflow.models.baseoperator import ExecutorSafeguard

        # Airflow 2 expects tasks in the main thread only.
        ExecutorSafeguard._sentinel.callers = {}
    try:
        return run(*arguments)
    except Killed as killed:
        raise RuntimeError("killed") from killed


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a coroutine function with a function that makes a :class:`Night`; options are the sandbox's."""

    def run(main: Callable[[Callable[..., Night]], Awaitable[None]], **options: Any) -> None:
        async def served(loop: VirtualLoop) -> None:
            sandbox = Sandbox(SandboxOptions(**{"api_key": KEY, "job_seconds": (60, 120), **options}), clock=loop.wall)
            async with sandbox.serve():
                monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", sandbox.connection)
                await main(lambda prompts, **arguments: Night(sandbox, loop, prompts, **arguments))

        run_virtually(served)

    return run


def prompts(count: int, directive: str = "") -> list[str]:
    return [f"song {number} {directive}".strip() for number in range(count)]


def assert_polled_gently(sandbox: Sandbox) -> None:
    polls = defaultdict(list)
    for request in sandbox.requests:
        if request.method == "GET":
            polls[request.job_id].append(request.at)
    assert all(after - before >= 5 - 1e-6 for at in polls.values() for before, after in pairwise(at))


@pytest.mark.parametrize("durable_airflow", [True, False])
def test_many_songs_in_the_order_of_their_prompts(night: Callable[..., Any], durable_airflow: bool) -> None:
    async def main(make: Callable[..., Night]) -> None:
        batch = make(prompts(100))
        batch.durable_airflow = durable_airflow
        results = await batch.attempt()
        assert [result["prompt"] for result in results] == prompts(100)
        for result in results:
            assert result["status"] == "completed"
            assert result["error"] is None
            assert result["track"]["job_id"] == result["job_id"]
            assert result["track"]["prompt"] == result["prompt"] == batch.sandbox.jobs[result["job_id"]].prompt
            assert result["track"]["song_url"]
        assert set(batch.posts().values()) == {1}
        assert_polled_gently(batch.sandbox)
        for value in (batch.store if durable_airflow else batch.context.xcoms).values():
            assert len(json.dumps(value)) < LARGEST_ENTRY

    night(main)


def test_a_thousand_and_more(night: Callable[..., Any]) -> None:
    async def main(make: Callable[..., Night]) -> None:
        batch = make(prompts(1000))
        results = await batch.attempt()
        assert sum(result["status"] == "completed" for result in results) == 1000
        assert sum(batch.posts().values()) == 1000
        assert max(len(trigger.job_ids) for trigger in batch.triggers) == MOST_WATCHED
        assert len(batch.parts) <= 4

    night(main)


class TestTracks:
    """What the tab shows of a batch, from the XComs of its latest try."""

    @staticmethod
    def assert_each_song_is_there_once(batch: Night, results: list[dict[str, Any]]) -> None:
        cards = {card["prompt"]: card for card in batch.context.shown()}
        assert len(cards) == len(batch.context.shown()) == len(results)
        for result in results:
            card = cards[result["prompt"]]
            assert (card["status"], card["job_id"], card["error"]) == (
                result["status"],
                result["job_id"],
                result["error"],
            )

    @pytest.mark.parametrize("durable_airflow", [True, False])
    def test_each_song_is_shown_once(self, night: Callable[..., Any], durable_airflow: bool) -> None:
        async def main(make: Callable[..., Night]) -> None:
            songs = [
                *prompts(80),
                *("unlucky [sandbox:fail=1]", "doomed [sandbox:fail]", "lost [sandbox:post-drop]"),
            ]
            batch = make(songs, max_failures=2)
            batch.durable_airflow = durable_airflow
            results = await batch.attempt()
            self.assert_each_song_is_there_once(batch, results)
            entries = [key for key in batch.context.xcoms if key.startswith("whisul_songs_")]
            # About one for each event, of which each holds as many songs as fit.
            assert len(entries) <= 2 * len(batch.parts) + 4
            assert sum(int(key.split("_")[-1]) for key in entries) == 2

        night(main)

    def test_songs_are_shown_while_others_are_made(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(3), "slow [sandbox:seconds=900]", "doomed [sandbox:fail]"], attempts=1)
            shown = []
            wait = batch.wait

            async def waited(deferred: TaskDeferred) -> Any:
                shown.append(len(batch.context.shown()))
                return await wait(deferred)

            batch.wait = waited  # type: ignore[method-assign]
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            assert shown[0] == 0
            assert 0 < shown[-1] < 5
            assert len(batch.context.shown()) == 5

        night(main)

    def test_a_later_try_shows_what_it_goes_on_with(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(30), "hopeless [sandbox:fail=2]"])
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            self.assert_each_song_is_there_once(batch, batch.context.xcoms["return_value"])
            self.assert_each_song_is_there_once(batch, await batch.attempt())

        night(main)

    def test_what_was_made_before_the_time_was_over_is_shown(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(4), "endless [sandbox:forever]"], timeout=300)
            with pytest.raises(WhisulJobTimeoutError):
                await batch.attempt()
            cards = {card["prompt"]: card for card in batch.context.shown()}
            assert {prompt for prompt, card in cards.items() if card["status"] == "completed"} == set(prompts(4))
            assert "not over by" in cards["endless [sandbox:forever]"]["error"]

        night(main)


class TestFailures:
    def test_a_failed_song_is_submitted_again_within_the_try(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(5), "unlucky [sandbox:fail=1]"])
            results = await batch.attempt()
            assert results[-1]["status"] == "completed"
            assert batch.posts()["unlucky [sandbox:fail=1]"] == 2
            assert sum(batch.posts().values()) == 7

        night(main)

    def test_too_many_failures_fail_the_task_and_lose_no_song(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(5), "hopeless [sandbox:fail=2]"])
            with pytest.raises(
                WhisulJobFailedError, match=r"1 of 6 songs failed.*'hopeless .*Generation failed"
            ) as caught:
                await batch.attempt()
            assert not isinstance(caught.value, AirflowFailException)
            delivered = batch.context.xcoms["return_value"]
            assert [result["status"] for result in delivered] == ["completed"] * 5 + ["failed"]
            assert delivered[-1]["track"] is None
            # A retry submits only what failed.
            results = await batch.attempt()
            assert {result["status"] for result in results} == {"completed"}
            assert batch.posts() == {**dict.fromkeys(prompts(5), 1), "hopeless [sandbox:fail=2]": 3}
            assert [result["job_id"] for result in results[:5]] == [result["job_id"] for result in delivered[:5]]

        night(main)

    def test_as_many_failures_as_are_allowed(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(3), "hopeless [sandbox:fail]"], max_failures=1, attempts=1)
            results = await batch.attempt()
            assert [result["status"] for result in results] == ["completed"] * 3 + ["failed"]
            assert "Generation failed" in results[-1]["error"]

        night(main)

    def test_an_expired_job_is_a_failed_song(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(["gone [sandbox:expired][sandbox:seconds=90]"], max_failures=1)
            results = await batch.attempt()
            assert results[0]["status"] == "failed"
            assert "404" in results[0]["error"]
            assert sum(batch.posts().values()) == 1

        night(main)

    def test_a_job_that_is_gone_is_looked_at_again_before_it_is_made_again(
        self, night: Callable[..., Any], task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(["gone [sandbox:expired][sandbox:seconds=90]", "fine"])
            for submissions in (1, 2):
                with pytest.raises(WhisulJobFailedError, match="404"):
                    await batch.attempt()
                # The second try looks first, and may then submit; what is gone of that waits for the third.
                assert batch.posts() == {"gone [sandbox:expired][sandbox:seconds=90]": submissions, "fine": 1}
            assert {card["prompt"]: card["status"] for card in batch.context.shown()} == {
                "gone [sandbox:expired][sandbox:seconds=90]": "failed",
                "fine": "completed",
            }

        night(main)
        assert sum("Submitting 'gone" in line and "404" in line for line in task_log()) == 1

    def test_a_wave_of_404s_pays_for_nothing_again(
        self, night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wave = False

        def read(answer: Answer, job_id: str) -> Any:
            return read_job(Answer(404, b"<html>no route</html>") if wave else answer, job_id)

        def begin(begun: bool) -> None:
            nonlocal wave
            wave = begun

        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(10, "[sandbox:seconds=600]"))
            asyncio.get_running_loop().call_later(200, begin, True)
            asyncio.get_running_loop().call_later(400, begin, False)
            with pytest.raises(WhisulJobFailedError, match="10 of 10 songs failed"):
                await batch.attempt()
            begin(False)
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert set(batch.posts().values()) == {1}

        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul_async.read_job", read)
        night(main)

    def test_a_refused_prompt_costs_the_others_nothing(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(2), "refused [sandbox:no-such-directive]"], max_failures=1)
            results = await batch.attempt()
            assert [result["status"] for result in results] == ["completed", "completed", "failed"]
            assert "400" in results[-1]["error"]
            assert sum(batch.posts().values()) == 3

        night(main)

    @pytest.mark.parametrize("bad", ["a string", [], ["fine", ""], ["fine", None], 7])
    def test_prompts_that_make_no_sense_cost_nothing(self, night: Callable[..., Any], bad: Any) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(bad)
            with pytest.raises(WhisulInvalidInputError):
                await batch.attempt()
            assert batch.sandbox.requests == []

        night(main)

    def test_a_revoked_key_ends_it_and_loses_no_job(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(10))
            asyncio.get_running_loop().call_later(40, batch.sandbox.revoke_key)
            with pytest.raises(WhisulUnauthorizedError):
                await batch.attempt()
            assert all(result["track"] or result["error"] for result in batch.context.xcoms["return_value"])
            batch.sandbox.restore_key()
            batch.clear()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert sum(batch.posts().values()) == 10

        night(main)

    def test_a_timeout_says_that_the_jobs_may_still_run_and_a_retry_goes_on(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(3), "slow [sandbox:seconds=300]"], timeout=200)
            with pytest.raises(WhisulJobTimeoutError, match="1 of 4 songs.*not over by.*may still complete"):
                await batch.attempt()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert sum(batch.posts().values()) == 4

        night(main)

    def test_a_look_that_breaks_in_an_unforeseen_way_ends_the_trigger(
        self, night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get_job = WhisulAsyncHook.get_job
        looks = itertools.count()

        async def breaking(hook: WhisulAsyncHook, *arguments: Any, **options: Any) -> Any:
            if next(looks) == 2:
                raise RuntimeError("some library's own")
            return await get_job(hook, *arguments, **options)

        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(5))
            with pytest.raises(RuntimeError, match="some library's own"):
                await asyncio.wait_for(batch.attempt(), 7200)
            # Its traceback is in the log: Airflow fails the deferral, and a later try goes on with the jobs.
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert sum(batch.posts().values()) == 5

        monkeypatch.setattr(WhisulAsyncHook, "get_job", breaking)
        night(main)

    @pytest.mark.parametrize(
        ("directive", "reason"), [("[sandbox:forever]", "not over by"), ("[sandbox:get-500=500]", "answered 500")]
    )
    @pytest.mark.parametrize("durable_airflow", [True, False])
    def test_a_job_that_never_ends_costs_the_others_nothing(
        self, night: Callable[..., Any], directive: str, reason: str, durable_airflow: bool
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([f"stuck {directive}", *prompts(20), "doomed [sandbox:fail]"], max_failures=2)
            batch.durable_airflow = durable_airflow
            results = await batch.attempt()
            assert [result["status"] for result in results] == ["failed", *["completed"] * 20, "failed"]
            assert reason in results[0]["error"]
            assert "may still complete" in results[0]["error"]
            assert batch.posts()[f"stuck {directive}"] == 1
            TestTracks.assert_each_song_is_there_once(batch, results)

        night(main)

    def test_a_later_try_only_looks_at_a_job_that_never_ends(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(["stuck [sandbox:seconds=9000]", "poisoned [sandbox:get-500=25]", *prompts(20)])
            with pytest.raises(WhisulJobTimeoutError, match="2 of 22 songs"):
                await batch.attempt()
            assert [result["status"] for result in batch.context.xcoms["return_value"]].count("completed") == 20
            with pytest.raises(WhisulJobTimeoutError, match="1 of 22 songs"):
                await batch.attempt()
            batch.arguments["timeout"] = 9000
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert set(batch.posts().values()) == {1}

        night(main)

    def test_hundreds_of_jobs_that_never_end_are_soon_given_up(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(700, "[sandbox:forever]"), timeout=200)
            began = batch.loop.time()
            with pytest.raises(WhisulJobTimeoutError, match="700 of 700 songs"):
                await batch.attempt()
            assert batch.loop.time() - began < 500
            assert len(batch.parts) < 12

        night(main)

    def test_an_event_that_is_none_of_ours(self, night: Callable[..., Any]) -> None:
        operator = WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"])
        with pytest.raises(WhisulError, match="no event of it"):
            TaskContext(task_state_store=TaskStore()).run(operator, "execute_part", {"event": {"status": "odd"}})


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        ("Trigger timeout", WhisulJobTimeoutError, "Is a triggerer running"),
        ("Trigger failure", WhisulError, "ended with an error of its own"),
    ],
)
def test_a_deferral_that_airflow_ended_says_what_becomes_of_the_jobs(
    reason: str, error: type[WhisulError], message: str
) -> None:
    operator = WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"])
    with pytest.raises(error, match=f"{message}.*a retry of this task goes on"):
        TaskContext().run(operator, "__fail__", {"error": reason})


def test_a_deferral_that_airflow_ended_hands_over_what_there_is(night: Callable[..., Any]) -> None:
    async def main(make: Callable[..., Night]) -> None:
        batch = make([*prompts(2), "doomed [sandbox:fail]"], attempts=1)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        delivered = batch.context.xcoms.pop("return_value")
        with pytest.raises(WhisulJobTimeoutError):
            batch.context.run(batch.operator(), "__fail__", {"error": "Trigger timeout"})
        assert batch.context.xcoms["return_value"] == delivered

    night(main)


class TestLaterTries:
    @pytest.mark.parametrize("after", [0, 7, 25])
    @pytest.mark.parametrize("noted", [True, False])
    def test_a_crash_while_submitting_goes_on_there(self, night: Callable[..., Any], after: int, noted: bool) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(30))
            operator = batch.operator()
            generate = operator.hook.generate
            left = iter(range(after))

            def dying(prompt: str) -> str:
                alive = next(left, None) is not None
                if not alive and not noted:
                    generate(prompt)
                if not alive:
                    raise Killed
                return generate(prompt)

            operator.hook.generate = dying  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="killed"):
                await batch.attempt(operator)
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            twice = [prompt for prompt, times in batch.posts().items() if times > 1]
            assert twice == ([] if noted else [f"song {after}"])

        night(main)

    def test_a_crash_in_a_wait_for_its_turn_has_sent_nothing(
        self, night: Callable[..., Any], task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(10), on_ambiguous_submit="fail")
            operator = batch.operator()
            turns = iter([None] * 7)

            def dying() -> None:
                if next(turns, Killed) is Killed:
                    raise Killed

            operator.hook.wait_for_turn = dying  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="killed"):
                await batch.attempt(operator)
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert set(batch.posts().values()) == {1}

        night(main)
        assert not any("already have been paid for" in line for line in task_log())

    def test_a_job_that_cannot_be_noted_is_in_the_log(
        self, night: Callable[..., Any], task_log: Callable[[], list[str]]
    ) -> None:
        class Refusing(TaskStore):
            def set(self, key: str, value: Any) -> None:
                if "running" in json.dumps(value):
                    raise ConnectionError("no answer from the API server")
                super().set(key, value)

        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(3))
            batch.store = Refusing()
            with pytest.raises(ConnectionError, match="no answer from the API server"):
                await batch.attempt()
            jobs.extend(batch.sandbox.jobs)

        jobs: list[str] = []
        night(main)
        (job_id,) = jobs
        assert sum("song 0" in line and job_id in line and "paid for" in line for line in task_log()) == 1

    @pytest.mark.parametrize("prompt", ["song", "song [sandbox:fail=1]"])
    def test_a_submission_that_was_cut_off_says_so(self, night: Callable[..., Any], prompt: str) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([prompt], on_ambiguous_submit="fail", max_failures=1)
            operator = batch.operator()
            generate = operator.hook.generate

            def dying(prompt: str) -> str:
                if batch.posts()[prompt] == ("fail" in prompt):
                    raise Killed
                return generate(prompt)

            unharmed = batch.operator
            operator.hook.generate = dying  # type: ignore[method-assign]
            batch.operator = lambda: operator  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="killed"):
                await batch.attempt()
            batch.operator = unharmed  # type: ignore[method-assign]
            (result,) = await batch.attempt()
            assert (result["status"], result["job_id"]) == ("failed", None)
            assert "may have been paid for" in result["error"]

        night(main)

    def test_a_lost_answer_is_left_to_the_next_try(
        self, night: Callable[..., Any], task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(3), "lost [sandbox:post-drop]"])
            with pytest.raises(WhisulJobFailedError, match="may have been paid for"):
                await batch.attempt()
            assert batch.posts()["lost [sandbox:post-drop]"] == 1
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert batch.posts()["lost [sandbox:post-drop]"] == 2

        night(main)
        assert sum("may already have been paid for" in line for line in task_log()) == 1

    def test_a_lost_answer_stays_failed_until_the_task_is_cleared(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(["lost [sandbox:post-drop]", "fine"], on_ambiguous_submit="fail")
            for _ in range(2):
                with pytest.raises(WhisulJobFailedError, match="may have been paid for"):
                    await batch.attempt()
            assert batch.posts()["lost [sandbox:post-drop]"] == 1
            batch.clear()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}

        night(main)

    def test_a_batch_that_airflow_did_not_get_is_not_made_again(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(25))
            first = await batch.attempt()
            assert await batch.attempt() == first
            assert sum(batch.posts().values()) == 25

        night(main)

    def test_a_cleared_batch_makes_new_takes(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(3))
            first = await batch.attempt()
            batch.clear()
            second = await batch.attempt()
            assert not {result["job_id"] for result in first} & {result["job_id"] for result in second}

        night(main)

    def test_a_changed_prompt_is_submitted_and_the_others_are_kept(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(["one", "two [sandbox:fail]"], attempts=1)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            batch.arguments["prompts"] = ["one", "another two"]
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert batch.posts() == {"one": 1, "two [sandbox:fail]": 1, "another two": 1}

        night(main)

    @pytest.mark.parametrize("edit", ["removed", "added", "turned round", "repeated"])
    def test_an_edited_list_pays_for_nothing_again(self, night: Callable[..., Any], edit: str) -> None:
        async def main(make: Callable[..., Night]) -> None:
            songs = [*prompts(30), "bad [sandbox:no-such-directive]"]
            songs.insert(3, songs.pop())
            batch = make(songs)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            good = prompts(30)
            edited = {
                "removed": good,
                "added": ["one more", *good],
                "turned round": good[::-1],
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

        night(main)

    def test_songs_that_nobody_wants_any_longer_are_named(
        self, night: Callable[..., Any], task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(["twice", "twice", "dropped", "doomed [sandbox:fail]"], attempts=1)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            first = batch.context.xcoms["return_value"]
            batch.arguments["prompts"] = ["twice"]
            (result,) = await batch.attempt()
            assert result["job_id"] == first[0]["job_id"]
            left.extend(other["job_id"] for other in first[1:])

        left: list[str] = []
        night(main)
        (line,) = [line for line in task_log() if "no longer" in line]
        assert len(left) == 3
        assert all(job_id in line for job_id in left)

    def test_a_list_that_is_edited_while_the_task_waits(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            songs = [*prompts(40), "doomed [sandbox:fail][sandbox:seconds=20]"]
            batch = make(songs)
            wait = batch.wait

            async def waited(deferred: TaskDeferred) -> Any:
                batch.arguments["prompts"] = ["one more", *songs]
                return await wait(deferred)

            batch.wait = waited  # type: ignore[method-assign]
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            assert {batch.posts()[prompt] for prompt in [*prompts(40), "one more"]} == {1}

        night(main)

    @pytest.mark.parametrize("writes", range(4))
    def test_a_kill_while_the_state_is_written_anew_loses_no_song(self, night: Callable[..., Any], writes: int) -> None:
        class Dying(TaskStore):
            left = 1_000_000

            def set(self, key: str, value: Any) -> None:
                self.left -= 1
                if self.left < 0:
                    raise Killed
                super().set(key, value)

        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(40), "doomed [sandbox:fail]"], attempts=1)
            batch.store = store = Dying()
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            batch.arguments["prompts"] = prompts(40)[::-1]
            store.left = writes
            with pytest.raises(RuntimeError, match="killed"):
                await batch.attempt()
            store.left = 1_000_000
            await batch.attempt()
            assert {batch.posts()[prompt] for prompt in prompts(40)} == {1}

        night(main)

    @pytest.mark.parametrize("durable", [True, False])
    def test_not_durable(self, night: Callable[..., Any], task_log: Callable[[], list[str]], durable: bool) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(2), durable=durable)
            batch.durable_airflow = not durable
            await batch.attempt()
            assert not paid_again()
            await batch.attempt()
            assert sum(batch.posts().values()) == 4
            assert batch.store == {}

        def paid_again() -> list[str]:
            return [line for line in task_log() if "submits, and pays for, all 2 songs" in line]

        night(main)
        assert len(paid_again()) == 1

    def test_a_rate_limit_while_submitting_waits_for_what_is_paid_for(
        self, night: Callable[..., Any], task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(2, "[sandbox:seconds=400]"), "limited [sandbox:post-429=6]", "last"])
            batch.durable_airflow = False
            results = await batch.attempt()
            assert {result["status"] for result in results} == {"completed"}
            assert sum(batch.posts().values()) == 2 + 7 + 1
            TestTracks.assert_each_song_is_there_once(batch, results)

        night(main)
        assert sum("2 of 4 songs are not submitted yet" in line and "429" in line for line in task_log()) == 1

    def test_nobody_asks_while_a_rate_limit_that_submitting_met_lasts(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(12))
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            limited = [(one, two) for one, two in pairwise(batch.sandbox.requests) if one.status == 429]
            assert limited
            assert all(after.at - before.at >= 700 for before, after in limited)
            assert batch.triggers[0].not_before == pytest.approx(limited[0][0].at + 700, abs=1)
            assert batch.triggers[-1].not_before is None

        # Longer than a worker waits.
        night(main, rate_limit=6, rate_window=4.0, block_seconds=700.0, retry_after=True)

    def test_a_rate_limit_that_submitting_met_quiets_other_triggers_too(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([])
            generate = batch.operator().hook.generate
            until = batch.loop.wall() + 30

            async def wait(prompt: str, not_before: float | None) -> Any:
                job_id = await batch.loop.run_in_executor(None, generate, prompt)
                trigger = WhisulBatchTrigger([job_id], "whisul_default", 10, until + 600, not_before=not_before)
                trigger.clock = loop_clock(batch.loop)
                return [event.payload async for event in trigger.run()]

            await asyncio.gather(wait("one", until), wait("another", None))
            assert min(request.at for request in batch.sandbox.requests if request.method == "GET") >= until

        night(main)

    def test_a_rate_limit_that_outlasts_the_wait_leaves_the_jobs_to_a_later_try(
        self, night: Callable[..., Any]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(12), timeout=300)
            with pytest.raises(WhisulRateLimitError):
                await batch.attempt()
            assert batch.loop.time() < 30
            assert {request.method for request in batch.sandbox.requests} == {"POST"}
            delivered = batch.context.xcoms["return_value"]
            made = [result["job_id"] for result in delivered if result["job_id"]]
            assert len(made) == len(batch.sandbox.jobs) > 1
            assert all("may still complete" in result["error"] for result in delivered if result["job_id"])
            await asyncio.sleep(700)
            batch.arguments["timeout"] = 1800
            results = await batch.attempt()
            assert {result["status"] for result in results} == {"completed"}
            assert [result["job_id"] for result in results[: len(made)]] == made
            assert len(batch.sandbox.jobs) == 12

        night(main, rate_limit=6, rate_window=4.0, block_seconds=700.0, retry_after=True)

    def test_a_rate_limit_that_nothing_else_waits_for_fails_the_try_and_the_next_goes_on(
        self, night: Callable[..., Any]
    ) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(2), "limited [sandbox:post-429=12]", "last"])
            with pytest.raises(WhisulRateLimitError):
                await batch.attempt()
            delivered = batch.context.xcoms["return_value"]
            assert [result["status"] for result in delivered] == ["completed", "completed", "failed", "failed"]
            assert delivered[-1]["error"] == "It was not submitted."
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert sum(batch.posts().values()) == 2 + 13 + 1

        night(main)

    def test_what_an_earlier_try_made_is_shown_though_nothing_can_be_submitted(self, night: Callable[..., Any]) -> None:
        async def main(make: Callable[..., Night]) -> None:
            batch = make([*prompts(2), "refused [sandbox:no-such-directive]", "limited [sandbox:post-429=18]"])
            for _ in range(2):
                with pytest.raises(WhisulRateLimitError):
                    await batch.attempt()
                cards = {card["prompt"]: card["status"] for card in batch.context.shown()}
                assert cards == {
                    **dict.fromkeys(prompts(2), "completed"),
                    "refused [sandbox:no-such-directive]": "failed",
                }

        night(main)

    @pytest.mark.parametrize("status", [413, 422])
    def test_a_prompt_that_is_refused_in_another_way_costs_the_others_nothing(
        self, night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        def read(answer: Answer) -> str:
            return read_submission(Answer(status) if answer.status == 400 else answer)

        async def main(make: Callable[..., Night]) -> None:
            batch = make(["refused [sandbox:no-such-directive]", *prompts(2)], max_failures=1)
            results = await batch.attempt()
            assert [result["status"] for result in results] == ["failed", "completed", "completed"]
            assert str(status) in results[0]["error"]
            assert sum(batch.posts().values()) == 3

        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul.read_submission", read)
        night(main)


def test_data_too_large_for_an_event_is_fetched_by_the_worker(
    night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.LARGEST_SONG", 10)
    monkeypatch.setattr("airflow_provider_whisul.batch.LARGEST_SONG", 10)

    async def main(make: Callable[..., Night]) -> None:
        batch = make(prompts(3))
        assert all(result["track"]["song_url"] for result in await batch.attempt())
        part, _ = part_from_event(batch.parts[0])
        assert set(part["completed"].values()) == {None}

    night(main)


def test_a_song_too_large_to_keep_whose_job_is_gone_is_one_failure(
    night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.LARGEST_SONG", 10)
    monkeypatch.setattr("airflow_provider_whisul.batch.LARGEST_SONG", 10)

    async def main(make: Callable[..., Night]) -> None:
        batch = make(["early [sandbox:seconds=20]", "late [sandbox:seconds=900]"])
        with pytest.raises(WhisulJobFailedError, match="1 of 2 songs failed.*404"):
            await batch.attempt()
        results = batch.context.xcoms["return_value"]
        assert [result["status"] for result in results] == ["failed", "completed"]
        assert set(batch.posts().values()) == {1}
        TestTracks.assert_each_song_is_there_once(batch, results)
        # A later try looks once more before it pays for another.
        batch.arguments["prompts"] = ["early [sandbox:seconds=20]"]
        assert (await batch.attempt())[0]["track"]
        assert batch.posts()["early [sandbox:seconds=20]"] == 2

    night(main, expire_seconds=600)


def test_a_song_too_large_to_keep_that_cannot_be_fetched_keeps_the_others(
    night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.LARGEST_SONG", 10)
    monkeypatch.setattr("airflow_provider_whisul.batch.LARGEST_SONG", 10)

    async def main(make: Callable[..., Night]) -> None:
        batch = make(prompts(2))
        wait = batch.wait

        async def waited(deferred: TaskDeferred) -> Any:
            event = await wait(deferred)
            batch.sandbox.revoke_key()
            return event

        batch.wait = waited  # type: ignore[method-assign]
        with pytest.raises(WhisulUnauthorizedError):
            await batch.attempt()
        assert len(batch.context.xcoms["return_value"]) == 2

    night(main)


def track(job_id: str, title: str) -> WhisulJob:
    return WhisulJob(job_id, "completed", track=WhisulTrack(title=title))


class TestSizes:
    """Airflow keeps all of it as JSON that escapes what is not ASCII; :meth:`Night.wait` measures each event."""

    @pytest.mark.parametrize("text", ["x", "音", "🎵"])
    def test_errors_in_any_language(
        self, night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        def read(answer: Answer, job_id: str) -> Any:
            return replace(read_job(answer, job_id), error=text * 1000)

        async def main(make: Callable[..., Night]) -> None:
            batch = make([f"doomed {number} [sandbox:fail]" for number in range(100)], max_failures=100, attempts=1)
            results = await batch.attempt()
            assert all(text * 40 in result["error"] for result in results)
            assert max(len(json.dumps(value)) for value in batch.store.values()) < LARGEST_ENTRY

        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul_async.read_job", read)
        night(main)

    def test_songs_that_do_not_compress(self, night: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        # Of what JSON does not escape, as much as is kept of a song.
        letters = [chr(code) for code in range(32, 127) if chr(code) not in '"\\']
        kept = {key: value for key, value in track("job", "").song().items() if key not in ("prompt", "job_id")}
        length = LARGEST_SONG - len(json.dumps(kept))
        chance = random.Random(7)
        titles = defaultdict[str, str](lambda: "".join(chance.choices(letters, k=length)))

        def read(answer: Answer, job_id: str) -> WhisulJob:
            job = read_job(answer, job_id)
            return track(job_id, titles[job_id]) if job.completed else job

        async def main(make: Callable[..., Night]) -> None:
            batch = make(prompts(1000))
            results = await batch.attempt()
            assert {result["job_id"]: result["track"]["title"] for result in results} == titles
            assert min(len(json.dumps(part)) for part in batch.parts[:-1]) > LARGEST_ENTRY - 5_000

        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul_async.read_job", read)
        night(main)

    def test_long_job_ids(self) -> None:
        songs = [BatchSong(f"song {number}", "running", f"{number:0200d}") for number in range(MOST_WATCHED)]
        watched = Batch(songs, TaskStore(), 0).to_watch()
        assert watched == [song.job_id for song in songs[: len(watched)]]
        trigger = WhisulBatchTrigger(watched, "c" * 200, 10, 0)
        assert LARGEST_ENTRY - 2_500 < len(json.dumps(trigger.serialize())) < LARGEST_ENTRY


def test_progress_is_said_once_in_half_a_minute(night: Callable[..., Any], task_log: Callable[[], list[str]]) -> None:
    async def main(make: Callable[..., Night]) -> None:
        await make([*prompts(20), "slow [sandbox:seconds=400]"]).attempt()

    night(main)
    lines = [line for line in task_log() if " of 21 delivered, 0 failed" in line]
    assert 5 <= len(lines) <= 400 / 30 + 2
    assert any("left" in line for line in lines)


class TestRefusedWhenTheDagIsRead:
    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ({"poll_interval": 4}, "once every 5 to 10 s"),
            ({"timeout": 0}, "positive number of seconds"),
            ({"attempts": 0}, "attempts must be 1 or more"),
            ({"max_failures": -1}, "max_failures 0 or more"),
            ({"on_ambiguous_submit": "ignore"}, '"retry" or "fail"'),
        ],
    )
    def test_argument(self, argument: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"], **argument)

    def test_interval_of_mapped_batches(self) -> None:
        with pytest.raises(ValueError, match="once every 5 to 10 s"):
            WhisulGenerateBatchOperator.partial(task_id="songs", poll_interval=4)

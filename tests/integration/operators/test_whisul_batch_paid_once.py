"""Each song of a batch is paid for once: the ledger, another key, two tries at once, records that cannot be read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulBudgetExceededError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
    WhisulStateError,
    WhisulStateUnreadableError,
)
from airflow_provider_whisul.operators import whisul_batch
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.state.batch_head import BatchHead
from airflow_provider_whisul.state.batch_state import BatchState
from tests.integration.operators.batch_task import BatchTask, MakeBatch, Simulate, numbered_prompts
from tests.support.airflow import Deferral, Killed, mortal_batch
from tests.support.connection import api_key, change_connection, set_extra
from tests.support.homes import Home, fail_before_set, store_of
from tests.support.ledger import outcomes


@pytest.fixture
def simulate(simulate_at_home: Simulate) -> Simulate:
    """Let the record of each batch be kept in each of the homes."""
    return simulate_at_home


async def kill_at(batch: BatchTask, prompt: str, *, sent: bool) -> None:
    """Run a try whose worker is killed before it has recorded the job of a prompt."""
    operator = batch.operator()
    generate, exchange = operator.hook.generate, operator.hook._exchange
    with mortal_batch() as die:

        def die_after_post(request: Any) -> None:
            exchange(request)
            die()

        def generate_and_die(text: str, **options: Any) -> str:
            if text == prompt and not sent:
                operator.hook._exchange = die_after_post  # type: ignore[method-assign, assignment]
            job_id = generate(text, **options)
            if text == prompt:
                die()
            return job_id

        operator.hook.generate = generate_and_die  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)


class TestTheLedger:
    @pytest.mark.parametrize("edit", ["none", "moved", "cleared"])
    def test_a_worker_killed_before_it_has_recorded_a_job_costs_nothing(
        self, simulate: Simulate, task_log: Callable[[], list[str]], edit: str
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(5))
            await kill_at(batch, "song 3", sent=True)
            if edit == "moved":
                batch.arguments["prompts"] = ["another", *numbered_prompts(5)[::-1]]
            elif edit == "cleared":
                batch.clear()
            results = await batch.attempt()
            assert {result["status"] for result in results} == {"completed"}
            assert set(batch.posts().values()) == {1}

        simulate(main)
        assert sum("The ledger has it" in line for line in task_log()) == 1
        assert not any("may already have been paid for" in line for line in task_log())

    def test_a_worker_killed_while_the_response_comes_is_an_ambiguous_submission(
        self, simulate: Simulate, task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            await kill_at(batch, "song 1", sent=False)
            await batch.attempt()
            assert batch.posts() == {"song 0": 1, "song 1": 2, "song 2": 1}

        simulate(main)
        assert sum("may already have been paid for" in line for line in task_log()) == 1

    @pytest.mark.parametrize("home", ["folder"], indirect=True)
    def test_the_files_hold_prompts_and_urls_of_songs_and_no_key(
        self, simulate: Simulate, tmp_path: Path, home: Home
    ) -> None:
        async def main(make: MakeBatch) -> None:
            await make(["a song"]).attempt()

        simulate(main)
        texts = {path: path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file()}
        records = "".join(text for path, text in texts.items() if path.parent.name == "records")
        # Compressed, which hides nothing from whoever may read the file.
        assert '"prompts": "' in records
        assert '"song_url": "http' in records
        assert not any(SandboxOptions().api_key in text for text in texts.values())

    def test_a_record_that_cannot_be_reached_is_said_to_have_sent_nothing(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise WhisulStateError("It is away.")

        async def main(make: MakeBatch) -> None:
            batch = make(["a song"])
            monkeypatch.setattr(BatchHead, "read", fail)
            with pytest.raises(WhisulStateError, match=r"^It is away\. Nothing was sent\.$"):
                await batch.attempt()
            assert not batch.posts()

        simulate(main)

    def test_it_says_how_each_job_ended(self, simulate: Simulate, tmp_path: Path, home: Home) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(2), "doomed [sandbox:fail]", "gone [sandbox:expired]"], attempts=1)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            known.append(outcomes(folder))
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            known.append(outcomes(folder))

        folder = tmp_path / "state" if home.name == "folder" else None
        known: list[Any] = []
        simulate(main)
        # A job that is not found is polled again by a later try, and only then given up.
        assert known == [
            {"delivered": 2, "failed": 1},
            {"delivered": 2, "failed": 2, "not_found": 1},
        ]

    def test_it_says_so_too_where_the_worker_is_killed_once_the_results_are_stored(
        self, simulate: Simulate, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = BatchState.save

        def die(state: BatchState, indexes: Iterable[int]) -> None:
            save(state, indexes)
            if state.with_status("completed"):
                monkeypatch.setattr(BatchState, "save", save)
                raise Killed

        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            monkeypatch.setattr(BatchState, "save", die)
            with pytest.raises(RuntimeError, match="killed"):
                await batch.attempt()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert sum(batch.posts().values()) == 3
            assert outcomes(tmp_path / "state" if home.name == "folder" else None) == {"delivered": 3}

        simulate(main)


class TestAClearWhileTheJobsRun:
    def test_waits_for_the_same_jobs(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(25))
            wait = batch.wait

            async def waited(deferral: Deferral) -> Any:
                batch.wait = wait  # type: ignore[method-assign]
                raise Killed

            batch.wait = waited  # type: ignore[method-assign]
            with pytest.raises(Killed):
                await batch.attempt()
            batch.clear()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert batch.posts() == dict.fromkeys(numbered_prompts(25), 1)

        simulate(main)


class TestAnotherAccount:
    @pytest.mark.parametrize("key", ["another account", "the account's new key"])
    def test_only_songs_that_the_key_does_not_find_are_paid_for_again(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]], key: str
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(2), "endless [sandbox:seconds=4000]"], timeout=1000)
            with pytest.raises(WhisulJobTimeoutError):
                await batch.attempt()
            batch.arguments["timeout"] = 5000
            if key == "the account's new key":
                batch.sandbox.restore_key("the-new-key")
                change_connection(monkeypatch, password="the-new-key")
                assert {result["status"] for result in await batch.attempt()} == {"completed"}
                assert set(batch.posts().values()) == {1}
                return
            other = Sandbox(SandboxOptions(api_key="another-account-s-key"), clock=batch.loop.wall)
            async with other.serve():
                monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", other.connection)
                assert {result["status"] for result in await batch.attempt()} == {"completed"}
                # What is completed is there, whoever paid for it.
                assert [request.prompt for request in other.requests if request.method == "POST"] == [
                    "endless [sandbox:seconds=4000]"
                ]

        simulate(main)
        (line,) = [line for line in task_log() if "another API key, or to another host" in line]
        assert "has submitted 1 song" in line

    @pytest.mark.parametrize("sent", [True, False])
    def test_a_job_that_only_the_ledger_of_the_replaced_key_has_is_asked_for(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]], sent: bool
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            await kill_at(batch, "song 1", sent=sent)
            batch.sandbox.restore_key("the-new-key")
            change_connection(monkeypatch, password="the-new-key")
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert batch.posts() == {"song 0": 1, "song 1": 1 if sent else 2, "song 2": 1}

        simulate(main)
        logged = task_log()
        (line,) = [line for line in logged if "another API key, or to another host" in line]
        assert f"has submitted {2 if sent else 1} song" in line
        assert sum("may already have been paid for" in line for line in logged) == (not sent)

    @pytest.mark.parametrize("then", ["the same", "another one", "the first one"])
    def test_a_job_of_a_key_that_was_replaced_within_the_try_is_asked_for(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, then: str
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            operator = batch.operator()
            generate, first_key = operator.hook.generate, api_key()

            def replace_key(key: str) -> None:
                batch.sandbox.restore_key(key)
                change_connection(monkeypatch, password=key)

            with mortal_batch() as die:

                def generate_and_die(text: str, **options: Any) -> str:
                    if text == "song 1":
                        replace_key("the-second-key")
                    job_id = generate(text, **options)
                    if text == "song 1":
                        die()
                    return job_id

                operator.hook.generate = generate_and_die  # type: ignore[method-assign]
                with pytest.raises(RuntimeError, match="killed"):
                    await batch.attempt(operator)
            keys = {"the same": "the-second-key", "another one": "the-third-key", "the first one": first_key}
            replace_key(keys[then])
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert len(batch.sandbox.jobs) == 3

        simulate(main)


class TestTwoTriesAtOnce:
    def test_submit_each_song_once(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            first, second = make(numbered_prompts(12)), make(numbered_prompts(12))
            second.store, second.run_id, second.tries = first.store, first.run_id, 1
            results = await asyncio.gather(first.attempt(), second.attempt())
            assert [result["status"] for result in results[0] + results[1]] == ["completed"] * 24
            assert first.posts() == dict.fromkeys(numbered_prompts(12), 1)

        simulate(main)

    def test_submit_a_song_once_where_the_first_waits_after_a_429(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            prompts = ["song 0", "song 1 [sandbox:post-429]", "song 2"]
            first, second = make(prompts), make(prompts)
            second.store, second.run_id, second.tries = first.store, first.run_id, 1
            operator = first.operator()
            sleep, waits = operator.clock.sleep, threading.Event()

            def tell(seconds: float) -> None:
                if any(request.status == 429 for request in first.sandbox.requests):
                    waits.set()
                sleep(seconds)

            operator.clock = replace(operator.clock, sleep=tell)

            async def attempt_second() -> list[dict[str, Any]]:
                while not waits.is_set():
                    await asyncio.sleep(0.01)
                return await second.attempt()

            results = await asyncio.gather(first.attempt(operator), attempt_second())
            assert [result["status"] for result in results[0] + results[1]] == ["completed"] * 6
            assert len(first.sandbox.jobs) == 3

        simulate(main)


class TestARecordThatCannotBeRead:
    @pytest.mark.parametrize("key", ["whisul_batch", "whisul_batch_1_0001"])
    @pytest.mark.parametrize("damage", ["another version", "another form", "of no song", "missing"])
    def test_fails_the_task_and_submits_nothing(self, simulate: Simulate, key: str, damage: str) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(24), "doomed [sandbox:fail]"], attempts=1)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            store = store_of(batch, task_id="songs")
            good: Any = store.get(key)
            bad = {
                "another version": {**good, "version": 2},
                "another form": {"version": 1, "songs": "none"},
                "of no song": {**good, "songs": [["new"]] * 5, "dropped": "none"},
                "missing": None,
            }[damage]
            if bad is not None:
                store.set(key, bad)
            elif key == "whisul_batch":
                return
            else:
                store.delete(key)
            for _ in range(2):
                with pytest.raises(WhisulStateUnreadableError, match=key) as caught:
                    await batch.attempt()
                assert isinstance(caught.value, AirflowFailException)
            assert sum(batch.posts().values()) == 25
            store.set(key, good)
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()
            assert sum(batch.posts().values()) == 26

        simulate(main)

    @pytest.mark.parametrize("key", ["whisul_batch_1_0000", "whisul_prompts_1_0000"])
    def test_ends_a_try_that_has_waited(self, simulate: Simulate, key: str) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            wait = batch.wait

            async def waited(deferral: Deferral) -> Any:
                event = await wait(deferral)
                store_of(batch, task_id="songs").set(key, {"version": 1})
                # Read first where the record is this machine's own.
                batch.context.xcom_push(key, {"version": 1})
                return event

            batch.wait = waited  # type: ignore[method-assign]
            with pytest.raises(WhisulStateUnreadableError, match=key):
                await batch.attempt()
            assert sum(batch.posts().values()) == 3

        simulate(main)

    def test_a_store_that_is_away_when_the_songs_are_there_does_not_lose_them(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(key: str, value: Any) -> None:
            if value.get("status") == "delivered":
                raise WhisulStateError("The store is away.")

        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            with monkeypatch.context() as patch:
                fail_before_set(patch, whisul_batch, fail)
                first = await batch.attempt()
            assert await batch.attempt() == first
            assert sum(batch.posts().values()) == 3

        simulate(main)


class TestTheCeilingOfTheDay:
    def test_stops_the_submissions_waits_for_what_runs_and_ends_the_task(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: MakeBatch) -> None:
            set_extra(monkeypatch, max_submissions_per_day=3)
            batch = make(numbered_prompts(5))
            with pytest.raises(WhisulBudgetExceededError, match="3"):
                await batch.attempt()
            assert [bool(result["song"]) for result in batch.context.xcoms["return_value"]] == [True] * 3 + [False] * 2
            assert sum(batch.posts().values()) == 3
            set_extra(monkeypatch, max_submissions_per_day=5)
            batch.clear()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert set(batch.posts().values()) == {1}

        simulate(main)
        assert any("So 2 of 5 songs must wait to be submitted" in line for line in task_log())


class TestAmbiguousSubmissions:
    def test_a_later_try_gives_them_a_new_number(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(["lost [sandbox:post-drop=2]"])
            for _ in range(2):
                with pytest.raises(WhisulAmbiguousSubmitError):
                    await batch.attempt()
            assert (await batch.attempt())[0]["status"] == "completed"
            assert sum(batch.posts().values()) == 3

        simulate(main)

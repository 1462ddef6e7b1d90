"""The batch operator and its trigger: many songs, and the sizes of what Airflow keeps of them."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_whisul.api.messages import Response
from airflow_provider_whisul.api.models import Song, WhisulJob
from airflow_provider_whisul.api.outcomes import read_job
from airflow_provider_whisul.exceptions import (
    WhisulJobFailedError,
    WhisulJobTimeoutError,
    WhisulServerError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.state.batch_song import MAX_SONG_BYTES, BatchSong
from airflow_provider_whisul.state.batch_state import MAX_POLLED_JOBS, BatchState
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.triggers.events import chunk_from_event
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger
from tests.integration.operators.batch_task import (
    MakeBatch,
    Simulate,
    assert_one_card_per_song,
    numbered_prompts,
)
from tests.support.airflow import Deferral, TaskStore


def assert_polled_gently(sandbox: Sandbox) -> None:
    polls = defaultdict(list)
    for request in sandbox.requests:
        if request.method == "GET":
            polls[request.job_id].append(request.at)
    assert all(after - before >= 5 - 1e-6 for at in polls.values() for before, after in pairwise(at))


@pytest.mark.parametrize("durable", [True, False])
def test_the_songs_are_returned_in_the_order_of_their_prompts(simulate: Simulate, durable: bool) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(100))
        batch.arguments["durable"] = durable
        results = await batch.attempt()
        assert [result["prompt"] for result in results] == numbered_prompts(100)
        for result in results:
            assert result["status"] == "completed"
            assert result["error"] is None
            assert result["song"]["job_id"] == result["job_id"]
            assert result["song"]["prompt"] == result["prompt"] == batch.sandbox.jobs[result["job_id"]].prompt
            assert result["song"]["song_url"]
        assert set(batch.posts().values()) == {1}
        assert_polled_gently(batch.sandbox)
        for value in ((batch.store or {}) if durable else batch.context.xcoms).values():
            assert len(json.dumps(value)) < MAX_ENTRY_BYTES

    simulate(main)


def test_a_thousand_songs_in_a_few_deferrals(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(1000))
        results = await batch.attempt()
        assert sum(result["status"] == "completed" for result in results) == 1000
        assert sum(batch.posts().values()) == 1000
        assert max(len(trigger.job_ids) for trigger in batch.triggers) == MAX_POLLED_JOBS
        assert len(batch.events) <= 4

    simulate(main)


def test_song_data_too_large_for_an_event_is_fetched_by_the_worker(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.MAX_SONG_BYTES", 10)
    monkeypatch.setattr("airflow_provider_whisul.state.batch_song.MAX_SONG_BYTES", 10)

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(3))
        assert all(result["song"]["song_url"] for result in await batch.attempt())
        chunk, _ = chunk_from_event(batch.events[0])
        assert set(chunk["completed"].values()) == {None}

    simulate(main)


def test_a_song_too_large_to_keep_whose_job_is_not_found_is_one_failed_song(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.MAX_SONG_BYTES", 10)
    monkeypatch.setattr("airflow_provider_whisul.state.batch_song.MAX_SONG_BYTES", 10)

    async def main(make: MakeBatch) -> None:
        batch = make(["early [sandbox:seconds=20]", "late [sandbox:seconds=900]"])
        with pytest.raises(WhisulJobFailedError, match="1 of 2 songs failed.*404"):
            await batch.attempt()
        results = batch.context.xcoms["return_value"]
        assert [result["status"] for result in results] == ["failed", "completed"]
        assert set(batch.posts().values()) == {1}
        assert_one_card_per_song(batch, results)
        # A later try polls the job once more before it submits the song again.
        batch.arguments["prompts"] = ["early [sandbox:seconds=20]"]
        assert (await batch.attempt())[0]["song"]
        assert batch.posts()["early [sandbox:seconds=20]"] == 2

    simulate(main, expire_seconds=600)


def test_a_song_too_large_to_keep_that_cannot_be_fetched_loses_no_other_song(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.MAX_SONG_BYTES", 10)
    monkeypatch.setattr("airflow_provider_whisul.state.batch_song.MAX_SONG_BYTES", 10)

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(2))
        wait = batch.wait

        async def waited(deferral: Deferral) -> Any:
            event = await wait(deferral)
            batch.sandbox.revoke_key()
            return event

        batch.wait = waited  # type: ignore[method-assign]
        with pytest.raises(WhisulUnauthorizedError):
            await batch.attempt()
        assert len(batch.context.xcoms["return_value"]) == 2

    simulate(main)


def test_a_song_too_large_to_keep_that_cannot_be_fetched_for_now_is_one_failed_song(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_whisul.triggers.whisul_batch.MAX_SONG_BYTES", 10)
    monkeypatch.setattr("airflow_provider_whisul.state.batch_song.MAX_SONG_BYTES", 10)
    get_job = WhisulHook.get_job
    fetched: list[dict[str, Any]] = []

    def failing(hook: WhisulHook, job_id: str, **options: Any) -> WhisulJob:
        fetched.append(options)
        if len(fetched) <= 2:
            raise WhisulServerError("503", job_id=job_id, http_status=503)
        return get_job(hook, job_id, **options)

    async def main(make: MakeBatch) -> None:
        batch = make(numbered_prompts(4))
        with pytest.raises(WhisulJobTimeoutError, match="2 of 4 songs failed.*is completed, but could not be fetched"):
            await batch.attempt()
        # The first is fetched with all of the hook's attempts, and the others with one each.
        assert [options["retry"] for options in fetched] == [True, False, False, False]
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert set(batch.posts().values()) == {1}

    monkeypatch.setattr(WhisulHook, "get_job", failing)
    simulate(main)


def completed_job(job_id: str, title: str) -> WhisulJob:
    song: Song = {
        "job_id": job_id,
        "prompt": None,
        "title": title,
        "bpm": None,
        "duration_seconds": None,
        "song_url": "https://media.test/song.wav",
        "image_url": None,
        "tags": [],
        "started_at": None,
        "finished_at": None,
    }
    return WhisulJob(job_id, "completed", song=song)


class TestSizes:
    """Airflow keeps all of it as JSON that escapes what is not ASCII; :meth:`BatchTask.wait` measures each event."""

    @pytest.mark.parametrize("text", ["x", "音", "🎵"])
    def test_errors_in_any_language_fit_into_events_and_the_state_store(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        def read(response: Response, job_id: str) -> Any:
            return replace(read_job(response, job_id), error=text * 1000)

        async def main(make: MakeBatch) -> None:
            batch = make([f"doomed {number} [sandbox:fail]" for number in range(100)], max_failures=100, attempts=1)
            results = await batch.attempt()
            assert all(text * 40 in result["error"] for result in results)
            assert max(len(json.dumps(value)) for value in batch.store.values()) < MAX_ENTRY_BYTES

        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul_async.read_job", read)
        simulate(main)

    def test_songs_that_do_not_compress_fit_into_events(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Characters that JSON does not escape, as many as are kept of a song.
        letters = [chr(code) for code in range(32, 127) if chr(code) not in '"\\']
        kept = {
            key: value
            for key, value in (completed_job("job", "").song or {}).items()
            if key not in ("prompt", "job_id")
        }
        length = MAX_SONG_BYTES - len(json.dumps(kept))
        rng = random.Random(7)
        titles = defaultdict[str, str](lambda: "".join(rng.choices(letters, k=length)))

        def read(response: Response, job_id: str) -> WhisulJob:
            job = read_job(response, job_id)
            return completed_job(job_id, titles[job_id]) if job.completed else job

        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(400))
            results = await batch.attempt()
            assert {result["job_id"]: result["song"]["title"] for result in results} == titles
            assert min(len(json.dumps(event)) for event in batch.events[:-1]) > MAX_ENTRY_BYTES - 5_000

        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul_async.read_job", read)
        simulate(main)

    @pytest.mark.parametrize("length", [100, 200])
    def test_long_job_ids_fit_into_the_arguments_of_a_trigger(self, length: int) -> None:
        songs = [BatchSong(f"song {number}", "running", f"{number:0{length}d}") for number in range(MAX_POLLED_JOBS)]
        polled = BatchState(songs, TaskStore(), 0).to_poll()
        assert polled == songs[: len(polled)]
        trigger = WhisulBatchTrigger(
            [str(song.job_id) for song in polled], "c" * 200, 10, 0, submitted_before=[1234.5] * len(polled)
        )
        assert MAX_ENTRY_BYTES - 2_500 < len(json.dumps(trigger.serialize())) < MAX_ENTRY_BYTES


def test_progress_is_logged_once_in_half_a_minute(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        await make([*numbered_prompts(20), "slow [sandbox:seconds=400]"]).attempt()

    simulate(main)
    lines = [line for line in task_log() if " of 21 delivered, 0 failed" in line]
    assert 5 <= len(lines) <= 400 / 30 + 2
    assert any("left" in line for line in lines)


class TestArgumentsRefusedWhenTheDagIsRead:
    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ({"poll_interval": 4}, "once every 5 to 10 s"),
            ({"timeout": 0}, "positive number of seconds"),
            ({"attempts": 0}, "attempts is 0; it must be an integer, 1 or more"),
            ({"attempts": True}, "attempts is True"),
            ({"attempts": 1.5}, "attempts is 1.5"),
            ({"max_failures": -1}, "a number of songs, 0 or more"),
            ({"max_failures": 1.0}, "a share of the prompts of less than 1"),
            ({"max_failures": -0.1}, "max_failures is -0.1"),
            ({"max_failures": math.nan}, "max_failures is nan"),
            ({"max_failures": "5"}, "max_failures is '5'"),
            ({"on_ambiguous_submit": "ignore"}, '"retry" or "fail"'),
            ({"on_empty": "ignore"}, '"fail", "skip" or "succeed"'),
        ],
        ids=str,
    )
    def test_argument_of_a_task_or_of_mapped_tasks(self, argument: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WhisulGenerateBatchOperator(task_id="songs", prompts=["a song"], **argument)
        with pytest.raises(ValueError, match=message):
            WhisulGenerateBatchOperator.partial(task_id="songs", **argument)

    @pytest.mark.parametrize(
        ("operator", "argument"),
        [
            (WhisulGenerateOperator, {"poll_interval": 4}),
            (WhisulGenerateOperator, {"timeout": 0}),
            (WhisulGenerateOperator, {"on_ambiguous_submit": "ignore"}),
            (WhisulJobSensor, {"poke_interval": 4}),
            (WhisulJobSensor, {"timeout": -1}),
        ],
    )
    def test_argument_of_mapped_operators_and_sensors(self, operator: Any, argument: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be|once every"):
            operator.partial(task_id="songs", **argument)


def test_a_share_of_the_prompts_may_fail(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        doomed = [f"doomed {number} [sandbox:fail]" for number in range(3)]
        results = await make([*numbered_prompts(27), *doomed], max_failures=0.1, attempts=1).attempt()
        assert [result["status"] for result in results] == ["completed"] * 27 + ["failed"] * 3
        with pytest.raises(WhisulJobFailedError, match=r"3 of 29 songs failed, more than max_failures=0.1 \(2 songs\)"):
            await make([*numbered_prompts(26), *doomed], max_failures=0.1, attempts=1).attempt()

    simulate(main)

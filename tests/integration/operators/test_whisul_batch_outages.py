"""A batch whose submissions get no answer, and what its log and its error say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import (
    TaskRetry,
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulJobFailedError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.operators.batch_submission import MAX_CONSECUTIVE_AMBIGUOUS
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts

LOST = "[sandbox:post-drop]"


class TestLostAnswers:
    def test_three_in_a_row_stop_the_submitting_and_the_retry_waits(
        self, simulate: Simulate, task_log: Callable[[], list[str]]
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(30, LOST))
            with pytest.raises(WhisulAmbiguousSubmitError, match="30 of 30 songs failed") as caught:
                await batch.attempt()
            assert caught.value.task_retry is TaskRetry.TRANSIENT
            assert sum(batch.posts().values()) == MAX_CONSECUTIVE_AMBIGUOUS == 3
            assert [song["error"] for song in batch.context.xcoms["return_value"][3:]] == [
                "The song was not submitted."
            ] * 27

        simulate(main)
        lines = task_log()
        assert sum("leaves 27 songs to the next one" in line for line in lines) == 1
        assert sum("prompts[" in line and "may have been paid for" in line for line in lines) == 3
        # Not one more for each of the 27: one line for an outage.
        assert sum("Failed: " in line for line in lines) == 3

    def test_a_later_try_submits_the_others(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            lost = numbered_prompts(3, LOST)
            batch = make(["first", *lost, "last"])
            with pytest.raises(WhisulAmbiguousSubmitError):
                await batch.attempt()
            assert batch.posts() == dict.fromkeys(["first", *lost], 1)
            assert batch.context.xcoms["return_value"][0]["status"] == "completed"
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert batch.posts() == {"first": 1, "last": 1, **dict.fromkeys(lost, 2)}

        simulate(main)

    def test_nothing_is_submitted_after_a_deferral_either(
        self, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_provider_whisul.state.batch_state.MAX_POLLED_JOBS", 2)

        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(6), "unlucky [sandbox:fail=1]", *numbered_prompts(3, LOST), "last"])
            with pytest.raises(WhisulAmbiguousSubmitError, match="5 of 11 songs"):
                await batch.attempt()
            assert len(batch.events) > 2
            assert set(batch.posts().values()) == {1}
            assert batch.posts()["last"] == 0

        simulate(main)

    def test_those_before_and_after_a_deferral_are_in_a_row(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            # Their first submissions are answered, and their second ones are lost.
            unlucky = numbered_prompts(2, "[sandbox:fail][sandbox:post-slow=0][sandbox:post-drop]")
            lost = numbered_prompts(2, f"lost {LOST}")
            batch = make([*unlucky, *lost])
            with pytest.raises(WhisulAmbiguousSubmitError, match="4 of 4 songs"):
                await batch.attempt()
            assert batch.posts() == {unlucky[0]: 2, unlucky[1]: 1, **dict.fromkeys(lost, 1)}

        simulate(main)

    def test_lost_answers_with_others_between_stop_nothing(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            prompts = [
                prompt for pair in zip(numbered_prompts(5, LOST), numbered_prompts(5), strict=True) for prompt in pair
            ]
            batch = make(prompts, max_failures=5)
            assert sum(result["status"] == "completed" for result in await batch.attempt()) == 5
            assert batch.posts() == dict.fromkeys(prompts, 1)

        simulate(main)

    def test_songs_that_were_not_tried_are_not_given_up_within_max_failures_while_a_retry_is_left(
        self, simulate: Simulate
    ) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(5), *numbered_prompts(3, LOST), "last"], max_failures=4)
            with pytest.raises(WhisulAmbiguousSubmitError, match="4 of 9 songs failed: "):
                await batch.attempt()
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            last_try = make([*numbered_prompts(5), *numbered_prompts(3, f"again {LOST}"), "last"], max_failures=4)
            last_try.max_tries = 0
            assert sum(result["status"] == "failed" for result in await last_try.attempt()) == 4

        simulate(main)

    def test_with_fail_nothing_but_lost_answers_ends_the_retries(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(2), *numbered_prompts(2, LOST)], on_ambiguous_submit="fail")
            with pytest.raises(WhisulAmbiguousSubmitFinalError, match="2 of 4 songs"):
                await batch.attempt()

        simulate(main)


def test_every_message_names_a_long_prompt_by_its_beginning_and_an_ellipsis(
    simulate: Simulate, task_log: Callable[[], list[str]]
) -> None:
    long = [f"{number} {'word ' * 30}" for number in range(2)]

    async def main(make: MakeBatch) -> None:
        with pytest.raises(WhisulAmbiguousSubmitError) as caught:
            await make([f"{long[0]} [sandbox:fail]", f"{long[1]} {LOST}"]).attempt()
        errors.append(str(caught.value))

    errors: list[str] = []
    simulate(main)
    told = [line for line in [*task_log(), *errors] if "word" in line]
    assert {re.search("Whisul accepted|Submitting|prompts|Failed|failed", line)[0] for line in told} >= {  # type: ignore[index]
        *("Whisul accepted", "Submitting", "prompts", "Failed", "failed")
    }
    for line in told:
        for prompt in long:
            assert f"{prompt[:20]}" not in line or f"{prompt[:59]}…" in line
            assert prompt[:61] not in line


class TestTheErrorSaysWhatARetryDoes:
    def test_with_fail_a_retry_submits_what_failed_and_not_what_may_be_paid_for(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([LOST, "song [sandbox:fail]"], on_ambiguous_submit="fail", attempts=1)
            with pytest.raises(WhisulAmbiguousSubmitError) as caught:
                await batch.attempt()
            assert not isinstance(caught.value, WhisulAmbiguousSubmitFinalError)
            assert str(caught.value).endswith(
                'A retry submits only the songs that failed. Since on_ambiguous_submit is "fail", a song whose '
                "submission was ambiguous is submitted only once you clear this task."
            )

        simulate(main)

    def test_with_fail_the_error_that_ends_the_retries_says_what_clearing_costs(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(["song", LOST], on_ambiguous_submit="fail")
            batch.arguments["durable"] = False
            with pytest.raises(
                WhisulAmbiguousSubmitFinalError,
                match="nothing is submitted until you clear this task. That submits, and pays for, all 2 songs again",
            ):
                await batch.attempt()

        simulate(main)

    @pytest.mark.parametrize(
        ("max_tries", "durable", "outlook"),
        [
            (2, True, "A retry submits only the songs that failed."),
            (0, True, "Clearing this task submits only the songs that failed."),
            (2, False, "A retry submits, and pays for, all 3 songs again"),
            (0, False, "Clearing this task submits, and pays for, all 3 songs again"),
        ],
    )
    def test_after_a_failed_job(self, simulate: Simulate, max_tries: int, durable: bool, outlook: str) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([*numbered_prompts(2), "doomed [sandbox:fail]"])
            batch.arguments["durable"], batch.max_tries = durable, max_tries
            tries = "all of its tries" if durable else "this try"
            with pytest.raises(WhisulJobFailedError, match=f"has submitted 4 times in {tries}.*{outlook}"):
                await batch.attempt()

        simulate(main)

    def test_after_a_job_that_did_not_end(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(["stuck [sandbox:forever]"])
            with pytest.raises(
                WhisulJobTimeoutError,
                match=r"1 of 1 song failed.*A retry waits again for jobs that may still complete\.$",
            ):
                await batch.attempt()

        simulate(main)

    def test_each_songs_reason_ends_with_a_sentence(self, simulate: Simulate) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make([f"doomed {number} [sandbox:fail]" for number in range(25)])
            with pytest.raises(WhisulJobFailedError) as caught:
                await batch.attempt()
            first, *_, rest = str(caught.value).split("; ")
            assert first.endswith(".")
            assert ". And 5 more, see the log. This task has submitted 50 times in all of its tries. The result" in rest

        simulate(main)


def test_the_log_has_one_line_per_song_with_its_job(simulate: Simulate, task_log: Callable[[], list[str]]) -> None:
    async def main(make: MakeBatch) -> None:
        results.extend(await make(numbered_prompts(3)).attempt())

    results: list[Any] = []
    simulate(main)
    lines = task_log()
    for index, result in enumerate(results):
        wanted = f"Whisul accepted the prompt 'song {index}' as job {result['job_id']}"
        assert sum(wanted in line for line in lines) == 1


@pytest.mark.parametrize("songs", [1, 2])
def test_counts_of_one_and_of_many_are_words(simulate: Simulate, task_log: Callable[[], list[str]], songs: int) -> None:
    async def main(make: MakeBatch) -> None:
        await make(numbered_prompts(songs)).attempt()

    simulate(main)
    noun = "song" if songs == 1 else "songs"
    lines = task_log()
    assert any(f"Submitted {songs} {noun}" in line for line in lines)
    assert any(f"{songs} of {songs} {noun} delivered" in line for line in lines)


@pytest.mark.parametrize(("max_failures", "level"), [(1, "warning"), (0, "error")])
def test_a_failed_song_within_max_failures_is_a_warning(
    simulate: Simulate,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    max_failures: int,
    level: str,
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = make(["doomed [sandbox:fail]"], attempts=1, max_failures=max_failures)
        if max_failures:
            await batch.attempt()
        else:
            with pytest.raises(WhisulJobFailedError):
                await batch.attempt()

    simulate(main)
    lines = [*capsys.readouterr().out.splitlines(), *(f"{r.levelname} {r.getMessage()}" for r in caplog.records)]
    levels = {
        name
        for line in lines
        for name in ("warning", "error")
        if "Failed: 'doomed" in line and name in line[:60].lower()
    }
    assert levels == {level}

"""``@task.whisul``: what its function returns becomes one song, in whichever try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.decorators.whisul import whisul_task
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitFinalError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulStateUnreadableError,
)
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from tests.integration.decorators.functions import DecoratedSongTask, Returns, random_prompts
from tests.integration.operators.song_task import ON_WORKER, SUBMIT_ONLY, completed_event, error_event, posts
from tests.support.airflow import Killed
from tests.support.clock import FakeClock
from tests.support.homes import Home, store_of

#: The decorator waits for the song unless told otherwise.
DEFERRED: dict[str, Any] = {}
MODES = pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER, SUBMIT_ONLY], ids=["deferred", "worker", "submit"])

Make = Callable[..., DecoratedSongTask]


@pytest.fixture
def task(sandbox: Sandbox, clock: FakeClock, home: Home) -> Make:
    """Make a task of the decorator, whose record is kept in each of the homes."""
    return lambda function, **arguments: DecoratedSongTask(clock, home.task_store(), function, **arguments)


@pytest.fixture
def make(sandbox: Sandbox, clock: FakeClock) -> Make:
    """Make a task of the decorator."""
    return lambda function, **arguments: DecoratedSongTask(clock, None, function, **arguments)


def job_of(outcome: Any) -> str:
    if isinstance(outcome, WhisulJobTrigger):
        return outcome.job_id
    return str(outcome["job_id"] if isinstance(outcome, dict) else outcome)


def submitted(sandbox: Sandbox) -> list[str]:
    """Return the prompts of all jobs."""
    return [job.prompt for job in sandbox.jobs.values()]


class TestOneTry:
    def test_the_result_is_the_song(self, sandbox: Sandbox, make: Make) -> None:
        song = make(lambda: "a waltz", **ON_WORKER).attempt()
        assert song["job_id"] in sandbox.jobs
        assert (song["prompt"], set(song)) == ("a waltz", set(Song.__annotations__))

    def test_it_waits_in_the_triggerer_unless_told_otherwise(self, sandbox: Sandbox, make: Make) -> None:
        function = Returns("a waltz")
        song = make(function)
        job_id = song.attempt().job_id
        assert song.resume(completed_event(job_id))["job_id"] == job_id
        assert function.calls == 1
        assert sandbox.jobs[job_id].prompt == "a waltz"

    def test_without_waiting_the_result_is_the_id_of_the_job(self, sandbox: Sandbox, make: Make) -> None:
        assert make(lambda: "a waltz", **SUBMIT_ONLY).attempt() in sandbox.jobs

    def test_the_function_gets_its_arguments_and_what_it_names_of_the_context(
        self, sandbox: Sandbox, make: Make
    ) -> None:
        def song(mood: str, *, place: str, ti: Any = None) -> str:
            return f"a {mood} waltz for the {place} of {ti.run_id}"

        task = make(song, **SUBMIT_ONLY)
        operator = whisul_task(song).override(**SUBMIT_ONLY)("slow", place="harbour").operator
        job_id = task.attempt(operator)
        assert sandbox.jobs[job_id].prompt == f"a slow waltz for the harbour of {task.run_id}"

    def test_a_prompt_is_sent_as_it_is_returned(self, sandbox: Sandbox, make: Make) -> None:
        prompt = "a waltz for {{ var.value.secret }}, as in notes.txt"
        make(lambda: prompt, **SUBMIT_ONLY).attempt()
        assert submitted(sandbox) == [prompt]

    @pytest.mark.parametrize("returned", [None, 7, ["a waltz"], {"prompt": "a waltz"}, b"a waltz"])
    def test_a_function_that_returns_no_text_sends_nothing(
        self, sandbox: Sandbox, make: Make, returned: object
    ) -> None:
        with pytest.raises(WhisulInvalidInputError, match=r"song.* must return .*Nothing was sent") as caught:
            make(Returns(returned)).attempt()
        assert isinstance(caught.value, AirflowFailException)
        assert type(returned).__name__ in str(caught.value)
        assert sandbox.requests == []

    def test_a_function_that_returns_an_empty_text_sends_nothing(self, sandbox: Sandbox, make: Make) -> None:
        with pytest.raises(WhisulInvalidInputError, match="is empty"):
            make(lambda: " \n").attempt()
        assert sandbox.requests == []

    @pytest.mark.parametrize("error", [AirflowSkipException("not today"), KeyError("no such mood")])
    def test_what_the_function_raises_ends_the_try_and_sends_nothing(
        self, sandbox: Sandbox, make: Make, error: Exception
    ) -> None:
        task = make(Returns(error))
        with pytest.raises(type(error)) as caught:
            task.attempt()
        assert caught.value is error
        assert sandbox.requests == []
        assert task.context.shown() == []

    def test_the_card_of_a_failed_song_has_the_prompt_that_was_submitted(self, sandbox: Sandbox, make: Make) -> None:
        task = make(lambda: "a waltz")
        job_id = task.attempt().job_id
        with pytest.raises(WhisulJobFailedError):
            task.resume(error_event(WhisulJobFailedError("failed", job_id=job_id)))
        assert [(card["prompt"], card["status"]) for card in task.context.shown()] == [("a waltz", "failed")]


class TestALaterTry:
    """The function returns another prompt in each call."""

    @MODES
    def test_after_a_kill_before_the_post_the_same_prompt_is_submitted(
        self, sandbox: Sandbox, task: Make, arguments: dict[str, Any], task_log: Callable[[], list[str]]
    ) -> None:
        song = task(function := random_prompts(), **arguments)
        operator = song.operator()

        def die(request: Any) -> Any:
            raise Killed

        operator.hook._exchange = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            song.attempt(operator)
        song.attempt()
        assert submitted(sandbox) == ["song number 0"]
        assert (function.calls, posts(sandbox)) == (1, 1)
        assert any("song() returned" in line and "song number 0" in line for line in task_log())

    @MODES
    def test_after_a_kill_after_the_post_the_same_job_is_waited_for(
        self, sandbox: Sandbox, task: Make, arguments: dict[str, Any]
    ) -> None:
        song = task(function := random_prompts(), **arguments)
        operator = song.operator()
        generate = operator.hook.generate

        def die(*args: Any, **kwargs: Any) -> str:
            generate(*args, **kwargs)
            raise Killed

        operator.hook.generate = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            song.attempt(operator)
        assert [job_of(song.attempt())] == list(sandbox.jobs)
        assert (function.calls, posts(sandbox)) == (1, 1)

    @MODES
    def test_a_job_that_is_recorded_is_waited_for(
        self, sandbox: Sandbox, task: Make, arguments: dict[str, Any]
    ) -> None:
        song = task(function := random_prompts(), **arguments)
        first = job_of(song.attempt())
        assert [job_of(song.attempt()), job_of(song.attempt())] == [first, first]
        assert (function.calls, posts(sandbox)) == (1, 1)

    def test_a_function_that_would_fail_or_skip_loses_no_song_that_is_paid_for(
        self, sandbox: Sandbox, task: Make
    ) -> None:
        song = task(Returns("a waltz", AirflowSkipException("not after six")))
        assert song.attempt().job_id == song.attempt().job_id

    def test_an_ambiguous_submission_is_the_same_one_in_the_next_try(self, sandbox: Sandbox, task: Make) -> None:
        song = task(random_prompts("song [sandbox:post-drop]"), on_ambiguous_submit="fail")
        with pytest.raises(WhisulAmbiguousSubmitFinalError):
            song.attempt()
        with pytest.raises(WhisulAmbiguousSubmitFinalError, match="already have been paid for"):
            song.attempt()
        assert posts(sandbox) == 1

    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER])
    def test_after_a_job_that_failed_the_function_is_called_again(
        self, sandbox: Sandbox, task: Make, arguments: dict[str, Any]
    ) -> None:
        song = task(Returns("one [sandbox:fail]", "two"), **arguments)
        event = error_event(WhisulJobFailedError("failed", job_id="x"))
        with pytest.raises(WhisulJobFailedError):
            song.attempt_with(event)
        assert job_of(song.attempt()) == job_of(song.attempt())
        assert submitted(sandbox) == ["one [sandbox:fail]", "two"]

    def test_a_prompt_that_was_refused_is_not_kept(self, sandbox: Sandbox, task: Make) -> None:
        song = task(Returns("one [sandbox:post-400]", "two"))
        with pytest.raises(WhisulInvalidInputError):
            song.attempt()
        song.attempt()
        assert submitted(sandbox) == ["two"]

    def test_a_user_who_clears_the_task_has_the_function_called_again(
        self, sandbox: Sandbox, task: Make, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(Returns("a waltz", "a waltz", "a tango"))
        first = job_of(song.attempt())
        song.clear()
        assert job_of(song.attempt()) == first
        song.clear()
        assert job_of(song.attempt()) != first
        assert submitted(sandbox) == ["a waltz", "a tango"]
        assert any(first in line and "for another prompt" in line for line in task_log())

    def test_without_a_record_the_function_is_called_in_each_try(self, sandbox: Sandbox, task: Make) -> None:
        song = task(random_prompts(), durable=False)
        assert job_of(song.attempt()) != job_of(song.attempt())
        assert posts(sandbox) == 2

    def test_a_long_prompt_is_kept_whole(self, sandbox: Sandbox, task: Make) -> None:
        words = " ".join(f"{number * 7919 % 100_003:x}" for number in range(30_000))
        song = task(Returns(words, "another"), **SUBMIT_ONLY)
        operator = song.operator()

        def die(request: Any) -> Any:
            raise Killed

        operator.hook._exchange = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            song.attempt(operator)
        assert song.record is not None
        assert song.record.prompt_pieces > 1
        song.attempt()
        assert submitted(sandbox) == [words]

    def test_a_text_of_another_try_that_ran_at_the_same_time_is_not_taken_for_the_prompt(
        self, sandbox: Sandbox, task: Make
    ) -> None:
        song = task(Returns("a waltz", "a tango"))
        song.attempt()
        store = store_of(song)
        assert song.record is not None
        written = vars(replace(song.record, prompt="of another prompt"))
        store.set("whisul_song", {"version": 1, **written})
        song.attempt()
        assert submitted(sandbox) == ["a waltz", "a tango"]

    def test_a_text_that_cannot_be_read_fails_the_task_and_submits_nothing(self, sandbox: Sandbox, task: Make) -> None:
        song = task(random_prompts())
        song.attempt()
        store_of(song).set("whisul_prompts_1_0000", {"version": 1, "prompts": "damaged"})
        with pytest.raises(WhisulStateUnreadableError, match="whisul_prompts_1_0000"):
            song.attempt()
        assert posts(sandbox) == 1

"""``@task.whisul_batch``: what its function returns becomes songs, in whichever try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_whisul.exceptions import WhisulInvalidInputError, WhisulJobFailedError
from tests.integration.decorators.functions import DecoratedBatchTask, Returns, random_lists
from tests.integration.operators.batch_task import MakeBatch, Simulate
from tests.support.airflow import Killed


def decorated(make: MakeBatch, function: Callable[..., Any], **arguments: Any) -> DecoratedBatchTask:
    """Make a task of the decorator, with the sandbox and the record of one that ``make`` has made."""
    plain = make([])
    batch = DecoratedBatchTask(plain.sandbox, plain.loop, function, **arguments)
    batch.store = plain.store
    return batch


def test_the_result_is_the_list_of_the_songs_and_the_function_is_called_once(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = decorated(make, function := random_lists())
        results = await batch.attempt()
        assert [(result["prompt"], result["status"]) for result in results] == [
            (f"song {number}", "completed") for number in range(3)
        ]
        assert batch.triggers
        assert function.calls == 1

    simulate(main)


@pytest.mark.parametrize("returned", [None, "a waltz", {"a waltz"}, ["a waltz", 7], ["a waltz", ""]])
def test_a_function_that_returns_no_list_of_texts_sends_nothing(simulate: Simulate, returned: object) -> None:
    async def main(make: MakeBatch) -> None:
        batch = decorated(make, Returns(returned))
        with pytest.raises(WhisulInvalidInputError, match=r"Nothing was sent|is refused"):
            await batch.attempt()
        assert batch.sandbox.requests == []

    simulate(main)


def test_a_function_that_skips_or_returns_an_empty_list_does_what_the_operator_does(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        with pytest.raises(AirflowSkipException, match="not today"):
            await decorated(make, Returns(AirflowSkipException("not today"))).attempt()
        with pytest.raises(AirflowSkipException, match="empty list"):
            await decorated(make, list, on_empty="skip").attempt()
        assert await decorated(make, list, on_empty="succeed").attempt() == []

    simulate(main)


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("sent", [True, False])
def test_a_retry_after_a_kill_while_submitting_goes_on_with_the_first_list(
    simulate_at_home: Simulate, after: int, sent: bool
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = decorated(make, function := random_lists())
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
            raise Killed

        operator.hook.generate = dying  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            await batch.attempt(operator)
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert function.calls == 1
        assert batch.posts() == {f"song {number}": 1 for number in range(3)}

    simulate_at_home(main)


def test_a_retry_submits_the_songs_of_the_first_list_that_have_failed(simulate_at_home: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        prompts = ["a waltz", "a tango [sandbox:fail=1]"]
        batch = decorated(make, function := Returns(prompts, ["others"]), attempts=1)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert function.calls == 1
        assert batch.posts() == {"a waltz": 1, "a tango [sandbox:fail=1]": 2}

    simulate_at_home(main)


def test_a_user_who_clears_the_task_has_the_function_called_again(
    simulate_at_home: Simulate, task_log: Callable[[], list[str]]
) -> None:
    async def main(make: MakeBatch) -> None:
        batch = decorated(make, Returns(["a waltz", "a tango [sandbox:fail]"], ["a waltz", "a tango"]), attempts=1)
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        batch.clear()
        assert {result["status"] for result in await batch.attempt()} == {"completed"}
        assert batch.posts() == {"a waltz": 1, "a tango": 1, "a tango [sandbox:fail]": 1}

    simulate_at_home(main)
    assert any("no longer in the list" in line for line in task_log())


def test_without_a_record_the_function_is_called_in_each_try(simulate: Simulate) -> None:
    async def main(make: MakeBatch) -> None:
        batch = decorated(make, random_lists(1), durable=False)
        assert [(await batch.attempt())[0]["prompt"] for _ in range(2)] == ["song 0", "song 1"]

    simulate(main)

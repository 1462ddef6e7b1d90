"""The retry policy, which exists from Airflow 3.3 on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConnectionError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulServerError,
)
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.retry_policy import WHISUL_RETRY_POLICY
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator

HAS_POLICIES = Version(airflow_version) >= Version("3.3")

if HAS_POLICIES:
    from airflow.sdk import RetryAction, RetryPolicy

    class UsersPolicy(RetryPolicy):
        def evaluate(self, exception, try_number, max_tries, context=None):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    def decide(error: BaseException, try_number: int = 1) -> tuple[RetryAction, timedelta | None]:
        assert WHISUL_RETRY_POLICY is not None
        decision = WHISUL_RETRY_POLICY.evaluate(error, try_number, 9)
        return decision.action, decision.retry_delay

    @pytest.mark.parametrize(("try_number", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (8, 60)])
    def test_a_429_follows_the_backoff_schedule(try_number: int, seconds: int) -> None:
        assert decide(WhisulRateLimitError("429"), try_number) == (RetryAction.RETRY, timedelta(seconds=seconds))

    @pytest.mark.parametrize("asked_by", ["retry_after", "cooldown"])
    def test_a_429_waits_for_retry_after_or_the_cooldown_where_longer(asked_by: str) -> None:
        error = WhisulRateLimitError("429", **{asked_by: 7200})
        assert decide(error) == (RetryAction.RETRY, timedelta(hours=2))

    @pytest.mark.parametrize("cls", [WhisulServerError, WhisulConnectionError, WhisulAmbiguousSubmitError])
    def test_a_transient_failure_waits_10_to_30_s(cls: type[WhisulError]) -> None:
        action, delay = decide(cls("oops"))
        assert action is RetryAction.RETRY
        assert delay is not None
        assert timedelta(seconds=10) <= delay <= timedelta(seconds=30)

    def test_a_failed_job_is_retried_at_once() -> None:
        assert decide(WhisulJobFailedError("failed")) == (RetryAction.RETRY, timedelta(0))

    def test_a_final_error_fails_with_its_reason() -> None:
        assert WHISUL_RETRY_POLICY is not None
        decision = WHISUL_RETRY_POLICY.evaluate(WhisulJobNotFoundError("404, not found"), 1, 9)
        assert (decision.action, decision.reason) == (RetryAction.FAIL, "404, not found")

    @pytest.mark.parametrize("error", [WhisulJobTimeoutError("late"), ValueError("not ours")])
    def test_a_timeout_and_a_foreign_error_are_left_to_the_tasks_retry_delay(error: Exception) -> None:
        assert decide(error) == (RetryAction.DEFAULT, None)

    def test_the_operator_has_the_policy_unless_the_user_sets_one() -> None:
        assert WhisulGenerateOperator(task_id="song", prompt="x").retry_policy is WHISUL_RETRY_POLICY
        own = UsersPolicy()
        assert WhisulGenerateOperator(task_id="song", prompt="x", retry_policy=own).retry_policy is own

    def test_the_policy_in_the_dags_default_args_is_the_users() -> None:
        from airflow.sdk import DAG

        own = UsersPolicy()
        with DAG("songs", default_args={"retry_policy": own}):
            song = WhisulGenerateOperator(task_id="song", prompt="x")
            batch = WhisulGenerateBatchOperator(task_id="batch", prompts=["x"])
            mapped = WhisulGenerateOperator.partial(task_id="songs").expand(prompt=["x"])
            keep = WhisulToObjectStorageOperator(task_id="keep", songs=[], destination="file:///tmp")
        tasks = [song, batch, mapped.unmap({"prompt": "x"}), keep]
        assert [task.retry_policy for task in tasks] == [own] * 4

    def delay_of(error: WhisulError, try_number: int = 1, **arguments: Any) -> list[timedelta | None]:
        """Return the policy's delays for a task and for a mapped task with these arguments, in a DAG."""
        from airflow.sdk import DAG

        assert WHISUL_RETRY_POLICY is not None
        with DAG("songs", default_args=arguments.pop("default_args", {})):
            task = WhisulGenerateOperator(task_id="song", prompt="x", **arguments)
            mapped = WhisulGenerateOperator.partial(task_id="songs", **arguments).expand(prompt=["x"])
        decisions = [
            WHISUL_RETRY_POLICY.evaluate(error, try_number, 9, {"task": each})  # type: ignore[typeddict-item]
            for each in (task.prepare_for_execution(), mapped.unmap({"prompt": "x"}))
        ]
        assert {decision.action for decision in decisions} == {RetryAction.RETRY}
        return [decision.retry_delay for decision in decisions]

    @pytest.mark.parametrize(
        "arguments",
        [
            {"retry_delay": timedelta(minutes=30)},
            {"retry_delay": 1800},
            {"default_args": {"retry_delay": timedelta(minutes=30)}},
            # As long as the default, but the user's.
            {"retry_delay": timedelta(minutes=5)},
            {"default_args": {"retry_delay": timedelta(minutes=5)}},
            {"retry_exponential_backoff": 2},
        ],
    )
    @pytest.mark.parametrize("error", [WhisulServerError("503"), WhisulRateLimitError("429"), WhisulJobFailedError("")])
    def test_a_delay_that_the_user_set_is_left_to_airflow(arguments: dict[str, Any], error: WhisulError) -> None:
        assert delay_of(error, **arguments) == [None, None]

    @pytest.mark.parametrize("arguments", [{}, {"retries": 3}, {"max_retry_delay": timedelta(hours=1)}])
    def test_without_a_delay_of_the_user_the_error_decides(arguments: dict[str, Any]) -> None:
        assert delay_of(WhisulJobFailedError(""), **arguments) == [timedelta(0)] * 2

    def test_a_default_that_the_deployment_sets_is_left_to_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airflow_provider_whisul.retry_policy.AIRFLOW_RETRY_DELAY", timedelta(minutes=6))
        assert delay_of(WhisulJobFailedError("")) == [None, None]

    def test_a_longer_wait_that_whisul_asks_for_is_waited_for() -> None:
        error = WhisulRateLimitError("429", retry_after=7200)
        assert delay_of(error, retry_delay=timedelta(minutes=30)) == [timedelta(hours=2)] * 2

    @pytest.mark.parametrize(
        ("try_number", "limit", "expected"),
        [
            # Airflow waits 40 to 80 s, then 160 s and more.
            (3, None, timedelta(seconds=80)),
            (5, None, None),
            (3, timedelta(seconds=70), timedelta(seconds=70)),
            (500, timedelta(seconds=30), timedelta(seconds=60)),
        ],
    )
    def test_an_exponential_backoff_is_not_shortened(
        try_number: int, limit: timedelta | None, expected: timedelta | None
    ) -> None:
        error = WhisulRateLimitError("429", retry_after=60)
        arguments: dict[str, Any] = {"retry_delay": 10, "retry_exponential_backoff": 2, "max_retry_delay": limit}
        assert delay_of(error, try_number, **arguments) == [expected] * 2

    def test_mapped_tasks_have_the_policy_too() -> None:
        from airflow.sdk import DAG

        with DAG("songs"):
            mapped = WhisulGenerateOperator.partial(task_id="songs").expand(prompt=["x"])
        assert mapped.unmap({"prompt": "x"}).retry_policy is WHISUL_RETRY_POLICY

else:

    def test_there_is_no_policy_before_3_3() -> None:
        assert WHISUL_RETRY_POLICY is None
        assert not hasattr(WhisulGenerateOperator(task_id="song", prompt="x"), "retry_policy")

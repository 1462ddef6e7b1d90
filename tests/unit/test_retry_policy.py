"""The retry policy, which exists from Airflow 3.3 on."""

from __future__ import annotations

from datetime import timedelta

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
from airflow_provider_whisul.retry_policy import WHISUL_RETRY_POLICY

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

    def test_mapped_tasks_have_the_policy_too() -> None:
        from airflow.sdk import DAG

        with DAG("songs"):
            mapped = WhisulGenerateOperator.partial(task_id="songs").expand(prompt=["x"])
        assert mapped.unmap({"prompt": "x"}).retry_policy is WHISUL_RETRY_POLICY

else:

    def test_there_is_no_policy_before_3_3() -> None:
        assert WHISUL_RETRY_POLICY is None
        assert not hasattr(WhisulGenerateOperator(task_id="song", prompt="x"), "retry_policy")

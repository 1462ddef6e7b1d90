"""Which runs are skipped and which are warned of by their date, in the contexts that Airflow gives to their tasks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException

from airflow_provider_whisul.operators.run_date import check_run_date, run_date
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from tests.support.clock import NOON
from tests.support.run_context import AIRFLOW_2, run_context

NOW = datetime.fromtimestamp(NOON, UTC)
DAY = timedelta(days=1)
MIDNIGHT = NOW.replace(hour=0)

Log = Callable[[], list[str]]

#: The word for a run that an asset has triggered.
ASSET_TRIGGERED = "dataset_triggered" if AIRFLOW_2 else "asset_triggered"

airflow_3 = pytest.mark.skipif(AIRFLOW_2, reason="Airflow 2 has no runs without a logical date.")


def daily(days_ago: int, run_type: str = "scheduled", **kwargs: Any) -> dict[str, Any]:
    """The context of a daily run whose interval has ended some days before last midnight."""
    end = MIDNIGHT - days_ago * DAY
    return run_context(run_type, logical_date=end - DAY, interval=(end - DAY, end), **kwargs)


def warnings(task_log: Log) -> list[str]:
    return [line for line in task_log() if "songs are about to be submitted" in line]


# --- the date


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_the_date_of_a_run_that_airflow_makes_is_the_end_of_its_interval(run_type: str) -> None:
    assert run_date(daily(3, run_type)) == MIDNIGHT - 3 * DAY  # type: ignore[arg-type]


def test_the_date_of_a_run_that_a_user_makes_is_its_logical_date() -> None:
    """Airflow gives it the interval that a scheduled run would have at that time."""
    context = run_context("manual", logical_date=NOW - timedelta(hours=1), interval=(MIDNIGHT - DAY, MIDNIGHT))
    assert run_date(context) == NOW - timedelta(hours=1)  # type: ignore[arg-type]


@airflow_3
@pytest.mark.parametrize("run_type", ["manual", "asset_triggered"])
def test_a_run_without_a_logical_date_has_no_date_and_is_never_skipped(run_type: str) -> None:
    context = run_context(run_type, logical_date=None, run_after=NOW - 30 * DAY)
    assert run_date(context) is None  # type: ignore[arg-type]
    check_run_date(context, timedelta(seconds=1), NOON)  # type: ignore[arg-type]


@airflow_3
@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_the_date_of_a_run_for_a_partition_is_the_time_at_which_it_was_due(run_type: str) -> None:
    """From Airflow 3.2 on such a run has no interval and no logical date."""
    context = run_context(run_type, logical_date=None, run_after=MIDNIGHT - 9 * DAY)
    assert run_date(context) == MIDNIGHT - 9 * DAY  # type: ignore[arg-type]


def test_a_context_without_a_run_has_no_date() -> None:
    check_run_date({}, timedelta(seconds=1), NOON)  # type: ignore[arg-type]


# --- skipping


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_a_run_for_a_date_further_back_than_the_limit_is_skipped_and_the_reason_says_why(run_type: str) -> None:
    with pytest.raises(AirflowSkipException) as raised:
        check_run_date(daily(3, run_type), timedelta(days=3, hours=2), NOON)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "Skipped, since this run is for 2026-02-14 00:00:00 UTC, 3 days and 12 hours ago, and skip_if_older_than is "
        "3 days and 2 hours. Nothing was submitted, and nothing was paid."
    )


def test_a_run_of_a_user_for_an_old_logical_date_is_skipped_too() -> None:
    context = run_context("manual", logical_date=NOW - 3 * DAY, interval=(NOW - 4 * DAY, NOW - 3 * DAY))
    with pytest.raises(AirflowSkipException, match="3 days ago, and skip_if_older_than is 2 days"):
        check_run_date(context, 2 * DAY, NOON)  # type: ignore[arg-type]


def test_a_run_within_the_limit_is_neither_skipped_nor_warned_of(task_log: Log) -> None:
    check_run_date(daily(3, catchup=True), timedelta(days=3, hours=12), NOON)  # type: ignore[arg-type]
    check_run_date(daily(-2, catchup=True), timedelta(seconds=1), NOON)  # type: ignore[arg-type]
    assert warnings(task_log) == []


def test_an_asset_triggered_run_is_not_older_than_its_logical_date() -> None:
    context = run_context(ASSET_TRIGGERED, logical_date=NOW, interval=(NOW - 9 * DAY, NOW - 9 * DAY))
    check_run_date(context, timedelta(hours=1), NOON)  # type: ignore[arg-type]


# --- the warning


def test_a_catch_up_run_for_an_old_date_is_warned_of_once(task_log: Log) -> None:
    check_run_date(daily(3, catchup=True), None, NOON)  # type: ignore[arg-type]
    (line,) = warnings(task_log)
    assert (
        "This run is for 2026-02-14 00:00:00 UTC, 3 days and 12 hours ago, and its songs are about to be submitted: "
        "Airflow makes it as a catch-up run. Each such run pays for its songs. To stop that: catchup=False on the DAG "
        "lets Airflow make no runs for the past; skip_if_older_than=timedelta(days=1) on this task skips it in runs "
        "for older dates."
    ) in line


def test_a_backfill_is_warned_of_whatever_the_dag_says_about_catchup(task_log: Log) -> None:
    check_run_date(daily(3, "backfill"), None, NOON)  # type: ignore[arg-type]
    (line,) = warnings(task_log)
    assert "as a backfill run" in line
    assert "To stop that: cancelling the backfill stops the runs that have not begun" in line
    assert "skip_if_older_than" in line


def test_the_one_late_run_of_a_dag_without_catchup_is_not_warned_of(task_log: Log) -> None:
    check_run_date(daily(3), None, NOON)  # type: ignore[arg-type]
    assert warnings(task_log) == []


def test_a_weekly_run_that_is_on_time_is_not_warned_of(task_log: Log) -> None:
    """Its logical date is a week back."""
    context = run_context(
        "scheduled", logical_date=MIDNIGHT - 7 * DAY, interval=(MIDNIGHT - 7 * DAY, MIDNIGHT), catchup=True
    )
    check_run_date(context, None, NOON)  # type: ignore[arg-type]
    check_run_date(context, DAY, NOON)  # type: ignore[arg-type]
    assert warnings(task_log) == []


def test_a_run_that_a_user_makes_is_not_warned_of(task_log: Log) -> None:
    context = run_context(
        "manual", logical_date=NOW - 30 * DAY, interval=(NOW - 31 * DAY, NOW - 30 * DAY), catchup=True
    )
    check_run_date(context, None, NOON)  # type: ignore[arg-type]
    assert warnings(task_log) == []


# --- the argument


@pytest.mark.parametrize("value", [timedelta(0), timedelta(seconds=-1), 0, 86_400, 1.5, "1 day", True])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("operator", [WhisulGenerateOperator, WhisulGenerateBatchOperator])
def test_what_is_no_duration_is_refused_when_the_dag_file_is_read(operator: Any, mapped: bool, value: object) -> None:
    prompt = {"prompt": "a"} if operator is WhisulGenerateOperator else {"prompts": ["a"]}
    make = operator.partial if mapped else partial(operator, **prompt)
    with pytest.raises(ValueError, match="skip_if_older_than is .*; it must be a timedelta of more than 0"):
        make(task_id="song", skip_if_older_than=value)


@pytest.mark.parametrize("operator", [WhisulGenerateOperator, WhisulGenerateBatchOperator])
def test_a_mapped_task_takes_the_limit_and_airflow_can_store_its_dag(operator: Any) -> None:
    name = "prompt" if operator is WhisulGenerateOperator else "prompts"
    with DAG("mapped", schedule=None, start_date=NOW) as dag:
        for limit in (None, DAY):
            operator.partial(task_id=f"songs_{limit is None}", skip_if_older_than=limit).expand(
                **{name: [["a"], ["b"]]}
            )
    assert dag.get_task("songs_False").partial_kwargs["skip_if_older_than"] == DAY
    try:
        from airflow.serialization.serialized_objects import DagSerialization as Serialization
    except ImportError:
        from airflow.serialization.serialized_objects import SerializedDAG as Serialization
    Serialization.to_dict(dag)

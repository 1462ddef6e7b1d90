"""The songs of ten past days, of which the ceiling of the account allows five."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from dev.airflow_runner.client import FINISHED
from dev.airflow_runner.local import LocalAirflow
from tests.support.reconciliation import differences, print_ledger, printed_ledger, read_machine_ledger

# The first test also waits for Airflow and for all the songs.
pytestmark = pytest.mark.timeout(2400)

DAGS = Path(__file__).parent / "past_days_dags"
DAYS, CEILING = 10, 5
CONN_ID = "whisul_capped"
TIMEOUT = 1200.0
#: More seconds than the runs take. The ceiling counts by the day (UTC).
RUN_SECONDS = 600.0


@dataclass(frozen=True)
class PastDays:
    """The runs, all over, and what they have cost."""

    airflow: LocalAirflow
    sandbox: Sandbox
    dag_id: str
    runs: list[str]


@pytest.fixture(scope="module")
def past_days() -> Iterator[PastDays]:
    """Make the runs: by a backfill, or by a catch-up on Airflow 2, whose backfills run in the command line."""
    left_of_day = 86_400 - time.time() % 86_400
    if left_of_day < RUN_SECONDS:
        time.sleep(left_of_day + 1)
    with Sandbox(SandboxOptions(api_key=f"e2e-{secrets.token_hex(16)}")) as sandbox:
        connection = {**json.loads(sandbox.connection), "extra": {"max_submissions_per_day": CEILING}}
        with LocalAirflow(DAGS, env={f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(connection)}) as airflow:
            dag_id = "whisul_catchup" if airflow.is_2 else "whisul_backfill"
            airflow.wait_for_dags(dag_id)
            today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            if airflow.is_2:
                airflow.unpause(dag_id)
            else:
                # On SQLite Airflow makes the runs of a backfill only where nothing else writes.
                scheduler = airflow.process("scheduler")
                scheduler.kill9()
                airflow.backfill(dag_id, today - timedelta(days=DAYS + 1), today - timedelta(days=2))
                scheduler.start()

            def all_over() -> bool:
                runs = airflow.run_ids(dag_id)
                return len(runs) >= DAYS and all(airflow.run_state(dag_id, run) in FINISHED for run in runs)

            airflow.wait_until(all_over, TIMEOUT, "the runs of the past days")
            yield PastDays(airflow, sandbox, dag_id, airflow.run_ids(dag_id))


def test_a_ceiling_of_five_lets_five_of_ten_past_days_be_paid_for(
    past_days: PastDays, capsys: pytest.CaptureFixture[str]
) -> None:
    airflow = past_days.airflow
    with capsys.disabled():
        print(f"\n{print_ledger(airflow.env, CONN_ID, 'table')}")
    posts = [request for request in past_days.sandbox.requests if request.method == "POST"]
    assert [post.status for post in posts] == [202] * CEILING
    assert len({post.prompt for post in posts}) == CEILING
    assert len(past_days.runs) == DAYS
    states = [airflow.task_instances(past_days.dag_id, run)[0].state for run in past_days.runs]
    assert sorted(map(str, states)) == ["failed"] * (DAYS - CEILING) + ["success"] * CEILING


def test_each_task_beyond_the_ceiling_fails_once_and_says_why(past_days: PastDays) -> None:
    failed = 0
    for run in past_days.runs:
        (task,) = past_days.airflow.task_instances(past_days.dag_id, run)
        if task.state == "failed":
            failed += 1
            log = past_days.airflow.task_log(past_days.dag_id, run, "song")
            assert task.try_number == 1
            assert "WhisulBudgetExceededError" in log
            assert f"{CEILING} of {CEILING} made: {CEILING} by {past_days.dag_id}" in log
            assert "Nothing was sent." in log
    assert failed == DAYS - CEILING


def test_the_ledger_has_the_five_songs(past_days: PastDays) -> None:
    content = read_machine_ledger(past_days.airflow.home)
    assert differences(content, past_days.sandbox.requests) == []
    assert len(content.entries) == CEILING
    total = printed_ledger(past_days.airflow.env, CONN_ID)["total"]
    assert total == {
        "submitted": CEILING,
        "delivered": CEILING,
        "failed": 0,
        "not_found": 0,
        "ambiguous": 0,
        "no_outcome": 0,
    }

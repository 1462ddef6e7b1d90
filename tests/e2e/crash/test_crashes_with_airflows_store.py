"""Crashes, with the tasks' records in Airflow's task state store, from 3.3 on; and an outage and a revoked key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.crash.cases import CrashTests, OutageTests
from tests.e2e.crash.stage import OUTAGE_SCRIPTS, OUTAGE_TABLE, SCRIPTS, TABLE, Stage, crashes

# The first test also waits for Airflow and for all the songs.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with crashes({}, (*TABLE, *OUTAGE_TABLE), (*SCRIPTS, *OUTAGE_SCRIPTS)) as stage:
        yield stage


class TestWithAirflowsStore(CrashTests, OutageTests):
    def test_clearing_a_deferred_task_logs_that_the_job_continues(self, stage: Stage) -> None:
        # Airflow tells a trigger of it from 3.3 on.
        job_id = stage.posts("cleared")[0].job_id
        assert f"Whisul cannot cancel a job: job {job_id} continues" in stage.log("cleared", 1)

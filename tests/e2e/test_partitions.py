"""The partitions of asset events, as they start another DAG on a real Airflow."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import ALBUM, ALBUMS, RUN_TIMEOUT, Finished

# The first test also waits for Airflow and for all the runs.
pytestmark = pytest.mark.timeout(1800)


def test_a_dag_that_is_scheduled_by_partitions_runs_once_for_each_partition_key(finished: Finished) -> None:
    airflow = finished.airflow
    airflow.wait_until(lambda: len(airflow.run_ids(ALBUM)) >= 2, RUN_TIMEOUT, "a run for each partition")
    runs = airflow.run_ids(ALBUM)
    assert {airflow.wait(ALBUM, run_id, RUN_TIMEOUT) for run_id in runs} == {"success"}
    manifest = f"file://{finished.kept / 'albums'}/manifest.json"
    told = sorted(airflow.xcom(ALBUM, run_id, "tell") for run_id in runs)
    assert told == [["everything", manifest], ["shanties", manifest]]
    assert finished.states[ALBUMS] == "success"

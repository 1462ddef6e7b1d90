"""A DAG whose asset events have partitions that its task names, and one that starts once for each of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task

from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator

ALBUMS = Asset("whisul://albums")

with DAG("whisul_albums", schedule=None, start_date=datetime(2026, 1, 1), catchup=False) as dag:
    WhisulToObjectStorageOperator(
        task_id="keep",
        # The manifest alone: what an event carries does not depend on the songs.
        songs=[],
        destination="{{ var.value.whisul_songs_folder }}/albums",
        outlets=[ALBUMS],
        partition_key=["{{ dag_run.conf['album'] }}", "everything"],
    )

with DAG(
    "whisul_album", schedule=PartitionedAssetTimetable(assets=ALBUMS), start_date=datetime(2026, 1, 1), catchup=False
) as consumer:

    @task(inlets=[ALBUMS])
    def tell(dag_run: Any = None, inlet_events: Any = None) -> list[Any]:
        """Return the partition of the run, and where the songs are."""
        return [dag_run.partition_key, inlet_events[ALBUMS][-1].extra["manifest"]]

    tell()

"""Songs that are kept: made, landed in a store of one's own, and announced to whoever waits for them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, task

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_storage import WhisulToObjectStorageOperator

PROMPTS = [
    "a sea shanty for a calm night",
    "a tango that forgives",
    "synthwave for an empty car park",
]

KEPT = Asset("whisul://kept-songs")

with DAG(
    dag_id="whisul_keep_songs",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### Songs that are kept

`song` makes one song per prompt (each costs credits). `keep` fetches audio and cover of those that came out, and lands
them with their metadata in a folder of the run: that of the Airflow variable `whisul_songs_folder`, such as
`s3://bucket/songs`, or else one of the worker's own. Last of all it writes `manifest.json` there, and announces the
songs as the asset `whisul://kept-songs`.
""",
) as dag:
    songs = WhisulGenerateOperator.partial(
        task_id="song",
        wait_for_completion=True,
        doc_md="Makes one song per prompt, and returns it.",
    ).expand(prompt=PROMPTS)

    keep = WhisulToObjectStorageOperator(
        task_id="keep",
        songs=songs.output,
        destination="{{ var.value.get('whisul_songs_folder', 'file:///tmp/whisul-songs') }}/{{ run_id }}",
        outlets=[KEPT],
        # A song that failed does not keep the others from being kept.
        trigger_rule="all_done",
        retries=2,
        doc_md="Lands the songs in a folder, and returns its manifest.",
    )

with DAG(
    dag_id="whisul_kept_songs",
    schedule=[KEPT],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### When songs are kept

Starts when `whisul_keep_songs` has kept its songs, and reads from the asset's event where they are.
""",
) as told:

    @task(inlets=[KEPT], doc_md="Says which songs there are, and where.")
    def tell(inlet_events: Any = None) -> dict[str, Any]:
        """Return what the latest event says."""
        kept = inlet_events[KEPT][-1].extra
        print(f"{kept['count']} songs in {kept['destination']}: {', '.join(kept['titles'])}")  # noqa: T201
        return dict(kept)

    tell()

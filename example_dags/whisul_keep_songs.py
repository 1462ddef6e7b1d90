"""Make songs, store their files, and start another DAG when they are stored."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, task

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator

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
### Make and store songs

`song` makes one song per prompt (each costs credits). `keep` downloads the audio and cover of each song that completed,
and stores them with the song's metadata in a folder of the run. The Airflow variable `whisul_songs_folder` names the
folder above it, such as `s3://bucket/songs`; the default is a temporary folder of the worker. Last of all `keep` writes
`manifest.json`, and updates the asset `whisul://kept-songs`.
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
        # A song that failed does not prevent the others from being stored.
        trigger_rule="all_done",
        retries=2,
        doc_md="Stores the songs in a folder, and returns the manifest.",
    )

with DAG(
    dag_id="whisul_kept_songs",
    schedule=[KEPT],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### When songs are stored

Starts when `whisul_keep_songs` has stored its songs, and reads from the asset's event where they are.
""",
) as told:

    @task(inlets=[KEPT], doc_md="Prints which songs were stored, and where.")
    def tell(inlet_events: Any = None) -> dict[str, Any]:
        """Return the extra of the latest asset event."""
        kept = inlet_events[KEPT][-1].extra
        print(f"{kept['count']} songs in {kept['destination']}: {', '.join(kept['titles'])}")  # noqa: T201
        return dict(kept)

    tell()

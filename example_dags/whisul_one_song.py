"""One song in one task, which submits the prompt again when the job fails and Airflow retries."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator

with DAG(
    dag_id="whisul_one_song",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### One song, one task

`song` submits the prompt, waits in the triggerer and returns the song. When the job fails, each of Airflow's retries
submits the prompt again, and costs credits again.
""",
) as dag:
    song = WhisulGenerateOperator(
        task_id="song",
        # On Airflow 3 a run that is triggered by hand may have no logical date, and then there is no `ds`.
        prompt="lo-fi for {{ ds | default('tonight', true) }}",
        wait_for_completion=True,
        retries=2,
        doc_md="Makes one song; up to three times if it fails.",
    )

"""A song whose first job fails, and which Airflow's retry makes after all. For the sandbox: it knows the directive."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator

with DAG(
    dag_id="whisul_retry_failed_song",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example", "sandbox"],
    doc_md="""
### A failed song, and its retry

`[sandbox:fail=1]` makes the sandbox fail the first job of this prompt. The first try ends with `WhisulJobFailedError`,
the second one submits the prompt again and gets its song. Whisul itself does not know the directive, and would make a
song of it at once.
""",
) as dag:
    song = WhisulGenerateOperator(
        task_id="song",
        # The run's id makes the prompt a new one in each run, whose first job then fails again.
        prompt="[sandbox:fail=1] a sea shanty about second chances, for {{ run_id }}",
        wait_for_completion=True,
        retries=2,
        retry_delay=timedelta(seconds=5),
        doc_md="Fails once, then makes the song.",
    )

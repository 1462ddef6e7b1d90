"""Songs whose prompts are in files beside the DAG."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator

with DAG(
    dag_id="whisul_prompt_files",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### Prompts from files

`watch` makes a song of each of two files, and `rain` one of each line of a third one. The files are templates.
""",
) as dag:
    WhisulGenerateOperator.partial(task_id="watch", wait_for_completion=True).expand(
        prompt=["prompts/lullaby.prompt", "prompts/reveille.prompt"]
    )
    WhisulGenerateBatchOperator(task_id="rain", prompts="prompts/rain.prompts.jsonl")

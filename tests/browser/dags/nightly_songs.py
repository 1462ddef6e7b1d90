"""The songs of the documentation's pictures. The runs are given their prompts."""

from __future__ import annotations

import os

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator

with DAG("nightly_songs", render_template_as_native_obj=True):
    songs = WhisulGenerateBatchOperator(
        task_id="songs",
        prompts="{{ dag_run.conf['prompts'] }}",
        attempts=1,
        max_failures=1,
        poll_interval=5,
    )
    WhisulToObjectStorageOperator(
        task_id="store", songs=songs.output, destination=f"{os.environ['WHISUL_TEST_STORE']}/{{{{ run_id }}}}"
    )

with DAG("morning_show"):
    WhisulGenerateOperator(
        task_id="theme",
        prompt="a theme for the morning show, with a whistle [sandbox:fail]",
        wait_for_completion=True,
        poll_interval=5,
    )

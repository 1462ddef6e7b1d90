"""What the operators call their submissions, so that a later try finds its own in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_whisul.version_compat import region

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.ledger.submission_id import SubmissionId


def submission_id(context: Context, *, number: int, index: int = 0) -> SubmissionId:
    """
    Return what a submission of a task is called.

    :param context: The task's context.
    :param number: How many submissions of the song the task instance has made, this one included.
    :param index: The place of the prompt in a batch when it was submitted.
    """
    # Here, so that reading a DAG file does not load the ledger.
    from airflow_provider_whisul.ledger.submission_id import SubmissionId

    ti = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    return SubmissionId(ti.dag_id, ti.task_id, ti.run_id, map_index, index, number, region(ti))

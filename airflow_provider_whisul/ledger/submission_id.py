"""What a submission is called, so that a task that is killed and tried again knows its own submissions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass

from airflow.providers.common.compat.sdk import AirflowException, get_current_context

from airflow_provider_whisul.state.state_store import prompt_fingerprint
from airflow_provider_whisul.version_compat import region


@dataclass(frozen=True)
class SubmissionId:
    """
    The idempotency key of a submission, which the API lacks: two submissions of the same id and prompt are one.

    :param dag_id: The DAG's id.
    :param task_id: The task's id.
    :param run_id: The run's id.
    :param map_index: The task's map index; -1 where it is not mapped.
    :param index: The place of the prompt in a batch, from 0 on.
    :param number: How many submissions of this song the task instance has made over all its tries, this one included.
        It grows with each new take too. So a try that a user has cleared while it submits, and the one that begins
        then, make the same submission.
    :param region: The iteration of a loop, as :func:`~airflow_provider_whisul.version_compat.region` has it.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    index: int = 0
    number: int = 1
    region: str | None = None

    def key(self, prompt: str) -> str:
        """
        Return a digest of the id and a prompt, which names the submission in the ledger.

        :param prompt: The prompt.
        """
        names = json.dumps([*astuple(self), prompt_fingerprint(prompt)])
        return hashlib.sha256(names.encode()).hexdigest()[:32]


def current_task() -> SubmissionId:
    """Return the id of a submission of the task that runs in this process, with blank names outside of a task."""
    try:
        ti = get_current_context()["ti"]
    except (AirflowException, RuntimeError):
        return SubmissionId("", "", "", -1)
    return SubmissionId(
        ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index, region=region(ti)
    )

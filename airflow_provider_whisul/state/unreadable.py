"""The error for a record that is there and cannot be read, wherever it is kept."""

from __future__ import annotations

from airflow_provider_whisul.exceptions import WhisulStateUnreadableError
from airflow_provider_whisul.text import quote


def unreadable_record(location: str, problem: str) -> WhisulStateUnreadableError:
    """
    Return the error for a record that is there and makes no sense.

    :param location: Where it is.
    :param problem: What is wrong with it, as the continuation of a sentence.
    """
    return WhisulStateUnreadableError(
        f"The record of an earlier try, {quote(location)}, cannot be read: {problem}. Nothing was sent, as the song "
        "may be paid for already. The record is damaged, or another version of the provider has written it. "
        "`python -m airflow_provider_whisul.ledger` counts what the DAG has submitted, and lists paid songs that no "
        "task has taken. Put the record back if you can. Otherwise remove the record and clear the task, which then "
        "submits again."
    )

"""
What the ledger keeps of a submission, and of a job's end: the shape of each small file, written and read.

No entry holds an API key. A file that cannot be read is an error, and never reads as "nothing was submitted".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote as percent_encode
from urllib.parse import unquote as percent_decode

from airflow_provider_whisul.exceptions import WhisulStateUnreadableError
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.state.state_store import prompt_fingerprint
from airflow_provider_whisul.text import mask, quote, storable, truncate

#: The version of the files' shape.
VERSION = 1

#: Characters of a prompt that an entry keeps at most.
MAX_PROMPT = 2_000

#: Characters that a DAG's id takes in a file's name at most, percent-encoded.
_MAX_DAG_ID = 120

_SUBMISSION, _OUTCOME, _SUFFIX = "s.", "o.", ".json"

#: How a job ended: with a song that a task has taken, with the status ``failed``, or Whisul no longer finds it.
Outcome = Literal["delivered", "failed", "not_found"]

#: What is known of a submission: it is being made, Whisul has named a job, or its response was lost.
EntryState = Literal["submitting", "accepted", "ambiguous"]


@dataclass(frozen=True)
class Entry:
    """
    One submission.

    :param at: When it was made, in Unix seconds.
    :param response_due: When its response is there or is lost, in Unix seconds.
    :param submission: What it is called.
    :param prompt_fingerprint: The prompt's fingerprint.
    :param prompt: The prompt, or the beginning of a long one.
    :param conn_id: The Airflow connection.
    :param attempt: A random word of the process that made the entry, by which it knows its own.
    :param state: What is known of it.
    :param job_id: The job; None unless the submission was accepted.
    """

    at: float
    response_due: float
    submission: SubmissionId
    prompt_fingerprint: str
    prompt: str
    conn_id: str
    attempt: str
    state: EntryState = "submitting"
    job_id: str | None = None

    @classmethod
    def of(cls, submission: SubmissionId, prompt: str, *, conn_id: str, attempt: str, api_key: str) -> Entry:
        """
        Return the entry of a prompt that is about to be submitted, without its times.

        :param submission: What the submission is called.
        :param prompt: The prompt.
        :param conn_id: The Airflow connection.
        :param attempt: A random word.
        :param api_key: The API key, which a prompt may hold by mistake and an entry never holds.
        """
        kept = truncate(storable(mask(prompt, api_key)), MAX_PROMPT)
        return cls(0.0, 0.0, submission, prompt_fingerprint(prompt), kept, conn_id, attempt)

    def is_in_progress(self, now: float) -> bool:
        """
        Return whether the response may still come.

        :param now: The time, in Unix seconds.
        """
        return self.state == "submitting" and now < self.response_due

    def accepted(self, job_id: str) -> Entry:
        """
        Return the entry with its job.

        :param job_id: The job's id.
        """
        return replace(self, state="accepted", job_id=job_id)

    def to_bytes(self) -> bytes:
        """Return the content of the entry's file."""
        submission = self.submission
        return _to_bytes(
            {
                "at": iso(self.at),
                "response_due": iso(self.response_due),
                "dag_id": submission.dag_id,
                "task_id": submission.task_id,
                "run_id": submission.run_id,
                "map_index": submission.map_index,
                "index": submission.index,
                "number": submission.number,
                "region": submission.region,
                "prompt_fingerprint": self.prompt_fingerprint,
                "prompt": self.prompt,
                "conn_id": self.conn_id,
                "attempt": self.attempt,
                "state": self.state,
                "job_id": self.job_id,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, file: str) -> Entry:
        """
        Read an entry's file.

        :param data: Its content.
        :param file: Its URL, for the message.
        :raises WhisulStateUnreadableError: It is damaged, or of another version.
        """
        match _from_bytes(data, file):
            case {
                "at": str(at),
                "response_due": str(due),
                "dag_id": str(dag_id),
                "task_id": str(task_id),
                "run_id": str(run_id),
                "map_index": int(map_index),
                "index": int(index),
                "number": int(number),
                "region": str() | None as region,
                "prompt_fingerprint": str(fingerprint),
                "prompt": str(prompt),
                "conn_id": str(conn_id),
                "attempt": str(attempt),
                "state": "submitting" | "accepted" | "ambiguous" as state,
                "job_id": str() | None as job_id,
            } if (state == "accepted") == (job_id is not None):
                submission = SubmissionId(dag_id, task_id, run_id, map_index, index, number, region)
                times = _seconds(at, file), _seconds(due, file)
                return cls(*times, submission, fingerprint, prompt, conn_id, attempt, state, job_id)
        raise _unreadable(file, "a field is missing or wrong")


def submission_file(key: str, dag_id: str) -> str:
    """
    Return the name of a submission's file, which tells its DAG, so that the ceiling reads no file.

    :param key: What tells the submission from all others.
    :param dag_id: The DAG's id.
    """
    encoded = ""
    for character in dag_id:
        part = percent_encode(character.encode("utf-8", "replace"), safe="")
        if len(encoded) + len(part) > _MAX_DAG_ID:
            break
        encoded += part
    return f"{_SUBMISSION}{key}.{encoded}{_SUFFIX}"


def outcome_file(job_id: str, outcome: Outcome) -> str:
    """
    Return the name of the file that says how a job ended. It is in the name, so that the report reads no such file.

    :param job_id: The job's id.
    :param outcome: How it ended.
    """
    return f"{_OUTCOME}{outcome}.{job_id}{_SUFFIX}"


def outcome_to_bytes(job_id: str, outcome: Outcome, at: float) -> bytes:
    """
    Return the content of the file that says how a job ended, for whoever reads it.

    :param job_id: The job's id.
    :param outcome: How it ended.
    :param at: When a task knew it, in Unix seconds.
    """
    return _to_bytes({"at": iso(at), "job_id": job_id, "outcome": outcome})


def dag_of_submission(file: str) -> str | None:
    """
    Return the id of the DAG, or the beginning of a long one, of a submission's file; None for any other file.

    :param file: The file's name.
    """
    if not (file.startswith(_SUBMISSION) and file.endswith(_SUFFIX)):
        return None
    return percent_decode(file[: -len(_SUFFIX)].split(".", 2)[-1])


def outcome_of(file: str) -> tuple[str, Outcome] | None:
    """
    Return the job's id and how it ended; None for a file that is no outcome's.

    :param file: The file's name.
    """
    match file.removesuffix(_SUFFIX).split(".", 2) if file.endswith(_SUFFIX) else ():
        case ["o", "delivered" | "failed" | "not_found" as outcome, job_id]:
            return job_id, outcome
    return None


def iso(seconds: float) -> str:
    """
    Return a time as the files have it, such as ``2026-11-26T03:10:11+00:00``.

    :param seconds: The time in Unix seconds.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _to_bytes(value: Mapping[str, object]) -> bytes:
    return json.dumps({"version": VERSION, **value}, indent=1).encode()


def _from_bytes(data: bytes, file: str) -> Mapping[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _unreadable(file, "it is not JSON") from None
    if not isinstance(value, dict):
        raise _unreadable(file, "it is not a JSON object")
    if value.get("version") != VERSION:
        raise _unreadable(file, "another version of the provider has written it")
    return value


def _unreadable(file: str, reason: str) -> WhisulStateUnreadableError:
    return WhisulStateUnreadableError(
        f"The ledger's file {quote(file)} cannot be read: {reason}. It says what was submitted, and a song may have "
        "been paid for. Use the version of the provider that has written it, or remove the file, and clear the task: "
        "then the prompt is submitted again."
    )


def _seconds(iso: str, file: str) -> float:
    try:
        return datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError):
        raise _unreadable(file, "a time in it is none") from None

"""
Which prompts a later try goes on with where the task finds its prompts only when it runs.

They are those that the first try has begun to submit. Where the task found others in each try, each would pay again.
A user who clears the task asks for prompts that are found anew.
"""

from __future__ import annotations

from airflow_provider_whisul.state.batch_head import BatchHead
from airflow_provider_whisul.state.prompt_store import load_prompts
from airflow_provider_whisul.state.song_state import SongRecord
from airflow_provider_whisul.state.state_store import StateStore, prompt_fingerprint


def kept_prompt(store: StateStore | None, clear_count: int) -> str | None:
    """
    Return the prompt of the one song that a task makes, None where it is to be found anew.

    After a job that made no song it is found anew too: another submission is paid for anyway.

    :param store: The store of the task's record; None where there is none.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
    :raises WhisulStateError: The store is away, or what it holds cannot be read.
    """
    record = None if store is None else SongRecord.read(store)
    if store is None or record is None or record.status == "ended" or record.clear_count != clear_count:
        return None
    prompts = load_prompts(store, record.prompt_generation, record.prompt_pieces) if record.prompt_pieces else []
    # It is another one where two tries have written at the same time.
    return next((prompt for prompt in prompts if prompt_fingerprint(prompt) == record.prompt), None)


def kept_prompts(store: StateStore, clear_count: int) -> list[str] | None:
    """
    Return the prompts of a batch, None where they are to be found anew.

    :param store: The store of the batch's state.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in this try.
    :raises WhisulStateError: The store is away, or what it holds cannot be read.
    """
    head = BatchHead.read(store)
    if head is None or head.clear_count != clear_count:
        return None
    return load_prompts(store, head.generation, head.prompt_pieces)

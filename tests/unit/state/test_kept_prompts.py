"""Which prompt a later try goes on with."""

from __future__ import annotations

from airflow_provider_whisul.state.kept_prompts import kept_prompt
from airflow_provider_whisul.state.song_state import SongState, Submission
from tests.support.airflow import TaskStore


def test_the_prompt_of_a_job_that_another_try_has_submitted_is_kept_too() -> None:
    """Then this try has recorded no intent."""
    store = TaskStore()
    state = SongState(store, "a random song", 0, lambda: "account", keep_prompt=True)
    state.record_submission(Submission("some-job", 1.0), delivered=False)
    assert kept_prompt(store, 0) == "a random song"

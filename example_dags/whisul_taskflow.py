"""Songs from functions that return prompts: ``@task.whisul`` and ``@task.whisul_batch``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

PLACES = ["a lighthouse", "an empty ballroom"]

with DAG(
    dag_id="whisul_taskflow",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### Songs from functions

`overture` and `song` are functions that return a prompt, and their tasks return its song. `encores` is a function that
returns a list of prompts, and its task returns a list of `prompt, job_id, status, song, error`. A retry does not call
the function again: it goes on with the prompts that the first try has submitted. `programme` takes all of the songs.
""",
) as dag:

    @task.whisul(multiple_outputs=True, retries=2)
    def overture() -> str:
        """Make one song, each of whose fields is an XCom too."""
        return "a bright overture for a small theatre"

    @task.whisul(retries=2)
    def song(place: str) -> str:
        """Make a song for each place."""
        return f"a slow waltz for {place}"

    @task.whisul_batch(max_failures=1, retries=2)
    def encores(places: list[str]) -> list[str]:
        """Make a song for each place, all in one task."""
        return [f"a short encore for {place}" for place in places]

    @task
    def programme(opening: str, songs: Iterable[dict[str, Any]], encores: list[dict[str, Any]]) -> list[str]:
        """Return the titles of the evening."""
        last = [encore["song"]["title"] for encore in encores if encore["status"] == "completed"]
        return [opening, *(song["title"] for song in songs), *last]

    programme(overture()["title"], song.expand(place=PLACES), encores(PLACES))

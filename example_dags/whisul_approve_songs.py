"""Make songs, let a person listen to them, and store those that the person chooses. For Airflow 3.1 and later."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException, dag, task

from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.text import excerpt
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from airflow_provider_whisul.version_compat import HAS_REQUIRED_ACTIONS

PROMPTS = [
    "a fanfare for a bakery that opens at four",
    "trip hop for a slow lift",
    "a polka about an honest mistake",
    "ambient for the last page of a book",
]

#: How many songs one question is about at most. Several people can share the questions of a large batch.
SONGS_PER_QUESTION = 20

NONE_OF_THEM = "None of these songs"

#: Airflow's UI puts its own address in front of a link that does not begin with a slash.
TRACKS = "dags/{{ dag.dag_id }}/runs/{{ run_id | urlencode }}/plugin/whisul-tracks"


def songs_by_option(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the songs of a batch, each by the option that stands for it."""
    by_option = {}
    made = [result for result in results if result["status"] == "completed"]
    for number, result in enumerate(made, 1):
        title = (result["song"] or {}).get("title")
        by_option[f"{number}. {excerpt(title) + ': ' if title else ''}{excerpt(result['prompt'])}"] = result
    return by_option


@dag(
    dag_id="whisul_approve_songs",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### Listen, choose, store

`songs` makes one song per prompt (each costs credits). `choose` waits until somebody has listened to them in the tab
*Tracks*, and has chosen in the tab *Required Actions* which ones are kept. `keep` stores these. The Airflow variable
`whisul_songs_folder` names the folder above that of the run, such as `s3://bucket/songs`.

While `choose` waits it holds no worker. After a week without an answer it fails. Clear it with its downstream
tasks, and it asks again.
""",
)
def approve_songs() -> None:
    """Define the tasks."""
    from airflow.providers.standard.operators.hitl import HITLOperator

    songs = WhisulGenerateBatchOperator(
        task_id="songs",
        prompts=PROMPTS,
        # Also where only one of the songs is made, somebody is asked about it.
        max_failures=len(PROMPTS) - 1,
        retries=2,
        doc_md="Makes the songs.",
    )

    @task(doc_md="Returns the options of each question, one per song.")
    def questions(results: list[dict[str, Any]]) -> list[list[str]]:
        """Return the options of each question."""
        options = list(songs_by_option(results))
        firsts = range(0, len(options), SONGS_PER_QUESTION)
        return [[*options[first : first + SONGS_PER_QUESTION], NONE_OF_THEM] for first in firsts]

    choose = HITLOperator.partial(
        task_id="choose",
        subject="Which of these songs are kept?",
        body=f"Listen to them in the tab [Tracks]({TRACKS}) of the run. Songs that you do not choose are not stored."
        " All of them are paid for already: leaving one out neither costs nor saves anything.",
        multiple=True,
        response_timeout=timedelta(days=7),
        doc_md="Asks a person which songs are kept.",
    ).expand(options=questions(songs.output))

    @task(doc_md="Returns the songs that were chosen, and is skipped where there are none.")
    def chosen(results: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the songs whose options were chosen."""
        options = {option for answer in answers for option in answer["chosen_options"]}
        kept = [result for option, result in songs_by_option(results).items() if option in options]
        if not kept:
            raise AirflowSkipException("No song was chosen, so none is stored.")
        return kept

    WhisulToObjectStorageOperator(
        task_id="keep",
        songs=chosen(songs.output, choose.output),
        destination="{{ var.value.get('whisul_songs_folder', 'file:///tmp/whisul-songs') }}/{{ run_id }}",
        retries=2,
        doc_md="Stores the songs that were chosen. Where a URL has expired by then, it polls the job for another.",
    )


# Before Airflow 3.1 no task can ask a person: there this file defines no DAG.
if HAS_REQUIRED_ACTIONS:
    approve_songs()

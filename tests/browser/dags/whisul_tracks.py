"""Songs of every kind for the Tracks tab."""

from __future__ import annotations

import os

from airflow.providers.common.compat.sdk import DAG, get_current_context, task

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.tracks.cards import completed_card, push_cards
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator

MAPPED = [
    "a slow waltz for a rainy harbour",
    "dark trap with a choir, 140 bpm",
    "a hostile one [sandbox:hostile]",
    "a doomed one [sandbox:fail]",
]
BATCH = [
    "lo-fi for the last train home",
    "an 8-bit fanfare for a small victory",
    "a bossa nova for two umbrellas",
    "a sea shanty, sung by robots",
    "a march nobody asked for [sandbox:fail]",
    "drum and bass for washing the dishes",
    "a lullaby in seven eight",
    "a string quartet after the storm",
    "one that was never to be [sandbox:fail]",
    "surf rock under northern lights",
    "a polka at half past three",
    "ambient for an empty airport",
]

with DAG("tracks"):
    submit = WhisulGenerateOperator.partial(task_id="submit", poll_interval=5).expand(prompt=MAPPED)
    WhisulJobSensor.partial(task_id="song", poke_interval=5).expand(job_id=submit.output)
    single = WhisulGenerateOperator(
        task_id="single", prompt="a tango for one", wait_for_completion=True, poll_interval=5
    )
    WhisulToObjectStorageOperator(task_id="store", songs=single.output, destination=os.environ["WHISUL_TEST_STORE"])
    WhisulGenerateBatchOperator(task_id="batch", prompts=BATCH, attempts=1, max_failures=2, poll_interval=5)

with DAG("tracks_secret"):
    WhisulGenerateOperator(task_id="single", prompt="a secret serenade", wait_for_completion=True, poll_interval=5)

with DAG("tracks_late"):
    WhisulGenerateOperator.partial(task_id="single", wait_for_completion=True, poll_interval=5).expand(
        prompt=["an early one [sandbox:seconds=10]", "a late one [sandbox:seconds=30]"]
    )

with DAG("tracks_given"):

    @task(task_id="given")
    def given() -> None:
        """Show the songs that the run was given."""
        context = get_current_context()
        push_cards(context, [completed_card(song) for song in context["dag_run"].conf["songs"]])

    given()

"""A thousand songs a night from one task: submitted as fast as the account allows, and waited for by one trigger."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice, product

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator

MOODS = ("slow", "bright", "dusty", "restless", "tender", "cold", "playful", "solemn", "hazy", "proud")
STYLES = ("waltz", "trap", "lo-fi", "tango", "ambient", "ska", "synthwave", "ballad", "house", "fado")
PLACES = ("harbour", "night bus", "desert", "attic", "market", "forest", "rooftop", "tunnel", "island", "kitchen")

with DAG(
    dag_id="whisul_nightly_thousand",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["whisul", "example"],
    doc_md="""
### A thousand songs of the night

`prompts` makes the prompts, `songs` makes the songs: it submits them one after the other, as fast as the account
allows, waits for all of them in the triggerer, and returns a list of `prompt, job_id, status, song, error` in the
prompts' order. Each song costs credits: set the Airflow variable `whisul_songs_a_night` to try it out with fewer.

Up to 20 songs may fail without failing the task. Where more do, a retry submits only those again. All tries together
submit 1,100 times at most.
""",
) as dag:

    @task(doc_md="Makes the prompts.")
    def prompts(count: str) -> list[str]:
        """Return the prompts of the night."""
        combinations = product(PLACES, MOODS, STYLES)
        return [f"a {mood} {style} for a {place}" for place, mood, style in islice(combinations, int(count))]

    songs = WhisulGenerateBatchOperator(
        task_id="songs",
        prompts=prompts("{{ var.value.get('whisul_songs_a_night', '1000') }}"),
        max_failures=20,
        # The most that a night can cost, in submissions: what it may cost in money, divided by the price of a song.
        max_submissions=1100,
        # A backfill of a year would pay for 365 nights.
        skip_if_older_than=timedelta(days=2),
        # A retry makes only what is missing.
        retries=2,
        doc_md="Makes all the songs, each submitted at most twice in a try.",
    )

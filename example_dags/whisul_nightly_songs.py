"""Every night one song per prompt: submitted, waited for without holding a worker, and left in XCom."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor

PROMPTS = [
    "a slow waltz for a rainy harbour",
    "dark trap with a choir, 140 bpm",
    "lo-fi for the last train home",
    "an 8-bit fanfare for a small victory",
]

with DAG(
    dag_id="whisul_nightly_songs",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    # What the labels of the songs are made of; the submissions are labelled by their prompts anyway.
    user_defined_macros={"prompts": PROMPTS},
    doc_md="""
### Songs of the night

`submit` sends each prompt to Whisul (each costs credits) and returns the job's id at once. `song` waits for that job in
the triggerer and returns the song: `job_id, prompt, title, bpm, duration_seconds, song_url, image_url, tags,
started_at, finished_at`. In the morning the songs are the XComs of `song`.

A song that fails does not disturb the others. The same job cannot come out otherwise, so clear `submit` and `song` of
that prompt to have it made again.
""",
) as dag:
    submit = WhisulGenerateOperator.partial(
        task_id="submit",
        doc_md="Asks Whisul for one song per prompt, and returns the job's id.",
    ).expand(prompt=PROMPTS)

    songs = WhisulJobSensor.partial(
        task_id="song",
        map_index_template="{{ prompts[ti.map_index] }}",
        doc_md="Waits for the job, and returns the song.",
    ).expand(job_id=submit.output)

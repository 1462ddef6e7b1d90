"""What the operators hand to OpenLineage's provider. tests/e2e/test_openlineage.py reads the events that this makes."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.openlineage.extractors.base import DefaultExtractor
from openlineage.client.serde import Serde

from airflow_provider_whisul.exceptions import WhisulJobFailedError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.lineage import (
    MAX_LINEAGE_SONGS,
    Lineage,
    lineage_of_jobs,
    lineage_of_stored_songs,
)
from airflow_provider_whisul.operators.openlineage import operator_lineage
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.state_store import prompt_fingerprint
from airflow_provider_whisul.storage.manifest import Manifest, stored_song
from airflow_provider_whisul.storage.songs import read_songs, song_name
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.integration.operators.batch_task import MakeBatch, Simulate
from tests.integration.operators.song_task import DEFERRED, ON_WORKER, SUBMIT_ONLY, SongTask, error_event
from tests.support.airflow import AirflowTask, TaskContext, allow_tasks_in_threads
from tests.support.clock import FakeClock

PROMPT = "a slow waltz for a rainy harbour"
MAX_EVENT_BYTES = 250_000


def _manifest(destination: str = "s3://bucket/songs", count: int = 1, **fields: Any) -> Manifest:
    songs = []
    for index in range(count):
        (song,), _ = read_songs(
            {
                "job_id": f"81fa5ff7-6197-4c24-8062-{index:012}",
                "title": "Midnight Grid",
                "prompt": PROMPT,
                "song_url": "https://media.example/x?signature=secret",
                **fields,
            }
        )
        name = song_name(song)
        file: Any = {"size": 3, "sha256": "0" * 64, "content_type": "audio/mpeg"}
        files: Any = {"audio": {**file, "name": f"{name}.mp3"}, "cover": {**file, "name": f"{name}.jpg"}}
        songs.append(stored_song(song, name, files))
    return {
        "destination": destination,
        "manifest": "manifest.json",
        "dag_id": "songs",
        "task_id": "keep",
        "run_id": "some-run",
        "map_index": -1,
        "stored_at": "2026-02-17T12:00:00+00:00",
        "count": count,
        "songs": songs,
        "failed": [],
    }


def _json(lineage: Lineage) -> str:
    """Return all that OpenLineage's provider is handed, as it is in an event."""
    handed = operator_lineage(lineage)
    parts: list[Any] = [*handed.inputs, *handed.outputs, *handed.run_facets.values()]
    return json.dumps([json.loads(Serde.to_json(part)) for part in parts])


@pytest.mark.parametrize(
    ("destination", "namespace", "name"),
    [
        ("file:///data/songs/june", "file", "/data/songs/june/manifest.json"),
        ("s3://bucket/songs", "s3://bucket", "songs/manifest.json"),
        ("s3a://bucket/songs", "s3://bucket", "songs/manifest.json"),
        ("s3://bucket", "s3://bucket", "manifest.json"),
        ("gs://bucket/songs", "gs://bucket", "songs/manifest.json"),
        ("gcs://bucket/songs", "gs://bucket", "songs/manifest.json"),
        ("abfs://container/songs", "abfs://container", "songs/manifest.json"),
    ],
)
def test_files_are_named_as_openlineage_names_them(destination: str, namespace: str, name: str) -> None:
    output = lineage_of_stored_songs(_manifest(destination)).outputs[0]
    assert (output.namespace, output.name) == (namespace, name)


def test_a_stored_song_leads_from_its_job_to_its_files() -> None:
    lineage = lineage_of_stored_songs(_manifest())
    job_id = "81fa5ff7-6197-4c24-8062-000000000000"
    assert lineage.inputs == lineage_of_jobs([(job_id, PROMPT)]).outputs
    (job,) = lineage.inputs
    assert job == ("whisul", f"jobs/{job_id}", job_id, prompt_fingerprint(PROMPT), None)
    assert lineage.outputs[1:] == tuple(
        ("s3://bucket", f"songs/midnight-grid_{job_id}.{kind}", job_id, prompt_fingerprint(PROMPT), 3)
        for kind in ("mp3", "jpg")
    )


def test_a_song_without_a_prompt_has_no_fingerprint() -> None:
    (job,) = lineage_of_stored_songs(_manifest(prompt=None)).inputs
    assert job.prompt_fingerprint is None


def test_neither_the_prompt_nor_a_url_is_in_an_event() -> None:
    written = _json(lineage_of_stored_songs(_manifest()))
    assert prompt_fingerprint(PROMPT) in written
    for secret in (PROMPT, "media.example", "signature"):
        assert secret not in written


@pytest.mark.parametrize(
    "lineage",
    [
        lineage_of_stored_songs(_manifest(count=1000)),
        lineage_of_jobs((f"81fa5ff7-6197-4c24-8062-{index:012}", PROMPT) for index in range(1000)),
    ],
    ids=["stored", "submitted"],
)
def test_the_event_of_a_thousand_songs_names_a_hundred_and_says_so(lineage: Lineage) -> None:
    handed = operator_lineage(lineage)
    jobs = [output for output in [*handed.inputs, *handed.outputs] if output.namespace == "whisul"]
    assert len(jobs) == MAX_LINEAGE_SONGS
    count = handed.run_facets["whisul_songs"]
    assert (count.songs, count.listed) == (1000, MAX_LINEAGE_SONGS)
    assert len(_json(lineage)) < MAX_EVENT_BYTES


def test_a_task_that_has_no_song_yet_hands_over_nothing() -> None:
    handed = operator_lineage(Lineage())
    assert (handed.inputs, handed.outputs, handed.run_facets) == ([], [], {})


def _jobs(operator: Any) -> set[tuple[str, str | None]]:
    """Return the jobs and fingerprints that OpenLineage's provider gets from an operator as outputs."""
    handed = DefaultExtractor(operator).extract_on_complete(None)
    assert handed is not None
    facets = [output.facets["whisul_song"] for output in handed.outputs]
    return {(facet.jobId, facet.promptFingerprint) for facet in facets}


@pytest.mark.parametrize("arguments", [SUBMIT_ONLY, ON_WORKER])
def test_a_task_that_makes_a_song_has_its_job_as_output(
    sandbox: Sandbox, clock: FakeClock, arguments: dict[str, Any]
) -> None:
    task = SongTask(clock, prompt=PROMPT, **arguments)
    operator = task.operator()
    task.attempt(operator)
    (job_id,) = sandbox.jobs
    assert _jobs(operator) == {(job_id, prompt_fingerprint(PROMPT))}


@pytest.mark.parametrize(("prompt", "fails"), [("x" * 1000, False), ("hopeless [sandbox:fail]", True)])
def test_a_task_that_waited_in_the_triggerer_has_its_job_as_output(
    sandbox: Sandbox, clock: FakeClock, prompt: str, fails: bool
) -> None:
    task = SongTask(clock, prompt=prompt, **DEFERRED)
    job_id = task.attempt().job_id
    clock.now += 100
    job = WhisulHook(clock=clock.clock).get_job(job_id)
    event = error_event(job.failed_error()) if fails else {"status": "completed", "job_id": job_id, "song": job.song}
    # Airflow makes the operator anew.
    operator = task.operator()
    with pytest.raises(WhisulJobFailedError) if fails else nullcontext():
        task.context.run(operator, task.deferred.method_name, {"event": event, **task.deferred.kwargs})
    # A failed song has the beginning of its prompt only.
    assert _jobs(operator) == {(job_id, None if fails else prompt_fingerprint(prompt))}


def test_a_batch_has_the_jobs_of_all_its_songs_as_outputs_also_where_it_fails(simulate: Simulate) -> None:
    prompts = ["a waltz", "hopeless [sandbox:fail]"]

    async def main(make: MakeBatch) -> None:
        batch = make(prompts, attempts=1)
        made: list[Any] = []
        make_operator = batch.operator

        def operator() -> Any:
            made.append(make_operator())
            return made[-1]

        batch.operator = operator  # type: ignore[method-assign]
        with pytest.raises(WhisulJobFailedError):
            await batch.attempt()
        assert _jobs(made[-1]) == {
            (job_id, prompt_fingerprint(job.prompt)) for job_id, job in batch.sandbox.jobs.items()
        }
        assert len(batch.sandbox.jobs) == len(prompts)

    simulate(main)


def _keep(folder: Path, songs: object) -> Any:
    allow_tasks_in_threads()
    return WhisulToObjectStorageOperator(task_id="keep", songs=songs, destination=f"file://{folder}")


def test_a_task_that_stored_songs_has_their_files_as_outputs(
    sandbox: Sandbox, clock: FakeClock, make_songs: Any, tmp_path: Path
) -> None:
    operator = _keep(tmp_path / "songs", make_songs("a waltz", "a tango"))
    operator.clock = clock.clock
    manifest = TaskContext().run(operator)
    handed = DefaultExtractor(operator).extract_on_complete(None)
    assert handed is not None
    names = {file["name"] for song in manifest["songs"] for file in (song["audio"], song["cover"])} | {"manifest.json"}
    assert {Path(output.name) for output in handed.outputs} == {tmp_path / "songs" / name for name in names}
    assert {job.name for job in handed.inputs} == {f"jobs/{job_id}" for job_id in sandbox.jobs}


def test_songs_are_made_and_stored_where_openlineages_provider_is_not_installed(
    sandbox: Sandbox, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("openlineage", "airflow.providers.openlineage"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "airflow_provider_whisul.operators.openlineage", raising=False)
    monkeypatch.setitem(sys.modules, "openlineage", None)
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage", None)
    task = SongTask(clock, prompt=PROMPT, **ON_WORKER)
    operator = _keep(tmp_path / "songs", task.attempt())
    operator.clock = clock.clock
    assert AirflowTask().start_try(TaskContext()).run(operator)["count"] == 1

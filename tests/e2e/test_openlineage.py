"""What OpenLineage's provider tells of the example DAGs' songs, in the events that it wrote to files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.state.state_store import prompt_fingerprint
from tests.e2e.conftest import BATCH_SONGS, KEEP, ONE_SONG, THOUSAND, Finished

# The first test also waits for Airflow and for all the runs.
pytestmark = pytest.mark.timeout(1800)

Event = dict[str, Any]
TIMEOUT = 180.0


def _events(folder: Path) -> Iterator[Event]:
    for path in folder.iterdir():
        try:
            yield json.loads(path.read_text())
        except json.JSONDecodeError:
            # It is being written.
            continue


def _completed(finished: Finished, dag_id: str, task_id: str, number: int = 1) -> list[Event]:
    """Wait for the events of tasks that succeeded, which may come after the end of their run, and return them."""
    found: list[Event] = []

    def are_there() -> bool:
        nonlocal found
        found = [
            event
            for event in _events(finished.lineage)
            if event["eventType"] == "COMPLETE" and event["job"]["name"] == f"{dag_id}.{task_id}"
        ]
        return len(found) >= number

    finished.airflow.wait_until(are_there, TIMEOUT, f"the events of {dag_id}.{task_id}")
    assert len(found) == number
    return found


def _songs(datasets: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    """Return namespace, name, job and fingerprint of the datasets that are of a song."""
    facets = [(dataset, (dataset.get("facets") or {}).get("whisul_song")) for dataset in datasets]
    return {
        (dataset["namespace"], dataset["name"], facet["jobId"], facet["promptFingerprint"])
        for dataset, facet in facets
        if facet
    }


def _job(job_id: str, prompt: str) -> tuple[str, str, str, str]:
    return "whisul", f"jobs/{job_id}", job_id, prompt_fingerprint(prompt)


def _manifest(finished: Finished) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((finished.kept / finished.run_ids[KEEP] / "manifest.json").read_text())
    return manifest


def test_a_stored_song_leads_from_its_job_to_its_files(finished: Finished) -> None:
    (event,) = _completed(finished, KEEP, "keep")
    folder, songs = finished.kept / finished.run_ids[KEEP], _manifest(finished)["songs"]
    assert _songs(event["inputs"]) == {_job(song["job_id"], song["prompt"]) for song in songs}
    files = {
        ("file", str(folder / song[role]["name"]), song["job_id"], prompt_fingerprint(song["prompt"]))
        for song in songs
        for role in ("audio", "cover")
    }
    assert _songs(event["outputs"]) == files
    assert {dataset["name"] for dataset in event["outputs"]} == {name for _, name, _, _ in files} | {
        str(folder / "manifest.json")
    }
    sizes = {
        dataset["name"]: dataset["outputFacets"]["outputStatistics"]["size"]
        for dataset in event["outputs"]
        if dataset.get("outputFacets")
    }
    assert sizes == {name: Path(name).stat().st_size for _, name, _, _ in files}
    count = event["run"]["facets"]["whisul_songs"]
    assert (count["songs"], count["listed"]) == (len(songs), len(songs))


def test_the_task_that_submitted_a_song_has_its_job_as_output(finished: Finished) -> None:
    songs = _manifest(finished)["songs"]
    jobs = [_songs(event["outputs"]) for event in _completed(finished, KEEP, "song", len(songs))]
    assert set.union(*jobs) == {_job(song["job_id"], song["prompt"]) for song in songs}
    assert {len(of_task) for of_task in jobs} == {1}


def test_a_batch_has_all_its_jobs_as_outputs(finished: Finished) -> None:
    (event,) = _completed(finished, THOUSAND, "songs")
    results = finished.airflow.xcom(THOUSAND, finished.run_ids[THOUSAND], "songs")
    assert _songs(event["outputs"]) == {_job(result["job_id"], result["prompt"]) for result in results}
    assert event["run"]["facets"]["whisul_songs"]["songs"] == BATCH_SONGS


def test_no_event_has_a_url_of_a_song_or_the_api_key(finished: Finished) -> None:
    _completed(finished, KEEP, "keep")
    text = "".join(path.read_text() for path in finished.lineage.iterdir())
    assert finished.key not in text
    songs = [finished.airflow.xcom(KEEP, finished.run_ids[KEEP], "song", index) for index in range(3)]
    for song in songs:
        assert song["song_url"] not in text
        assert song["image_url"] not in text
    assert finished.sandbox.base_url.removesuffix("/api") not in text


def test_the_text_of_a_prompt_is_only_in_the_label_that_airflow_gives_a_mapped_task(finished: Finished) -> None:
    prompts = {song["prompt"] for song in _manifest(finished)["songs"]}
    prompts.add(finished.airflow.xcom(ONE_SONG, finished.run_ids[ONE_SONG], "song")["prompt"])
    _completed(finished, KEEP, "keep")
    _completed(finished, ONE_SONG, "song")
    _completed(finished, THOUSAND, "songs")
    for event in _events(finished.lineage):
        task_instance = event["run"]["facets"].get("airflow", {}).get("taskInstance", {})
        task_instance.pop("rendered_map_index", None)
        assert not {prompt for prompt in prompts if prompt in json.dumps(event)}

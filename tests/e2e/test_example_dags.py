"""The example DAGs, as a real scheduler and triggerer ran them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import psutil
import pytest

from airflow_provider_whisul.api.models import Song
from dev.demo import read_prompts
from tests.e2e import people
from tests.e2e.conftest import (
    ASYNC_TASK,
    BATCH_SONGS,
    EXAMPLE_DAGS,
    KEEP,
    NIGHTLY,
    ONE_SONG,
    PROMPT_FILES,
    RETRY,
    SINCE_3_2,
    TASKFLOW,
    THOUSAND,
    TOLD,
    Finished,
)
from tests.support.reconciliation import differences, printed_ledger, read_machine_ledger
from tests.support.servers import fetched

# The first test also waits for Airflow and for all the runs.
pytestmark = pytest.mark.timeout(1800)

PROMPTS = read_prompts(EXAMPLE_DAGS / f"{NIGHTLY}.py")
KEPT_PROMPTS = read_prompts(EXAMPLE_DAGS / f"{KEEP}.py")
DUET_PROMPTS = read_prompts(EXAMPLE_DAGS / f"{ASYNC_TASK}.py") if SINCE_3_2 else []
FILE_PROMPTS = [
    "a lullaby for a lighthouse keeper:\nslow, a music box, no drums",
    "a reveille for a lighthouse keeper:\nbright, a single trumpet",
]
LINE_PROMPTS = [
    "rain on a tin roof, brushes and an upright bass",
    f"rain over the harbour, slow strings, for {PROMPT_FILES}",
]
SONG_KEYS = set(Song.__annotations__)
MAX_THROTTLED = 10


def _xcom(finished: Finished, dag_id: str, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
    return finished.airflow.xcom(dag_id, finished.run_ids[dag_id], task_id, map_index, key)


def _tasks(finished: Finished, dag_id: str) -> list[tuple[str, int, str | None, int, str | None]]:
    found = finished.airflow.task_instances(dag_id, finished.run_ids[dag_id])
    return [(task.task_id, task.map_index, task.state, task.try_number, task.rendered_map_index) for task in found]


def _logs(finished: Finished) -> str:
    """Return the logs of the tasks that did not succeed."""
    return "\n".join(
        f"--- {task.label} of {dag_id}, {task.state}, try {task.try_number}\n"
        + finished.airflow.task_log(dag_id, run_id, task.task_id, task.map_index, task.try_number)
        for dag_id, run_id in finished.run_ids.items()
        if finished.states[dag_id] != "success"
        for task in finished.airflow.task_instances(dag_id, run_id)
        if task.state != "success"
    )


def _throttled(finished: Finished) -> int:
    return sum(request.status == 429 for request in finished.sandbox.requests)


def test_every_run_succeeds(finished: Finished) -> None:
    assert set(finished.states.values()) == {"success"}, _logs(finished)


def test_nightly_tasks_succeed_at_the_first_try_and_are_labelled_by_their_prompt(finished: Finished) -> None:
    assert _tasks(finished, NIGHTLY) == [
        (task_id, index, "success", 1, prompt) for task_id in ("song", "submit") for index, prompt in enumerate(PROMPTS)
    ]


def test_nightly_song_of_each_prompt_is_in_xcom(finished: Finished) -> None:
    jobs = finished.sandbox.jobs
    for index, prompt in enumerate(PROMPTS):
        job_id = _xcom(finished, NIGHTLY, "submit", index)
        assert jobs[job_id].prompt == prompt
        assert _xcom(finished, NIGHTLY, "submit", index, "job_id") == job_id
        song = _xcom(finished, NIGHTLY, "song", index)
        assert set(song) == SONG_KEYS
        assert (song["job_id"], song["prompt"]) == (job_id, prompt)
        assert song["duration_seconds"] > 0
        assert isinstance(song["tags"], list)
        assert song["song_url"].startswith("http://127.0.0.1:")
        assert song["started_at"] < song["finished_at"]


def test_one_song_is_made_by_one_job_in_one_try(finished: Finished) -> None:
    assert _tasks(finished, ONE_SONG) == [("song", -1, "success", 1, None)]
    song = _xcom(finished, ONE_SONG, "song")
    assert song["job_id"] == _xcom(finished, ONE_SONG, "song", key="job_id")
    assert song["prompt"].startswith("lo-fi for ")
    assert "{" not in song["prompt"]


def test_retry_of_a_failed_song_makes_a_new_one(finished: Finished) -> None:
    assert _tasks(finished, RETRY) == [("song", -1, "success", 2, None)]
    prompt = f"[sandbox:fail=1] a sea shanty about second chances, for {finished.run_ids[RETRY]}"
    failed, made = [job_id for job_id, job in finished.sandbox.jobs.items() if job.prompt == prompt]
    assert _xcom(finished, RETRY, "song")["job_id"] == _xcom(finished, RETRY, "song", key="job_id") == made
    first_log = finished.airflow.task_log(RETRY, finished.run_ids[RETRY], "song", try_number=1)
    assert "WhisulJobFailedError" in first_log
    assert failed in first_log


def test_the_batch_has_all_its_songs_in_one_task(finished: Finished) -> None:
    states = [(task_id, state, tries) for task_id, _, state, tries, _ in _tasks(finished, THOUSAND)]
    assert states == [("prompts", "success", 1), ("songs", "success", 1)]
    prompts = _xcom(finished, THOUSAND, "prompts")
    results = _xcom(finished, THOUSAND, "songs")
    assert len(prompts) == BATCH_SONGS
    assert [result["prompt"] for result in results] == prompts
    for result in results:
        assert finished.sandbox.jobs[result["job_id"]].prompt == result["prompt"]
        assert (result["status"], result["error"], set(result["song"])) == ("completed", None, SONG_KEYS)


def test_prompts_are_read_from_files_beside_the_dag(finished: Finished) -> None:
    assert [_xcom(finished, PROMPT_FILES, "watch", index)["prompt"] for index in range(2)] == FILE_PROMPTS
    assert [result["prompt"] for result in _xcom(finished, PROMPT_FILES, "rain")] == LINE_PROMPTS
    labels = [task[4] for task in _tasks(finished, PROMPT_FILES) if task[0] == "watch"]
    assert [label and label.split(":")[0] for label in labels] == [prompt.split(":")[0] for prompt in FILE_PROMPTS]


@pytest.mark.skipif(not SINCE_3_2, reason="Airflow has async tasks from 3.2 on.")
def test_an_async_task_has_its_songs(finished: Finished) -> None:
    assert _tasks(finished, ASYNC_TASK) == [("duet", -1, "success", 1, None)]
    songs = _xcom(finished, ASYNC_TASK, "duet")
    assert [song["prompt"] for song in songs] == DUET_PROMPTS
    assert {finished.sandbox.jobs[song["job_id"]].prompt for song in songs} == set(DUET_PROMPTS)
    entries = read_machine_ledger(finished.airflow.home).entries
    submitted_by = {entry.submission.task_id for entry in entries if entry.submission.dag_id == ASYNC_TASK}
    assert submitted_by == {"duet"}
    log = finished.airflow.task_log(ASYNC_TASK, finished.run_ids[ASYNC_TASK], "duet")
    # What the thread logs is in the task's log.
    assert all(f"as job {song['job_id']}" in log for song in songs)


def test_songs_of_functions_go_on_to_another_task(finished: Finished) -> None:
    places = ("a lighthouse", "an empty ballroom")
    waltzes = [f"a slow waltz for {place}" for place in places]
    assert _tasks(finished, TASKFLOW) == [
        ("encores", -1, "success", 1, None),
        ("overture", -1, "success", 1, None),
        ("programme", -1, "success", 1, None),
        ("song", 0, "success", 1, waltzes[0]),
        ("song", 1, "success", 1, waltzes[1]),
    ]
    overture = _xcom(finished, TASKFLOW, "overture")
    assert overture["prompt"] == "a bright overture for a small theatre"
    assert {key: _xcom(finished, TASKFLOW, "overture", key=key) for key in SONG_KEYS} == overture
    songs = [overture, *(_xcom(finished, TASKFLOW, "song", index) for index in range(2))]
    encores = _xcom(finished, TASKFLOW, "encores")
    assert [song["prompt"] for song in songs[1:]] == waltzes
    assert [encore["prompt"] for encore in encores] == [f"a short encore for {place}" for place in places]
    assert _xcom(finished, TASKFLOW, "programme") == [
        *(song["title"] for song in songs),
        *(encore["song"]["title"] for encore in encores),
    ]


def test_songs_are_stored_and_the_asset_event_starts_the_next_dag(finished: Finished) -> None:
    folder = finished.kept / finished.run_ids[KEEP]
    manifest = _xcom(finished, KEEP, "keep")
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert [song["prompt"] for song in manifest["songs"]] == KEPT_PROMPTS
    assert (manifest["dag_id"], manifest["run_id"], manifest["failed"]) == (KEEP, finished.run_ids[KEEP], [])
    for index, song in enumerate(manifest["songs"]):
        assert song["job_id"] == _xcom(finished, KEEP, "song", index)["job_id"]
        assert (folder / song["audio"]["name"]).read_bytes().startswith(b"RIFF")
        assert (folder / song["cover"]["name"]).stat().st_size == song["cover"]["size"]
        assert json.loads((folder / song["metadata"]).read_text()) == song
    assert len(list(folder.iterdir())) == 1 + 3 * len(KEPT_PROMPTS)
    assert _xcom(finished, TOLD, "tell") == {
        "destination": f"file://{folder}",
        "manifest": f"file://{folder}/manifest.json",
        "count": len(KEPT_PROMPTS),
        "failed": 0,
        "titles": [song["title"] for song in manifest["songs"]],
    }


def test_each_song_is_paid_for_once(finished: Finished) -> None:
    posts = Counter(
        request.prompt for request in finished.sandbox.requests if request.method == "POST" and request.status == 202
    )
    retried = f"[sandbox:fail=1] a sea shanty about second chances, for {finished.run_ids[RETRY]}"
    lo_fi = _xcom(finished, ONE_SONG, "song")["prompt"]
    batches = [*_xcom(finished, THOUSAND, "songs"), *_xcom(finished, TASKFLOW, "encores")]
    songs = [_xcom(finished, TASKFLOW, "overture"), *(_xcom(finished, TASKFLOW, "song", index) for index in range(2))]
    others = [*KEPT_PROMPTS, *DUET_PROMPTS, *FILE_PROMPTS, *LINE_PROMPTS, *(s["prompt"] for s in [*batches, *songs])]
    assert posts == {**dict.fromkeys([*PROMPTS, *others], 1), lo_fi: 1, retried: 2, **people.SUBMITTED}


def test_the_ledger_says_what_the_sandbox_counts(finished: Finished) -> None:
    requests, jobs = finished.sandbox.requests, finished.sandbox.jobs
    content = read_machine_ledger(finished.airflow.home)
    assert differences(content, requests) == []
    assert sorted(str(entry.job_id) for entry in content.entries) == sorted(jobs)
    printed = printed_ledger(finished.airflow.env)
    assert printed["total"] == {
        "submitted": len(jobs),
        "delivered": len(jobs) - 1,
        "failed": 1,
        "not_found": 0,
        "ambiguous": 0,
        "no_outcome": 0,
    }
    by_dag = {row["dag_id"]: row["submitted"] for row in printed["rows"]}
    assert (by_dag[NIGHTLY], by_dag[RETRY], by_dag[THOUSAND]) == (len(PROMPTS), 2, BATCH_SONGS)
    assert (printed["not_taken"], printed["ambiguous"], printed["unreadable"]) == ([], [], [])


def test_no_job_is_polled_twice_within_five_seconds(finished: Finished) -> None:
    polls: dict[str | None, list[float]] = defaultdict(list)
    for request in finished.sandbox.requests:
        if request.path.startswith("/api/jobs/"):
            polls[request.job_id].append(request.at)
    assert set(polls) == set(finished.sandbox.jobs)
    # How many polls a job has depends on the machine: a busy one may poll each song only after its end.
    gaps = {job_id: [later - earlier for earlier, later in pairwise(at)] for job_id, at in polls.items()}
    assert not {job_id: gap for job_id, gap in gaps.items() if any(seconds < 5 for seconds in gap)}


def test_workers_and_triggerer_share_the_rate_limiter_of_their_machine(finished: Finished) -> None:
    requests = [request for request in finished.sandbox.requests if request.path.startswith("/api/")]
    (file,) = (finished.airflow.home / "tmp").rglob("airflow-provider-whisul-*/*.json")
    # Every permit has a number.
    assert json.loads(file.read_text())["last_request"] >= len(requests)
    assert _throttled(finished) <= MAX_THROTTLED


def test_the_api_key_is_only_in_the_authorization_header(finished: Finished) -> None:
    requests = finished.sandbox.requests
    assert {request.authorization for request in requests if request.path.startswith("/api")} == {"ok"}
    assert {request.authorization for request in fetched(finished.sandbox)} == {"missing"}
    assert not [request for request in requests if request.key_elsewhere]
    assert {request.status for request in requests} <= {200, 202, 429}

    # The logs, the database with its XComs and trigger arguments, and whatever else Airflow has written.
    files = finished.airflow.files()
    assert any("task_id=song" in str(path) for path in files)
    assert not [path for path, content in files.items() if finished.key.encode() in content]

    for process in psutil.process_iter():
        try:
            command_line = process.cmdline()
        except psutil.Error:
            continue
        assert not any(finished.key in argument for argument in command_line)


def test_worker_and_triggerer_send_metrics(finished: Finished) -> None:
    requests, jobs = finished.sandbox.requests, finished.sandbox.jobs
    polls = [request for request in requests if request.path.startswith("/api/jobs/")]
    stored = [path for path in finished.kept.rglob("*.json") if not path.name.startswith("manifest")]
    not_counted = ("whisul.rate_limit_wait", "whisul.rate_limited")
    counted = {name: count for name, count in finished.metrics.items() if name not in not_counted}
    expected = {
        "whisul.submitted": len(jobs),
        "whisul.delivered": len(jobs) - 1,
        "whisul.song_time": len(jobs) - 1,
        "whisul.failed": 1,
        "whisul.polls": len(polls),
        "whisul.poll_time": len(polls),
        # One poll of each job has found it ended.
        "whisul.job_age": sum(request.status == 200 for request in polls) - len(jobs),
        "whisul.stored": len(stored),
        "whisul.stored_bytes": len(stored),
    }
    # Where each first poll has found its job ended, none has timed how old a running one is.
    assert counted == {name: number for name, number in expected.items() if number}
    assert finished.metrics["whisul.rate_limited"] == _throttled(finished)
    # The submissions of the batch wait for the rate limiter.
    assert finished.metrics["whisul.rate_limit_wait"] > 0


def test_every_song_has_a_link_and_a_card_for_the_tracks_tab(finished: Finished) -> None:
    for index, prompt in enumerate(PROMPTS):
        song = _xcom(finished, NIGHTLY, "song", index)
        links = finished.airflow.extra_links(NIGHTLY, finished.run_ids[NIGHTLY], "song", index)
        assert links == {"Song": song["song_url"]}
        (card,) = _xcom(finished, NIGHTLY, "song", index, "whisul_songs_0000_1_0")
        assert (card["prompt"], card["title"], card["song_url"]) == (prompt, song["title"], song["song_url"])
    # Only the task that waits for the song has its link.
    assert finished.airflow.extra_links(NIGHTLY, finished.run_ids[NIGHTLY], "submit", 0) == {"Song": None}

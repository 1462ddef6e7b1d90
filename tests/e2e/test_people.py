"""The example DAGs that ask a person: the questions that Airflow's UI shows, and what the answers do."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.e2e.conftest import Finished
from tests.e2e.people import APPROVE, ASK, ASK_ABOVE, CASES, CHOOSE_FROM, JINGLES, WAITING

# The first test also waits for Airflow and for all the runs.
pytestmark = pytest.mark.timeout(1800)


def _states(finished: Finished, case: str) -> dict[str, str | None]:
    run = finished.answered[case]
    return {task.task_id: task.state for task in finished.airflow.task_instances(CASES[case].dag_id, run.run_id)}


def test_every_run_succeeds_whatever_the_answer(finished: Finished) -> None:
    assert not {
        case: failed for case in CASES if (failed := [t for t, s in _states(finished, case).items() if s == "failed"])
    }
    assert {case: run.state for case, run in finished.answered.items()} == dict.fromkeys(CASES, "success")


def test_a_task_that_waits_for_a_person_holds_no_worker(finished: Finished) -> None:
    waited = {case: run.waiting_state for case, run in finished.answered.items()}
    assert waited.pop("small") is None
    assert set(waited.values()) <= set(WAITING)


def test_the_question_about_songs_names_each_and_says_where_to_listen(finished: Finished) -> None:
    run = finished.answered["choose"]
    *options, last = run.question["options"]
    results = finished.airflow.xcom(APPROVE, run.run_id, "songs")
    assert options == [
        f"{number}. {result['song']['title']}: {result['prompt']}" for number, result in enumerate(results, 1)
    ]
    assert last == "None of these songs"
    assert run.question["multiple"]
    tracks = f"dags/{APPROVE}/runs/{quote(run.run_id, safe='')}/plugin/whisul-tracks"
    assert f"[Tracks]({tracks})" in run.question["body"]


def test_only_the_chosen_songs_are_stored(finished: Finished) -> None:
    run = finished.answered["choose"]
    results = finished.airflow.xcom(APPROVE, run.run_id, "songs")
    assert [result["prompt"] for result in results] == CHOOSE_FROM
    chosen = [results[option]["job_id"] for option in CASES["choose"].answer]
    folder = finished.kept / run.run_id
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [song["job_id"] for song in manifest["songs"]] == chosen
    names = {song["audio"]["name"] for song in manifest["songs"]}
    assert {path.name for path in folder.glob("*.wav")} == names
    assert len(names) == len(chosen)


def test_the_question_before_paying_names_the_songs_and_the_sum(finished: Finished) -> None:
    assert finished.answered["approve"].question["subject"] == "Make and pay for 3 songs (0.24 USD)?"
    assert finished.answered["reject"].question["subject"] == "Make and pay for 4 songs (0.32 USD)?"


@pytest.mark.parametrize(("case", "songs"), [("approve", 3), ("small", ASK_ABOVE)])
def test_songs_are_made_after_an_approval_and_without_a_question_where_they_are_few(
    finished: Finished, case: str, songs: int
) -> None:
    made = finished.airflow.xcom(ASK, finished.answered[case].run_id, "songs")
    assert [result["prompt"] for result in made] == JINGLES[:songs]
    assert {result["status"] for result in made} == {"completed"}
    assert _states(finished, case)["ask"] == ("success" if case == "approve" else "skipped")


def test_a_rejection_submits_nothing(finished: Finished) -> None:
    assert _states(finished, "reject")["songs"] == "skipped"
    run_id = finished.answered["reject"].run_id
    with pytest.raises(KeyError):
        finished.airflow.xcom(ASK, run_id, "songs")
    # The only run with a fourth jingle.
    submitted = [request.prompt for request in finished.sandbox.requests if request.method == "POST"]
    assert JINGLES[2] in submitted
    assert JINGLES[3] not in submitted

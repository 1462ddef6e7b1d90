"""The example DAGs that ask a person, task by task. The runs on a real Airflow are in tests/e2e."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.version_compat import HAS_REQUIRED_ACTIONS
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock
from tests.support.connection import set_extra

Example = Callable[[str], dict[str, Any]]
MakeSongs = Callable[..., list[dict[str, Any]]]

asks_people = pytest.mark.skipif(not HAS_REQUIRED_ACTIONS, reason="No task can ask a person.")

NONE_OF_THEM = "None of these songs"


@pytest.fixture
def approve_songs(example: Example) -> Any:
    """The DAG in which a person chooses songs."""
    return example("whisul_approve_songs")["approve_songs"]()


@pytest.fixture
def ask_before_paying(example: Example) -> Any:
    """The DAG in which a person approves a batch."""
    return example("whisul_ask_before_paying")["ask_before_paying"]()


def completed(song: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a batch for a song."""
    prompt, job_id = song["prompt"], song["job_id"]
    return {"prompt": prompt, "job_id": job_id, "status": "completed", "song": song, "error": None}


def some_results(count: int) -> list[dict[str, Any]]:
    """Return results of a batch whose songs all have one title."""
    return [completed({"title": "Again", "prompt": f"song {n}", "job_id": f"job-{n}"}) for n in range(count)]


def call(dag: Any, task_id: str, *arguments: Any) -> Any:
    """Call the function of a task."""
    return dag.get_task(task_id).python_callable(*arguments)


@pytest.mark.skipif(HAS_REQUIRED_ACTIONS, reason="Tasks can ask a person.")
@pytest.mark.parametrize("name", ["whisul_approve_songs", "whisul_ask_before_paying"])
def test_where_no_task_can_ask_a_person_the_file_is_read_and_defines_no_dag(example: Example, name: str) -> None:
    assert example(name)["HAS_REQUIRED_ACTIONS"] is False


@asks_people
class TestWhichSongsAreKept:
    def test_each_song_is_an_option_of_one_question_also_where_titles_are_the_same(self, approve_songs: Any) -> None:
        results = some_results(41)
        failed = {"prompt": "no luck", "job_id": "job-x", "status": "failed", "song": None, "error": "It failed."}
        results.insert(3, failed)
        questions = call(approve_songs, "questions", results)
        assert [len(options) for options in questions] == [21, 21, 2]
        assert all(options.pop() == NONE_OF_THEM for options in questions)
        options = [option for question in questions for option in question]
        assert len(set(options)) == 41
        assert (options[0], options[3], options[40]) == (
            "1. Again: song 0",
            "4. Again: song 3",
            "41. Again: song 40",
        )

    def test_a_song_without_a_title_is_named_by_its_prompt(self, approve_songs: Any) -> None:
        (untitled, absent) = some_results(2)
        untitled["song"]["title"] = None
        absent["song"] = None
        (options,) = call(approve_songs, "questions", [untitled, absent])
        assert options == ["1. song 0", "2. song 1", NONE_OF_THEM]

    def test_a_text_from_outside_is_one_short_line_and_no_markdown(
        self, approve_songs: Any, make_songs: MakeSongs
    ) -> None:
        (song,) = make_songs("a waltz\n[x](https://evil.example) [sandbox:hostile]" + " long" * 99)
        ((option, _),) = call(approve_songs, "questions", [completed(song)])
        assert option.startswith("1. <script>")
        assert len(option) < 130
        assert option.isprintable()
        # Options are plain text in Airflow's UI. The body is Markdown, and a template.
        choose = approve_songs.get_task("choose")
        assert "body" in choose.partial_kwargs
        assert set(choose.expand_input.value) == {"options"}

    def test_answers_to_several_questions_are_taken_together(self, approve_songs: Any) -> None:
        results = some_results(30)
        questions = call(approve_songs, "questions", results)
        answers = [{"chosen_options": [questions[0][4], questions[0][0]]}, {"chosen_options": [questions[1][9]]}]
        chosen = call(approve_songs, "chosen", results, answers)
        assert [result["job_id"] for result in chosen] == ["job-0", "job-4", "job-29"]

    def test_no_song_is_stored_where_none_was_chosen(self, approve_songs: Any) -> None:
        with pytest.raises(AirflowSkipException, match="No song was chosen"):
            call(approve_songs, "chosen", some_results(2), [{"chosen_options": [NONE_OF_THEM]}])

    def test_songs_are_stored_days_later_though_their_urls_have_expired(
        self, approve_songs: Any, sandbox: Sandbox, make_songs: MakeSongs, clock: FakeClock, tmp_path: Path
    ) -> None:
        results = [completed(song) for song in make_songs(*[f"a waltz {n} [sandbox:media-expired]" for n in range(3)])]
        clock.now += timedelta(days=3).total_seconds()
        ((first, _, last, _),) = call(approve_songs, "questions", results)
        keep = approve_songs.get_task("keep")
        keep.songs = call(approve_songs, "chosen", results, [{"chosen_options": [first, last]}])
        keep.destination = f"file://{tmp_path}/kept"
        keep.clock = clock.clock
        before = len(sandbox.requests)
        manifest = TaskContext().run(keep)
        chosen = {results[0]["job_id"], results[2]["job_id"]}
        assert {song["job_id"] for song in manifest["songs"]} == chosen
        requests = sandbox.requests[before:]
        polled = [request.job_id for request in requests if request.path.startswith("/api/jobs/")]
        assert sorted(polled) == sorted(chosen)
        assert {request.method for request in requests} == {"GET"}
        assert [request.status for request in requests if request.job_id == results[1]["job_id"]] == []


@asks_people
class TestWhetherABatchIsPaid:
    @pytest.mark.parametrize(("songs", "next_task"), [(100, "songs"), (101, "cost")])
    def test_a_person_is_asked_above_a_number_of_songs(
        self, ask_before_paying: Any, songs: int, next_task: str
    ) -> None:
        prompts = call(ask_before_paying, "prompts", str(songs))
        assert call(ask_before_paying, "is_large", prompts, "100") == next_task

    def test_the_sum_is_named_where_the_connection_has_a_price(
        self, ask_before_paying: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts = call(ask_before_paying, "prompts", "1200")
        assert call(ask_before_paying, "cost", prompts) == "1,200 songs"
        set_extra(monkeypatch, price_per_song="0.08 USD")
        assert call(ask_before_paying, "cost", prompts) == "1,200 songs (96.00 USD)"
        assert sandbox.requests == []

    @pytest.mark.parametrize(("answer", "skipped"), [("Reject", True), ("Approve", False)])
    def test_songs_are_skipped_after_a_rejection(self, ask_before_paying: Any, answer: str, skipped: bool) -> None:
        ask = ask_before_paying.get_task("ask")
        assert is_skipped(ask, answer) is skipped

    def test_no_answer_in_time_is_a_rejection(self, ask_before_paying: Any) -> None:
        ask = ask_before_paying.get_task("ask")
        assert ask.response_timeout == timedelta(hours=12)
        # What Airflow takes for the answer then.
        (answer,) = ask.defaults
        assert is_skipped(ask, answer)

    def test_songs_do_not_run_where_the_question_has_failed(self, ask_before_paying: Any) -> None:
        songs = ask_before_paying.get_task("songs")
        assert songs.trigger_rule == "none_failed_min_one_success"
        assert songs.upstream_task_ids == {"prompts", "is_large", "ask"}


def is_skipped(ask: Any, answer: str) -> bool:
    """Return whether an answer skips the task ``songs``."""
    # Airflow 2 does not have it.
    from airflow.providers.common.compat.sdk import DownstreamTasksSkipped

    event = {
        "chosen_options": [answer],
        "params_input": {},
        "responded_at": datetime.now(UTC),
        "responded_by_user": None,
        "timedout": False,
    }
    try:
        ask.execute_complete({"task": ask, "ti": TaskContext()}, event)
    except DownstreamTasksSkipped as skipped:
        return list(skipped.tasks) == ["songs"]
    return False

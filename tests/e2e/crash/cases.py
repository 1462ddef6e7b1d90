"""What must hold after crashes, wherever the tasks' records are kept."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import pytest

from tests.e2e.crash.stage import CLEARED, KILLS, TABLE, TRIGGERED, Stage, ambiguous_posts
from tests.support.reconciliation import differences, printed_ledger

AMBIGUOUS = ("before_post", "response", "response_fail")
REATTACHED = [row.task_id for row in TABLE if row.tries == 2 and row.task_id not in (*AMBIGUOUS, "batch_response")]
SONGS = [task_id for task_id in REATTACHED if not task_id.startswith("batch")]
BATCHES = [row.task_id for row in TABLE if row.task_id.startswith("batch")]


class CrashTests:
    """The tests. A class with a fixture ``stage`` inherits them."""

    def test_no_song_is_paid_for_twice(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        with capsys.disabled():
            print(f"\n{stage.as_text()}\n{stage.seconds:.0f} s, with Airflow {stage.airflow.airflow_version}")
        assert [stage.measured[row.crash] for row in stage.table] == list(stage.table)

    def test_every_task_was_killed_at_its_moment_and_only_once(self, stage: Stage) -> None:
        assert sorted((kill["task_id"], kill["moment"]) for kill in stage.kills()) == sorted(KILLS.items())

    @pytest.mark.parametrize("task_id", ["before_post", "response", *SONGS])
    def test_the_song_is_that_of_the_only_submission_or_after_the_gap_of_the_second(
        self, stage: Stage, task_id: str
    ) -> None:
        posts = stage.posts(task_id)
        assert [post.status for post in posts] == [202] * (2 if task_id == "response" else 1)
        returned = stage.xcom(task_id)
        if task_id == "not_waiting":
            assert returned == posts[-1].job_id
        else:
            assert (returned["job_id"], returned["prompt"]) == (posts[-1].job_id, posts[-1].prompt)

    @pytest.mark.parametrize("task_id", BATCHES)
    def test_the_songs_of_a_batch_are_those_of_its_last_submissions(self, stage: Stage, task_id: str) -> None:
        last = {post.prompt: post.job_id for post in stage.posts(task_id)}
        assert {result["prompt"]: result["job_id"] for result in stage.xcom(task_id)} == last
        assert {result["song"]["job_id"] for result in stage.xcom(task_id)} == set(last.values())

    @pytest.mark.parametrize("task_id", SONGS)
    def test_the_second_try_logs_that_it_reattaches(self, stage: Stage, task_id: str) -> None:
        log = stage.later_log(task_id)
        assert f"Re-attaching to an earlier try's job {stage.posts(task_id)[0].job_id}" in log
        assert "nothing is submitted" in log

    @pytest.mark.parametrize("task_id", sorted({*BATCHES} & {*REATTACHED}))
    def test_the_second_try_of_a_batch_logs_that_it_reattaches(self, stage: Stage, task_id: str) -> None:
        before = "2 songs " if task_id in ("batch_submitting", "batch_in_ledger") else "3 songs "
        assert f"Re-attaching to {before}that an earlier try has submitted" in stage.later_log(task_id)

    @pytest.mark.parametrize("task_id", ["in_ledger", "batch_in_ledger", "batch_submitting"])
    def test_a_try_finds_in_the_ledger_what_the_one_before_could_not_record(self, stage: Stage, task_id: str) -> None:
        assert f"The ledger has it: job {stage.posts(task_id)[task_id != 'in_ledger'].job_id}" in stage.later_log(
            task_id
        )

    @pytest.mark.parametrize("task_id", AMBIGUOUS)
    def test_the_try_after_an_ambiguous_submission_warns_of_it(self, stage: Stage, task_id: str) -> None:
        log = stage.later_log(task_id)
        assert "A song may already have been paid for" in log
        assert ("Submitting it again." in log) == (task_id != "response_fail")
        assert ("WhisulAmbiguousSubmitFinalError" in log) == (task_id == "response_fail")

    def test_the_try_after_an_ambiguous_submission_of_a_batch_warns_of_it(self, stage: Stage) -> None:
        log = stage.later_log("batch_response")
        assert log.count("A song may already have been paid for") == 1
        assert "song 1 of batch_response" in log

    def test_a_new_triggerer_continues_the_triggers(self, stage: Stage) -> None:
        assert stage.log("triggerer", 1).count("Polling Whisul job") >= 2
        assert all(len(stage.polls(task_id)) >= 2 for task_id in TRIGGERED)

    def test_no_try_polls_a_job_twice_within_five_seconds(self, stage: Stage) -> None:
        intervals = []
        for task_id in {row.task_id for row in stage.table}:
            # A try that re-attaches cannot know when the killed try before it polled last. The trigger of a cleared one
            # polls until Airflow has ended it.
            grace = 30 if task_id in CLEARED else 0
            ended = stage.ended[task_id] + [kill["at"] for kill in stage.kills() if kill["task_id"] == task_id]
            polls: dict[str | None, list[float]] = defaultdict(list)
            for poll in stage.polls(task_id):
                polls[poll.job_id].append(poll.at)
            intervals += [
                (later - earlier, task_id, earlier, ended)
                for at in polls.values()
                for earlier, later in pairwise(sorted(at))
                if not any(earlier - grace <= end <= later for end in ended)
            ]
        assert intervals
        shortest = min(intervals)
        assert shortest[0] >= 5, f"{shortest}, in the log:\n{stage.log(shortest[1], 1)}\n{stage.log(shortest[1], 2)}"

    def test_the_ledger_has_every_job_once(self, stage: Stage) -> None:
        content = stage.ledger()
        assert differences(content, stage.requests()) == []
        # Those whose response was lost, and the one that was killed just before its POST.
        unknown = ambiguous_posts(stage.table)
        told = sorted(entry.submission.task_id for entry in content.entries if entry.job_id is None)
        assert told == sorted([*unknown.elements(), "before_post"])

    def test_the_ledger_command_prints_what_the_sandbox_counts(self, stage: Stage) -> None:
        made = [request for request in stage.sandboxes["default"].requests if request.method == "POST"]
        printed = printed_ledger(stage.airflow.env)
        total = printed["total"]
        # The submission before whose POST its task was killed is told too, since nobody can tell.
        assert total["submitted"] == len(made) + 1
        assert total["ambiguous"] == sum(ambiguous_posts(stage.table).values()) + 1
        # The task that does not wait for its song leaves that to others, unless its second try finds it completed.
        not_taken = [entry["task_id"] for entry in printed["not_taken"]]
        assert not_taken in ([], ["not_waiting"])
        assert total["delivered"] + len(not_taken) == sum(stage.songs(row.task_id) for row in TABLE)
        assert (total["failed"], total["not_found"], printed["unreadable"]) == (0, 0, [])

    def test_the_api_key_is_only_in_the_authorization_header(self, stage: Stage) -> None:
        assert not [request for request in stage.requests() if request.key_elsewhere]
        keys = [json.loads(sandbox.connection)["password"].encode() for sandbox in stage.sandboxes.values()]
        # The logs, the database with its task states, XComs and trigger arguments, and whatever else was written.
        files = stage.airflow.files()
        assert any("task_id=recorded" in str(path) for path in files)
        assert not [path for path, content in files.items() if any(key in content for key in keys)]


class OutageTests:
    """Whisul down, and a key revoked."""

    def test_a_revoked_key_fails_the_task_at_once_with_the_reason(self, stage: Stage) -> None:
        assert "WhisulUnauthorizedError" in stage.log("key_revoked", 1)
        assert [poll.status for poll in stage.polls("key_revoked")].count(401) == 1

    def test_polling_continues_through_an_outage(self, stage: Stage) -> None:
        stopped_at, restarted_at = stage.outage
        for task_id in ("outage_deferred", "outage_on_worker"):
            polls = [poll.at for poll in stage.polls(task_id)]
            assert min(polls) < stopped_at
            assert max(polls) > restarted_at
            assert "No response to GET" in stage.log(task_id, 1)

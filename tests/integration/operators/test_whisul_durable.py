"""What one try of the operator records for the next, wherever the record is kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from tests.integration.operators.song_task import (
    DEFERRED,
    ON_WORKER,
    SUBMIT_ONLY,
    MakeTask,
    SongTask,
    completed_event,
    error_event,
    posts,
)
from tests.support.airflow import Killed
from tests.support.clock import NOON, FakeClock
from tests.support.homes import keep_no_record


class TestReattach:
    def test_a_later_try_on_the_worker_polls_the_job_when_it_may_be_over_by_the_time_of_its_submission(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock
    ) -> None:
        hook = WhisulHook(clock=clock.clock)
        for _ in range(21):
            hook.wait_for_job(hook.generate("a song"))
        began, others = clock.now, len(sandbox.requests)
        song = task(**ON_WORKER, timeout=12)
        with pytest.raises(WhisulJobTimeoutError):
            song.attempt()
        song.arguments["timeout"] = 600
        assert song.attempt()["job_id"]
        polls = [request.at - began for request in sandbox.requests[others:] if request.method == "GET"]
        # The last poll of the first try is at its deadline; the second try polls once, and then waits.
        assert polls == pytest.approx([12, 12, 60])

    def test_a_running_job_is_waited_for_in_the_triggerer(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock
    ) -> None:
        song = task(**DEFERRED, timeout=600)
        first = song.attempt()
        assert isinstance(first, WhisulJobTrigger)
        clock.now += 30
        again = song.attempt()
        assert again.job_id == first.job_id
        assert again.deadline == NOON + 630
        assert song.context.xcoms["job_id"] == first.job_id
        assert posts(sandbox) == 1

    def test_a_running_job_is_waited_for_on_the_worker(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock
    ) -> None:
        song = task(**ON_WORKER)

        def die(seconds: float) -> None:
            clock.on_sleep = lambda _: None
            raise Killed

        clock.on_sleep = die
        with pytest.raises(Killed):
            song.attempt()
        requests_before = len(sandbox.requests)
        assert song.attempt()["job_id"] in sandbox.jobs
        assert posts(sandbox) == 1
        polls = [request.at for request in sandbox.requests[requests_before:]]
        assert all(after - before >= 5 for before, after in pairwise(polls))

    def test_a_completed_job_is_returned(self, sandbox: Sandbox, task: MakeTask, clock: FakeClock) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        clock.now += 60
        assert song.attempt()["job_id"] == job_id
        assert posts(sandbox) == 1

    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER, SUBMIT_ONLY])
    def test_after_a_failed_job_the_prompt_is_submitted_again(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any]
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:fail=1][sandbox:seconds=1]")
        if arguments is ON_WORKER:
            with pytest.raises(WhisulJobFailedError):
                song.attempt()
        else:
            song.attempt()
        clock.now += 2
        song.attempt()
        assert posts(sandbox) == 2

    def test_after_a_job_that_is_no_longer_found_the_prompt_is_submitted_again(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED, prompt="a song [sandbox:expired][sandbox:seconds=100]")
        first = song.attempt()
        clock.now += 100
        assert song.attempt().job_id != first.job_id
        assert posts(sandbox) == 2
        assert any(first.job_id in line and "submits the prompt again" in line for line in task_log())

    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER])
    @pytest.mark.parametrize("later", [0, 3600])
    def test_a_404_for_less_than_a_minute_submits_nothing(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any], later: float
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:get-404=5][sandbox:seconds=4000]", timeout=5000)
        song.arguments["wait_for_completion"] = False
        job_id = song.attempt()
        clock.now += later
        song.arguments["wait_for_completion"] = True
        found = song.attempt()
        assert (found["job_id"] if arguments is ON_WORKER else found.job_id) == job_id
        assert posts(sandbox) == 1

    def test_a_prompt_that_has_changed_is_submitted(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED)
        first = song.attempt()
        song.arguments["prompt"] = "another song"
        job_id = song.attempt().job_id
        assert sandbox.jobs[job_id].prompt == "another song"
        (line,) = [line for line in task_log() if "for another prompt" in line]
        assert first.job_id in line
        assert "pays for one more song" in line
        assert "{{ ds }} or a fixed seed" in line

    def test_a_refused_prompt_is_refused_before_the_record_is_read(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED)
        song.attempt()
        song.arguments["prompt"] = " "
        with pytest.raises(WhisulInvalidInputError):
            song.attempt()
        assert not any("for another prompt" in line for line in task_log())

    def test_a_prompt_that_is_rendered_anew_after_the_deferral_changes_nothing(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock
    ) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        song.arguments["prompt"] = "rendered anew"
        assert song.resume(completed_event(job_id))["job_id"] == job_id
        assert song.record is not None
        assert (song.record.job_id, song.record.status) == (job_id, "delivered")
        # The worker died before Airflow had the song: the retry returns it, and does not pay again.
        song.arguments["prompt"] = "a song"
        clock.now += 100
        assert song.attempt()["job_id"] == job_id
        assert posts(sandbox) == 1

    def test_a_prompt_that_no_database_can_hold_is_not_handed_over_to_the_triggerer(self, task: MakeTask) -> None:
        song = task(**DEFERRED, prompt="a \x00 waltz")
        song.attempt()
        assert song.deferred.kwargs["prompt"] == "a � waltz"

    def test_the_card_of_a_failed_song_has_the_prompt_that_was_submitted(
        self, sandbox: Sandbox, task: MakeTask
    ) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        song.arguments["prompt"] = "rendered anew"
        with pytest.raises(WhisulJobFailedError):
            song.resume(error_event(WhisulJobFailedError("failed", job_id=job_id)))
        assert [card["prompt"] for card in song.context.shown()] == ["a song"]

    @pytest.mark.parametrize("fault", ["get-500", "get-drop", "get-html-200"])
    def test_a_transient_failure_of_the_first_poll_submits_nothing(
        self, sandbox: Sandbox, task: MakeTask, fault: str
    ) -> None:
        song = task(**DEFERRED, prompt=f"a song [sandbox:{fault}]")
        assert song.attempt().job_id == song.attempt().job_id
        assert posts(sandbox) == 1

    def test_the_trigger_waits_for_the_end_of_the_cooldown_that_the_first_poll_met(
        self, start_sandbox: Callable[..., Sandbox], clock: FakeClock
    ) -> None:
        start_sandbox(rate_limit=1, block_seconds=90.0, retry_after=True)
        song = SongTask(clock, **DEFERRED)
        song.attempt()
        assert song.attempt().not_before[:2] == (NOON + 90, 90)

    def test_a_revoked_key_loses_no_job(self, sandbox: Sandbox, task: MakeTask, clock: FakeClock) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        sandbox.revoke_key()
        with pytest.raises(WhisulUnauthorizedError):
            song.attempt()
        sandbox.restore_key()
        song.clear()
        clock.now += 60
        assert song.attempt()["job_id"] == job_id
        assert posts(sandbox) == 1

    def test_a_retry_after_a_timeout_waits_for_the_same_job(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        with pytest.raises(WhisulJobTimeoutError):
            song.resume(error_event(WhisulJobTimeoutError("late", job_id=job_id)))
        assert song.attempt().job_id == job_id
        song.clear()
        assert song.attempt().job_id == job_id
        assert posts(sandbox) == 1


class TestSubmitOnly:
    def test_a_worker_that_dies_before_its_xcom_is_saved_costs_no_second_song(
        self, sandbox: Sandbox, task: MakeTask
    ) -> None:
        song = task(**SUBMIT_ONLY)
        assert song.attempt() == song.attempt()
        assert posts(sandbox) == 1

    def test_the_job_id_is_returned_although_the_first_poll_fails(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY, prompt="a song [sandbox:get-500]")
        assert song.attempt() == song.attempt()
        assert posts(sandbox) == 1

    def test_a_task_that_is_cleared_after_its_song_submits_again(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY)
        first = song.attempt()
        song.clear()
        assert song.attempt() != first


class TestDelivery:
    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER])
    def test_a_song_whose_return_to_airflow_failed_is_polled_again_and_not_paid_again(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any]
    ) -> None:
        """The worker dies, or the XCom cannot be stored, after the operator has returned."""
        song = task(**arguments)
        if arguments is DEFERRED:
            job_id = song.attempt().job_id
            clock.now += 60
            song.resume(completed_event(job_id))
        else:
            job_id = song.attempt()["job_id"]
        assert song.attempt()["job_id"] == job_id
        assert posts(sandbox) == 1

    def test_a_task_that_is_cleared_after_its_song_submits_again_and_says_so(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**ON_WORKER)
        first = song.attempt()
        song.clear()
        assert song.attempt()["job_id"] != first["job_id"]
        assert posts(sandbox) == 2
        said = f"This task has had job {first['job_id']}, and was cleared since: this try pays for a new song."
        assert sum(said in line for line in task_log()) == 1

    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER])
    def test_a_retry_after_a_failed_job_says_that_it_pays_again(
        self, task: MakeTask, arguments: dict[str, Any], task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:fail]")
        said = "made no song: this try submits, and pays for, one more song."
        for times in (0, 1):
            with pytest.raises(WhisulJobFailedError):
                song.attempt_with(error_event(WhisulJobFailedError("failed", job_id="x")))
            assert sum(said in line for line in task_log()) == times

    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER])
    def test_after_a_failed_job_the_record_keeps_the_number_of_submissions(
        self, task: MakeTask, arguments: dict[str, Any]
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:fail]")
        for number in (1, 2):
            with pytest.raises(WhisulJobFailedError):
                song.attempt_with(error_event(WhisulJobFailedError("failed", job_id="x")))
            assert song.record is not None
            assert (song.record.status, song.record.number) == ("ended", number)

    def test_a_job_that_a_gateway_said_not_to_find_is_polled_again_once_the_task_is_cleared(
        self, sandbox: Sandbox, task: MakeTask
    ) -> None:
        song = task(**DEFERRED)
        song.attempt()
        with pytest.raises(WhisulJobNotFoundError):
            song.resume(error_event(WhisulJobNotFoundError("not found", job_id="x")))
        song.attempt()
        assert len(sandbox.jobs) == 1


class TestAmbiguousSubmission:
    RESPONSE_LOST = "a song [sandbox:post-drop]"

    @pytest.mark.parametrize("fault", ["post-drop", "post-500", "post-truncated", "post-html-202", "post-no-id"])
    def test_a_lost_response_is_an_ambiguous_submission_and_the_next_try_warns(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]], fault: str
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt=f"a song [sandbox:{fault}]")
        with pytest.raises(WhisulAmbiguousSubmitError) as caught:
            song.attempt()
        assert not isinstance(caught.value, AirflowFailException)
        assert str(caught.value).endswith(
            'If Airflow retries the task, it submits the prompt again, unless on_ambiguous_submit is "fail".'
        )
        assert song.record is not None
        assert song.record.job_id is None
        assert song.attempt() in sandbox.jobs
        assert posts(sandbox) == 2
        assert sum("may already have been paid for" in line for line in task_log()) == 1

    def test_with_fail_nothing_is_submitted_until_a_user_clears_the_task(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt=self.RESPONSE_LOST, on_ambiguous_submit="fail")
        with pytest.raises(WhisulAmbiguousSubmitError, match="until you clear this task") as caught:
            song.attempt()
        assert isinstance(caught.value, AirflowFailException)
        assert str(caught.value).count("on_ambiguous_submit") == 1
        assert "retries" not in str(caught.value)
        with pytest.raises(AirflowFailException, match="already have been paid for.*until you clear this task"):
            song.attempt()
        assert posts(sandbox) == 1
        song.clear()
        assert song.attempt() in sandbox.jobs
        assert any("may already have been paid for" in line for line in task_log())

    def test_after_a_worker_that_died_between_intent_and_response_the_next_try_warns(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**SUBMIT_ONLY)
        operator = song.operator()

        def die(prompt: str, *, before_send: Callable[[], None], **_: object) -> str:
            before_send()
            raise Killed

        operator.hook.generate = die  # type: ignore[assignment, method-assign]
        with pytest.raises(Killed):
            song.attempt(operator)
        assert song.record is not None
        assert song.record.job_id is None
        assert song.attempt() in sandbox.jobs
        assert any("may already have been paid for" in line for line in task_log())

    @pytest.mark.parametrize(
        ("prompt", "error"),
        [
            ("a song [sandbox:post-429=6]", WhisulRateLimitError),
            ("a song [sandbox:post-403-html=6]", WhisulResponseError),
            ("a song [sandbox:no-such-directive]", WhisulInvalidInputError),
        ],
    )
    def test_a_submission_that_certainly_made_no_job_leaves_no_record(
        self, sandbox: Sandbox, task: MakeTask, prompt: str, error: type[Exception]
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt=prompt)
        with pytest.raises(error):
            song.attempt()
        assert song.record is None

    def test_a_worker_that_died_while_waiting_for_the_rate_limiter_has_recorded_no_intent(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, task_log: Callable[[], list[str]]
    ) -> None:
        with pytest.raises(WhisulRateLimitError):
            WhisulHook(clock=clock.clock).get_job(
                task(**SUBMIT_ONLY, prompt="one [sandbox:get-429]").attempt(), retry=False
            )
        song = task(**SUBMIT_ONLY, on_ambiguous_submit="fail")

        def die(seconds: float) -> None:
            clock.on_sleep = lambda _: None
            raise Killed

        clock.on_sleep = die
        with pytest.raises(Killed):
            song.attempt()
        assert song.record is None
        song.attempt()
        assert posts(sandbox) == 2
        assert not any("already have been paid for" in line for line in task_log())

    def test_a_refused_submission_leaves_an_earlier_ambiguous_one_on_record(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt="a song [sandbox:post-500][sandbox:post-429=6]")
        for error in (WhisulAmbiguousSubmitError, WhisulRateLimitError):
            with pytest.raises(error):
                song.attempt()
        assert song.attempt() in sandbox.jobs
        assert sum("may already have been paid for" in line for line in task_log()) == 2

    def test_a_submission_that_the_rate_limiter_did_not_permit_leaves_an_earlier_ambiguous_one_on_record(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt="a song [sandbox:post-500]")
        with pytest.raises(WhisulAmbiguousSubmitError):
            song.attempt()
        recorded = song.record
        assert recorded is not None
        rate_limiter = WhisulHook(clock=clock.clock)._rate_limiter
        rate_limiter.on_response(rate_limiter.acquire("poll", 1.0), throttled=True, retry_after=3600.0)
        with pytest.raises(WhisulRateLimitError, match="Nothing was sent"):
            song.attempt()
        assert song.record == recorded
        assert posts(sandbox) == 1

    def test_an_empty_prompt_leaves_no_record(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY, prompt="")
        with pytest.raises(WhisulInvalidInputError):
            song.attempt()
        assert song.record is None


class TestWithoutRecord:
    def test_each_try_submits_where_durable_is_false(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY, durable=False)
        assert song.attempt() != song.attempt()
        assert song.record is None

    def test_each_try_submits_where_no_record_can_be_kept(
        self, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        keep_no_record(monkeypatch, tmp_path)
        song = SongTask(clock, **SUBMIT_ONLY)
        assert song.attempt() != song.attempt()


def test_a_killed_task_logs_that_its_job_continues(
    sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
) -> None:
    song = task(**SUBMIT_ONLY)
    operator = song.operator()
    operator.on_kill()
    job_id = song.attempt(operator)
    operator.on_kill()
    assert sum(f"cannot cancel a job: job {job_id} continues" in line for line in task_log()) == 1


def test_an_unknown_value_of_on_ambiguous_submit_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "retry" or "fail"'):
        WhisulGenerateOperator(task_id="song", prompt="x", on_ambiguous_submit="ignore")  # type: ignore[arg-type]

"""What one try of the operator tells the next, with the state store that Airflow has from 3.3 on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_whisul.durable import NOTE_KEY, SongNote
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
from tests.support import NOON, FakeClock, TaskContext, TaskStore

DEFERRED, HERE, SUBMIT_ONLY = (
    {"wait_for_completion": True},
    {"wait_for_completion": True, "deferrable": False},
    {"wait_for_completion": False},
)


class Killed(BaseException):
    """The worker dies: nothing of ours runs any more."""


class Task:
    """One task in Airflow: its tries, and the store that outlives them."""

    def __init__(self, clock: FakeClock, **arguments: Any) -> None:
        self.clock = clock
        self.arguments = {"prompt": "a song", **arguments}
        self.store = TaskStore()
        self.tries = 0
        self.clears = 0
        self.context = TaskContext()

    @property
    def note(self) -> SongNote | None:
        return SongNote.read(self.store.get(NOTE_KEY))

    def operator(self) -> WhisulGenerateOperator:
        operator = WhisulGenerateOperator(task_id="song", retries=2, **self.arguments)
        operator.clock = self.clock.clock
        return operator

    def attempt(self, operator: WhisulGenerateOperator | None = None) -> Any:
        """Run the next try; a deferral returns its trigger."""
        self.tries += 1
        self.context = TaskContext(task_state_store=self.store)
        self.context.try_number = self.tries
        self.context.max_tries = self.clears + 2
        try:
            return self.context.run(operator or self.operator())
        except TaskDeferred as deferred:
            self.deferred = deferred
            return deferred.trigger

    def resume(self, event: object) -> Any:
        """Go on with the try that deferred."""
        return self.context.run(self.operator(), self.deferred.method_name, {"event": event, **self.deferred.kwargs})

    def clear(self) -> None:
        """What a user does: Airflow then allows as many tries again."""
        self.clears = self.tries


@pytest.fixture
def task(sandbox: Sandbox, clock: FakeClock) -> Callable[..., Task]:
    return lambda **arguments: Task(clock, **arguments)


MakeTask = Callable[..., Task]


def posts(sandbox: Sandbox) -> int:
    return sum(request.method == "POST" for request in sandbox.requests)


def completed(sandbox: Sandbox, job_id: str) -> dict[str, Any]:
    return {"status": "completed", "job_id": job_id, "song": {"job_id": job_id, "title": "Midnight Grid"}}


def error_event(error: Any) -> dict[str, Any]:
    return {"status": "error", "job_id": error.job_id, "error": error.as_dict()}


class TestReattach:
    def test_a_running_job_is_waited_for(self, sandbox: Sandbox, task: MakeTask, clock: FakeClock) -> None:
        song = task(**DEFERRED, timeout=600)
        first = song.attempt()
        assert isinstance(first, WhisulJobTrigger)
        clock.now += 30
        again = song.attempt()
        assert again.job_id == first.job_id
        # A fresh deadline, but the submission's own time.
        assert (again.deadline, again.submitted_at) == (NOON + 630, NOON)
        assert song.context.xcoms["job_id"] == first.job_id
        assert posts(sandbox) == 1

    def test_a_running_job_is_waited_for_in_the_worker(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock
    ) -> None:
        song = task(**HERE)

        def die(seconds: float) -> None:
            clock.on_sleep = lambda _: None
            raise Killed

        clock.on_sleep = die
        with pytest.raises(Killed):
            song.attempt()
        looks_before = len(sandbox.requests)
        assert song.attempt()["job_id"] in sandbox.jobs
        assert posts(sandbox) == 1
        looks = [request.at for request in sandbox.requests[looks_before:]]
        assert all(after - before >= 5 for before, after in pairwise(looks))

    def test_a_completed_job_is_returned(self, sandbox: Sandbox, task: MakeTask, clock: FakeClock) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        clock.now += 60
        assert song.attempt()["job_id"] == job_id
        assert posts(sandbox) == 1

    @pytest.mark.parametrize("arguments", [DEFERRED, HERE, SUBMIT_ONLY])
    def test_a_failed_job_is_made_anew(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any]
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:fail=1][sandbox:seconds=1]")
        if arguments is HERE:
            with pytest.raises(WhisulJobFailedError):
                song.attempt()
        else:
            song.attempt()
        clock.now += 2
        song.attempt()
        assert posts(sandbox) == 2

    def test_a_job_that_is_gone_is_made_anew(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED, prompt="a song [sandbox:expired][sandbox:seconds=100]")
        first = song.attempt()
        clock.now += 100
        assert song.attempt().job_id != first.job_id
        assert posts(sandbox) == 2
        assert any(first.job_id in line and "submits the prompt anew" in line for line in task_log())

    @pytest.mark.parametrize("arguments", [DEFERRED, HERE])
    def test_a_job_that_is_not_found_within_a_minute_is_only_not_there_yet(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any]
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:get-404=1]")
        song.arguments["wait_for_completion"] = False
        job_id = song.attempt()
        song.arguments["wait_for_completion"] = True
        found = song.attempt()
        assert (found["job_id"] if arguments is HERE else found.job_id) == job_id
        assert posts(sandbox) == 1

    def test_another_prompt_is_submitted(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED)
        first = song.attempt()
        song.arguments["prompt"] = "another song"
        job_id = song.attempt().job_id
        assert sandbox.jobs[job_id].prompt == "another song"
        assert any(first.job_id in line and "for another prompt" in line for line in task_log())

    @pytest.mark.parametrize("fault", ["get-500", "get-drop", "get-html-200"])
    def test_a_blip_in_the_look_pays_for_nothing(self, sandbox: Sandbox, task: MakeTask, fault: str) -> None:
        song = task(**DEFERRED, prompt=f"a song [sandbox:{fault}]")
        assert song.attempt().job_id == song.attempt().job_id
        assert posts(sandbox) == 1

    def test_a_429_in_the_look_is_waited_out_by_the_trigger(
        self, start_sandbox: Callable[..., Sandbox], clock: FakeClock
    ) -> None:
        start_sandbox(rate_limit=1, block_seconds=90.0, retry_after=True)
        song = Task(clock, **DEFERRED)
        song.attempt()
        assert song.attempt().not_before == NOON + 90

    def test_a_key_that_was_revoked_loses_no_job(self, sandbox: Sandbox, task: MakeTask, clock: FakeClock) -> None:
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

    def test_a_wait_that_timed_out_is_taken_up_again(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        with pytest.raises(WhisulJobTimeoutError):
            song.resume(error_event(WhisulJobTimeoutError("late", job_id=job_id)))
        assert song.attempt().job_id == job_id
        song.clear()
        assert song.attempt().job_id == job_id
        assert posts(sandbox) == 1


class TestSubmitOnly:
    def test_a_worker_that_died_before_its_xcom_was_saved(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY)
        assert song.attempt() == song.attempt()
        assert posts(sandbox) == 1

    def test_a_look_that_fails_does_not_keep_the_job_from_its_sensor(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY, prompt="a song [sandbox:get-500]")
        assert song.attempt() == song.attempt()
        assert posts(sandbox) == 1

    def test_a_cleared_task_makes_a_new_take(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY)
        first = song.attempt()
        song.clear()
        assert song.attempt() != first


class TestDelivery:
    @pytest.mark.parametrize("arguments", [DEFERRED, HERE])
    def test_a_song_that_airflow_did_not_get_is_fetched_again(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any]
    ) -> None:
        """The worker dies, or the XCom cannot be stored, after the operator has returned."""
        song = task(**arguments)
        if arguments is DEFERRED:
            job_id = song.attempt().job_id
            clock.now += 60
            song.resume(completed(sandbox, job_id))
        else:
            job_id = song.attempt()["job_id"]
        assert song.attempt()["job_id"] == job_id
        assert posts(sandbox) == 1

    def test_a_cleared_task_makes_a_new_take(self, sandbox: Sandbox, task: MakeTask, clock: FakeClock) -> None:
        song = task(**HERE)
        first = song.attempt()
        song.clear()
        assert song.attempt()["job_id"] != first["job_id"]
        assert posts(sandbox) == 2

    @pytest.mark.parametrize(
        "error",
        [WhisulJobFailedError("failed", job_id="x"), WhisulJobNotFoundError("gone", job_id="x")],
    )
    def test_a_job_that_came_to_nothing_is_forgotten(self, sandbox: Sandbox, task: MakeTask, error: Any) -> None:
        song = task(**DEFERRED)
        song.attempt()
        with pytest.raises(type(error)):
            song.resume(error_event(error))
        assert song.store == {}

    def test_a_failed_job_is_forgotten_in_the_worker_too(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**HERE, prompt="a song [sandbox:fail]")
        with pytest.raises(WhisulJobFailedError):
            song.attempt()
        assert song.store == {}


class TestLostSubmission:
    LOST = "a song [sandbox:post-drop]"

    @pytest.mark.parametrize("fault", ["post-drop", "post-500", "post-truncated", "post-html-202", "post-no-id"])
    def test_the_try_that_lost_the_answer_says_so_and_the_next_one_warns(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]], fault: str
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt=f"a song [sandbox:{fault}]")
        with pytest.raises(WhisulAmbiguousSubmitError) as caught:
            song.attempt()
        assert not isinstance(caught.value, AirflowFailException)
        assert song.note is not None
        assert song.note.job_id is None
        assert song.attempt() in sandbox.jobs
        assert posts(sandbox) == 2
        assert sum("may already have been paid for" in line for line in task_log()) == 1

    def test_fail_ends_the_task_until_a_user_clears_it(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt=self.LOST, on_ambiguous_submit="fail")
        with pytest.raises(WhisulAmbiguousSubmitError, match="until you clear this task") as caught:
            song.attempt()
        assert isinstance(caught.value, AirflowFailException)
        with pytest.raises(AirflowFailException, match="already have been paid for.*until you clear this task"):
            song.attempt()
        assert posts(sandbox) == 1
        song.clear()
        assert song.attempt() in sandbox.jobs
        assert any("may already have been paid for" in line for line in task_log())

    def test_a_worker_that_died_before_it_knew(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**SUBMIT_ONLY)
        operator = song.operator()

        def die(prompt: str) -> str:
            raise Killed

        operator.hook.generate = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            song.attempt(operator)
        assert song.attempt() in sandbox.jobs
        assert any("may already have been paid for" in line for line in task_log())

    @pytest.mark.parametrize(
        ("prompt", "error"),
        [
            ("a song [sandbox:post-429=6]", WhisulRateLimitError),
            ("a song [sandbox:post-redirect]", WhisulResponseError),
            ("a song [sandbox:no-such-directive]", WhisulInvalidInputError),
        ],
    )
    def test_a_submission_that_certainly_made_no_job_leaves_no_note(
        self, sandbox: Sandbox, task: MakeTask, prompt: str, error: type[Exception]
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt=prompt)
        with pytest.raises(error):
            song.attempt()
        assert song.store == {}

    def test_a_worker_that_died_in_a_wait_for_its_turn_has_sent_nothing(
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
        assert song.note is None
        song.attempt()
        assert posts(sandbox) == 2
        assert not any("already have been paid for" in line for line in task_log())

    def test_a_refused_submission_does_not_make_up_for_a_lost_one(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**SUBMIT_ONLY, prompt="a song [sandbox:post-500][sandbox:post-429=6]")
        for error in (WhisulAmbiguousSubmitError, WhisulRateLimitError):
            with pytest.raises(error):
                song.attempt()
        assert song.attempt() in sandbox.jobs
        assert sum("may already have been paid for" in line for line in task_log()) == 2

    def test_a_prompt_that_is_none_leaves_no_note(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY, prompt="")
        with pytest.raises(WhisulInvalidInputError):
            song.attempt()
        assert song.store == {}


class TestWithoutMemory:
    def test_not_durable(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY, durable=False)
        assert song.attempt() != song.attempt()
        assert song.store == {}

    def test_no_store_before_3_3(self, sandbox: Sandbox, clock: FakeClock) -> None:
        operator = Task(clock, **SUBMIT_ONLY).operator()
        assert TaskContext().run(operator) != TaskContext().run(operator)

    @pytest.mark.parametrize("stored", [None, "a job", {}, {"prompt": 1}, {"prompt": "x", "job_id": 5}])
    def test_a_note_that_is_not_understood_is_none(self, sandbox: Sandbox, task: MakeTask, stored: object) -> None:
        song = task(**SUBMIT_ONLY)
        song.store[NOTE_KEY] = stored
        assert song.attempt() in sandbox.jobs


def test_a_task_that_is_killed_says_that_the_job_goes_on(
    sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
) -> None:
    song = task(**SUBMIT_ONLY)
    operator = song.operator()
    operator.on_kill()
    job_id = song.attempt(operator)
    operator.on_kill()
    assert sum(f"cannot cancel a job: job {job_id} goes on" in line for line in task_log()) == 1


def test_another_word_for_on_ambiguous_submit_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "retry" or "fail"'):
        WhisulGenerateOperator(task_id="song", prompt="x", on_ambiguous_submit="ignore")  # type: ignore[arg-type]

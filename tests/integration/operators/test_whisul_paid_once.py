"""One song is paid for once: the ledger, another key, two tries at once, and records that cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import (
    WhisulBudgetExceededError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulStateError,
    WhisulStateUnreadableError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.ledger.submitting import Submitting
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state import song_state
from airflow_provider_whisul.state.song_state import SONG_KEY, SongRecord
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
from tests.support.airflow import Killed, allow_tasks_in_threads
from tests.support.clock import FakeClock
from tests.support.connection import api_key, change_connection, set_extra
from tests.support.homes import Home, fail_before_set, store_of
from tests.support.ledger import outcomes

MODES = pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER, SUBMIT_ONLY], ids=["deferred", "worker", "submit"])


def job_of(outcome: Any) -> str:
    """Return the job of what a try has returned, or deferred with."""
    if isinstance(outcome, WhisulJobTrigger):
        return outcome.job_id
    return str(outcome["job_id"] if isinstance(outcome, dict) else outcome)


def killed_after(song: SongTask, method: str) -> WhisulGenerateOperator:
    """Return an operator whose worker is killed as a method of its hook returns."""
    operator = song.operator()
    unharmed = getattr(operator.hook, method)

    def die(*args: Any, **kwargs: Any) -> None:
        unharmed(*args, **kwargs)
        raise Killed

    setattr(operator.hook, method, die)
    return operator


class TestTheLedger:
    @MODES
    @pytest.mark.parametrize("cleared", [False, True])
    def test_a_worker_killed_before_it_has_recorded_its_job_costs_nothing(
        self,
        sandbox: Sandbox,
        task: MakeTask,
        task_log: Callable[[], list[str]],
        arguments: dict[str, Any],
        cleared: bool,
    ) -> None:
        song = task(**arguments)
        with pytest.raises(Killed):
            song.attempt(killed_after(song, "generate"))
        assert song.numbered == ("submitting", 1)
        if cleared:
            song.clear()
        (job_id,) = sandbox.jobs
        assert job_of(song.attempt()) == job_id
        assert posts(sandbox) == 1
        assert song.record is not None
        assert (song.record.job_id, song.record.number) == (job_id, 1)
        assert any("The ledger has it" in line and job_id in line for line in task_log())

    @MODES
    def test_a_job_that_was_found_after_a_clear_is_found_again(
        self, sandbox: Sandbox, task: MakeTask, arguments: dict[str, Any]
    ) -> None:
        song = task(**arguments)
        with pytest.raises(Killed):
            song.attempt(killed_after(song, "generate"))
        song.clear()
        jobs = {job_of(song.attempt()) for _ in range(2)}
        assert list(jobs) == list(sandbox.jobs)
        assert posts(sandbox) == 1

    def test_a_job_that_the_ledger_knows_and_that_failed_is_submitted_again(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED, prompt="a song [sandbox:fail=1][sandbox:seconds=1]")
        with pytest.raises(Killed):
            song.attempt(killed_after(song, "generate"))
        clock.now += 2
        song.attempt()
        assert posts(sandbox) == 2
        assert song.numbered == ("running", 2)
        assert not any("may already have been paid for" in line for line in task_log())

    @MODES
    def test_a_worker_killed_while_the_response_comes_is_an_ambiguous_submission(
        self,
        sandbox: Sandbox,
        task: MakeTask,
        clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
        task_log: Callable[[], list[str]],
        arguments: dict[str, Any],
    ) -> None:
        song = task(**arguments)
        with monkeypatch.context() as patch:
            # A killed process writes nothing more.
            patch.setattr(Submitting, "end", lambda *_: None)
            with pytest.raises(Killed):
                song.attempt(killed_after(song, "_exchange"))
        before = clock.now
        job_id = job_of(song.attempt())
        # The response might still have come.
        assert clock.now - before >= 30
        assert job_id == list(sandbox.jobs)[1]
        assert posts(sandbox) == 2
        assert song.record is not None
        assert song.record.number == 2
        assert sum("may already have been paid for" in line for line in task_log()) == 1

    def test_without_a_record_each_try_submits_although_the_ledger_knows_the_jobs(
        self, sandbox: Sandbox, task: MakeTask
    ) -> None:
        song = task(**SUBMIT_ONLY, durable=False)
        assert len({song.attempt(), song.attempt(), song.attempt()}) == 3
        assert posts(sandbox) == 3

    def test_a_new_take_is_another_submission(self, sandbox: Sandbox, task: MakeTask) -> None:
        song = task(**SUBMIT_ONLY)
        first = song.attempt()
        for number in (2, 3):
            song.clear()
            assert song.attempt() not in ("", first)
            assert song.numbered == ("delivered", number)
        assert posts(sandbox) == 3

    def test_a_run_that_is_made_again_with_the_same_id_on_the_same_day_pays_for_nothing(
        self, sandbox: Sandbox, task: MakeTask
    ) -> None:
        song = task(**SUBMIT_ONLY)
        job_id = song.attempt()
        if song.store is not None:
            song.store.clear()
        song.tries = 0
        assert song.attempt() == job_id
        assert posts(sandbox) == 1

    def test_it_says_how_each_job_ended(self, sandbox: Sandbox, task: MakeTask, tmp_path: Path, home: Home) -> None:
        for event, error in (
            (None, None),
            (error_event(WhisulJobFailedError("failed", job_id="x")), WhisulJobFailedError),
            (error_event(WhisulJobNotFoundError("not found", job_id="x")), WhisulJobNotFoundError),
        ):
            song = task(**DEFERRED)
            job_id = song.attempt().job_id
            if error is None:
                song.resume(completed_event(job_id))
                continue
            with pytest.raises(error):
                song.resume(event)
        folder = tmp_path / "state" if home.name == "folder" else None
        assert outcomes(folder) == {"delivered": 1, "failed": 1, "not_found": 1}

    def test_it_says_how_a_job_ended_though_airflow_has_lost_which_one_it_was(
        self, sandbox: Sandbox, task: MakeTask, tmp_path: Path, home: Home, task_log: Callable[[], list[str]]
    ) -> None:
        """As `airflow dags test` of Airflow 2.11 does with the arguments of a deferral."""
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        song.deferred.kwargs.clear()
        song.resume(completed_event(job_id))
        assert outcomes(tmp_path / "state" if home.name == "folder" else None) == {"delivered": 1}
        assert not any("(unknown)" in line for line in task_log())

    def test_the_ceiling_of_the_day_ends_the_task_and_leaves_no_record(
        self, sandbox: Sandbox, task: MakeTask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_extra(monkeypatch, max_submissions_per_day=1)
        task(**SUBMIT_ONLY).attempt()
        song = task(**SUBMIT_ONLY)
        with pytest.raises(WhisulBudgetExceededError, match="Nothing was sent"):
            song.attempt()
        assert song.record is None
        assert posts(sandbox) == 1


def test_a_record_that_cannot_be_reached_is_said_to_have_sent_nothing(
    sandbox: Sandbox, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise WhisulStateError("It is away.")

    monkeypatch.setattr(SongRecord, "read", fail)
    with pytest.raises(WhisulStateError, match=r"^It is away\. Nothing was sent\.$") as caught:
        task(**SUBMIT_ONLY).attempt()
    assert not isinstance(caught.value.__cause__, WhisulStateError), "The log would have the message twice."
    assert posts(sandbox) == 0


class TestAClearWhileTheJobRuns:
    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER], ids=["deferred", "worker"])
    def test_waits_for_the_same_job(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, arguments: dict[str, Any]
    ) -> None:
        song = task(**arguments)

        def die(seconds: float) -> None:
            clock.on_sleep = lambda _: None
            raise Killed

        if arguments is ON_WORKER:
            clock.on_sleep = die
            with pytest.raises(Killed):
                song.attempt()
        else:
            song.attempt()
        song.clear()
        assert job_of(song.attempt()) in sandbox.jobs
        assert posts(sandbox) == 1


class TestAnotherAccount:
    @MODES
    def test_the_log_warns_and_the_prompt_is_submitted(
        self,
        sandbox: Sandbox,
        start_sandbox: Callable[..., Sandbox],
        task: MakeTask,
        task_log: Callable[[], list[str]],
        arguments: dict[str, Any],
    ) -> None:
        song = task(**arguments)
        job_id = job_of(song.attempt())
        other = start_sandbox(api_key="another-account-s-key")
        assert job_of(song.attempt()) in other.jobs
        assert (posts(sandbox), posts(other)) == (1, 1)
        (line,) = [line for line in task_log() if "another API key, or from another host" in line]
        assert job_id in line
        assert "pays for one more song" in line

    @MODES
    def test_a_key_that_was_regenerated_is_of_the_same_account_and_pays_nothing(
        self,
        sandbox: Sandbox,
        task: MakeTask,
        monkeypatch: pytest.MonkeyPatch,
        task_log: Callable[[], list[str]],
        arguments: dict[str, Any],
    ) -> None:
        song = task(**arguments)
        job_id = job_of(song.attempt())
        sandbox.restore_key("the-new-key")
        change_connection(monkeypatch, password="the-new-key")
        for _ in range(2):
            assert job_of(song.attempt()) == job_id
        assert posts(sandbox) == 1
        assert sum("another API key" in line for line in task_log()) == 1

    @MODES
    @pytest.mark.parametrize("finds", ["the job", "the job after an outage", "no job"])
    def test_a_job_that_only_the_ledger_of_the_replaced_key_has_is_asked_for(
        self,
        sandbox: Sandbox,
        start_sandbox: Callable[..., Sandbox],
        task: MakeTask,
        monkeypatch: pytest.MonkeyPatch,
        task_log: Callable[[], list[str]],
        arguments: dict[str, Any],
        finds: str,
    ) -> None:
        song = task(**arguments, prompt="a song [sandbox:get-500=1]" if "outage" in finds else "a song")
        with pytest.raises(Killed):
            song.attempt(killed_after(song, "generate"))
        (job_id,) = sandbox.jobs
        if finds == "no job":
            other = start_sandbox(api_key="another-account-s-key")
            assert job_of(song.attempt()) in other.jobs
            assert posts(other) == 1
        else:
            sandbox.restore_key("the-new-key")
            change_connection(monkeypatch, password="the-new-key")
            for _ in range(2):
                assert job_of(song.attempt()) == job_id
        assert posts(sandbox) == 1
        warnings = [line for line in task_log() if "another API key, or from another host" in line]
        assert len(warnings) == (2 if "outage" in finds else 1)
        assert job_id in warnings[0]

    @MODES
    @pytest.mark.parametrize("new_key", ["the-new-key", None], ids=["replaced", "mistyped"])
    def test_a_job_of_the_ledger_that_could_not_be_asked_for_is_found_again_once_the_task_is_cleared(
        self,
        sandbox: Sandbox,
        task: MakeTask,
        monkeypatch: pytest.MonkeyPatch,
        arguments: dict[str, Any],
        new_key: str | None,
    ) -> None:
        song = task(**arguments)
        with pytest.raises(Killed):
            song.attempt(killed_after(song, "generate"))
        (job_id,) = sandbox.jobs
        right = new_key or api_key()
        sandbox.restore_key(right)
        change_connection(monkeypatch, password="a-key-with-a-typo")
        with pytest.raises(WhisulUnauthorizedError):
            song.attempt()
        change_connection(monkeypatch, password=right)
        song.clear()
        assert job_of(song.attempt()) == job_id
        assert posts(sandbox) == 1


class TestTwoTriesAtOnce:
    """The first is between its POST and the response when the second comes, as after a zombie of a worker."""

    @MODES
    @pytest.mark.parametrize(
        ("first_has_recorded_its_intent", "cleared"), [(True, False), (False, False), (True, True)]
    )
    def test_send_one_post(
        self,
        sandbox: Sandbox,
        task: MakeTask,
        clock: FakeClock,
        arguments: dict[str, Any],
        first_has_recorded_its_intent: bool,
        cleared: bool,
    ) -> None:
        song = task(**arguments)
        first, second = song.operator(), song.operator()
        posted, second_waits = threading.Event(), threading.Event()
        exchange, generate = first.hook._exchange, second.hook.generate
        jobs: list[str] = []

        def respond_late(request: Any) -> Any:
            response = exchange(request)
            posted.set()
            assert second_waits.wait(30)
            return response

        def attempt_first() -> None:
            allow_tasks_in_threads()
            jobs.append(job_of(song.attempt(first)))

        thread = threading.Thread(target=attempt_first)

        def start_first(*args: Any, **kwargs: Any) -> str:
            thread.start()
            assert posted.wait(30)
            return generate(*args, **kwargs)

        def let_first_continue(seconds: float) -> None:
            if posted.is_set() and threading.current_thread() is not thread:
                first.hook._exchange = exchange  # type: ignore[method-assign]
                second_waits.set()
                thread.join(30)

        first.hook._exchange = respond_late  # type: ignore[method-assign]
        clock.on_sleep = let_first_continue
        if first_has_recorded_its_intent:
            thread.start()
            assert posted.wait(30)
        else:
            second.hook.generate = start_first  # type: ignore[method-assign]
        if cleared:
            # Airflow ends the first try seconds later, or never, where its machine is cut off.
            song.clear()
        jobs.append(job_of(song.attempt(second)))
        thread.join(30)
        assert len(jobs) == 2
        assert len(set(jobs)) == 1
        assert posts(sandbox) == 1

    @MODES
    @pytest.mark.parametrize("cleared", [False, True])
    def test_send_one_post_where_the_first_waits_after_a_429(
        self,
        start_sandbox: Callable[..., Sandbox],
        task: MakeTask,
        clock: FakeClock,
        arguments: dict[str, Any],
        cleared: bool,
    ) -> None:
        sandbox = start_sandbox()
        song = task(**arguments, prompt="a song [sandbox:post-429]")
        jobs: list[str] = []

        def start_second(seconds: float) -> None:
            if posts(sandbox):
                clock.on_sleep = lambda _: None
                if cleared:
                    song.clear()
                jobs.append(job_of(song.attempt()))

        clock.on_sleep = start_second
        jobs.append(job_of(song.attempt()))
        assert len(jobs) == 2
        assert len(set(jobs)) == 1
        assert list(sandbox.jobs) == jobs[:1]

    @pytest.mark.parametrize("ahead", [600.0, -600.0, 3500.0, -3500.0])
    def test_send_one_post_from_machines_whose_clocks_differ(
        self, sandbox: Sandbox, task: MakeTask, clock: FakeClock, ahead: float
    ) -> None:
        song = task(**SUBMIT_ONLY)
        first, second = song.operator(), song.operator()
        second.clock = replace(clock.clock, time=lambda: clock.time() + ahead)
        exchange = first.hook._exchange
        jobs: list[str] = []
        posted, second_waits = threading.Event(), threading.Event()

        def respond_late(request: Any) -> Any:
            response = exchange(request)
            posted.set()
            assert second_waits.wait(30)
            return response

        def attempt_first() -> None:
            allow_tasks_in_threads()
            jobs.append(job_of(song.attempt(first)))

        thread = threading.Thread(target=attempt_first)

        def let_first_continue(seconds: float) -> None:
            second_waits.set()
            thread.join(30)

        first.hook._exchange = respond_late  # type: ignore[method-assign]
        thread.start()
        assert posted.wait(30)
        clock.on_sleep = let_first_continue
        jobs.append(job_of(song.attempt(second)))
        second_waits.set()
        thread.join(30)
        assert len(set(jobs)) == 1
        assert posts(sandbox) == 1


class TestARecordThatCannotBeRead:
    @pytest.mark.parametrize(
        "damaged",
        [
            {},
            {"version": 1},
            {"version": 2, "prompt": "x"},
            {"version": 1, "status": "running", "job_id": None},
            {"version": 1, "status": "of another version"},
            {"version": 1, "number": "two"},
        ],
    )
    def test_fails_the_task_and_submits_nothing(
        self, sandbox: Sandbox, task: MakeTask, damaged: dict[str, Any]
    ) -> None:
        song = task(**DEFERRED)
        song.attempt()
        store = store_of(song)
        good = dict(store.get(SONG_KEY))  # type: ignore[call-overload]
        store.set(SONG_KEY, damaged if len(damaged) < 2 else {**good, **damaged})
        with pytest.raises(WhisulStateUnreadableError, match=SONG_KEY) as caught:
            song.attempt()
        assert isinstance(caught.value, AirflowFailException)
        assert posts(sandbox) == 1
        store.set(SONG_KEY, good)
        song.clear()
        if song.store is not None:
            # A user has mended it, which no clear undoes.
            store.set(SONG_KEY, good)
        assert song.attempt().job_id == good["job_id"]
        assert posts(sandbox) == 1

    def test_a_song_that_is_there_is_returned_all_the_same(
        self, sandbox: Sandbox, task: MakeTask, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        store_of(song).set(SONG_KEY, {"version": 2})
        assert song.resume(completed_event(job_id))["job_id"] == job_id
        assert any("How the job ended is not recorded" in line for line in task_log())

    def test_a_song_is_returned_where_the_configured_path_is_none(
        self, sandbox: Sandbox, task: MakeTask, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
    ) -> None:
        song = task(**DEFERRED)
        job_id = song.attempt().job_id
        monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "no/absolute/path")
        assert song.resume(completed_event(job_id))["job_id"] == job_id
        assert any("How the job ended is not recorded" in line for line in task_log())

    @pytest.mark.parametrize("arguments", [DEFERRED, ON_WORKER])
    def test_a_store_that_is_away_when_the_song_is_there_does_not_lose_it(
        self,
        sandbox: Sandbox,
        task: MakeTask,
        clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
        arguments: dict[str, Any],
    ) -> None:
        def fail(key: str, value: Any) -> None:
            if value.get("status") == "delivered":
                raise WhisulStateError("The store is away.")

        song = task(**arguments)
        with monkeypatch.context() as patch:
            fail_before_set(patch, song_state, fail)
            first = song.attempt()
            if arguments is DEFERRED:
                clock.now += 60
                first = song.resume(completed_event(first.job_id))
        assert song.attempt()["job_id"] == first["job_id"]
        assert posts(sandbox) == 1

    def test_a_store_that_is_away_before_the_submission_stops_it(
        self, sandbox: Sandbox, task: MakeTask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(key: str, value: Any) -> None:
            raise WhisulStateError("The store is away.")

        song = task(**DEFERRED)
        with monkeypatch.context() as patch:
            fail_before_set(patch, song_state, fail)
            with pytest.raises(WhisulStateError, match="The store is away") as caught:
                song.attempt()
        assert not isinstance(caught.value, AirflowFailException)
        assert posts(sandbox) == 0
        song.attempt()
        assert posts(sandbox) == 1

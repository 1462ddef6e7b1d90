"""The sensor in each of its modes, executed against the sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulServerError,
    WhisulSongMissingError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.polling import FRAMEWORK_TIMEOUT_MARGIN, NOT_FOUND_GRACE, SONG_URL_GRACE
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from airflow_provider_whisul.version_compat import ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT, AirflowRescheduleException
from tests.support.airflow import TaskContext, TaskStore
from tests.support.clock import NOON, FakeClock

Make = Callable[..., WhisulJobSensor]
MODES = [{"deferrable": True}, {"deferrable": False, "mode": "poke"}, {"deferrable": False, "mode": "reschedule"}]


@pytest.fixture
def make(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Make:
    # Airflow's own loop of the poke mode sleeps and counts by the time module.
    monkeypatch.setattr("time.sleep", clock.sleep)
    monkeypatch.setattr("time.monotonic", clock.time)

    def make(**kwargs: Any) -> WhisulJobSensor:
        sensor = WhisulJobSensor(task_id="song", **{"job_id": "some-job", **kwargs})
        sensor.clock = clock.clock
        return sensor

    return make


@pytest.fixture
def submit(sandbox: Sandbox, clock: FakeClock) -> Callable[[str], str]:
    return WhisulHook(clock=clock.clock).generate


def trigger_of(deferred: pytest.ExceptionInfo[TaskDeferred]) -> WhisulJobTrigger:
    trigger = deferred.value.trigger
    assert isinstance(trigger, WhisulJobTrigger)
    return trigger


@pytest.mark.parametrize("mode", MODES)
def test_the_song_of_a_completed_job_is_returned_at_once(
    make: Make, submit: Callable[[str], str], clock: FakeClock, sandbox: Sandbox, mode: dict[str, Any]
) -> None:
    job_id = submit("a trap song")
    clock.now += 60
    song = TaskContext().run(make(job_id=job_id, **mode))
    assert (song["job_id"], song["prompt"]) == (job_id, "a trap song")
    assert clock.slept == []
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_every_mode_pushes_the_card_of_the_song_or_of_the_failure(
    make: Make, submit: Callable[[str], str], clock: FakeClock, mode: dict[str, Any], soft_fail: bool
) -> None:
    good, bad = submit("a song"), submit("a song [sandbox:fail]")
    clock.now += 60
    context = TaskContext()
    song = context.run(make(job_id=good, soft_fail=soft_fail, **mode))
    assert [card["title"] for card in context.shown()] == [song["title"]]
    context = TaskContext()
    with pytest.raises(AirflowException):
        context.run(make(job_id=bad, soft_fail=soft_fail, **mode))
    (card,) = context.shown()
    assert (card["status"], card["job_id"]) == ("failed", bad)
    assert "Generation failed" in card["error"]


class TestDeferred:
    def test_polls_once_and_defers(self, make: Make, submit: Callable[[str], str], sandbox: Sandbox) -> None:
        job_id = submit("a song")
        with pytest.raises(TaskDeferred) as deferred:
            TaskContext().run(make(job_id=job_id, poke_interval=7, timeout=600))
        assert trigger_of(deferred).serialize()[1] == {
            "job_id": job_id,
            "whisul_conn_id": "whisul_default",
            "poll_interval": 7,
            "deadline": NOON + 600,
            "deadline_source": "timeout",
            "not_before": None,
            "submitted_at": NOON,
            "dag_id": make().dag_id,
        }
        assert deferred.value.timeout == timedelta(seconds=600 + FRAMEWORK_TIMEOUT_MARGIN)
        assert [request.method for request in sandbox.requests] == ["POST", "GET"]

    def test_a_retry_keeps_the_deadline_of_the_first_try(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock
    ) -> None:
        """From Airflow 3.3 on. A user who clears the task gets a new deadline."""
        job_id = submit("a song [sandbox:forever]")
        store = TaskStore()
        deadlines = []
        for max_tries in (2, 2, 4):
            context = TaskContext(task_state_store=store)
            context.max_tries = max_tries
            with pytest.raises(TaskDeferred) as deferred:
                context.run(make(job_id=job_id, timeout=600, retries=2))
            deadlines.append(trigger_of(deferred).deadline)
            left = deadlines[-1] - clock.now
            assert deferred.value.timeout == timedelta(seconds=left + FRAMEWORK_TIMEOUT_MARGIN)
            clock.now += 100
        assert deadlines == [NOON + 600, NOON + 600, NOON + 800]

    @pytest.mark.parametrize("fault", ["get-500", "get-drop", "get-html-200"])
    def test_a_transient_failure_of_the_first_poll_defers_without_a_wait_on_the_worker(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock, fault: str
    ) -> None:
        job_id = submit(f"a song [sandbox:{fault}]")
        with pytest.raises(TaskDeferred):
            TaskContext().run(make(job_id=job_id))
        assert clock.slept == []

    def test_the_trigger_waits_for_the_end_of_the_cooldown_that_the_first_poll_met(
        self, make: Make, start_sandbox: Callable[..., Sandbox], clock: FakeClock
    ) -> None:
        start_sandbox(rate_limit=1, block_seconds=90.0, retry_after=True)
        job_id = WhisulHook(clock=clock.clock).generate("a song")
        with pytest.raises(TaskDeferred) as deferred:
            TaskContext().run(make(job_id=job_id))
        assert trigger_of(deferred).not_before[:2] == (NOON + 90, 90)

    @pytest.mark.parametrize(
        ("prompt", "error"),
        [
            ("a song [sandbox:fail][sandbox:seconds=0]", WhisulJobFailedError),
            ("a song [sandbox:get-401]", WhisulUnauthorizedError),
        ],
    )
    def test_a_final_error_of_the_first_poll_ends_the_task_without_a_retry(
        self, make: Make, submit: Callable[[str], str], prompt: str, error: type[WhisulError]
    ) -> None:
        with pytest.raises(error) as caught:
            TaskContext().run(make(job_id=submit(prompt)))
        assert isinstance(caught.value, AirflowFailException)

    def test_a_failed_job_in_the_event_ends_the_task_without_a_retry(self, make: Make) -> None:
        event = error_event(WhisulJobFailedError("Whisul job some-job failed: boom.", job_id="some-job"))
        with pytest.raises(WhisulJobFailedError, match="boom.*clear the task that submitted the job") as caught:
            make().execute_complete({}, event=event)
        assert isinstance(caught.value, AirflowFailException)
        assert caught.value.job_id == "some-job"

    def test_a_timeout_in_the_event_is_raised_as_a_sensor_timeout(self, make: Make) -> None:
        event = error_event(WhisulJobTimeoutError("Job some-job may still be running", job_id="some-job"))
        with pytest.raises(AirflowSensorTimeout, match="some-job may still be running"):
            make().execute_complete({}, event=event)

    def test_the_song_in_the_event_is_returned(self, make: Make) -> None:
        song = {"job_id": "some-job", "title": "Midnight Grid"}
        event = {"status": "completed", "job_id": "some-job", "song": song}
        assert make().resume_execution("execute_complete", {"event": event, "try_number": 1}, TaskContext()) == song

    @pytest.mark.parametrize(
        ("reason", "error", "message"),
        [
            ("Trigger timeout", AirflowSensorTimeout, "some-job did not report in time. Is a triggerer running"),
            ("Trigger failure", WhisulError, "some-job ended with an error of its own"),
        ],
    )
    def test_the_error_about_a_deferral_that_airflow_ended_names_the_job(
        self, make: Make, reason: str, error: type[AirflowException], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make().resume_execution("__fail__", {"error": reason}, TaskContext())

    @pytest.mark.parametrize("skip", ["soft_fail", "never_fail"])
    @pytest.mark.parametrize(
        "resumed",
        [
            ("__fail__", {"error": "Trigger timeout"}),
            ("execute_complete", {"event": None}),
            ("execute_complete", {"event": "timeout"}),
            ("execute_complete", {"event": "failed"}),
        ],
    )
    def test_skips_softly_after_a_deferral(self, make: Make, skip: str, resumed: tuple[str, dict[str, Any]]) -> None:
        method, kwargs = resumed
        events = {
            "timeout": error_event(WhisulJobTimeoutError("some-job may still be running")),
            "failed": error_event(WhisulJobFailedError("some-job failed")),
        }
        kwargs = {key: events.get(value, value) for key, value in kwargs.items()}
        with pytest.raises(AirflowSkipException, match=f"{skip} is set: .*some-job"):
            make(**{skip: True}).resume_execution(method, kwargs, TaskContext())

    def test_skips_softly_after_an_error_of_the_first_poll(self, make: Make, sandbox: Sandbox) -> None:
        sandbox.revoke_key()
        with pytest.raises(AirflowSkipException, match="soft_fail is set: .*401"):
            TaskContext().run(make(soft_fail=True))


class TestPoke:
    def test_polls_once_per_interval(self, make: Make, submit: Callable[[str], str], clock: FakeClock) -> None:
        song = TaskContext().run(make(job_id=submit("a song"), deferrable=False, poke_interval=25))
        assert song["finished_at"] == "2026-02-17T12:01:00+00:00"
        assert clock.slept == [25, 25, 25]

    def test_tolerates_transient_failures(self, make: Make, submit: Callable[[str], str]) -> None:
        job_id = submit("a song [sandbox:get-500=3]")
        assert TaskContext().run(make(job_id=job_id, deferrable=False))["job_id"] == job_id

    def test_the_timeout_error_says_that_the_job_may_still_be_running(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock
    ) -> None:
        job_id = submit("a song [sandbox:forever]")
        with pytest.raises(AirflowSensorTimeout, match=f"{job_id} .*had not ended after 100 s.*may still be running"):
            TaskContext().run(make(job_id=job_id, deferrable=False, timeout=100))
        assert clock.now - NOON == 100

    @pytest.mark.parametrize("mode", ["poke", "reschedule"])
    def test_a_failed_job_ends_the_task_without_a_retry(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock, mode: str
    ) -> None:
        job_id = submit("a song [sandbox:fail]")
        clock.now += 60
        with pytest.raises(WhisulJobFailedError) as caught:
            TaskContext().run(make(job_id=job_id, deferrable=False, mode=mode))
        assert isinstance(caught.value, AirflowFailException)

    @pytest.mark.parametrize("mode", ["poke", "reschedule"])
    @pytest.mark.parametrize("skip", ["soft_fail", "never_fail"])
    @pytest.mark.parametrize("fault", ["fail", "get-404=9", "get-500=20"])
    def test_skips_softly_after_an_error(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock, mode: str, skip: str, fault: str
    ) -> None:
        job_id = submit(f"a song [sandbox:{fault}]")
        clock.now += 60
        context = TaskContext()
        with pytest.raises(AirflowSkipException, match=f"{skip} is set: .*{job_id}"):
            context.run(make(job_id=job_id, deferrable=False, mode=mode, **{skip: True}))
        assert [card["job_id"] for card in context.shown()] == [job_id]

    @pytest.mark.parametrize("mode", ["poke", "reschedule"])
    @pytest.mark.parametrize("skip", ["soft_fail", "never_fail"])
    def test_skips_softly_after_the_timeout(
        self, make: Make, submit: Callable[[str], str], mode: str, skip: str
    ) -> None:
        job_id = submit("a song [sandbox:forever]")
        context = TaskContext()
        # A rescheduled sensor measures its timeout on the wall clock.
        sensor = make(job_id=job_id, deferrable=False, mode=mode, timeout=1e-6, **{skip: True})
        with pytest.raises(
            AirflowSkipException, match=f"{skip} is set: .*{job_id} .*had not ended .* still be running"
        ):
            context.run(sensor)
        (card,) = context.shown()
        assert (card["status"], card["job_id"]) == ("failed", job_id)
        assert card["error"].startswith(f"Whisul job {job_id} ")

    def test_exponential_backoff_polls_no_more_often_than_every_5_s(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock
    ) -> None:
        job_id = submit("a song")
        TaskContext().run(make(job_id=job_id, deferrable=False, poke_interval=5, exponential_backoff=True))
        assert min(clock.slept) >= 5

    def test_twenty_transient_failures_in_a_row_fail_the_try_but_allow_a_retry(
        self, make: Make, submit: Callable[[str], str]
    ) -> None:
        job_id = submit("a song [sandbox:get-500=20]")
        with pytest.raises(WhisulServerError) as caught:
            TaskContext().run(make(job_id=job_id, deferrable=False))
        assert not isinstance(caught.value, AirflowFailException)

    def test_each_try_has_the_whole_timeout(self, make: Make, submit: Callable[[str], str], clock: FakeClock) -> None:
        """As with any sensor of Airflow that pokes: docs/sensor.md says so."""
        job_id = submit("a song [sandbox:get-500=20][sandbox:forever]")
        with pytest.raises(WhisulServerError):
            TaskContext().run(make(job_id=job_id, deferrable=False, timeout=3600, retries=1))
        began = clock.now
        with pytest.raises(AirflowSensorTimeout):
            TaskContext().run(make(job_id=job_id, deferrable=False, timeout=3600, retries=1))
        assert clock.now - began == 3600

    def test_a_completed_job_without_a_song_fails_the_try_after_minutes(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock
    ) -> None:
        job_id = submit("a song [sandbox:song-late][sandbox:seconds=0]")
        with pytest.raises(WhisulSongMissingError, match=job_id) as caught:
            TaskContext().run(make(job_id=job_id, deferrable=False))
        assert not isinstance(caught.value, AirflowFailException)
        assert clock.now - NOON == SONG_URL_GRACE

    @pytest.mark.parametrize(
        ("mode", "fault"),
        [
            ("poke", "get-429=9"),
            ("poke", "get-500=9"),
            ("poke", "get-404=9"),
            ("reschedule", "get-500=9"),
            ("reschedule", "get-404=9"),
        ],
    )
    def test_no_failure_prolongs_the_timeout_or_changes_its_error(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock, mode: str, fault: str
    ) -> None:
        job_id = submit(f"a song [sandbox:{fault}]")
        with pytest.raises(AirflowSensorTimeout, match=f"{job_id} had not ended after 20 s.*The last poll failed: "):
            TaskContext().run(make(job_id=job_id, deferrable=False, mode=mode, timeout=20))
        assert 20 <= clock.now - NOON <= 25

    def test_429s_prolong_no_timeout_of_a_rescheduled_sensor(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock
    ) -> None:
        job_id = submit("a song [sandbox:get-429=9]")
        context = TaskContext()
        context.get_first_reschedule_date = lambda _: datetime.fromtimestamp(NOON, UTC)  # type: ignore[method-assign]
        # Each poke is in a process of its own, which knows nothing of the one before.
        for _ in range(2):
            assert not make(job_id=job_id, deferrable=False, mode="reschedule", timeout=20).poke(context)
            clock.now += 10
        with pytest.raises(AirflowSensorTimeout, match=f"{job_id} had not ended after 20 s.*The last poll failed: "):
            make(job_id=job_id, deferrable=False, mode="reschedule", timeout=20).poke(context)
        assert 20 <= clock.now - NOON <= 25

    @pytest.mark.parametrize("interval", [600, 3600])
    def test_the_last_poke_is_at_the_timeout(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock, interval: float
    ) -> None:
        job_id = submit("a song [sandbox:forever]")
        with pytest.raises(AirflowSensorTimeout, match=r'\("a song \[sandbox:forever\]"\) had not ended'):
            TaskContext().run(make(job_id=job_id, deferrable=False, poke_interval=interval, timeout=700))
        assert clock.now - NOON == 700


class TestReschedule:
    @pytest.mark.parametrize("skip", ["soft_fail", "never_fail", None])
    def test_frees_the_worker_until_the_next_poll(
        self, make: Make, submit: Callable[[str], str], clock: FakeClock, skip: str | None
    ) -> None:
        before = time.time()
        asked = {skip: True} if skip else {}
        sensor = make(job_id=submit("a song"), deferrable=False, mode="reschedule", poke_interval=30, **asked)
        with pytest.raises(AirflowException) as caught:
            TaskContext().run(sensor)
        assert type(caught.value).__name__ == "AirflowRescheduleException"
        assert 30 <= caught.value.reschedule_date.timestamp() - before < 40  # type: ignore[attr-defined]
        assert clock.slept == []

    @pytest.mark.parametrize("skip", ["soft_fail", "never_fail"])
    def test_a_sensor_that_deferred_in_an_earlier_try_is_rescheduled_and_not_skipped(
        self, make: Make, submit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, skip: str
    ) -> None:
        monkeypatch.setattr("airflow_provider_whisul.version_compat.__version__", "3.0.6")
        sensor = make(job_id=submit("a song"), deferrable=False, mode="reschedule", **{skip: True})
        context = TaskContext()
        context.try_number = 2
        with pytest.raises(AirflowException) as caught:
            sensor.resume_execution("execute_complete", {"event": {}, "try_number": 1}, context)
        assert type(caught.value).__name__ == "AirflowRescheduleException"


@pytest.mark.parametrize("mode", MODES)
def test_a_job_id_that_cannot_be_one_is_never_sent(make: Make, sandbox: Sandbox, mode: dict[str, Any]) -> None:
    with pytest.raises(WhisulInvalidInputError):
        TaskContext().run(make(job_id="../generate", **mode))
    assert sandbox.requests == []


@pytest.mark.parametrize("mode", MODES)
def test_a_404_for_less_than_a_minute_ends_no_mode(
    make: Make, submit: Callable[[str], str], clock: FakeClock, sandbox: Sandbox, mode: dict[str, Any]
) -> None:
    job_id = submit("a song [sandbox:get-404=5]")
    clock.now += 3600
    sensor = make(job_id=job_id, **mode)
    if sensor.deferrable:
        with pytest.raises(TaskDeferred):
            TaskContext().run(sensor)
    else:
        assert TaskContext().run(sensor)["job_id"] == job_id
        assert sum(request.status == 404 for request in sandbox.requests) == 5


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_job_that_is_gone_ends_the_task_after_a_minute(
    make: Make, submit: Callable[[str], str], clock: FakeClock, mode: dict[str, Any]
) -> None:
    job_id = submit("a song [sandbox:expired][sandbox:seconds=0]")
    with pytest.raises(WhisulJobNotFoundError, match=job_id):
        TaskContext().run(make(job_id=job_id, **mode))
    assert clock.now - NOON == NOT_FOUND_GRACE


@pytest.mark.parametrize("mode", MODES[1:])
def test_429s_do_not_make_a_poke_forget_for_how_long_a_job_is_gone(
    make: Make, start_sandbox: Callable[..., Sandbox], clock: FakeClock, mode: dict[str, Any]
) -> None:
    sandbox = start_sandbox(rate_limit=2, rate_window=10.0, block_seconds=3.0)
    job_id = WhisulHook(clock=clock.clock).generate("a song [sandbox:expired][sandbox:seconds=0]")
    with pytest.raises(WhisulJobNotFoundError, match=job_id):
        TaskContext().run(make(job_id=job_id, poke_interval=5, **mode))
    assert [request.status for request in sandbox.requests][1:3] == [404, 429]


@pytest.mark.parametrize("mode", MODES)
def test_a_completed_job_without_a_song_is_waited_for(
    make: Make, submit: Callable[[str], str], mode: dict[str, Any]
) -> None:
    sensor = make(job_id=submit("a song [sandbox:song-late=20][sandbox:seconds=0]"), **mode)
    waits = {"deferrable": TaskDeferred, "reschedule": AirflowRescheduleException}
    kind = "deferrable" if sensor.deferrable else sensor.mode
    if kind in waits:
        with pytest.raises(waits[kind]):
            TaskContext().run(sensor)
    else:
        assert TaskContext().run(sensor)["song_url"]


class TestExecutionTimeout:
    @pytest.mark.parametrize(
        ("timeout", "execution_timeout", "deadline", "source"),
        [(3600, 600, 580, "execution_timeout"), (300, 600, 300, "timeout"), (300, None, 300, "timeout")],
    )
    def test_the_earlier_of_the_two_timeouts_is_the_deadline(
        self,
        make: Make,
        submit: Callable[[str], str],
        timeout: float,
        execution_timeout: float | None,
        deadline: float,
        source: str,
        task_log: Callable[[], list[str]],
    ) -> None:
        context = TaskContext()
        # The try began 20 s ago.
        context.start_date = datetime.fromtimestamp(NOON - 20, UTC)  # type: ignore[attr-defined]
        limit = timedelta(seconds=execution_timeout) if execution_timeout else None
        sensor = make(job_id=submit("a song"), timeout=timeout, execution_timeout=limit)
        with pytest.raises(TaskDeferred) as deferred:
            context.run(sensor)
        # Airflow 2 ends the task at its execution_timeout: ours comes before it there.
        early = 30 if source == "execution_timeout" and ENDS_DEFERRAL_AT_EXECUTION_TIMEOUT else 0
        trigger = trigger_of(deferred)
        assert (trigger.deadline, trigger.deadline_source) == (NOON + deadline - early, source)
        words = ("in the triggerer until", f"({source})", '("a song")', "`airflow triggerer` must run")
        assert any(all(word in line for word in words) for line in task_log())

    def test_airflow_may_retry_a_task_that_met_its_execution_timeout(self, make: Make) -> None:
        event = error_event(WhisulJobTimeoutError("some-job may still be running"))
        kwargs = {"event": event, "try_number": 1, "deadline_source": "execution_timeout"}
        with pytest.raises(WhisulJobTimeoutError):
            make().resume_execution("execute_complete", kwargs, TaskContext())


class TestRefusedWhenTheDagIsRead:
    @pytest.mark.parametrize("interval", [4, 0, timedelta(seconds=4)])
    def test_poke_interval_under_5_s(self, make: Make, interval: object) -> None:
        with pytest.raises(ValueError, match="poke_interval is .* once every 5 to 10 s"):
            make(poke_interval=interval)

    def test_poke_interval_under_5_s_of_mapped_tasks(self) -> None:
        with pytest.raises(ValueError, match="poke_interval is 4 s"):
            WhisulJobSensor.partial(task_id="songs", poke_interval=4)

    def test_timeout_of_0_s(self, make: Make) -> None:
        with pytest.raises(ValueError, match="timeout is 0 s"):
            make(timeout=0)


def error_event(error: WhisulError) -> dict[str, Any]:
    return {"status": "error", "job_id": "some-job", "error": error.as_dict()}

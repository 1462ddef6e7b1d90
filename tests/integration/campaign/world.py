"""
One seed's world of a campaign: its time, its random numbers, its sandboxes, and as much of Airflow as its tasks meet.

The world runs each task through its tries and retries, kills workers and triggerers, and clears tasks as users do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NoReturn

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, TaskDeferred

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulAmbiguousSubmitError, WhisulRateLimitError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.operators.whisul import XCOM_JOB_ID, WhisulGenerateOperator
from airflow_provider_whisul.retry_policy import WHISUL_RETRY_POLICY
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions
from airflow_provider_whisul.sandbox.options import GET_FAULTS, POST_FAULTS
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.version_compat import AirflowRescheduleException
from tests.integration.campaign.traffic import HELD_SECONDS, Traffic
from tests.support.airflow import FAIL_METHOD, AirflowTask, Deferral, Killed, TaskContext, TaskStore, event_of
from tests.support.clock import LoopTime, VirtualLoop
from tests.support.reconciliation import check_ledger

SANDBOXES = 6
SONGS_PER_SANDBOX = 12

#: Real seconds that a slow response takes where it is not held back.
SLOW_SECONDS = 0.005

#: So short that Airflow's masking lets it pass: what is to be found must not be hidden by somebody else.
KEY = "Kq7~"

#: Seconds to wait after the first, second, … 429 in a row, as the API documents them.
BACKOFF_SCHEDULE = (5.0, 10.0, 20.0, 40.0, 60.0)
TOLERANCE = 1e-6

#: What a prompt may ask the sandbox to do with its job.
JOB_DIRECTIVES = (
    *("", "", "", "", "[sandbox:fail]", "[sandbox:fail=1]", "[sandbox:fail=2]", "[sandbox:expired]"),
    *("[sandbox:forever]", "[sandbox:status=mastering]", "[sandbox:status=queued][sandbox:seconds=200]"),
    *("[sandbox:song-late=20]", "[sandbox:hostile]", "[sandbox:duration=95]", "[sandbox:seconds=0]"),
    *(
        "[sandbox:song-late]",
        "[sandbox:bare-track]",
        "[sandbox:end-status= Done]",
        "[sandbox:fail][sandbox:end-status=ERROR]",
    ),
)


class Interruption(Enum):
    """What interrupts a try."""

    BEFORE_POST = "worker is killed before the POST"
    AFTER_POST = "worker is killed between the response and the record of the job"
    BEFORE_INTENT = "worker of a batch is killed between two submissions"
    AFTER_RECORD = "worker is killed after the job is recorded"
    WHILE_WAITING = "worker is killed while it sleeps"
    TRIGGERER_RESTART = "triggerer restarts"
    NO_TRIGGERER = "no triggerer until Airflow's own timeout of the deferral"
    CLEARED = "user clears the deferred task"
    BEFORE_RESUME = "worker is killed before it resumes the task"
    AFTER_RETURN = "worker is killed after the task has returned its result"


SUBMISSION_INTERRUPTIONS = [Interruption.BEFORE_POST, Interruption.AFTER_POST, Interruption.AFTER_RECORD]
DEFERRAL_INTERRUPTIONS = [
    Interruption.TRIGGERER_RESTART,
    Interruption.TRIGGERER_RESTART,
    Interruption.NO_TRIGGERER,
    Interruption.CLEARED,
    Interruption.BEFORE_RESUME,
]


#: How a job is waited for on the worker: by a sensor in either mode, or by the hook alone, as in a user's own task.
#: Airflow 2 reads from its database when a sensor was first rescheduled.
SENSOR_MODES = ("poke", "hook") if airflow_version.startswith("2.") else ("poke", "reschedule", "hook")


class Overdue(BaseException):
    """A try does not end. It is no Exception, so that no task handles it."""


@dataclass(frozen=True)
class SongTask:
    """One song's task as its DAG's author set it up, or its two tasks: the one that submits, and a sensor."""

    name: str
    prompt: str
    conn_id: str
    wait: bool
    deferrable: bool
    #: What waits for a job that the operator does not wait for, where it is not the triggerer: see ``SENSOR_MODES``.
    sensor_mode: str
    #: Whether Airflow has a task state store. Else the record is in the machine's folder.
    with_store: bool
    durable: bool
    on_ambiguous: str
    poll_interval: float
    timeout: float
    retries: int
    retry_delay: float
    with_policy: bool

    @property
    def keeps_state(self) -> bool:
        """Whether a later try knows what an earlier one has submitted."""
        return self.durable

    @property
    def short_timeout(self) -> bool:
        """Whether slow responses come only after the requests have timed out, which no other request does."""
        return self.conn_id == "whisul_short_timeout"


@dataclass
class Try:
    """One try of a task, and all that a :class:`Judge` reads of it."""

    prompt: str
    job_id: str | None
    interruption: Interruption | None
    is_sensor: bool
    started: float
    #: Whether the hook alone waits for the job, outside of the provider's operators.
    by_hook: bool = False
    #: When a sensor was first rescheduled, in this try or in one before it.
    rescheduled_at: float | None = None
    number: int = 0
    max_tries: int = 0
    ended: float = 0.0
    outcome: Any = None
    log: str = ""
    requests: list[LoggedRequest] = field(default_factory=list)
    #: What Airflow stored of the try, as JSON.
    stored: list[str] = field(default_factory=list)
    deadline: float | None = None
    #: For each restart of the triggerer: how many requests the try had sent, and when it was.
    restarts: list[tuple[int, float]] = field(default_factory=list)

    @property
    def posts(self) -> list[LoggedRequest]:
        return [request for request in self.requests if request.method == "POST"]

    @property
    def polls(self) -> list[LoggedRequest]:
        return [request for request in self.requests if request.method == "GET"]

    @property
    def killed(self) -> bool:
        return isinstance(self.outcome, Killed)

    @property
    def delivered(self) -> bool:
        """Whether the task had its result. The worker may have been killed before Airflow stored it."""
        return not isinstance(self.outcome, BaseException) or (
            self.killed and self.outcome.args[0] is Interruption.AFTER_RETURN
        )


@dataclass
class HookTask:
    """A user's own task, which waits for a job with the hook."""

    hook: WhisulHook
    job_id: str
    song: SongTask

    def execute(self, context: Any) -> Any:
        return self.hook.wait_for_job(self.job_id, self.song.poll_interval, self.song.timeout).song


class TryContext(TaskContext):
    """The context of a try, whose worker may be killed when it pushes the job's id."""

    def __init__(self, this: Try) -> None:
        super().__init__()
        self.this = this

    def get_first_reschedule_date(self, context: Any) -> Any:
        at = self.this.rescheduled_at
        return None if at is None else datetime.fromtimestamp(at, UTC)

    def xcom_push(self, key: str, value: Any) -> None:
        if self.this.interruption is Interruption.AFTER_RECORD and key == XCOM_JOB_ID:
            raise Killed(self.this.interruption)
        super().xcom_push(key, value)


class KillableHook(WhisulHook):
    """The hook of a worker that may be killed around the submission."""

    interruption: Interruption | None = None

    def generate(
        self,
        prompt: str,
        *,
        before_send: Callable[[], None] | None = None,
        before_wait: Callable[[], None] | None = None,
        on_refused: Callable[[], None] | None = None,
        submission: SubmissionId | None = None,
    ) -> str:
        def before_post() -> None:
            if before_send is not None:
                before_send()
            if self.interruption is Interruption.BEFORE_POST:
                raise Killed(self.interruption)

        job_id = super().generate(
            prompt,
            before_send=before_post,
            before_wait=before_wait,
            on_refused=on_refused,
            submission=submission,
        )
        if self.interruption is Interruption.AFTER_POST:
            raise Killed(self.interruption)
        return job_id


class Log(logging.Handler):
    """All that is logged or printed, by try."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__()
        self._capsys = capsys
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def take(self) -> str:
        printed = self._capsys.readouterr()
        lines = [*self._lines, printed.out, printed.err]
        self._lines.clear()
        return "\n".join(lines)


#: What checks a try: see :class:`World`.
JudgeTry = Callable[[SongTask, list[Try], Sandbox, TaskStore | None], None]


class World:
    """
    One seed's world: its time, its random numbers, one sandbox after the other, and Airflow.

    :param seed: The seed.
    :param log: Collects what each try logs and prints.
    :param monkeypatch: Sets environment variables, and keeps the clients in step with the sandbox.
    :param judge: Is called after each try with the task, its tries so far, the sandbox and the task state store.
    """

    sandboxes = SANDBOXES
    songs_per_sandbox = SONGS_PER_SANDBOX

    def __init__(self, seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, judge: JudgeTry) -> None:
        self.seed = seed
        self.judge = judge
        #: A new one for each sandbox and each song, so that no song depends on the songs before it.
        self.rng = random.Random()
        self.log = log
        self.setenv = monkeypatch.setenv
        loop = VirtualLoop()
        self.time = LoopTime(loop, on_sleep=self._before_sleep)
        self.runner = asyncio.Runner(loop_factory=lambda: loop)
        self.traffic = Traffic(loop, monkeypatch)
        self.clock = Clock(
            time=self.time.time,
            monotonic=self.time.monotonic,
            sleep=self.time.sleep,
            async_sleep=self._async_sleep,
            random=lambda: self.rng.random(),
        )
        self.figures: Counter[str] = Counter()
        self.faults: set[str] = set()
        self._sleeps_left: int | None = None
        self._sleeper = Interruption.WHILE_WAITING
        self._limit = float("inf")

    def play(self) -> None:
        """Run all songs through one sandbox after the other."""
        for number in range(self.sandboxes):
            options = self._options(number)
            with Sandbox(options, clock=self.time.time, on_request=self.traffic.on_request) as self.sandbox:
                self._sent_before = self.traffic.sent
                connection = json.loads(self.sandbox.connection)
                # The songs come one after the other, so that the rate limiter matters only while the key is blocked.
                for conn_id, extra in (("WHISUL_DEFAULT", {}), ("WHISUL_SHORT_TIMEOUT", {"timeout": 0.2})):
                    extra["max_requests_per_second"] = 1e6
                    self.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps({**connection, "extra": extra}))
                for place in range(self.songs_per_sandbox):
                    self._play_song(self._song(number * self.songs_per_sandbox + place))
                assert not any(request.key_elsewhere for request in self.sandbox.requests)
                assert {request.authorization for request in self.sandbox.requests} == {"ok"}
                check_ledger(self.sandbox)
                self.faults |= {request.fault for request in self.sandbox.requests if request.fault}

    def _options(self, number: int) -> SandboxOptions:
        rng = self.rng = random.Random(f"sandbox {number} of {self.seed}")
        rates: dict[str, float] = {}
        for faults in (GET_FAULTS, POST_FAULTS):
            drawn = {fault: rng.uniform(0, 0.2) for fault in rng.sample(faults, rng.randint(1, 6))}
            # Beyond that, nothing but faults would happen.
            share = min(1.0, 0.5 / sum(drawn.values()))
            rates |= {fault: rate * share for fault, rate in drawn.items()}
        retry_after = rng.choice([False, False, True, "date"])
        return SandboxOptions(
            api_key=KEY,
            seed=self.seed * SANDBOXES + number,
            job_seconds=(5.0, rng.choice([30.0, 150.0])),
            fault_rates=rates,
            slow_seconds=SLOW_SECONDS,
            # A window of minutes, so that a single song already meets the limit.
            rate_limit=rng.choice([None, None, 3, 6]),
            rate_window=rng.choice([30.0, 120.0]),
            # A block that is longer than the backoff schedule's last step, without Retry-After, would never end.
            block_seconds=rng.choice([12.5, 90.0, 90.0, 700.0] if retry_after else [4.0, 12.5, 33.3]),
            retry_after=retry_after,
            expire_seconds=rng.choice([None, None, 100.0]),
        )

    def _song(self, number: int) -> SongTask:
        rng = self.rng = random.Random(f"song {number} of {self.seed}")
        prompt = f"song {number} of {self.seed} {rng.choice(JOB_DIRECTIVES)}"
        # So that each fault occurs, whatever the rates are.
        faults = GET_FAULTS + POST_FAULTS
        turn = number % (len(faults) + 3)
        if turn < len(faults):
            prompt += f"[sandbox:{faults[turn]}]"
        short_timeout = rng.random() < 0.1
        if short_timeout:
            prompt += rng.choice(["[sandbox:get-slow]", "[sandbox:post-slow]"])
        return SongTask(
            name=f"seed {self.seed} song {number}",
            prompt=" " if rng.random() < 0.02 else prompt,
            conn_id="whisul_short_timeout" if short_timeout else "whisul_default",
            wait=rng.random() < 0.75,
            deferrable=rng.random() < 0.5,
            sensor_mode=rng.choice(SENSOR_MODES),
            with_store=rng.random() < 0.75,
            durable=rng.random() < 0.9,
            on_ambiguous=rng.choice(["retry", "retry", "retry", "fail"]),
            poll_interval=rng.choice([5.0, 5.0, 7.5, 10.0, 30.0]),
            timeout=rng.choice([8.0, 120.0, 400.0, 1000.0]),
            retries=rng.choice([0, 2, 3, 5]),
            retry_delay=rng.choice([0.0, 5.0, 70.0, 300.0]),
            with_policy=rng.random() < 0.6,
        )

    def _play_song(self, song: SongTask) -> None:
        self.figures["songs"] += 1
        self._hold_slow_responses(song.short_timeout)
        tries = self._play_task(song, None)
        job_id = tries[-1].outcome
        if isinstance(job_id, str):
            tries = self._play_task(song, job_id)
        outcome = tries[-1].outcome
        self.figures["delivered" if isinstance(outcome, dict) else "not delivered"] += 1
        self.figures[f"ended: {outcome.args[0].name if tries[-1].killed else type(outcome).__name__}"] += 1

    def _play_task(self, song: SongTask, job_id: str | None) -> list[Try]:
        """Run a task through all its tries: the generate operator, or the sensor of a job."""
        rng = self.rng
        task = AirflowTask(song.retries, TaskStore() if song.with_store else None)
        tries: list[Try] = []
        prompt, clears = song.prompt, 0
        while True:
            interruption = self._interruption(song, job_id is not None) if rng.random() < 0.4 else None
            this = Try(prompt, job_id, interruption, job_id is not None, self.time.now)
            this.by_hook = this.is_sensor and not song.deferrable and song.sensor_mode == "hook"
            if tries and tries[-1].max_tries == task.max_tries:
                this.rescheduled_at = tries[-1].rescheduled_at
            tries.append(this)
            self._run(song, this, task)
            self.judge(song, tries, self.sandbox, task.store)
            self._count(this)
            cleared = this.killed and this.outcome.args[0] is Interruption.CLEARED
            delay = None if cleared else self._retry_delay(song, this)
            if delay is None:
                if not (cleared or (clears < 1 and rng.random() < 0.15)):
                    return tries
                clears += 1
                self.figures["cleared"] += 1
                task.clear()
                delay = rng.choice([0.0, 30.0, 200.0])
            self.time.now += delay
            if job_id is None and prompt.strip() and rng.random() < 0.06:
                prompt += " again"

    def _interruption(self, song: SongTask, is_sensor: bool) -> Interruption:
        interruptions = (
            [Interruption.AFTER_RETURN] if is_sensor else [Interruption.AFTER_RETURN, *SUBMISSION_INTERRUPTIONS]
        )
        if is_sensor or song.wait:
            interruptions += DEFERRAL_INTERRUPTIONS if song.deferrable else [Interruption.WHILE_WAITING] * 2
        return self.rng.choice(interruptions)

    def _hold_slow_responses(self, holds: bool) -> None:
        """Decide whether the sandbox's slow responses come only after the client has given up."""
        self.traffic.holds = holds
        self.sandbox_options.__dict__["slow_seconds"] = HELD_SECONDS if holds else SLOW_SECONDS

    def _requests_since(self, before: int) -> list[LoggedRequest]:
        """Return the requests since the sandbox had logged so many. Each that was sent is among them."""
        requests = self.sandbox.requests
        self.traffic.check(len(requests) + self._sent_before)
        return [self.traffic.as_met(request) for request in requests[before:]]

    @property
    def sandbox_options(self) -> SandboxOptions:
        return self.sandbox._state.options

    def _retry_delay(self, song: SongTask, this: Try) -> float | None:
        """Return when Airflow tries a task again, None where it does not."""
        error = this.outcome
        if not isinstance(error, BaseException) or this.number > this.max_tries:
            return None
        if isinstance(error, AirflowFailException | AirflowSensorTimeout):
            return None
        if song.with_policy and WHISUL_RETRY_POLICY is not None and not this.is_sensor and not this.killed:
            decision = WHISUL_RETRY_POLICY.evaluate(error, this.number, this.max_tries)
            assert decision.action.value != "fail", f"{song.name}: the policy ends what Airflow would not: {error!r}"
            if decision.retry_delay is not None:
                delay = float(decision.retry_delay.total_seconds())
                if isinstance(error, WhisulRateLimitError):
                    asked = self.sandbox_options.block_seconds if self.sandbox_options.retry_after else 0.0
                    limited = [
                        request.at
                        for request in self.sandbox.requests
                        if request.status == 429 and request.fault != "post-no-credits"
                    ]
                    asked -= self.time.now - limited[-1]
                    assert delay >= max(BACKOFF_SCHEDULE[0], asked) - TOLERANCE, (
                        f"{song.name}: tried again inside a 429 wait"
                    )
                return delay
        return song.retry_delay

    def _run(self, song: SongTask, this: Try, task: AirflowTask) -> None:
        options = self.sandbox_options
        self._limit = this.started + song.timeout + 10 * max(60.0, options.block_seconds) + 2000
        self._sleeper = Interruption.WHILE_WAITING
        self._sleeps_left = self.rng.randint(0, 2) if this.interruption is Interruption.WHILE_WAITING else None
        before = len(self.sandbox.requests)
        context = task.start_try(TryContext(this))
        this.number, this.max_tries = context.try_number, context.max_tries
        try:
            try:
                this.outcome = self._execute(song, this, context)
            except TaskDeferred as deferred:
                this.outcome = self._continue(song, this, context, Deferral.from_exception(deferred), before)
            if this.interruption is Interruption.AFTER_RETURN:
                raise Killed(this.interruption)
        except (Exception, Killed) as error:
            this.outcome = error
        this.ended = self.time.now
        this.log = self.log.take()
        this.requests = self._requests_since(before)
        this.stored += [json.dumps(context.xcoms), json.dumps(task.store)]

    def _execute(self, song: SongTask, this: Try, context: TryContext) -> Any:
        """Run the task until it ends or defers."""
        while True:
            try:
                return context.run(self._operator(song, this))
            except AirflowRescheduleException as again:
                if this.rescheduled_at is None:
                    this.rescheduled_at = this.started
                self.time.now = max(self.time.now, again.reschedule_date.timestamp())
                if self.time.now > self._limit:
                    raise Overdue(f"{song.name}: a sensor is rescheduled for ever") from None

    def _operator(self, song: SongTask, this: Try) -> Any:
        """Create the operator or sensor, as each process of Airflow does."""
        operator: Any
        common = {"task_id": "song", "whisul_conn_id": song.conn_id, "deferrable": song.deferrable}
        common |= {"retries": song.retries, "timeout": song.timeout}
        if this.by_hook:
            return HookTask(WhisulHook(song.conn_id, clock=self.clock), str(this.job_id), song)
        if this.is_sensor:
            mode = "reschedule" if song.sensor_mode == "reschedule" else "poke"
            operator = WhisulJobSensor(job_id=str(this.job_id), poke_interval=song.poll_interval, mode=mode, **common)
        else:
            operator = WhisulGenerateOperator(
                prompt=this.prompt,
                wait_for_completion=song.wait,
                poll_interval=song.poll_interval,
                durable=song.durable,
                on_ambiguous_submit=song.on_ambiguous,
                **common,
            )
            hook = KillableHook(song.conn_id, clock=self.clock)
            hook.interruption = this.interruption
            operator.__dict__["hook"] = hook
        operator.clock = self.clock
        return operator

    def _continue(self, song: SongTask, this: Try, context: TryContext, deferral: Deferral, before: int) -> Any:
        """Run the trigger of a deferred task, and resume the task."""
        this.stored.append(json.dumps([deferral.trigger_class, deferral.trigger_kwargs, deferral.kwargs]))
        this.deadline = deferral.trigger_kwargs["deadline"]
        if this.interruption is Interruption.CLEARED:
            self.time.now += self.rng.uniform(0, 30)
            self.runner.run(deferral.trigger().on_kill())
            raise Killed(this.interruption)
        if this.interruption is Interruption.NO_TRIGGERER:
            assert deferral.timeout is not None
            self.time.now += deferral.timeout.total_seconds()
            method, arguments = FAIL_METHOD, {"error": "Trigger timeout"}
        else:
            self._sleeper = Interruption.TRIGGERER_RESTART
            self._sleeps_left = self.rng.randint(0, 1) if this.interruption is Interruption.TRIGGERER_RESTART else None
            try:
                event = self.runner.run(event_of(deferral.trigger(self.clock)))
            except Killed:
                self.time.now += self.rng.choice([0.0, 3.0, 90.0])
                this.restarts.append((len(self.sandbox.requests) - before, self.time.now))
                event = self.runner.run(event_of(deferral.trigger(self.clock)))
            method, arguments = deferral.resume_with(event)
            this.stored.append(json.dumps(arguments))
        if this.interruption is Interruption.BEFORE_RESUME:
            raise Killed(this.interruption)
        return context.run(self._operator(song, this), method, arguments)

    async def _async_sleep(self, seconds: float) -> None:
        self.time.sleep(seconds)

    def _die(self, interruption: Interruption) -> NoReturn:
        raise Killed(interruption)

    def _before_sleep(self, seconds: float) -> None:
        if self._sleeps_left is not None:
            self._sleeps_left -= 1
            if self._sleeps_left < 0:
                self._sleeps_left = None
                self._die(self._sleeper)
        if self.time.now + seconds > self._limit:
            raise Overdue(f"seed {self.seed}: a try is still asleep at {self.time.now + seconds - self._limit} s past")

    def _count(self, this: Try) -> None:
        count = self.figures
        count["tries"] += 1
        count["POSTs"] += len(this.posts)
        count["polls"] += len(this.polls)
        count["by hook"] += this.by_hook
        count["rescheduled"] += this.rescheduled_at is not None
        count["429"] += sum(request.status == 429 for request in this.requests)
        count["ambiguous submissions"] += isinstance(this.outcome, WhisulAmbiguousSubmitError)
        count["re-attached"] += not this.is_sensor and not this.posts and bool(this.polls)
        count["triggerer restarts"] += len(this.restarts)
        if this.killed:
            count[f"killed: {this.outcome.args[0].name}"] += 1

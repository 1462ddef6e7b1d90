"""
A seeded campaign: hundreds of songs through every fault of the sandbox, over real HTTP, on virtual time.

The test plays Airflow: tries and retries, the task state store, workers and triggerers that die, users who clear. What
must hold is read from the sandbox's request log and from what came out of each try, not from the package's own ideas.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import selectors
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    TaskDeferred,
)

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConnectionError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import _GATES
from airflow_provider_whisul.operators.whisul import XCOM_JOB_ID, WhisulGenerateOperator
from airflow_provider_whisul.retry_policy import WHISUL_RETRY_POLICY
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions
from airflow_provider_whisul.sandbox.options import GET_FAULTS, POST_FAULTS
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from tests.support import NOON, FakeClock, TaskContext, TaskStore

SEEDS = range(8)
SANDBOXES = 6
SONGS_PER_SANDBOX = 12

#: So short that Airflow's masking lets it pass: what is to be found must not be hidden by somebody else.
KEY = "Kq7~"

LADDER = (5.0, 10.0, 20.0, 40.0, 60.0)
GRACE = 60.0
TOLERANCE = 1e-6

#: What leaves a client that is not impatient without the job's id.
LOSSY = {
    *("post-500", "post-502-html", "post-drop", "post-drop-before"),
    *("post-truncated", "post-html-202", "post-no-id", "post-bad-id"),
}
UNREADABLE = {"get-truncated", "get-redirect", "get-html-200"}

#: What a prompt may ask the sandbox to do with its job.
FATES = (
    *("", "", "", "", "[sandbox:fail]", "[sandbox:fail=1]", "[sandbox:fail=2]", "[sandbox:expired]"),
    *("[sandbox:forever]", "[sandbox:status=mastering]", "[sandbox:status=queued][sandbox:seconds=200]"),
    *("[sandbox:bare-track]", "[sandbox:hostile]", "[sandbox:duration=95]", "[sandbox:seconds=0]"),
)


#: How much of what must happen in each seed's world, for what holds in it to mean something.
LEAST = {
    "tries": 120,
    "POSTs": 80,
    "polls": 120,
    "429": 10,
    "delivered": 8,
    "not delivered": 10,
    "submissions lost": 15,
    "re-attached": 3,
    "cleared": 3,
}


class Seam(Enum):
    """Where the machinery around a try breaks."""

    BEFORE_POST = "worker dies before the POST"
    AFTER_POST = "worker dies between the answer and the note"
    AFTER_NOTE = "worker dies after the note"
    WAITING = "worker dies in its sleep"
    TRIGGERER = "triggerer restarts"
    NO_TRIGGERER = "no triggerer until Airflow's own time-out"
    CLEARED = "user clears the deferred task"
    RESUMING = "worker dies before it resumes"
    DELIVERED = "worker dies with the song in its hands"


SEAMS_OF_SUBMISSION = [Seam.BEFORE_POST, Seam.AFTER_POST, Seam.AFTER_NOTE]
SEAMS_OF_DEFERRAL = [Seam.TRIGGERER, Seam.TRIGGERER, Seam.NO_TRIGGERER, Seam.CLEARED, Seam.RESUMING]


class Died(BaseException):
    """No except clause of a task sees a kill -9."""


class Overdue(BaseException):
    """A try that would not end. No except clause of a task may swallow it either."""


@dataclass(frozen=True)
class Song:
    """One task (or the two of submission and sensor) as its DAG's author set it up."""

    name: str
    prompt: str
    conn_id: str
    wait: bool
    deferrable: bool
    with_store: bool
    durable: bool
    on_ambiguous: str
    interval: float
    timeout: float
    retries: int
    retry_delay: float
    with_policy: bool

    @property
    def remembers(self) -> bool:
        return self.with_store and self.durable

    @property
    def impatient(self) -> bool:
        return self.conn_id == "whisul_impatient"


@dataclass
class Try:
    """One try of a task, and what was seen of it."""

    number: int
    max_tries: int
    prompt: str
    job_id: str | None
    seam: Seam | None
    is_sensor: bool
    started: float
    ended: float = 0.0
    outcome: Any = None
    log: str = ""
    requests: list[LoggedRequest] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    deadline: float | None = None
    #: How many requests had been made, and when, as a restarted triggerer came back.
    restarts: list[tuple[int, float]] = field(default_factory=list)

    @property
    def posts(self) -> list[LoggedRequest]:
        return [request for request in self.requests if request.method == "POST"]

    @property
    def polls(self) -> list[LoggedRequest]:
        return [request for request in self.requests if request.method == "GET"]

    @property
    def died(self) -> bool:
        return isinstance(self.outcome, Died)

    @property
    def delivered(self) -> bool:
        """Whether the task had what it was asked for, be it that the worker died with it."""
        return not isinstance(self.outcome, BaseException) or (self.died and self.outcome.args[0] is Seam.DELIVERED)


class RunningTry(TaskContext):
    """The context of a try, with the seams at which its worker may die."""

    def __init__(self, this: Try, store: TaskStore | None) -> None:
        super().__init__(**({} if store is None else {"task_state_store": store}))
        self.this = this
        self.try_number, self.max_tries = this.number, this.max_tries

    def xcom_push(self, key: str, value: Any) -> None:
        if self.this.seam is Seam.AFTER_NOTE and key == XCOM_JOB_ID:
            raise Died(self.this.seam)
        super().xcom_push(key, value)


class MortalHook(WhisulHook):
    """The hook of a worker that may die around the submission."""

    seam: Seam | None = None

    def generate(self, prompt: str) -> str:
        if self.seam is Seam.BEFORE_POST:
            raise Died(self.seam)
        job_id = super().generate(prompt)
        if self.seam is Seam.AFTER_POST:
            raise Died(self.seam)
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


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Waits for the sandbox in real time, and for the gate of the account in the campaign's."""

    def __init__(self, time: FakeClock) -> None:
        super().__init__()
        self.clock = time
        self.at_the_gate: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0 if self.at_the_gate() else timeout)
        if not ready and timeout is not None:
            # At least what a float of today's Unix seconds can tell apart.
            self.clock.now += max(timeout, 1e-6)
        return ready


class CampaignLoop(asyncio.SelectorEventLoop):
    """An event loop that keeps the campaign's time. One trigger runs in it and waits for one thing at a time."""

    def __init__(self, time: FakeClock) -> None:
        selector = _Selector(time)
        selector.at_the_gate = self._at_the_gate
        self._clock = time
        super().__init__(selector)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._clock.now - NOON

    def _at_the_gate(self) -> bool:
        return any(len(gate._waiting) > gate._cancelled for gate in _GATES.get(self, {}).values())


class World:
    """One seed's world: its time, its chance, one sandbox after the other, and Airflow."""

    def __init__(self, seed: int, log: Log, setenv: Callable[[str, str], None]) -> None:
        self.seed = seed
        #: Anew for each sandbox and each song, so that what becomes of one does not depend on those before it.
        self.rng = random.Random()
        self.log = log
        self.setenv = setenv
        self.time = FakeClock(on_sleep=self._before_sleep)
        self.runner = asyncio.Runner(loop_factory=lambda: CampaignLoop(self.time))
        self.clock = Clock(
            time=self.time.time, sleep=self.time.sleep, asleep=self._asleep, random=lambda: self.rng.random()
        )
        self.figures: Counter[str] = Counter()
        self.faults: set[str] = set()
        self._sleeps_left: int | None = None
        self._sleeper = Seam.WAITING
        self._limit = float("inf")

    def play(self) -> None:
        for number in range(SANDBOXES):
            options = self._options(number)
            with Sandbox(options, clock=self.time.time) as self.sandbox:
                connection = json.loads(self.sandbox.connection)
                # The songs come one after the other, so that only what a block does to the pace is of interest.
                for conn_id, extra in (("WHISUL_DEFAULT", {}), ("WHISUL_IMPATIENT", {"timeout": 0.08})):
                    extra["max_requests_per_second"] = 1e6
                    self.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps({**connection, "extra": extra}))
                for place in range(SONGS_PER_SANDBOX):
                    self._play_song(self._song(number * SONGS_PER_SANDBOX + place))
                assert not any(request.key_elsewhere for request in self.sandbox.requests)
                assert {request.authorization for request in self.sandbox.requests} == {"ok"}
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
            slow_seconds=0.005,
            # A window of minutes, so that a single song already meets the limit.
            rate_limit=rng.choice([None, None, 3, 6]),
            rate_window=rng.choice([30.0, 120.0]),
            # A block that is longer than the ladder's last rung and does not say so would never end.
            block_seconds=rng.choice([12.5, 90.0, 90.0, 700.0] if retry_after else [4.0, 12.5, 33.3]),
            retry_after=retry_after,
            expire_seconds=rng.choice([None, None, 100.0]),
        )

    def _song(self, number: int) -> Song:
        rng = self.rng = random.Random(f"song {number} of {self.seed}")
        prompt = f"song {number} of {self.seed} {rng.choice(FATES)}"
        # So that each fault is met for certain, whatever the rates are.
        faults = GET_FAULTS + POST_FAULTS
        if number % 24 < len(faults):
            prompt += f"[sandbox:{faults[number % 24]}]"
        impatient = rng.random() < 0.1
        if impatient:
            prompt += rng.choice(["[sandbox:get-slow=0.1]", "[sandbox:post-slow=0.1]"])
        return Song(
            name=f"seed {self.seed} song {number}",
            prompt=" " if rng.random() < 0.02 else prompt,
            conn_id="whisul_impatient" if impatient else "whisul_default",
            wait=rng.random() < 0.75,
            deferrable=rng.random() < 0.5,
            with_store=rng.random() < 0.75,
            durable=rng.random() < 0.9,
            on_ambiguous=rng.choice(["retry", "retry", "retry", "fail"]),
            interval=rng.choice([5.0, 5.0, 7.5, 10.0, 30.0]),
            timeout=rng.choice([8.0, 120.0, 400.0, 1000.0]),
            retries=rng.choice([0, 2, 3, 5]),
            retry_delay=rng.choice([0.0, 5.0, 70.0, 300.0]),
            with_policy=rng.random() < 0.6,
        )

    def _play_song(self, song: Song) -> None:
        self.figures["songs"] += 1
        tries = self._play_task(song, None)
        job_id = tries[-1].outcome
        if isinstance(job_id, str):
            tries = self._play_task(song, job_id)
        outcome = tries[-1].outcome
        self.figures["delivered" if isinstance(outcome, dict) else "not delivered"] += 1
        self.figures[f"ended: {outcome.args[0].name if tries[-1].died else type(outcome).__name__}"] += 1

    def _play_task(self, song: Song, job_id: str | None) -> list[Try]:
        """Run a task through all its tries: the generate operator, or the sensor of a job."""
        rng = self.rng
        store = TaskStore() if song.with_store else None
        tries: list[Try] = []
        prompt, max_tries, clears = song.prompt, song.retries, 0
        while True:
            seam = self._seam(song, job_id is not None) if rng.random() < 0.4 else None
            this = Try(len(tries) + 1, max_tries, prompt, job_id, seam, job_id is not None, self.time.now)
            tries.append(this)
            self._run(song, this, store)
            Judge(song, tries, self.sandbox, self.sandbox_options, store).judge()
            self._count(this)
            cleared = this.died and this.outcome.args[0] is Seam.CLEARED
            delay = None if cleared else self._retry_delay(song, this)
            if delay is None:
                # Airflow grants a task that a user clears all its retries anew.
                if not (cleared or (clears < 1 and rng.random() < 0.15)):
                    return tries
                clears += 1
                self.figures["cleared"] += 1
                max_tries = this.number + song.retries
                delay = rng.choice([0.0, 30.0, 200.0])
            self.time.now += delay
            if job_id is None and prompt.strip() and rng.random() < 0.06:
                prompt += " again"

    def _seam(self, song: Song, is_sensor: bool) -> Seam:
        seams = [Seam.DELIVERED] if is_sensor else [Seam.DELIVERED, *SEAMS_OF_SUBMISSION]
        if is_sensor or song.wait:
            seams += SEAMS_OF_DEFERRAL if song.deferrable else [Seam.WAITING] * 2
        return self.rng.choice(seams)

    @property
    def sandbox_options(self) -> SandboxOptions:
        return self.sandbox._state.options

    def _retry_delay(self, song: Song, this: Try) -> float | None:
        """Return when Airflow tries a task again, None where it does not."""
        error = this.outcome
        if not isinstance(error, BaseException) or this.number > this.max_tries:
            return None
        if isinstance(error, AirflowFailException | AirflowSensorTimeout):
            return None
        if song.with_policy and WHISUL_RETRY_POLICY is not None and not this.is_sensor and not this.died:
            decision = WHISUL_RETRY_POLICY.evaluate(error, this.number, this.max_tries)
            assert decision.action.value != "fail", f"{song.name}: the policy ends what Airflow would not: {error!r}"
            if decision.retry_delay is not None:
                delay = float(decision.retry_delay.total_seconds())
                if isinstance(error, WhisulRateLimitError):
                    asked = self.sandbox_options.block_seconds if self.sandbox_options.retry_after else 0.0
                    limited = [request.at for request in self.sandbox.requests if request.status == 429]
                    asked -= self.time.now - limited[-1]
                    assert delay >= max(LADDER[0], asked) - TOLERANCE, f"{song.name}: tried again inside a 429 wait"
                return delay
        return song.retry_delay

    def _run(self, song: Song, this: Try, store: TaskStore | None) -> None:
        options = self.sandbox_options
        self._limit = this.started + song.timeout + 10 * max(60.0, options.block_seconds) + 2000
        self._sleeper = Seam.WAITING
        self._sleeps_left = self.rng.randint(0, 2) if this.seam is Seam.WAITING else None
        before = len(self.sandbox.requests)
        task = self._task(song, this)
        context = RunningTry(this, store)
        try:
            try:
                this.outcome = context.run(task)
            except TaskDeferred as deferred:
                this.outcome = self._deferred(song, this, context, deferred, before)
            if this.seam is Seam.DELIVERED:
                raise Died(this.seam)
        except (Exception, Died) as error:
            this.outcome = error
        this.ended = self.time.now
        this.log = self.log.take()
        this.requests = self.sandbox.requests[before:]
        this.shown += [json.dumps(context.xcoms), json.dumps(store)]

    def _task(self, song: Song, this: Try) -> Any:
        """Make the task anew, as each process of Airflow does."""
        task: Any
        common = {"task_id": "song", "whisul_conn_id": song.conn_id, "deferrable": song.deferrable}
        common |= {"retries": song.retries, "timeout": song.timeout}
        if this.is_sensor:
            task = WhisulJobSensor(job_id=str(this.job_id), poke_interval=song.interval, **common)
        else:
            task = WhisulGenerateOperator(
                prompt=this.prompt,
                wait_for_completion=song.wait,
                poll_interval=song.interval,
                durable=song.durable,
                on_ambiguous_submit=song.on_ambiguous,
                **common,
            )
            hook = MortalHook(song.conn_id, clock=self.clock)
            hook.seam = this.seam
            task.__dict__["hook"] = hook
        task.clock = self.clock
        return task

    def _deferred(self, song: Song, this: Try, context: RunningTry, deferred: Any, before: int) -> Any:
        name, kwargs = deferred.trigger.serialize()
        stored = json.dumps([name, kwargs, deferred.kwargs])
        this.shown.append(stored)
        this.deadline = kwargs["deadline"]
        kwargs, resumed = json.loads(stored)[1:]
        if this.seam is Seam.CLEARED:
            self.time.now += self.rng.uniform(0, 30)
            self.runner.run(WhisulJobTrigger(**kwargs).on_kill())
            raise Died(this.seam)
        method, resumed = deferred.method_name, dict(resumed or {})
        if this.seam is Seam.NO_TRIGGERER:
            self.time.now += deferred.timeout.total_seconds()
            method, resumed = "__fail__", {"error": "Trigger timeout"}
        else:
            self._sleeper = Seam.TRIGGERER
            self._sleeps_left = self.rng.randint(0, 1) if this.seam is Seam.TRIGGERER else None
            try:
                resumed["event"] = self.runner.run(self._event(kwargs))
            except Died:
                self.time.now += self.rng.choice([0.0, 3.0, 90.0])
                this.restarts.append((len(self.sandbox.requests) - before, self.time.now))
                resumed["event"] = self.runner.run(self._event(kwargs))
            this.shown.append(json.dumps(resumed))
        if this.seam is Seam.RESUMING:
            raise Died(this.seam)
        return context.run(self._task(song, this), method, resumed)

    async def _event(self, kwargs: dict[str, Any]) -> Any:
        trigger = WhisulJobTrigger(**kwargs)
        trigger.clock = self.clock
        [event] = [event async for event in trigger.run()]
        return json.loads(json.dumps(event.payload))

    async def _asleep(self, seconds: float) -> None:
        self.time.sleep(seconds)

    def _before_sleep(self, seconds: float) -> None:
        if self._sleeps_left is not None:
            self._sleeps_left -= 1
            if self._sleeps_left < 0:
                self._sleeps_left = None
                raise Died(self._sleeper)
        if self.time.now + seconds > self._limit:
            raise Overdue(f"seed {self.seed}: a try is still asleep at {self.time.now + seconds - self._limit} s past")

    def _count(self, this: Try) -> None:
        count = self.figures
        count["tries"] += 1
        count["POSTs"] += len(this.posts)
        count["polls"] += len(this.polls)
        count["429"] += sum(request.status == 429 for request in this.requests)
        count["submissions lost"] += isinstance(this.outcome, WhisulAmbiguousSubmitError)
        count["re-attached"] += not this.is_sensor and not this.posts and bool(this.polls)
        count["triggerer restarts"] += len(this.restarts)
        if this.died:
            count[f"died: {this.outcome.args[0].name}"] += 1


class Judge:
    """What must hold for the last try of a task."""

    def __init__(
        self,
        song: Song,
        tries: list[Try],
        sandbox: Sandbox,
        options: SandboxOptions,
        store: TaskStore | None,
    ) -> None:
        self.song = song
        self.tries = tries
        self.this = tries[-1]
        self.jobs = sandbox.jobs
        self.requests = sandbox.requests
        self.options = options
        self.store = store

    def judge(self) -> None:
        self._outcome_is_right()
        self._at_most_one_submission_per_try()
        self._no_submission_without_a_reason()
        self._what_is_final_is_taken_as_final()
        self._what_came_to_nothing_is_replaced()
        self._polls_keep_their_distance()
        self._429_is_waited_out()
        self._key_is_nowhere()
        self._patience_ends()

    def _ensure(self, holds: object, what: str) -> None:
        if holds:
            return
        lines = [f"{self.song.name}, try {self.this.number}: {what}", repr(self.song), repr(self.options)]
        for this in self.tries:
            lines.append(
                f"try {this.number} from {this.started:.3f} to {this.ended:.3f}, {this.seam}: {this.outcome!r}"
            )
            lines.append(f"    deadline {this.deadline}, restarts {this.restarts}")
            lines += [
                f"    {one.at:.3f} {one.method} {one.status} {one.fault or ''} {one.job_id} {one.prompt or ''}"
                for one in this.requests
            ]
        raise AssertionError("\n".join([*lines, f"store {self.store}", "log of the try:", self.this.log]))

    def _outcome_is_right(self) -> None:
        """Every song ends delivered, or with the error for what happened."""
        this, outcome = self.this, self.this.outcome
        last = this.requests[-1] if this.requests else None
        status = last and last.status
        match outcome:
            case Died():
                right: object = True
            case {"job_id": str(job_id)}:
                job = self.jobs[job_id]
                prompt_is_right = this.is_sensor or job.prompt == this.prompt
                right = job.ending == "completed" and job.is_over(this.ended) and prompt_is_right
                right = right and outcome["prompt"] == job.prompt and job_id == (this.job_id or job_id)
            case str():
                right = not self.song.wait and self.jobs[outcome].prompt == this.prompt
            case WhisulInvalidInputError():
                right = not this.prompt.strip() and not this.requests
            case WhisulUnauthorizedError():
                right = status == 401
            case WhisulAmbiguousSubmitError():
                right = self._lost(this) if this.posts else self._lost_earlier()
                right = right and isinstance(outcome, AirflowFailException) == (self.song.on_ambiguous == "fail")
            case WhisulJobFailedError():
                job = self.jobs[str(outcome.job_id)]
                right = job.ending == "failed" and job.is_over(this.ended)
                right = right and isinstance(outcome, AirflowFailException) == this.is_sensor
            case WhisulJobNotFoundError():
                right = status == 404 and (this.is_sensor or self._long_made(last))
            case WhisulJobTimeoutError() | AirflowSensorTimeout():
                right = isinstance(outcome, AirflowSensorTimeout) == this.is_sensor and self._not_known_over()
                # At the slowest pace the turn of the last look comes 10 s later, which is waited for no more.
                due = 10.0 if "Nothing was sent" in str(outcome) else TOLERANCE
                right = right and (status == 429 or self._known_block() or this.ended >= self._deadline() - due)
            case WhisulRateLimitError():
                right = self._known_block() if "Nothing was sent" in str(outcome) else status == 429
            case WhisulServerError():
                right = status is not None and status >= 500
            case WhisulResponseError():
                right = last and last.fault in UNREADABLE | {"post-redirect"}
            case WhisulConnectionError():
                right = last and (last.fault == "get-drop" or self.song.impatient)
            case _:
                right = False
        self._ensure(right, f"ended with {outcome!r}, which is not what happened")
        posted = this.posts and this.posts[-1].fault in LOSSY and not this.died
        self._ensure(not posted or isinstance(outcome, WhisulAmbiguousSubmitError), "a lost submission was passed over")

    def _known_block(self) -> bool:
        """Return whether this try, or one before it on the same machine, has met a block that may still be on."""
        limited = [request.at for request in self.requests if request.status == 429 and request.at <= self.this.ended]
        longest = max(LADDER[-1] * 1.1, self.options.block_seconds if self.options.retry_after else 0.0)
        return bool(limited) and self.this.ended <= limited[-1] + longest + 1

    def _long_made(self, last: LoggedRequest | None) -> bool:
        """Return whether a job was submitted so long ago that it cannot only not be there yet."""
        made = [post.at for one in self.tries for post in one.posts if last and post.job_id == last.job_id]
        return bool(last and made) and last.at - made[-1] >= GRACE - TOLERANCE

    def _just_there(self, missing: LoggedRequest) -> bool:
        """Return whether a job that is not found was there in this try, and has been missing for less than a minute."""
        told = [*self.this.posts, *self.this.polls]
        looks = [request for request in told if request.job_id == missing.job_id and request.at <= missing.at]
        there = [index for index, look in enumerate(looks) if look.status == 202 or self._informed(look)]
        if not there:
            return False
        since = next(poll.at for poll in looks[there[-1] :] if poll.status == 404)
        return missing.at - since < GRACE + TOLERANCE

    def _at_most_one_submission_per_try(self) -> None:
        """Only what was refused for the rate limit is sent again, and nothing once it may have been accepted."""
        sent_again = [post for post in self.this.posts[:-1] if post.status != 429]
        self._ensure(not sent_again, "a submission that may have made a job was sent again")
        self._ensure(not self.this.is_sensor or not self.this.posts, "a sensor submitted")

    def _no_submission_without_a_reason(self) -> None:
        this = self.this
        if not self.song.remembers or not this.posts:
            return
        earlier = [(before, post) for before in self.tries[:-1] for post in before.posts if post.status != 429]
        if not earlier:
            return
        then, post = earlier[-1]
        since = self.tries[then.number - 1 :]
        if post.status in (307, 401):
            return
        came_to_nothing = any(self._ended(poll, post) for one in since for poll in one.polls)
        cleared = [before for before in since if before.max_tries != this.max_tries]
        # No note can tell a task that has succeeded from one that died at that moment. Cleared, both begin anew.
        if any(self._had_all_it_asked_for(before) for before in cleared):
            return
        if post.prompt != this.prompt:
            said = any("for another prompt" in one.log for one in since)
            self._ensure(came_to_nothing or said, "the prompt has changed, and the log does not say so")
        elif self._lost(then) or (then.died and then.outcome.args[0] is Seam.AFTER_POST):
            warned = any("may already have been paid for" in one.log for one in since)
            self._ensure(warned, "submitted again in silence")
            self._ensure(self.song.on_ambiguous == "retry" or cleared, "submitted again against the user's will")
        else:
            self._ensure(came_to_nothing, "paid for twice")

    def _had_all_it_asked_for(self, then: Try) -> bool:
        died_with_it = then.died and then.outcome.args[0] is Seam.AFTER_NOTE and not self.song.wait
        return then.delivered or died_with_it

    def _ended(self, poll: LoggedRequest, post: LoggedRequest) -> bool:
        """Return whether a look showed that a job had come to nothing."""
        if poll.job_id != post.job_id:
            return False
        if poll.status == 404:
            return poll.at - post.at >= GRACE - TOLERANCE
        job = self.jobs[str(post.job_id)]
        readable = poll.status == 200 and poll.fault not in UNREADABLE
        return readable and job.ending == "failed" and job.is_over(poll.at)

    def _what_is_final_is_taken_as_final(self) -> None:
        if self.song.impatient:
            return
        for poll, after in pairwise(self.this.polls):
            if poll.job_id == after.job_id:
                over = self._informed(poll) and self.jobs[str(poll.job_id)].is_over(poll.at)
                gone = poll.status == 404 and (self.this.is_sensor or self._long_made(poll))
                gone = gone and not self._just_there(poll)
                self._ensure(not (over or gone or poll.status == 401), f"looked again after what was final: {poll}")

    def _what_came_to_nothing_is_replaced(self) -> None:
        """A later try that finds its job failed or gone submits at once; finding that out costs no try of its own."""
        this = self.this
        if this.is_sensor or self.song.impatient or this.died or not this.requests:
            return
        found = this.requests[0]
        # A look that did not go, since the key was blocked, has found nothing; the next is one of the wait.
        if found.method == "GET" and "Nothing was sent" not in this.log:
            made = next(post for one in self.tries for post in one.posts if post.job_id == found.job_id)
            nothing = self._ended(found, made)
            self._ensure(not nothing or this.posts, "a job that had come to nothing was not replaced")

    def _polls_keep_their_distance(self) -> None:
        for job_id in {poll.job_id for poll in self.this.polls}:
            times = [poll.at for poll in self.this.polls if poll.job_id == job_id]
            gaps = [after - before for before, after in pairwise(times)]
            self._ensure(all(gap >= 5 - TOLERANCE for gap in gaps), f"polled within 5 s: {gaps}")

    def _429_is_waited_out(self) -> None:
        # A restarted triggerer starts from what its trigger was given, and cannot know of a 429 since.
        fresh = {index for index, _ in self.this.restarts}
        in_a_row = 0
        for index, (before, after) in enumerate(pairwise(self.this.requests), 1):
            in_a_row = in_a_row + 1 if before.status == 429 and index - 1 not in fresh else int(before.status == 429)
            if before.status != 429 or index in fresh:
                continue
            wait = LADDER[min(in_a_row, len(LADDER)) - 1]
            if self.options.retry_after:
                wait = max(wait, self.options.block_seconds)
            gap = after.at - before.at
            self._ensure(gap >= wait - TOLERANCE, f"{gap} s after the 429 no. {in_a_row} in a row, not {wait}")

    def _key_is_nowhere(self) -> None:
        self._ensure(KEY not in self.this.log, "the key is in the log")
        self._ensure(not any(KEY in text for text in self.this.shown), "the key is in an XCom, a trigger or the store")
        if isinstance(self.this.outcome, BaseException):
            said = [*traceback.format_exception(self.this.outcome), *map(repr, _chain(self.this.outcome))]
            self._ensure(not any(KEY in text for text in said), "the key is in an exception")

    def _patience_ends(self) -> None:
        this = self.this
        if self._waited() and not (this.died or this.seam is Seam.NO_TRIGGERER):
            latest = max([self._deadline(), this.started, *(at for _, at in this.restarts)]) + self.song.interval
            over = (self._last_look_began() if this.is_sensor and not self.song.deferrable else this.ended) - latest
            self._ensure(over <= 0.001, f"waited {over} s too long")
        if this.deadline is not None:
            off = this.deadline - self._deadline()
            self._ensure(abs(off) <= TOLERANCE, f"the trigger's deadline is off by {off} s")

    def _waited(self) -> bool:
        if self.this.is_sensor:
            return True
        return self.song.wait and bool(self.this.polls)

    def _last_look_began(self) -> float:
        """Return when a sensor that waits in the worker began its last look, which the hook may have had to repeat."""
        began = self.this.ended
        for request in reversed(self.this.requests[:-1]):
            if self._informed(request):
                break
            began = request.at
        return began

    def _deadline(self) -> float:
        """Return when a try must stop waiting: so long after it had its job."""
        if self.this.is_sensor and self.song.deferrable and self.song.with_store and self.song.retries:
            # A sensor's patience is for all its tries together, until a user clears it.
            return next(one.started for one in self.tries if one.max_tries == self.this.max_tries) + self.song.timeout
        if self.this.is_sensor:
            return self.this.started + self.song.timeout
        made = [post for post in self.this.posts if post.status != 429] or self.this.requests
        return (made[0].at if made else self.this.started) + self.song.timeout

    def _not_known_over(self) -> bool:
        job_id = self.this.job_id or self.this.outcome.job_id
        looks = [poll for poll in self.this.polls if poll.job_id == job_id]
        return not looks or not self._informed(looks[-1]) or not self.jobs[job_id].is_over(looks[-1].at)

    def _informed(self, poll: LoggedRequest) -> bool:
        """Return whether a look certainly brought the job as it stood."""
        return poll.status == 200 and poll.fault not in UNREADABLE and not self.song.impatient

    def _lost(self, then: Try) -> bool:
        """Return whether the answer to the submission of a try never came."""
        if not then.posts:
            return False
        if self.song.impatient and isinstance(then.outcome, WhisulAmbiguousSubmitError):
            return True
        return then.posts[-1].fault in LOSSY

    def _lost_earlier(self) -> bool:
        """Return whether an earlier try may have lost a submission: its answer, or its worker on the way."""
        return self.song.remembers and any(
            self._lost(then)
            or (then.died and then.outcome.args[0] in (Seam.BEFORE_POST, Seam.AFTER_POST, Seam.WAITING))
            for then in self.tries[:-1]
        )


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    log = Log(capsys)
    # Airflow 2's loggers do not propagate to the root.
    loggers = [logging.getLogger(name) for name in ("", "airflow.task")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(log)
        logger.setLevel(logging.INFO)
    yield log
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(log)
        logger.setLevel(level)


@pytest.mark.parametrize("seed", SEEDS)
def test_campaign(seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]) -> None:
    world = World(seed, log, monkeypatch.setenv)
    with world.runner:
        # The poke mode is Airflow's own loop, which keeps time by itself.
        in_poke_mode = SimpleNamespace(sleep=world.time.sleep, monotonic=world.time.time)
        monkeypatch.setattr(sys.modules[BaseSensorOperator.__module__], "time", in_poke_mode)
        monkeypatch.setattr("airflow_provider_whisul.retry_policy.SYSTEM_CLOCK", world.clock)
        world.play()

    figures = world.figures
    record_property("figures", dict(figures))
    # What holds of nothing holds in vain: of each kind there must have been some.
    assert len({*GET_FAULTS, *POST_FAULTS} - world.faults) <= 2
    assert figures["songs"] == SANDBOXES * SONGS_PER_SANDBOX
    for kind, least in LEAST.items():
        assert figures[kind] >= least, f"{kind}: {figures[kind]} of at least {least}"
    assert len([figure for figure in figures if figure.startswith("died: ")]) >= 4
    assert len([figure for figure in figures if figure.startswith("ended: Whisul")]) >= 6

"""A seed's world of batches: many songs in each task, whose prompts a template may render anew at each resume."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions
from airflow_provider_whisul.sandbox.options import GET_FAULTS, POST_FAULTS
from tests.integration.campaign.world import JOB_DIRECTIVES, Interruption, Log, Overdue, World
from tests.support.airflow import (
    FAIL_METHOD,
    AirflowTask,
    Deferral,
    Killed,
    TaskContext,
    TaskStore,
    event_of,
    mortal_batch,
)

#: More deferrals than a try of so few songs has.
MAX_DEFERRALS = 100

#: Seconds that a poll's response takes in the triggerer, in one sandbox after the other.
LATENCIES = (0.0, 0.2, 2.0)

#: What interrupts a try. A batch records a job when it submits the next song, or waits, and not by itself.
INTERRUPTIONS = [one for one in Interruption if one is not Interruption.AFTER_RECORD]

#: Faults that end a whole batch. Where they were as frequent as the others, no batch would end otherwise.
FINAL_FAULTS = {"get-401", "post-402", "post-no-credits"}


@dataclass(frozen=True)
class BatchTask:
    """A batch as its DAG's author set it up."""

    name: str
    directives: list[str]
    #: Whether each rendering of the template gives other prompts.
    renders_anew: bool
    attempts: int
    max_failures: float
    #: Whether Airflow has a task state store. Else the record is in the machine's folder.
    with_store: bool
    durable: bool
    on_ambiguous: str
    poll_interval: float
    timeout: float
    retries: int
    deferrable: bool

    @property
    def keeps_state(self) -> bool:
        """Whether a later try knows what an earlier one has submitted."""
        return self.durable


@dataclass
class Wait:
    """One deferral or wait on the worker: when it began, when it should end, when it did; whether we ended it."""

    began: float
    deadline: float
    ended: float = 0.0
    disturbed: bool = False


@dataclass
class BatchTry:
    """One try of a batch, and all that its judge reads of it."""

    interruption: Interruption | None
    started: float
    #: What the template rendered to when the try began.
    prompts: list[str] = field(default_factory=list)
    number: int = 0
    max_tries: int = 0
    ended: float = 0.0
    outcome: Any = None
    log: str = ""
    requests: list[LoggedRequest] = field(default_factory=list)
    #: What Airflow stored of the try, as JSON.
    stored: list[str] = field(default_factory=list)
    #: The result that was pushed before the task failed.
    pushed: Any = None
    waits: list[Wait] = field(default_factory=list)
    #: How many of them were on the worker.
    waits_on_worker: int = 0
    #: For each restart of the triggerer: how many requests the try had sent, and when it was.
    restarts: list[tuple[int, float]] = field(default_factory=list)
    #: Seconds that a poll's response takes in the triggerer.
    latency: float = 0.0

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
    def interrupted_by(self) -> Interruption | None:
        """What has ended the try from outside."""
        return self.outcome.args[0] if self.killed else None


class KillableBatchHook(WhisulHook):
    """The hook of a worker that may be killed around one of a batch's submissions."""

    interruption: Interruption | None = None
    spared = 0
    die: Callable[[Interruption], NoReturn]

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
            self._reach(Interruption.BEFORE_INTENT)
            if before_send is not None:
                before_send()
            self._reach(Interruption.BEFORE_POST)

        job_id = super().generate(
            prompt,
            before_send=before_post,
            before_wait=before_wait,
            on_refused=on_refused,
            submission=submission,
        )
        self._reach(Interruption.AFTER_POST)
        self.spared -= 1
        return job_id

    def _reach(self, moment: Interruption) -> None:
        if self.interruption is moment and self.spared == 0:
            self.die(moment)


#: What checks a try: see :class:`BatchWorld`.
JudgeBatch = Callable[[BatchTask, list[BatchTry], Sandbox, TaskStore | None], None]


class BatchWorld(World):
    """
    One seed's world of batches.

    :param seed: The seed.
    :param log: Collects what each try logs and prints.
    :param monkeypatch: Sets environment variables, and keeps the clients in step with the sandbox.
    :param judge: Is called after each try with the task, its tries so far, the sandbox and the task state store.
    """

    sandboxes = 3
    songs_per_sandbox = 6

    def __init__(self, seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, judge: JudgeBatch) -> None:
        super().__init__(seed, log, monkeypatch, lambda *_: None)
        self.judge_batch = judge
        # A batch's trigger waits for many jobs at once.
        self.clock = replace(self.clock, async_sleep=asyncio.sleep, run=self._run_on_worker)
        self._renderings = 0

    def _options(self, number: int) -> SandboxOptions:
        # With a latency the polls of many jobs are under way together.
        self.traffic.latency = LATENCIES[number % len(LATENCIES)]
        options = super()._options(number)
        rates = {
            name: rate / 20 if name in FINAL_FAULTS else rate * self.rng.choice([0.3, 1.0])
            for name, rate in options.fault_rates.items()
        }
        # At times many lost responses and no other fault of a submission.
        if self.rng.random() < 0.4:
            lost = self.rng.choice([0.3, 0.5, 0.7])
            rates = {name: rate for name, rate in rates.items() if not name.startswith("post-")}
            rates |= {"post-drop": lost / 2, "post-500": lost / 4, "post-truncated": lost / 4}
        options.__dict__["fault_rates"] = rates
        return options

    def _song(self, number: int) -> Any:
        rng = self.rng = random.Random(f"batch {number} of {self.seed}")
        faults = GET_FAULTS + POST_FAULTS
        directives = []
        fails = rng.random() < 0.3
        for place in range(rng.choice([1, 2, 3, 5, 8, 8, 23])):
            directive = rng.choice(["[sandbox:fail]", "[sandbox:fail=1]"] if fails else JOB_DIRECTIVES)
            if rng.random() < 0.3:
                fault = faults[(number * 7 + place * 3 + self.seed) % len(faults)]
                directive += f"[sandbox:{fault}]" if fault not in FINAL_FAULTS or rng.random() < 0.2 else ""
            directives.append(directive)
        return BatchTask(
            name=f"seed {self.seed} batch {number}",
            directives=directives,
            renders_anew=rng.random() < 0.5,
            attempts=rng.choice([1, 2, 2, 3]),
            max_failures=rng.choice([0, 0, 1, 0.5]),
            with_store=rng.random() < 0.75,
            durable=rng.random() < 0.9,
            on_ambiguous=rng.choice(["retry", "retry", "fail"]),
            poll_interval=rng.choice([5.0, 7.5, 10.0, 30.0]),
            timeout=rng.choice([8.0, 120.0, 400.0, 1000.0]),
            retries=rng.choice([0, 2, 3]),
            deferrable=rng.random() < 0.75,
        )

    def _play_song(self, task: Any) -> None:
        """Run a batch through all its tries."""
        rng = self.rng
        airflow_task = AirflowTask(task.retries, TaskStore() if task.with_store else None)
        tries: list[BatchTry] = []
        clears = 0
        self.figures["batches"] += 1
        self.figures["songs"] += len(task.directives)
        while True:
            interruption = rng.choice(INTERRUPTIONS) if rng.random() < 0.4 else None
            this = BatchTry(interruption, self.time.now, latency=self.traffic.latency)
            tries.append(this)
            self._run_batch(task, this, airflow_task)
            self.judge_batch(task, tries, self.sandbox, airflow_task.store)
            self._count_batch(this)
            cleared = this.interrupted_by is Interruption.CLEARED
            failed = isinstance(this.outcome, BaseException)
            final = isinstance(this.outcome, AirflowFailException)
            if not failed or final or this.number > this.max_tries or cleared:
                if not (cleared or (clears < 1 and rng.random() < 0.15)):
                    break
                clears += 1
                self.figures["cleared"] += 1
                airflow_task.clear()
            self.time.now += rng.choice([0.0, 30.0, 200.0])
        outcome = tries[-1].outcome
        self.figures[f"ended: {type(outcome).__name__}"] += 1

    def _render(self, task: BatchTask) -> list[str]:
        self._renderings += 1
        rendering = f" rendering {self._renderings}" if task.renders_anew else ""
        return [f"{task.name} song {place}{rendering} {text}" for place, text in enumerate(task.directives)]

    def _batch_operator(self, task: BatchTask, this: BatchTry) -> WhisulGenerateBatchOperator:
        operator = WhisulGenerateBatchOperator(
            task_id="song",
            prompts=self._render(task),
            attempts=task.attempts,
            max_failures=task.max_failures,
            poll_interval=task.poll_interval,
            timeout=task.timeout,
            deferrable=task.deferrable,
            durable=task.durable,
            on_ambiguous_submit=task.on_ambiguous,  # type: ignore[arg-type]
            retries=task.retries,
        )
        hook = KillableBatchHook("whisul_default", clock=self.clock)
        hook.interruption, hook.spared, hook.die = this.interruption, self.rng.randint(0, 3), self._die
        operator.__dict__["hook"] = hook
        operator.clock = self.clock
        self._this, self._operator = this, operator
        return operator

    def _die(self, interruption: Interruption) -> NoReturn:
        self._kill(interruption)

    def _run_batch(self, task: BatchTask, this: BatchTry, airflow_task: AirflowTask) -> None:
        with mortal_batch() as self._kill:
            self._run_mortal_batch(task, this, airflow_task)

    def _run_mortal_batch(self, task: BatchTask, this: BatchTry, airflow_task: AirflowTask) -> None:
        # A worker waits for ten minutes at most for each song, and a wait for its timeout after each submission.
        longest = 600 + self.sandbox_options.block_seconds + task.timeout
        self._limit = this.started + (task.attempts * len(task.directives) + 1) * longest + 2000
        self._sleeper = Interruption.WHILE_WAITING
        self._sleeps_left = self.rng.randint(0, 2) if this.interruption is Interruption.WHILE_WAITING else None
        before = len(self.sandbox.requests)
        context = airflow_task.start_try(TaskContext())
        this.number, this.max_tries = context.try_number, context.max_tries
        operator = self._batch_operator(task, this)
        this.prompts = list(operator.prompts)
        method: str | None = None
        arguments: dict[str, Any] | None = None
        try:
            while True:
                try:
                    this.outcome = context.run(operator, method, arguments)
                    break
                except TaskDeferred as deferred:
                    if len(this.waits) == MAX_DEFERRALS:
                        raise Overdue(f"{task.name}: the try defers for ever") from None
                    method, arguments = self._wait(this, Deferral.from_exception(deferred), before)
                operator = self._batch_operator(task, this)
            if this.interruption is Interruption.AFTER_RETURN:
                raise Killed(this.interruption)
        except (Exception, Killed) as error:
            this.outcome = error
        this.ended = self.time.now
        this.log = self.log.take()
        this.requests = self._requests_since(before)
        this.pushed = context.xcoms.get("return_value")
        this.stored += [json.dumps(context.xcoms), json.dumps(airflow_task.store)]

    def _wait(self, this: BatchTry, deferral: Deferral, before: int) -> tuple[str, dict[str, Any]]:
        """Run the trigger of a deferred batch, and return what Airflow resumes the task with."""
        this.stored.append(json.dumps([deferral.trigger_class, deferral.trigger_kwargs, deferral.kwargs]))
        wait = Wait(self.time.now, deferral.trigger_kwargs["deadline"])
        this.waits.append(wait)
        self._sleeps_left = None
        if this.interruption is Interruption.CLEARED:
            self.time.now += self.rng.uniform(0, 30)
            self.runner.run(deferral.trigger().on_kill())
            raise Killed(this.interruption)
        if this.interruption is Interruption.NO_TRIGGERER and self.rng.random() < 0.5:
            assert deferral.timeout is not None
            wait.disturbed = True
            self.time.now += deferral.timeout.total_seconds()
            wait.ended = self.time.now
            return FAIL_METHOD, {"error": "Trigger timeout"}
        event = None
        if this.interruption is Interruption.TRIGGERER_RESTART:
            event = self.runner.run(self._cut_off(event_of(deferral.trigger(self.clock)), self.rng.uniform(0, 100)))
            if event is None:
                self.figures["triggerer restarts"] += 1
                this.restarts.append((len(self.sandbox.requests) - before, self.time.now))
                self.time.now += self.rng.choice([0.0, 3.0, 90.0])
                wait.began, wait.disturbed = self.time.now, True
        if event is None:
            event = self.runner.run(event_of(deferral.trigger(self.clock)))
        wait.ended = self.time.now
        method, arguments = deferral.resume_with(event)
        this.stored.append(json.dumps(arguments))
        if this.interruption is Interruption.BEFORE_RESUME and self.rng.random() < 0.5:
            raise Killed(this.interruption)
        return method, arguments

    def _run_on_worker(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """Run the trigger of a batch that does not defer, on a worker that may be killed meanwhile."""
        this, trigger, cut_off = self._this, self._operator._trigger, self.rng.uniform(0, 100)
        if len(this.waits) == MAX_DEFERRALS:
            raise Overdue("the try waits for ever")
        assert trigger is not None
        wait = Wait(self.time.now, trigger.deadline)
        this.waits.append(wait)
        this.waits_on_worker += 1
        self._sleeps_left = None
        is_ended = this.interruption in (Interruption.WHILE_WAITING, Interruption.CLEARED)
        event = self.runner.run(self._cut_off(waiting, cut_off) if is_ended else waiting)
        wait.ended = self.time.now
        if event is None and this.interruption is Interruption.CLEARED:
            self._operator.on_kill()
        if event is None or (this.interruption is Interruption.BEFORE_RESUME and self.rng.random() < 0.5):
            self.figures["killed while waiting on the worker"] += 1
            assert this.interruption is not None
            self._die(this.interruption)
        return event

    @staticmethod
    async def _cut_off(waiting: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Return the event of a trigger, None where its process ended before it came."""
        running = asyncio.ensure_future(waiting)
        await asyncio.wait([running], timeout=seconds)
        if running.done():
            return running.result()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return None

    def _count_batch(self, this: BatchTry) -> None:
        count = self.figures
        count["tries"] += 1
        count["POSTs"] += len(this.posts)
        count["polls"] += len(this.polls)
        count["deferrals"] += len(this.waits) - this.waits_on_worker
        count["waits on the worker"] += this.waits_on_worker
        count["429"] += sum(request.status == 429 for request in this.requests)
        count["delivered"] += isinstance(this.outcome, list)
        count["stopped after lost responses"] += "submits nothing more" in this.log
        count["re-attached"] += "Re-attaching" in this.log
        count["submitted again"] += "Submitting" in this.log
        if this.killed:
            count[f"killed: {this.outcome.args[0].name}"] += 1

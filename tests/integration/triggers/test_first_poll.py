"""When jobs are polled first once the durations of others are known: real HTTP, real triggers, and virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from statistics import mean, median, quantiles
from typing import Any

import aiohttp
import pytest

from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger, seconds_before
from tests.support.airflow import event_of
from tests.support.clock import NOON, FakeClock, VirtualLoop, loop_clock, run_virtually

KEY = "secret-sandbox-key"


class Night:
    """A sandbox, and the triggers that poll it, on one event loop with virtual time."""

    def __init__(self, sandbox: Sandbox, loop: VirtualLoop) -> None:
        self.sandbox = sandbox
        self.loop = loop

    async def submit(self, prompt: str = "a song") -> str:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
            session.post(self.sandbox.base_url + "/generate", json={"prompt": prompt}) as response,
        ):
            return str((await response.json())["job_id"])

    async def event(self, trigger: WhisulJobTrigger | WhisulBatchTrigger, jitter: float = 0.0) -> Any:
        trigger.clock = loop_clock(self.loop, jitter)
        return await event_of(trigger)

    async def wait_for(self, job_id: str, jitter: float = 0.0, **kwargs: Any) -> Any:
        """Wait with a trigger for a job that is submitted now."""
        arguments = {"deadline": self.loop.wall() + 3600, "submitted_at": self.loop.wall(), "dag_id": "nightly"}
        trigger = WhisulJobTrigger(job_id, "whisul_default", 10, **{**arguments, **kwargs})
        return await self.event(trigger, jitter)

    async def learn(self, jobs: int = 40) -> None:
        """Let songs be made, so that it is known how long they take."""
        job_ids = [await self.submit() for _ in range(jobs)]
        await asyncio.gather(*(self.wait_for(job_id, number / jobs) for number, job_id in enumerate(job_ids)))

    def polls(self, job_id: str, since: float = 0.0) -> list[float]:
        """Return when a job was polled, in seconds of the loop, from a time on."""
        return [
            request.at - NOON - since
            for request in self.sandbox.requests
            if request.method == "GET" and request.job_id == job_id
        ]


@pytest.fixture
def at_night(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a coroutine function with a :class:`Night`; options are the sandbox's and the connection's."""

    def run(main: Callable[[Night], Awaitable[Any]], **options: Any) -> Any:
        limit = options.pop("max_requests_per_second", 1000)

        async def served(loop: VirtualLoop) -> Any:
            sandbox = Sandbox(SandboxOptions(**{"api_key": KEY, "job_seconds": (60, 60), **options}), clock=loop.wall)
            async with sandbox.serve():
                connection = {**json.loads(sandbox.connection), "extra": {"max_requests_per_second": limit}}
                monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
                return await main(Night(sandbox, loop))

        return run_virtually(served)

    return run


def test_a_job_is_first_polled_when_it_may_be_over(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        job_id = await night.submit()
        await night.wait_for(job_id)
        assert night.polls(job_id) == [10, 20, 30, 40, 50, 60]
        await night.learn()
        began = night.loop.time()
        job_id = await night.submit()
        await night.wait_for(job_id, jitter=0.9)
        assert night.polls(job_id, began) == pytest.approx([60])

    at_night(main)


def test_a_slower_job_is_then_polled_every_interval(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        await night.learn()
        began = night.loop.time()
        job_id = await night.submit("a song [sandbox:seconds=85]")
        await night.wait_for(job_id)
        assert night.polls(job_id, began) == pytest.approx([60, 70, 80, 90])

    at_night(main)


def test_a_job_of_a_trigger_from_an_older_version_is_polled_as_ever(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        await night.learn()
        began = night.loop.time()
        job_id = await night.submit()
        await night.wait_for(job_id, submitted_at=None, dag_id="")
        assert night.polls(job_id, began) == pytest.approx([10, 20, 30, 40, 50, 60])

    at_night(main)


def test_a_trigger_that_is_started_again_keeps_the_age_of_its_job(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        await night.learn()
        began = night.loop.time()
        young, old = await night.submit(), await night.submit("a song [sandbox:seconds=100]")
        submitted_at = night.loop.wall()
        await asyncio.sleep(30)
        await night.wait_for(young, submitted_at=submitted_at)
        await asyncio.sleep(10)
        await night.wait_for(old, submitted_at=submitted_at)
        assert night.polls(young, began) == pytest.approx([60])
        # At the age of 70 s it may be over, so nothing is put off.
        assert night.polls(old, began) == pytest.approx([80, 90, 100])

    at_night(main)


def test_the_last_poll_stays_at_the_deadline(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        await night.learn()
        began = night.loop.time()
        job_id = await night.submit()
        event = await night.wait_for(job_id, deadline=night.loop.wall() + 40)
        assert event["error"]["type"] == "WhisulJobTimeoutError"
        assert night.polls(job_id, began) == pytest.approx([40])

    at_night(main)


def test_the_jobs_of_a_batch_are_polled_when_each_may_be_over(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        await night.learn()
        began, times, job_ids = night.loop.time(), [], []
        for _ in range(10):
            job_ids.append(await night.submit())
            times.append(night.loop.wall())
            await asyncio.sleep(3)
        submitted_at = night.loop.wall()
        # Of one nobody knows when it was submitted.
        before = [*seconds_before(submitted_at, times[:-1]), None]
        trigger = WhisulBatchTrigger(
            job_ids, "whisul_default", 10, submitted_at + 3600, submitted_at, total=10, submitted_before=before
        )
        await night.event(trigger)
        firsts = [night.polls(job_id, began)[0] for job_id in job_ids]
        assert firsts == pytest.approx([60 + 3 * number for number in range(9)] + [40], abs=0.1)

    at_night(main)


@pytest.mark.parametrize(("age", "first"), [(0.0, 60), (25.0, 35), (300.0, 5)])
def test_a_job_of_a_batch_is_first_polled_one_interval_after_its_submission_where_nobody_has_polled_it(
    at_night: Callable[..., Any], age: float, first: float
) -> None:
    """It may have been submitted long before the last one of the batch, while nothing polled it."""

    async def main(night: Night) -> None:
        job_id = await night.submit("a song [sandbox:forever]")
        await asyncio.sleep(age)
        began, now = night.loop.time(), night.loop.wall()
        trigger = WhisulBatchTrigger(
            [job_id], "whisul_default", 60, now + 100, now, submitted_before=seconds_before(now, [now - age])
        )
        await night.event(trigger)
        assert night.polls(job_id, began)[0] == pytest.approx(first, abs=0.1)
        # The same trigger, started again, keeps the API's least interval.
        began = night.loop.time()
        trigger.deadline = night.loop.wall() + 100
        await night.event(trigger)
        assert night.polls(job_id)[-2] - began >= 5

    at_night(main)


def test_a_batch_of_an_older_version_is_recreated_and_polled_as_ever(at_night: Callable[..., Any]) -> None:
    async def main(night: Night) -> None:
        await night.learn()
        began = night.loop.time()
        job_ids = [await night.submit(), await night.submit()]
        _, kwargs = WhisulBatchTrigger(job_ids, "whisul_default", 10, night.loop.wall() + 3600, NOON).serialize()
        del kwargs["dag_id"], kwargs["submitted_before"]
        recreated = WhisulBatchTrigger(**kwargs)
        assert recreated.serialize()[1] == {**kwargs, "dag_id": "", "submitted_before": []}
        await night.event(recreated)
        assert night.polls(job_ids[0], began)[0] == pytest.approx(10)

    at_night(main)


def test_songs_of_one_to_three_minutes_take_eight_polls_at_most_and_are_found_no_later(
    at_night: Callable[..., Any],
) -> None:
    async def main(night: Night) -> None:
        async def wait(number: int, job_id: str, known: bool) -> tuple[int, float]:
            await night.wait_for(job_id, number * 0.618 % 1, submitted_at=night.loop.wall() if known else None)
            return len(night.polls(job_id)), night.loop.wall() - night.sandbox.jobs[job_id].ends_at

        results = []
        for known in (False, True):
            job_ids = [await night.submit(f"a song [sandbox:seconds={61 + number}]") for number in range(119)]
            results.append(
                await asyncio.gather(*(wait(number, job_id, known) for number, job_id in enumerate(job_ids)))
            )
        (before, late_before), (now, late_now) = (zip(*result, strict=True) for result in results)
        assert 10 <= mean(before) <= 13
        assert mean(now) <= 8
        assert median(late_now) <= median(late_before) + 0.5
        assert quantiles(late_now, n=20)[-1] <= quantiles(late_before, n=20)[-1] + 0.5

    at_night(main)


# --- where the rate limit presses


@pytest.mark.parametrize("in_a_batch", [False, True])
def test_a_dag_of_two_songs_is_polled_within_a_few_turns_beside_a_dag_of_thirty(
    at_night: Callable[..., Any], in_a_batch: bool
) -> None:
    async def main(night: Night) -> None:
        job_ids = [await night.submit("a song [sandbox:forever]") for _ in range(32)]
        many, few = job_ids[:30], job_ids[30:]
        deadline = night.loop.wall() + 60
        waits = [night.wait_for(job_id, dag_id="few", deadline=deadline) for job_id in few]
        if in_a_batch:
            waits.insert(0, night.event(WhisulBatchTrigger(many, "whisul_default", 10, deadline, dag_id="many")))
        else:
            waits[:0] = [night.wait_for(job_id, dag_id="many", deadline=deadline) for job_id in many]
        await asyncio.gather(*waits)
        order = [request.job_id for request in night.sandbox.requests if request.method == "GET"]
        assert all(order.index(job_id) <= 6 for job_id in few)

    at_night(main, max_requests_per_second=1)


# --- on a worker


def test_the_hook_waits_for_a_job_that_it_has_submitted_until_it_may_be_over(
    sandbox: Sandbox, clock: FakeClock
) -> None:
    hook = WhisulHook(clock=clock.clock)
    for _ in range(21):
        hook.wait_for_job(hook.generate("a song"))
    began = clock.now
    job_id = hook.generate("a song")
    hook.wait_for_job(job_id, delay=10)
    assert [request.at - began for request in sandbox.requests if request.job_id == job_id][-1:] == [60]
    assert sum(request.job_id == job_id for request in sandbox.requests if request.method == "GET") == 1


@pytest.mark.parametrize("age", [None, 25.0])
def test_the_hook_waits_for_a_job_of_another_process_by_the_age_that_it_is_told(
    sandbox: Sandbox, clock: FakeClock, age: float | None
) -> None:
    hook = WhisulHook(clock=clock.clock)
    for _ in range(21):
        hook.wait_for_job(hook.generate("a song"))
    job_id, submitted_at = WhisulHook(clock=clock.clock).generate("a song"), clock.now
    clock.now += 25
    hook.wait_for_job(job_id, submitted_at=age and submitted_at)
    first = next(r.at for r in sandbox.requests if r.method == "GET" and r.job_id == job_id)
    assert first - submitted_at == (25 if age is None else 60)

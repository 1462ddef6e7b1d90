"""The trigger, with the sandbox in the same event loop and both on its virtual time: real HTTP, no waiting."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulServerError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks import whisul_async
from airflow_provider_whisul.pace import MAX_CONSECUTIVE_BLIPS
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger, song_from_event
from tests.support import NOON, VirtualLoop, loop_clock, run_virtually

KEY = "secret-sandbox-key"


class Waiting:
    """What a test does with a sandbox and triggers on one virtual loop."""

    def __init__(self, sandbox: Sandbox, loop: VirtualLoop) -> None:
        self.sandbox = sandbox
        self.loop = loop

    async def submit(self, prompt: str = "a song") -> str:
        import aiohttp

        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
            session.post(self.sandbox.base_url + "/generate", json={"prompt": prompt}) as answer,
        ):
            return str((await answer.json())["job_id"])

    async def event(self, job_id: str, chance: float = 0.0, **kwargs: Any) -> Any:
        arguments = {"whisul_conn_id": "whisul_default", "poll_interval": 10, "deadline": self.loop.wall() + 3600}
        trigger = WhisulJobTrigger(job_id=job_id, **{**arguments, **kwargs})
        trigger.clock = loop_clock(self.loop, chance)
        events = [event async for event in trigger.run()]
        assert len(events) == 1
        return events[0].payload

    def polls(self, job_id: str) -> list[float]:
        return [
            request.at - NOON
            for request in self.sandbox.requests
            if request.method == "GET" and request.job_id == job_id
        ]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a coroutine function with a :class:`Waiting`; options are the sandbox's."""

    def run(main: Callable[[Waiting], Awaitable[Any]], **options: Any) -> Any:
        async def served(loop: VirtualLoop) -> Any:
            sandbox = Sandbox(SandboxOptions(**{"api_key": KEY, "job_seconds": (60, 60), **options}), clock=loop.wall)
            async with sandbox.serve():
                monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", sandbox.connection)
                return await main(Waiting(sandbox, loop))

        return run_virtually(served)

    return run


def test_reports_the_song(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a trap song")
        event = await waiting.event(job_id)
        assert event["status"] == "completed"
        song = song_from_event(event, job_id)
        assert (song["job_id"], song["prompt"]) == (job_id, "a trap song")
        assert song["song_url"]
        # The first look comes after one interval, and then one each.
        assert waiting.polls(job_id) == [10, 20, 30, 40, 50, 60]
        assert {request.authorization for request in waiting.sandbox.requests} == {"ok"}
        assert not any(request.key_elsewhere for request in waiting.sandbox.requests)

    virtually(main)


@pytest.mark.parametrize(("chance", "first"), [(0.0, 10), (0.5, 15), (0.999, 19.99)])
def test_the_first_look_is_spread_over_one_interval(virtually: Callable[..., Any], chance: float, first: float) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        await waiting.event(job_id, chance=chance)
        assert waiting.polls(job_id)[0] == pytest.approx(first)

    virtually(main)


def test_a_thousand_triggers_do_not_beat_together(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_ids = [await waiting.submit(f"song {number}") for number in range(200)]
        await asyncio.gather(*(waiting.event(job_id, number / 200) for number, job_id in enumerate(job_ids)))
        per_second: dict[int, int] = defaultdict(int)
        for request in waiting.sandbox.requests:
            if request.method == "GET":
                per_second[int(request.at)] += 1
        assert max(per_second.values()) <= 1.3 * 200 / 10
        # and all that over few connections
        assert len({request.connection for request in waiting.sandbox.requests if request.method == "GET"}) <= 20

    virtually(main)


def test_not_before_is_kept(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        await waiting.event(job_id, not_before=waiting.loop.wall() + 47)
        assert waiting.polls(job_id)[0] == 47

    virtually(main)


@pytest.mark.parametrize("fault", ["get-500", "get-502-html", "get-drop", "get-truncated", "get-html-200"])
def test_lives_through_blips(virtually: Callable[..., Any], fault: str) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit(f"a song [sandbox:{fault}={MAX_CONSECUTIVE_BLIPS - 1}]")
        assert (await waiting.event(job_id))["status"] == "completed"
        gaps = [after - before for before, after in pairwise(waiting.polls(job_id))]
        assert len(gaps) >= MAX_CONSECUTIVE_BLIPS - 1
        assert min(gaps) >= 10

    virtually(main)


def test_gives_up_after_many_blips_in_a_row(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit(f"a song [sandbox:get-500={MAX_CONSECUTIVE_BLIPS}]")
        event = await waiting.event(job_id)
        with pytest.raises(WhisulServerError, match=job_id):
            song_from_event(event, job_id)
        assert len(waiting.polls(job_id)) == MAX_CONSECUTIVE_BLIPS

    virtually(main)


def test_climbs_the_ladder_on_429(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:get-429=6]")
        await waiting.event(job_id, poll_interval=5)
        gaps = [after - before for before, after in pairwise(waiting.polls(job_id))]
        assert gaps[:6] == [5, 10, 20, 40, 60, 60]

    virtually(main)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("a song [sandbox:fail]", WhisulJobFailedError),
        ("a song [sandbox:get-401]", WhisulUnauthorizedError),
        ("a song [sandbox:get-404]", WhisulJobNotFoundError),
    ],
)
def test_what_no_look_can_mend_ends_it_at_once(
    virtually: Callable[..., Any], prompt: str, error: type[WhisulError]
) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit(prompt)
        event = await waiting.event(job_id)
        with pytest.raises(error, match=job_id) as caught:
            song_from_event(event, job_id)
        assert caught.value.job_id == job_id
        statuses = [request.status for request in waiting.sandbox.requests if request.method == "GET"]
        assert set(statuses[:-1]) <= {200}

    virtually(main)


def test_a_job_that_stays_away_for_a_minute_is_gone(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:expired]")
        with pytest.raises(WhisulJobNotFoundError, match=job_id):
            song_from_event(await waiting.event(job_id), job_id)
        missing = [r.at for r in waiting.sandbox.requests if r.method == "GET" and r.status == 404]
        assert 60 <= missing[-1] - missing[0] < 90

    virtually(main)


def test_the_deadline_is_kept(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:forever]")
        event = await waiting.event(job_id, deadline=waiting.loop.wall() + 65)
        with pytest.raises(WhisulJobTimeoutError, match="may still be running"):
            song_from_event(event, job_id)
        assert waiting.polls(job_id)[-1] == 65

    virtually(main)


def test_a_song_that_is_there_at_the_deadline_is_not_lost(virtually: Callable[..., Any]) -> None:
    """As after a triggerer that was down for hours."""

    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        await asyncio.sleep(600)
        event = await waiting.event(job_id, deadline=waiting.loop.wall() - 300)
        assert event["status"] == "completed"

    virtually(main)


def test_an_undocumented_status_counts_as_running_with_one_warning(
    virtually: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:status=mastering]")
        assert (await waiting.event(job_id))["status"] == "completed"

    with caplog.at_level(logging.WARNING):
        virtually(main)
    assert sum("mastering" in record.getMessage() for record in caplog.records) == 1


def test_an_unusable_connection_is_an_event_too(virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(waiting: Waiting) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", '{"conn_type": "whisul"}')
        event = await waiting.event("some-job")
        assert event["error"]["type"] == "WhisulConfigurationError"

    virtually(main)


def test_cancelled_it_leaves_nothing_open(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:forever]")
        task = asyncio.create_task(waiting.event(job_id))
        await asyncio.sleep(100)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not whisul_async._SHARED_SESSIONS[waiting.loop]

    virtually(main)


def test_a_restart_neither_polls_at_once_nor_prolongs_the_deadline(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:forever]")
        deadline = waiting.loop.wall() + 100
        task = asyncio.create_task(waiting.event(job_id, deadline=deadline))
        await asyncio.sleep(31)
        task.cancel()
        await asyncio.wait([task])
        await waiting.event(job_id, deadline=deadline)
        polls = waiting.polls(job_id)
        assert min(after - before for before, after in pairwise(polls)) >= 5
        assert polls[-1] == 100

    virtually(main)


class TestOnePacePerAccount:
    def test_two_hundred_jobs_on_a_limited_key(self, virtually: Callable[..., Any]) -> None:
        """Each request made while blocked prolongs the block: triggers that back off alone never come out of it."""

        async def main(waiting: Waiting) -> None:
            async def known_at(job_id: str, chance: float) -> float:
                assert (await waiting.event(job_id, chance))["status"] == "completed"
                return waiting.loop.wall()

            job_ids = [(await waiting.submit(f"song {number}"), await asyncio.sleep(0.2))[0] for number in range(200)]
            known = await asyncio.gather(*(known_at(job_id, at / 200) for at, job_id in enumerate(job_ids)))
            jobs = waiting.sandbox.jobs
            late = sorted(at - jobs[job_id].ends_at for at, job_id in zip(known, job_ids, strict=True))
            assert sum(request.status == 429 for request in waiting.sandbox.requests) <= 10
            assert max(known) - max(jobs[job_id].ends_at for job_id in job_ids) <= 12
            assert late[190] <= 45

        virtually(main, rate_limit=20, block_seconds=10, job_seconds=(60, 180))

    def test_a_known_limit_is_never_exceeded(
        self, virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main(waiting: Waiting) -> None:
            job_ids = [(await waiting.submit(f"song {number}"), await asyncio.sleep(0.2))[0] for number in range(100)]
            connection = {**json.loads(waiting.sandbox.connection), "extra": {"max_requests_per_second": 8}}
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
            await asyncio.gather(*(waiting.event(job_id, at / 100) for at, job_id in enumerate(job_ids)))
            assert {request.status for request in waiting.sandbox.requests if request.method == "GET"} == {200}

        virtually(main, rate_limit=10, block_seconds=10)

    def test_after_a_429_everybody_with_the_key_is_quiet(self, virtually: Callable[..., Any]) -> None:
        async def main(waiting: Waiting) -> None:
            job_ids = [await waiting.submit("limited [sandbox:get-429=1]"), *[await waiting.submit() for _ in range(5)]]
            await asyncio.gather(*(waiting.event(job_id, at / 6) for at, job_id in enumerate(job_ids)))
            polls = [request for request in waiting.sandbox.requests if request.method == "GET"]
            (limited,) = [at for at, request in enumerate(polls) if request.status == 429]
            assert polls[limited + 1].at - polls[limited].at >= 5

        virtually(main)

    def test_a_429_that_a_worker_met_quiets_the_others_too(self, virtually: Callable[..., Any]) -> None:
        async def main(waiting: Waiting) -> None:
            first, second = await waiting.submit(), await waiting.submit()
            until = waiting.loop.wall() + 30
            await asyncio.gather(waiting.event(first, not_before=until), waiting.event(second))
            assert min(waiting.polls(first) + waiting.polls(second)) >= 30

        virtually(main)

    def test_a_turn_that_comes_too_late_is_a_timeout(self, virtually: Callable[..., Any]) -> None:
        async def main(waiting: Waiting) -> None:
            limited, other = (
                await waiting.submit("limited [sandbox:get-429=9]"),
                await waiting.submit("[sandbox:forever]"),
            )
            deadline = waiting.loop.wall() + 60
            events = await asyncio.gather(
                waiting.event(limited, deadline=deadline), waiting.event(other, chance=0.5, deadline=deadline)
            )
            assert {event["error"]["type"] for event in events} == {"WhisulJobTimeoutError"}
            assert waiting.loop.wall() <= deadline + 10 + 1

        virtually(main)

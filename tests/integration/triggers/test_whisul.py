"""The trigger against the sandbox, both in one event loop with virtual time: real HTTP, and no time passes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulServerError,
    WhisulSongMissingError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks import shared_session, whisul_async
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.polling import MAX_CONSECUTIVE_POLL_FAILURES, SONG_URL_GRACE
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.triggers.events import song_from_event
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from tests.support.clock import NOON, VirtualLoop, loop_clock, run_virtually, thread_clock

KEY = "secret-sandbox-key"


class Waiting:
    """A sandbox, and the triggers that poll it, on one event loop with virtual time."""

    def __init__(self, sandbox: Sandbox, loop: VirtualLoop) -> None:
        self.sandbox = sandbox
        self.loop = loop

    async def submit(self, prompt: str = "a song") -> str:
        import aiohttp

        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
            session.post(self.sandbox.base_url + "/generate", json={"prompt": prompt}) as response,
        ):
            return str((await response.json())["job_id"])

    async def event(self, job_id: str, jitter: float = 0.0, **kwargs: Any) -> Any:
        arguments = {"whisul_conn_id": "whisul_default", "poll_interval": 10, "deadline": self.loop.wall() + 3600}
        trigger = WhisulJobTrigger(job_id=job_id, **{**arguments, **kwargs})
        trigger.clock = loop_clock(self.loop, jitter)
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


def test_the_event_holds_the_song(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a trap song")
        event = await waiting.event(job_id)
        assert event["status"] == "completed"
        song = song_from_event(event, job_id)
        assert (song["job_id"], song["prompt"]) == (job_id, "a trap song")
        assert song["song_url"]
        # The first poll comes after one interval, then one per interval.
        assert waiting.polls(job_id) == [10, 20, 30, 40, 50, 60]
        assert {request.authorization for request in waiting.sandbox.requests} == {"ok"}
        assert not any(request.key_elsewhere for request in waiting.sandbox.requests)

    virtually(main)


@pytest.mark.parametrize(("jitter", "first_poll"), [(0.0, 10), (0.5, 15), (0.999, 19.99)])
def test_jitter_spreads_the_first_poll_over_one_interval(
    virtually: Callable[..., Any], jitter: float, first_poll: float
) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        await waiting.event(job_id, jitter=jitter)
        assert waiting.polls(job_id)[0] == pytest.approx(first_poll)

    virtually(main)


def test_two_hundred_triggers_do_not_poll_in_the_same_moments(
    virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(waiting: Waiting) -> None:
        connection = {**json.loads(waiting.sandbox.connection), "extra": {"max_requests_per_second": 1e6}}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        job_ids = [await waiting.submit(f"song {number}") for number in range(200)]
        await asyncio.gather(*(waiting.event(job_id, number / 200) for number, job_id in enumerate(job_ids)))
        per_second: dict[int, int] = defaultdict(int)
        for request in waiting.sandbox.requests:
            if request.method == "GET":
                per_second[int(request.at)] += 1
        assert max(per_second.values()) <= 1.3 * 200 / 10
        # All of them share a few connections.
        assert len({request.connection for request in waiting.sandbox.requests if request.method == "GET"}) <= 20

    virtually(main)


def test_nothing_is_sent_before_not_before(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        await waiting.event(job_id, not_before=[waiting.loop.wall() + 47, 50])
        assert waiting.polls(job_id)[0] == 47

    virtually(main)


@pytest.mark.parametrize("fault", ["get-500", "get-502-html", "get-drop", "get-truncated", "get-html-200"])
def test_tolerates_transient_failures(virtually: Callable[..., Any], fault: str) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit(f"a song [sandbox:{fault}={MAX_CONSECUTIVE_POLL_FAILURES - 1}]")
        assert (await waiting.event(job_id))["status"] == "completed"
        gaps = [after - before for before, after in pairwise(waiting.polls(job_id))]
        assert len(gaps) >= MAX_CONSECUTIVE_POLL_FAILURES - 1
        assert min(gaps) >= 10

    virtually(main)


def test_gives_up_after_too_many_transient_failures_in_a_row(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit(f"a song [sandbox:get-500={MAX_CONSECUTIVE_POLL_FAILURES}]")
        event = await waiting.event(job_id)
        with pytest.raises(WhisulServerError, match=job_id):
            song_from_event(event, job_id)
        assert len(waiting.polls(job_id)) == MAX_CONSECUTIVE_POLL_FAILURES

    virtually(main)


def test_follows_the_backoff_schedule_after_429s(virtually: Callable[..., Any]) -> None:
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
    ],
)
def test_a_final_error_ends_the_wait_at_once(
    virtually: Callable[..., Any], prompt: str, error: type[WhisulError]
) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit(prompt)
        event = await waiting.event(job_id)
        with pytest.raises(error, match=job_id) as caught:
            song_from_event(event, job_id)
        # Only a poll tells the prompt.
        known = prompt if error is WhisulJobFailedError else None
        assert (caught.value.job_id, caught.value.prompt) == (job_id, known)
        statuses = [request.status for request in waiting.sandbox.requests if request.method == "GET"]
        assert set(statuses[:-1]) <= {200}

    virtually(main)


@pytest.mark.parametrize("began", [0, 3000])
def test_a_404_for_less_than_a_minute_is_lived_through_also_after_a_restart(
    virtually: Callable[..., Any], began: float
) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:get-404=6]")
        await asyncio.sleep(began)
        assert (await waiting.event(job_id))["status"] == "completed"

    virtually(main)


def test_a_completed_job_is_polled_on_until_the_url_of_its_song_is_there(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:song-late=20]")
        assert song_from_event(await waiting.event(job_id), job_id)["song_url"]
        assert waiting.polls(job_id)[-1] == 80

    virtually(main)


def test_a_completed_job_that_gets_no_url_ends_the_wait_after_minutes(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:song-late]")
        event = await waiting.event(job_id)
        with pytest.raises(WhisulSongMissingError, match="no URL of the song"):
            song_from_event(event, job_id)
        assert waiting.polls(job_id)[-1] == 60 + SONG_URL_GRACE

    virtually(main)


def test_a_retry_after_beyond_the_deadline_ends_no_wait_before_it(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        deadline = waiting.loop.wall() + 700
        event = await waiting.event(job_id, deadline=deadline)
        assert event["error"]["type"] == "WhisulJobTimeoutError"
        assert utc(deadline) in event["error"]["message"]
        assert deadline <= waiting.loop.wall() <= deadline + 6

    virtually(main, rate_limit=1, rate_window=100, block_seconds=3700, retry_after=True)


def test_a_changed_limit_of_the_connection_is_taken_up_by_the_rate_limiter(
    virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(waiting: Waiting) -> None:
        connection = json.loads(waiting.sandbox.connection)
        rates = []
        for limit in (4, 0.5, ""):
            settings = {**connection, "extra": {"max_requests_per_second": limit}}
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(settings))
            job_id = await waiting.submit()
            hook = WhisulAsyncHook(clock=loop_clock(waiting.loop))
            for _ in range(3):
                await hook.get_job(job_id)
            polls = waiting.polls(job_id)
            rates.append(2 / (polls[-1] - polls[0]))
        assert rates[:2] == pytest.approx([4, 0.5])
        # Without a limit the rate is found again from there.
        assert 0.5 <= rates[2] < 1

    virtually(main)


def test_a_worker_whose_clock_is_hours_ahead_pauses_the_triggers_for_no_longer_than_it_had_to_wait(
    virtually: Callable[..., Any],
) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit()
        await waiting.event(job_id, not_before=[waiting.loop.wall() + 7200, 60], deadline=waiting.loop.wall() + 9999)
        assert waiting.polls(job_id)[0] == 60

    virtually(main)


def test_a_known_job_that_is_not_found_for_a_minute_ends_the_wait(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:expired]")
        with pytest.raises(WhisulJobNotFoundError, match=job_id):
            song_from_event(await waiting.event(job_id), job_id)
        missing = [r.at for r in waiting.sandbox.requests if r.method == "GET" and r.status == 404]
        assert 60 <= missing[-1] - missing[0] < 90

    virtually(main)


def test_the_last_poll_is_at_the_deadline(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:forever]")
        event = await waiting.event(job_id, deadline=waiting.loop.wall() + 65)
        with pytest.raises(WhisulJobTimeoutError, match="may still be running"):
            song_from_event(event, job_id)
        assert waiting.polls(job_id)[-1] == 65

    virtually(main)


def test_mapped_jobs_whose_deadlines_come_together_are_all_polled_once_more(
    virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are too many for five seconds at the rate that is known, and one of them completes a moment before."""

    async def main(waiting: Waiting) -> None:
        connection = {**json.loads(waiting.sandbox.connection), "extra": {"max_requests_per_second": 1}}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        job_ids = [await waiting.submit("a song [sandbox:forever]") for _ in range(39)]
        job_ids.append(await waiting.submit())
        deadline = waiting.loop.wall() + 61
        events = await asyncio.gather(*(waiting.event(job_id, deadline=deadline) for job_id in job_ids))
        last_polls = [waiting.polls(job_id)[-1] for job_id in job_ids]
        assert min(last_polls) >= 61
        assert 10 < max(last_polls) - 61 <= 45
        assert [event["status"] for event in events] == ["error"] * 39 + ["completed"]
        assert {event["error"]["type"] for event in events[:39]} == {"WhisulJobTimeoutError"}

    virtually(main, job_seconds=(60.5, 60.5))


def test_the_last_poll_waits_five_seconds_where_a_block_is_what_delays_it(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_ids = [await waiting.submit("a song [sandbox:get-429=9]") for _ in range(3)]
        deadline = waiting.loop.wall() + 22
        events = await asyncio.gather(*(waiting.event(job_id, deadline=deadline) for job_id in job_ids))
        assert {event["error"]["type"] for event in events} == {"WhisulJobTimeoutError"}
        assert waiting.loop.wall() <= deadline + 6

    virtually(main)


def test_a_job_that_completed_before_a_past_deadline_is_found(virtually: Callable[..., Any]) -> None:
    """As after the triggerer was down for hours."""

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


def test_an_unusable_connection_is_reported_as_an_event(
    virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(waiting: Waiting) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", '{"conn_type": "whisul"}')
        event = await waiting.event("some-job")
        assert event["error"]["type"] == "WhisulConfigurationError"

    virtually(main)


def test_a_cancelled_trigger_leaves_no_session_open(virtually: Callable[..., Any]) -> None:
    async def main(waiting: Waiting) -> None:
        job_id = await waiting.submit("a song [sandbox:forever]")
        task = asyncio.create_task(waiting.event(job_id))
        await asyncio.sleep(100)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not shared_session._SHARED_SESSIONS[waiting.loop]

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


class TestOneRateLimiterPerAccount:
    def test_a_probe_without_a_response_is_followed_by_another_after_the_same_cooldown(
        self, virtually: Callable[..., Any]
    ) -> None:
        async def main(waiting: Waiting) -> None:
            job_id = await waiting.submit("a song [sandbox:get-429][sandbox:get-drop]")
            hook = WhisulAsyncHook(clock=loop_clock(waiting.loop))
            for error in (WhisulRateLimitError, WhisulConnectionError):
                with pytest.raises(error):
                    await hook.get_job(job_id)
            assert (await hook.get_job(job_id)).status == "running"
            assert waiting.polls(job_id) == pytest.approx([0, 5, 10])

        virtually(main)

    def test_two_hundred_triggers_stay_within_an_unknown_rate_limit(self, virtually: Callable[..., Any]) -> None:
        """Each request during a block prolongs it, so triggers that each back off alone would never get out of it."""

        async def main(waiting: Waiting) -> None:
            async def completed_at(job_id: str, jitter: float) -> float:
                assert (await waiting.event(job_id, jitter))["status"] == "completed"
                return waiting.loop.wall()

            job_ids = [(await waiting.submit(f"song {number}"), await asyncio.sleep(0.2))[0] for number in range(200)]
            seen_at = await asyncio.gather(*(completed_at(job_id, at / 200) for at, job_id in enumerate(job_ids)))
            jobs = waiting.sandbox.jobs
            late = sorted(at - jobs[job_id].ends_at for at, job_id in zip(seen_at, job_ids, strict=True))
            assert sum(request.status == 429 for request in waiting.sandbox.requests) <= 10
            assert max(seen_at) - max(jobs[job_id].ends_at for job_id in job_ids) <= 12
            assert late[190] <= 45

        virtually(main, rate_limit=20, block_seconds=10, job_seconds=(60, 180))

    def test_a_configured_rate_limit_is_never_exceeded(
        self, virtually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main(waiting: Waiting) -> None:
            job_ids = [(await waiting.submit(f"song {number}"), await asyncio.sleep(0.2))[0] for number in range(100)]
            connection = {**json.loads(waiting.sandbox.connection), "extra": {"max_requests_per_second": 8}}
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
            await asyncio.gather(*(waiting.event(job_id, at / 100) for at, job_id in enumerate(job_ids)))
            assert {request.status for request in waiting.sandbox.requests if request.method == "GET"} == {200}

        virtually(main, rate_limit=10, block_seconds=10)

    def test_a_429_pauses_all_triggers_with_the_same_key(self, virtually: Callable[..., Any]) -> None:
        async def main(waiting: Waiting) -> None:
            job_ids = [await waiting.submit("limited [sandbox:get-429=1]"), *[await waiting.submit() for _ in range(5)]]
            await asyncio.gather(*(waiting.event(job_id, at / 6) for at, job_id in enumerate(job_ids)))
            polls = [request for request in waiting.sandbox.requests if request.method == "GET"]
            (throttled,) = [at for at, request in enumerate(polls) if request.status == 429]
            assert polls[throttled + 1].at - polls[throttled].at >= 5

        virtually(main)

    def test_a_block_that_the_triggerer_has_met_is_known_to_workers_and_to_a_triggerer_that_is_restarted(
        self, virtually: Callable[..., Any]
    ) -> None:
        async def main(waiting: Waiting) -> None:
            first, second = await waiting.submit("limited [sandbox:get-429=1]"), await waiting.submit()
            with pytest.raises(WhisulRateLimitError, match="429"):
                await WhisulAsyncHook(clock=loop_clock(waiting.loop)).get_job(first)
            worker = WhisulHook(clock=thread_clock(waiting.loop))
            with pytest.raises(WhisulRateLimitError, match="Nothing was sent"):
                await asyncio.to_thread(worker.get_job, second, retry=False, max_wait=1.0)
            # A triggerer that is restarted has learnt nothing yet.
            whisul_async._RATE_LIMITERS.clear()
            await WhisulAsyncHook(clock=loop_clock(waiting.loop)).get_job(second)
            assert waiting.polls(first) == [0]
            assert waiting.polls(second) == [5]

        virtually(main)

    def test_a_block_that_a_worker_has_met_is_known_to_the_triggerer(self, virtually: Callable[..., Any]) -> None:
        async def main(waiting: Waiting) -> None:
            first, second = await waiting.submit("limited [sandbox:get-429=1]"), await waiting.submit()
            hook = WhisulAsyncHook(clock=loop_clock(waiting.loop))
            await hook.get_job(second)
            worker = WhisulHook(clock=thread_clock(waiting.loop))
            await asyncio.sleep(1)
            with pytest.raises(WhisulRateLimitError, match="429"):
                await asyncio.to_thread(worker.get_job, first, retry=False)
            await hook.get_job(second)
            assert waiting.polls(second) == [0, pytest.approx(6)]

        virtually(main)

    def test_the_durations_of_jobs_that_the_triggerer_has_polled_are_known_to_workers(
        self, virtually: Callable[..., Any]
    ) -> None:
        async def main(waiting: Waiting) -> None:
            hook = WhisulAsyncHook(clock=loop_clock(waiting.loop))
            job_id = await waiting.submit()
            await asyncio.sleep(61)
            assert (await hook.get_job(job_id)).completed
            # Kept with the next decision.
            await asyncio.sleep(10)
            running = await waiting.submit()
            await hook.get_job(running)
            worker = WhisulHook(clock=thread_clock(waiting.loop))
            await asyncio.to_thread(worker.get_job, running)
            assert worker._rate_limiter.durations.seconds == [60]

        virtually(main)

    def test_the_not_before_of_one_trigger_pauses_all_triggers_with_the_same_key(
        self, virtually: Callable[..., Any]
    ) -> None:
        async def main(waiting: Waiting) -> None:
            first, second = await waiting.submit(), await waiting.submit()
            until = waiting.loop.wall() + 30
            await asyncio.gather(waiting.event(first, not_before=[until, 30]), waiting.event(second))
            assert min(waiting.polls(first) + waiting.polls(second)) >= 30

        virtually(main)

    def test_a_permit_that_comes_after_the_deadline_is_a_timeout(self, virtually: Callable[..., Any]) -> None:
        async def main(waiting: Waiting) -> None:
            throttled, other = (
                await waiting.submit("limited [sandbox:get-429=9]"),
                await waiting.submit("[sandbox:forever]"),
            )
            deadline = waiting.loop.wall() + 60
            events = await asyncio.gather(
                waiting.event(throttled, deadline=deadline), waiting.event(other, jitter=0.5, deadline=deadline)
            )
            assert {event["error"]["type"] for event in events} == {"WhisulJobTimeoutError"}
            assert waiting.loop.wall() <= deadline + 10 + 1

        virtually(main)

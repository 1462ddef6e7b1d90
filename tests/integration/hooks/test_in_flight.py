"""What is on its way when a 429 comes, where the API is slow: real HTTP on an event loop with virtual time."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.rate_limit.async_rate_limiter import MAX_IN_FLIGHT
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE
from tests.support.clock import VirtualLoop, loop_clock, run_virtually

POLLS = MAX_IN_FLIGHT + 70


def test_a_poll_that_waited_while_the_api_was_slow_is_not_sent_after_a_429(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(loop: VirtualLoop) -> None:
        arrived: list[float] = []
        full, throttles, others_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            arrived.append(loop.time())
            if len(arrived) == 1:
                await throttles.wait()
                return web.json_response({"detail": "Too many requests"}, status=429)
            if len(arrived) == MAX_IN_FLIGHT:
                full.set()
            await others_end.wait()
            return web.json_response({"detail": "Out of order"}, status=500)

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        connection = {
            "conn_type": "whisul",
            "password": "secret-sandbox-key",
            "host": "http://{}:{}".format(*runner.addresses[0]),
            "extra": {"max_requests_per_second": 1000},
        }
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        async with WhisulAsyncHook(clock=loop_clock(loop)) as hook:
            polls = [loop.create_task(hook.get_job(f"job-{n}")) for n in range(POLLS)]
            await full.wait()
            # As long as the rate needs to permit all of them.
            await asyncio.sleep(1)
            throttles.set()
            done, _ = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
            throttled_at, error = loop.time(), done.pop().exception()
            assert isinstance(error, WhisulRateLimitError)
            assert error.http_status == 429
            others_end.set()
            await asyncio.gather(*polls, return_exceptions=True)
        await runner.cleanup()
        assert len(arrived) == POLLS
        # A probe ends the block. What waited is sent after that.
        assert arrived[MAX_IN_FLIGHT - 1] < throttled_at
        assert arrived[MAX_IN_FLIGHT] >= throttled_at + BACKOFF_SCHEDULE[0] - 0.1

    run_virtually(main)

"""The traffic of a campaign, at a sandbox that is slower than its clients' time-out, as on a machine that is busy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulAmbiguousSubmitError, WhisulConnectionError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from tests.integration.campaign.traffic import HELD_SECONDS, Traffic
from tests.support.clock import LoopTime, VirtualLoop

#: Seconds of the connection's time-out.
TIMEOUT = 0.05


@dataclass
class Place:
    """A sandbox, and what sends to it."""

    sandbox: Sandbox
    traffic: Traffic
    runner: asyncio.Runner
    clock: Clock

    @property
    def hook(self) -> WhisulHook:
        return WhisulHook(clock=self.clock)

    def poll(self, job_id: str) -> str:
        """Poll a job as the triggerer does, and return its status."""
        return self.runner.run(WhisulAsyncHook(clock=self.clock).get_job(job_id)).status

    def logged(self) -> list[str]:
        return [request.method for request in self.sandbox.requests]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    handle = Sandbox._handle

    def handle_late(sandbox: Sandbox, call: object) -> object:
        time.sleep(3 * TIMEOUT)
        return handle(sandbox, call)  # type: ignore[arg-type]

    monkeypatch.setattr(Sandbox, "_handle", handle_late)
    loop = VirtualLoop()
    virtual = LoopTime(loop, on_sleep=lambda seconds: None)
    traffic = Traffic(loop, monkeypatch)
    clock = Clock(time=virtual.time, monotonic=virtual.monotonic, sleep=virtual.sleep)
    options = SandboxOptions(slow_seconds=HELD_SECONDS)
    with (
        asyncio.Runner(loop_factory=lambda: loop) as runner,
        Sandbox(options, clock=virtual.time, on_request=traffic.on_request) as sandbox,
    ):
        extra = {"timeout": TIMEOUT, "max_requests_per_second": 1e6}
        connection = {**json.loads(sandbox.connection), "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        yield Place(sandbox, traffic, runner, clock)


def test_no_request_times_out_because_the_machine_is_slow(place: Place) -> None:
    job_id = place.hook.generate("a song")
    assert place.hook.get_job(job_id, retry=False).status == "running"
    assert place.poll(job_id) == "running"
    place.traffic.check(logged=3)


def test_a_submission_whose_response_is_held_back_is_logged_when_it_has_timed_out(place: Place) -> None:
    place.traffic.holds = True
    with pytest.raises(WhisulAmbiguousSubmitError):
        place.hook.generate("a song [sandbox:post-slow]")
    assert place.logged() == ["POST"]
    place.traffic.check(logged=1)
    assert place.traffic.as_met(place.sandbox.requests[0]).status is None


def test_a_poll_whose_response_is_held_back_is_logged_when_it_has_timed_out(place: Place) -> None:
    place.traffic.holds = True
    job_id = place.hook.generate("a song [sandbox:get-slow][sandbox:get-slow]")
    with pytest.raises(WhisulConnectionError, match="timed out"):
        place.hook.get_job(job_id, retry=False)
    assert place.logged() == ["POST", "GET"]
    # A poll leaves the first moments after a submission to the next one.
    place.clock.sleep(3.0)
    began = place.clock.time()
    with pytest.raises(WhisulConnectionError, match="timed out"):
        place.poll(job_id)
    assert place.logged() == ["POST", "GET", "GET"]
    assert place.clock.time() - began == pytest.approx(TIMEOUT, abs=0.01)
    place.traffic.check(logged=3)


def test_a_request_that_no_client_was_sending_is_found(place: Place) -> None:
    requests.get(f"{place.sandbox.base_url}/jobs/some-job", timeout=10)
    with pytest.raises(AssertionError, match="what no client was sending"):
        place.traffic.check(logged=1)


def test_a_request_that_is_not_logged_is_found(place: Place) -> None:
    place.hook.generate("a song")
    with pytest.raises(AssertionError, match="1 requests were sent, 0 are logged"):
        place.traffic.check(logged=0)

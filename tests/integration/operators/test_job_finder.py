"""How a worker polls jobs that may not exist: again for a minute, and once each after one that is gone."""

from __future__ import annotations

import pytest

from airflow_provider_whisul.exceptions import WhisulJobNotFoundError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.job_finder import JobFinder
from airflow_provider_whisul.polling import NOT_FOUND_GRACE
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock


@pytest.fixture
def hook(sandbox: Sandbox, clock: FakeClock) -> WhisulHook:
    return WhisulHook(clock=clock.clock)


def test_a_job_that_is_found_is_polled_once(sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
    job_id = hook.generate("a song")
    assert JobFinder(hook).get_job(job_id).job_id == job_id
    assert [request.method for request in sandbox.requests] == ["POST", "GET"]
    assert clock.slept == []


def test_a_job_that_is_found_a_little_later_is_returned(hook: WhisulHook, clock: FakeClock) -> None:
    job_id = hook.generate("a song [sandbox:get-404]")
    assert JobFinder(hook).get_job(job_id).job_id == job_id
    assert 0 < sum(clock.slept) < NOT_FOUND_GRACE


def test_after_a_job_that_is_gone_the_next_ones_are_polled_once(
    sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
) -> None:
    finder = JobFinder(hook)
    with pytest.raises(WhisulJobNotFoundError):
        finder.get_job("gone")
    assert sum(clock.slept) == NOT_FOUND_GRACE
    before = len(sandbox.requests)
    for job_id in ("gone-too", "gone-as-well"):
        with pytest.raises(WhisulJobNotFoundError):
            finder.get_job(job_id)
    assert len(sandbox.requests) == before + 2
    assert sum(clock.slept) == NOT_FOUND_GRACE


def test_another_finder_knows_nothing_of_that(hook: WhisulHook, clock: FakeClock) -> None:
    for times in (1, 2):
        with pytest.raises(WhisulJobNotFoundError):
            JobFinder(hook).get_job("gone")
        assert sum(clock.slept) == times * NOT_FOUND_GRACE

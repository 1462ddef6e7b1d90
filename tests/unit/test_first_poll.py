"""When a job is polled first, as learnt from the durations of others. Time is a number here, and nothing sleeps."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from statistics import mean, median, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.exceptions import WhisulJobTimeoutError, WhisulServerError
from airflow_provider_whisul.polling import JobPoller
from airflow_provider_whisul.rate_limit.durations import Durations

RUNNING = WhisulJob("j-1", "running")
UNKNOWN = Durations()
#: One job in twenty was over after 64 s.
KNOWN = Durations(list(range(60, 160)))
FIRST_POLL_AGE = 64.0


def poller_of(submitted_at: float | None, interval: float = 10, deadline: float = 3600) -> JobPoller:
    return JobPoller("j-1", interval, deadline, submitted_at=submitted_at)


def first_poll_at(poller: JobPoller, now: float, durations: Durations = KNOWN) -> float:
    """Return when a poller that is asked at a time sends its first poll, where no clock is set."""
    while delay := poller.first_poll_delay(now, durations):
        now += delay
    return now


@pytest.mark.parametrize("now", [0.0, 10.0, 19.9, 63.0, 64.0, 70.0])
def test_the_first_poll_comes_at_the_age_at_which_one_job_in_twenty_was_over(now: float) -> None:
    assert first_poll_at(poller_of(submitted_at=0.0), now) == pytest.approx(max(now, FIRST_POLL_AGE))


def test_it_is_asked_again_after_each_interval_so_that_what_is_learnt_meanwhile_counts() -> None:
    poller = poller_of(submitted_at=0.0)
    assert [poller.first_poll_delay(now, KNOWN) for now in (10, 20)] == [10, 10]
    assert poller.first_poll_delay(30, Durations([35] * 20)) == 5
    assert poller.first_poll_delay(35, Durations([35] * 20)) == 0


@pytest.mark.parametrize(
    ("submitted_at", "durations"),
    [(None, KNOWN), (0.0, UNKNOWN), (0.0, Durations([100] * 19)), (11.0, KNOWN), (3600.0, KNOWN)],
    ids=["submitted nobody knows when", "nothing learnt", "too little learnt", "submitted later", "an hour later"],
)
def test_a_job_of_which_too_little_is_known_is_polled_as_ever(submitted_at: float | None, durations: Durations) -> None:
    assert poller_of(submitted_at).first_poll_delay(10, durations) == 0


@pytest.mark.parametrize("deadline", [12.0, 40.0, 63.9])
def test_the_last_poll_stays_at_the_deadline(deadline: float) -> None:
    poller = poller_of(0.0, deadline=deadline)
    assert first_poll_at(poller, 10) == pytest.approx(deadline)
    with pytest.raises(WhisulJobTimeoutError):
        poller.next_delay(RUNNING, deadline, 0.0)


@pytest.mark.parametrize("deadline", [-5.0, 10.0])
def test_nothing_is_put_off_once_the_deadline_has_come(deadline: float) -> None:
    assert poller_of(0.0, deadline=deadline).first_poll_delay(10, KNOWN) == 0


@pytest.mark.parametrize("result", [RUNNING, WhisulServerError("Whisul answered 500.")], ids=["running", "failed"])
def test_a_job_that_was_polled_before_is_never_put_off(result: WhisulJob | WhisulServerError) -> None:
    poller = poller_of(submitted_at=0.0)
    poller.next_delay(result, 5, 0.0)
    assert poller.first_poll_delay(15, KNOWN) == 0


@pytest.mark.parametrize("put_back", [5.0, 30.0, 3600.0])
def test_a_clock_that_is_put_back_delays_the_first_poll_by_no_more_than_the_age(put_back: float) -> None:
    poller, waited, now = poller_of(submitted_at=1000.0, deadline=9000), 0.0, 1010.0
    for turn in range(100):
        delay = poller.first_poll_delay(now, KNOWN)
        if not delay:
            break
        waited += delay
        now += delay - (put_back if turn % 3 == 2 else 0)
    assert waited <= FIRST_POLL_AGE


def test_a_clock_that_is_put_forward_polls_at_once() -> None:
    poller = poller_of(submitted_at=1000.0, deadline=90_000)
    assert poller.first_poll_delay(1010, KNOWN) == 10
    assert poller.first_poll_delay(4620, KNOWN) == 0


@given(
    submitted_at=st.floats(-5000, 5000),
    seconds=st.lists(st.integers(0, 1800), max_size=100),
    interval=st.floats(5, 600),
    deadline=st.floats(0, 4000),
    sets=st.lists(st.floats(-4000, 4000), max_size=10),
)
def test_whatever_the_clocks_say_no_first_poll_is_put_off_for_more_than_ten_minutes(
    submitted_at: float, seconds: list[int], interval: float, deadline: float, sets: list[float]
) -> None:
    poller, now, waited = poller_of(submitted_at, interval, deadline), 0.0, 0.0
    for clock_set in [*sets, *[0.0] * 200]:
        delay = poller.first_poll_delay(now, Durations(seconds))
        assert 0 <= delay <= interval
        assert now + delay <= max(deadline, now)
        if not delay:
            break
        waited += delay
        now += delay + clock_set
    else:
        pytest.fail("The first poll never came.")
    assert waited <= 600 + 1e-6


# --- what the rate limiter is told


def test_the_rate_limiter_is_told_of_the_job_on_its_own_clock() -> None:
    poller = replace(poller_of(submitted_at=1000.0, interval=20, deadline=9000), dag_id="nightly")
    poll = poller.waiting_poll(now=1070.0, due=5.0)
    assert (poll.due, poll.submitted, poll.last_poll) == (5.0, -65.0, None)
    assert (poll.dag_id, poll.poll_interval) == ("nightly", 20)
    poller.next_delay(RUNNING, 1071.0, 0.0)
    poller.next_delay(WhisulServerError("Whisul answered 500."), 1091.0, 0.0)
    assert poller.waiting_poll(now=1111.0, due=46.0).last_poll == pytest.approx(6.0)


def test_where_nobody_knows_when_a_job_was_submitted_its_first_response_tells() -> None:
    poller = poller_of(submitted_at=None, deadline=2e9)
    started_at = datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC)
    poller.next_delay(replace(RUNNING, started_at=started_at), started_at.timestamp() + 30, 0.0)
    assert poller.waiting_poll(now=started_at.timestamp() + 40, due=100.0).submitted == pytest.approx(60.0)


def test_when_a_job_was_submitted_counts_more_than_when_it_started() -> None:
    poller = poller_of(submitted_at=1_771_342_000.0, deadline=2e9)
    started_at = datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC)
    poller.next_delay(replace(RUNNING, started_at=started_at), started_at.timestamp(), 0.0)
    assert poller.waiting_poll(now=1_771_342_800.0, due=1000.0).submitted == 200.0


# --- what it is worth


def polled(duration: float, submitted_at: float | None, jitter: float, durations: Durations) -> tuple[int, float]:
    """Return how often a job is polled, and how long after its end it is found ended."""
    poller, polls = poller_of(submitted_at), 1
    now = first_poll_at(poller, poller.initial_delay(0.0, jitter), durations)
    while now < duration:
        delay = poller.next_delay(RUNNING, now, jitter)
        assert delay is not None
        now += delay
        polls += 1
    return polls, now - duration


@pytest.mark.parametrize("seed", range(5))
def test_songs_of_one_to_three_minutes_take_eight_polls_at_most_and_are_found_no_later(seed: int) -> None:
    chance = random.Random(seed)
    known = Durations()
    known.add([chance.uniform(60, 180) for _ in range(100)])
    # Spread evenly, so that chance blurs nothing.
    jobs = [(60 + 120 * (number + 0.5) / 4000, number * 0.618034 % 1) for number in range(4000)]
    before = [polled(duration, None, jitter, known) for duration, jitter in jobs]
    now = [polled(duration, 0.0, jitter, known) for duration, jitter in jobs]
    assert 10 <= mean(polls for polls, _ in before) <= 13
    assert mean(polls for polls, _ in now) <= 8
    late_before, late_now = ([late for _, late in results] for results in (before, now))
    assert median(late_now) <= median(late_before) + 0.1
    assert quantiles(late_now, n=20)[-1] <= quantiles(late_before, n=20)[-1] + 0.1

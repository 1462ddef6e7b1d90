"""What is concluded from how long jobs take."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.rate_limit.durations import (
    LATEST_JOBS,
    MAX_DURATION,
    MAX_DURATIONS,
    MAX_FIRST_POLL_AGE,
    MIN_DURATIONS,
    Durations,
)


def learnt(*seconds: float) -> Durations:
    durations = Durations()
    durations.add(seconds)
    return durations


def test_the_latest_durations_are_kept_in_whole_seconds_rounded_down() -> None:
    durations = learnt(61.9, 120.9)
    assert durations.seconds == [61, 120]
    durations.add([90] * (MAX_DURATIONS - 1))
    assert durations.seconds == [120] + [90] * (MAX_DURATIONS - 1)


@pytest.mark.parametrize("nonsense", [-1, -3600.0, MAX_DURATION + 1, 86_400, float("inf"), float("nan")])
def test_a_duration_that_no_clock_can_have_measured_rightly_is_left_out(nonsense: float) -> None:
    assert learnt(100, nonsense, 0, MAX_DURATION).seconds == [100, 0, int(MAX_DURATION)]


def test_a_job_counts_once_while_it_is_one_of_the_latest() -> None:
    durations = Durations()
    for number in range(LATEST_JOBS + 1):
        for _ in range(2):
            durations.add_job(f"job {number}", number)
    assert durations.seconds == list(range(LATEST_JOBS + 1))
    assert len(durations.jobs) == LATEST_JOBS
    durations.add_job("job 0", 7)
    assert durations.seconds[-1] == 7


# --- the age of the first poll


@pytest.mark.parametrize("known", [0, 1, MIN_DURATIONS - 1])
def test_too_few_durations_put_off_no_poll(known: int) -> None:
    assert learnt(*[100] * known).first_poll_age() == 0


@pytest.mark.parametrize(
    ("durations", "age"),
    [
        (range(101, 121), 101),
        (range(140, 100, -1), 102),
        (range(1, 101), 5),
        ([70] * 30, 70),
        # A clock that is wrong now and then costs nothing: a low duration only makes the first poll earlier.
        ([0, 0, *[70] * 38], 0),
        ([1700] * 5 + [70] * 35, 70),
        ([1500] * 100, MAX_FIRST_POLL_AGE),
    ],
)
def test_the_first_poll_comes_at_the_age_at_which_one_job_in_twenty_was_over(durations: list[int], age: float) -> None:
    assert learnt(*durations).first_poll_age() == age


def test_the_longest_jobs_of_a_batch_which_are_over_last_do_not_put_off_the_first_poll_of_the_next_one() -> None:
    batch = sorted(range(60, 180)) * 8
    assert learnt(*sorted(batch)).first_poll_age() == 65


def test_five_songs_that_are_over_sooner_than_all_before_move_the_age() -> None:
    durations = learnt(*[100] * MAX_DURATIONS)
    durations.add([30] * 4)
    assert durations.first_poll_age() == 100
    durations.add([30])
    assert durations.first_poll_age() == 30


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)))
def test_no_durations_put_a_poll_off_by_more_than_ten_minutes(seconds: list[float]) -> None:
    assert 0 <= learnt(*seconds).first_poll_age() <= 600


# --- the probability


def test_the_probability_is_the_share_of_the_jobs_that_were_not_over_at_the_latest_poll() -> None:
    durations = learnt(*range(1, 101))
    assert durations.probability_over(50) == pytest.approx(0.5, abs=0.01)
    assert durations.probability_over(75, polled_at=50) == pytest.approx(0.5, abs=0.01)
    assert durations.probability_over(100, polled_at=50) > 0.98


def test_a_job_that_takes_longer_than_all_before_is_the_less_probably_over_the_longer_it_takes() -> None:
    durations = learnt(*range(1, 101))
    often = [durations.probability_over(age + 10, age) for age in (200, 400, 800)]
    assert often == sorted(often, reverse=True)
    assert 0 < often[-1] < often[0] < 0.1
    assert durations.probability_over(800, polled_at=200) == pytest.approx(0.75)


def test_a_job_that_was_never_polled_may_have_been_over_at_once() -> None:
    assert learnt(*[0] * 10, *[100] * 10).probability_over(1) == pytest.approx(0.5, abs=0.05)


def test_a_job_that_has_just_been_polled_is_not_over() -> None:
    assert learnt(*range(100)).probability_over(50, 50) == 0
    assert learnt(*range(100)).probability_over(-10) == 0
    assert learnt(*range(100)).probability_over(30, polled_at=70) == 0


@given(
    st.lists(st.integers(0, 1800), max_size=100),
    st.floats(-1e4, 1e5),
    st.floats(-1e4, 1e5),
    st.floats(0, 1000),
)
def test_a_probability_is_one_and_grows_with_the_age(
    seconds: list[int], age: float, polled_at: float, later: float
) -> None:
    durations = learnt(*seconds)
    now, then = (durations.probability_over(at, polled_at) for at in (age, age + later))
    assert 0 <= now <= then <= 1


def test_durations_that_are_added_or_replaced_count_at_once() -> None:
    durations = learnt(*[50] * 40)
    assert durations.first_poll_age() == 50
    durations.add([20] * 20)
    assert durations.first_poll_age() == 20
    durations.seconds = random.Random(1).sample(range(100, 200), 40)
    assert durations.first_poll_age() >= 100

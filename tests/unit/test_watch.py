"""Waiting for a job, on numbers alone: no clock runs here, and nobody sleeps."""

from __future__ import annotations

import logging
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.api import WhisulJob, WhisulTrack
from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.pace import MAX_CONSECUTIVE_BLIPS
from airflow_provider_whisul.watch import JobWatch

RUNNING = WhisulJob("j-1", "running")
COMPLETED = WhisulJob("j-1", "completed", track=WhisulTrack(title="t"))
FAILED = WhisulJob("j-1", "failed", error="out of tune")
BLIP = WhisulServerError("Whisul answered 500.")


def limited(retry_after: float | None = None) -> WhisulRateLimitError:
    return WhisulRateLimitError("Whisul answered 429.", job_id="j-1", http_status=429, retry_after=retry_after)


def watch(interval: float = 10, deadline: float = 3600) -> JobWatch:
    return JobWatch("j-1", interval, deadline)


# --- the first look


@pytest.mark.parametrize(
    ("chance", "now", "deadline", "not_before", "expected"),
    [
        (0.0, 0, 3600, None, 10),
        (0.5, 0, 3600, None, 15),
        (0.999, 0, 3600, None, 19.99),
        (0.5, 1000, 3600, None, 15),
        (0.9, 0, 12, None, 12),
        (0.9, 0, 3, None, 5),
        (0.9, 100, 50, None, 5),
        (0.0, 1000, 3600, 1060, 60),
        (0.5, 1000, 3600, 1012, 15),
        (0.0, 1000, 3600, 900, 10),
        (0.0, 1000, 1060, 1060, 60),
    ],
)
def test_first_wait(chance: float, now: float, deadline: float, not_before: float | None, expected: float) -> None:
    assert watch(10, deadline).first_wait(now, chance, not_before) == pytest.approx(expected)


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 5), (0.7, 12)])
def test_a_wait_that_is_resumed_begins_with_the_least_that_is_allowed(chance: float, expected: float) -> None:
    """Not with less: whoever waits may be begun again at any moment, and must not be over at once."""
    assert watch(10, 3600).first_wait(1000, chance, resumed=True) == pytest.approx(expected)


def test_a_rate_limit_beyond_the_deadline_ends_before_the_first_look() -> None:
    with pytest.raises(WhisulJobTimeoutError, match="may still be running"):
        watch(10, 60).first_wait(0, 0.0, not_before=7200)


# --- a job that goes on


@pytest.mark.parametrize(
    ("now", "expected"), [(0, 10), (3589, 10), (3590, 10), (3592, 8), (3595, 5), (3596, 5), (3599.9, 5)]
)
@pytest.mark.parametrize("chance", [0.0, 0.9])
def test_a_running_job_is_looked_at_every_interval_and_at_the_deadline(
    now: float, expected: float, chance: float
) -> None:
    assert watch().after(RUNNING, now, chance) == expected


@pytest.mark.parametrize("now", [3600, 3600.1, 99_999])
@pytest.mark.parametrize("seen", [RUNNING, WhisulJob("j-1", "queued"), BLIP, limited()])
def test_at_the_deadline_it_ends(seen: WhisulJob | WhisulError, now: float) -> None:
    with pytest.raises(WhisulJobTimeoutError):
        watch().after(seen, now, 0.0)


@pytest.mark.parametrize("now", [0, 3600, 99_999])
def test_a_job_that_is_over_counts_however_late(now: float) -> None:
    assert watch().after(COMPLETED, now, 0.0) is None
    with pytest.raises(WhisulJobFailedError, match="Whisul job j-1 failed: out of tune"):
        watch().after(FAILED, now, 0.0)


def test_an_unknown_status_is_running_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    watching = watch()
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul.watch"):
        assert [watching.after(WhisulJob("j-1", word), 0, 0.0) for word in ("queued", "queued", "mixing")] == [10] * 3
        assert watching.after(RUNNING, 0, 0.0) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "Whisul reports the undocumented status 'queued' for job j-1; it is taken as still running."
    ]


def test_known_statuses_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="airflow_provider_whisul.watch"):
        watch().after(RUNNING, 0, 0.0)
        watch().after(COMPLETED, 0, 0.0)
    assert caplog.records == []


# --- looks that fail


def test_a_job_that_was_there_may_be_out_of_sight_for_a_minute() -> None:
    gone, watching = WhisulJobNotFoundError("404"), watch()
    assert watching.after(RUNNING, 100, 0.0) == 10
    assert [watching.after(gone, now, 0.0) for now in (110, 120, 169)] == [10, 10, 10]
    assert watching.after(RUNNING, 179, 0.0) == 10
    assert watching.after(gone, 500, 0.0) == 10
    with pytest.raises(WhisulJobNotFoundError):
        watching.after(gone, 560, 0.0)


@pytest.mark.parametrize(
    "error",
    [
        WhisulUnauthorizedError("401"),
        WhisulJobNotFoundError("404"),
        WhisulTLSError("bad certificate"),
        WhisulError("something else"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("now", [0, 99_999])
def test_what_no_look_can_mend_ends_at_once(error: WhisulError, now: float) -> None:
    with pytest.raises(WhisulError) as raised:
        watch().after(error, now, 0.0)
    assert raised.value is error


@pytest.mark.parametrize("error", [BLIP, WhisulConnectionError("reset"), WhisulResponseError("HTML")], ids=type)
@pytest.mark.parametrize(
    ("interval", "now", "chance", "expected"),
    [(5, 0, 0.0, 10), (5, 0, 0.5, 20), (10, 0, 1.0, 30), (60, 0, 0.5, 60), (10, 3585, 0.5, 15), (10, 3599, 0.5, 5)],
)
def test_a_blip_is_waited_out(
    error: WhisulError,
    interval: float,
    now: float,
    chance: float,
    expected: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul.watch"):
        assert watch(interval).after(error, now, chance) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{error} Looking at job j-1 again in {expected:.0f} s."
    ]


def test_blips_in_a_row_are_lived_through_up_to_the_limit() -> None:
    watching = watch()
    for _ in range(MAX_CONSECUTIVE_BLIPS - 1):
        assert watching.after(WhisulConnectionError("reset"), 0, 0.0) == 10
    with pytest.raises(WhisulServerError) as raised:
        watching.after(BLIP, 0, 0.0)
    assert raised.value is BLIP


def test_a_success_resets_the_count_of_blips() -> None:
    watching = watch()
    for _ in range(5):
        for _ in range(MAX_CONSECUTIVE_BLIPS - 1):
            watching.after(BLIP, 0, 0.0)
        watching.after(RUNNING, 0, 0.0)


def test_a_429_does_not_reset_the_count_of_blips() -> None:
    watching = watch()
    for _ in range(MAX_CONSECUTIVE_BLIPS - 1):
        watching.after(BLIP, 0, 0.0)
    watching.after(limited(), 0, 0.0)
    with pytest.raises(WhisulServerError):
        watching.after(BLIP, 0, 0.0)


@pytest.mark.parametrize(("interval", "retry_after"), [(5, None), (30, 15.0), (5, 300.0)])
def test_after_a_429_the_job_is_due_as_ever(interval: float, retry_after: float | None) -> None:
    """How long everybody keeps quiet is the business of the account's pace."""
    watching = watch(interval)
    assert [watching.after(limited(retry_after), 0, 0.5) for _ in range(3)] == [interval] * 3


def test_429s_are_never_too_many_in_a_row() -> None:
    watching = watch(5)
    assert {watching.after(limited(), 0, 0.0) for _ in range(500)} == {5}


@pytest.mark.parametrize(
    ("now", "retry_after", "ends"),
    [(0, 3600.0, False), (0, 3600.5, True), (3590, None, False), (3591, None, True), (3000, 1e9, True)],
)
def test_a_429_beyond_the_deadline_ends_at_once(now: float, retry_after: float | None, ends: bool) -> None:
    if ends:
        with pytest.raises(WhisulJobTimeoutError, match=r"The last look failed: Whisul answered 429\."):
            watch().after(limited(retry_after), now, 0.0)
    else:
        assert watch().after(limited(retry_after), now, 0.0) == 10


# --- the time-out's words


def test_a_time_out_names_the_job_and_says_that_it_may_still_run() -> None:
    with pytest.raises(WhisulJobTimeoutError) as raised:
        watch(deadline=1_771_342_774.9).after(RUNNING, 1_771_342_775, 0.0)
    message = str(raised.value)
    assert raised.value.job_id == "j-1"
    assert message.startswith("Whisul job j-1 was not over by 2026-02-17 15:39:34 UTC")
    assert "may still be running" in message
    assert "WhisulJobSensor" in message
    assert "last look" not in message


@pytest.mark.parametrize(
    ("looks", "named"), [([BLIP], True), ([limited(), BLIP], True), ([BLIP, RUNNING], False), ([RUNNING], False)]
)
def test_a_time_out_names_the_last_look_s_error_only(looks: list[WhisulJob | WhisulError], named: bool) -> None:
    watching = watch()
    for seen in looks[:-1]:
        watching.after(seen, 0, 0.0)
    with pytest.raises(WhisulJobTimeoutError) as raised:
        watching.after(looks[-1], 3600, 0.0)
    assert ("The last look failed: Whisul answered 500." in str(raised.value)) is named


# --- whatever happens

OUTCOMES = st.one_of(
    st.sampled_from([RUNNING, WhisulJob("j-1", "queued"), BLIP, WhisulConnectionError("reset")]),
    st.builds(limited, st.none() | st.floats(0, 400)),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    outcomes=st.lists(OUTCOMES, min_size=1, max_size=30),
    interval=st.floats(5, 120),
    timeout=st.floats(0.1, 2000),
    chances=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
    latency=st.floats(0, 30),
    quiet_for=st.none() | st.floats(-100, 100),
)
def test_no_wait_is_too_short_and_none_outlasts_the_deadline(
    outcomes: list[WhisulJob | WhisulError],
    interval: float,
    timeout: float,
    chances: list[float],
    latency: float,
    quiet_for: float | None,
) -> None:
    # Starts at zero, so that no rounding of large numbers blurs the bounds.
    now, deadline, slack = 0.0, timeout, 1e-6
    watching = JobWatch("j-1", interval, deadline)
    chance = cycle(chances)
    not_before = None if quiet_for is None or quiet_for > timeout else quiet_for
    wait: float | None = watching.first_wait(now, next(chance), not_before)
    assert wait is not None
    assert wait >= (not_before or 0.0) - slack
    for looks, seen in enumerate(cycle(outcomes), start=1):
        assert wait is not None, "only a completed job ends without an error"
        assert wait >= 5
        # The last look falls on the deadline, or on the least that the API allows beyond it.
        assert now + wait <= max(deadline, now + 5) + slack
        assert looks == 1 or now < deadline
        now += wait
        assert looks <= timeout / 5 + 2, "looked more often than the API allows"
        now += latency
        try:
            wait = watching.after(seen, now, next(chance))
        except WhisulJobTimeoutError:
            # It ends only when time is up, or would be before Whisul may be asked again.
            quiet = max(interval, seen.retry_after or 0) if isinstance(seen, WhisulRateLimitError) else 0
            assert now + quiet >= deadline - slack
            break
        except WhisulError as error:
            assert error is seen  # noqa: PT017
            assert isinstance(error, (WhisulServerError, WhisulConnectionError))  # noqa: PT017
            assert looks >= MAX_CONSECUTIVE_BLIPS
            break
        if isinstance(seen, WhisulRateLimitError):
            assert wait is not None
            assert wait == interval
    assert now <= max(deadline, 0.0) + 5 + latency + slack

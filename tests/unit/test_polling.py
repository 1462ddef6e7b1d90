"""Waiting for a job, as decisions alone: time is a number here, and nothing sleeps."""

from __future__ import annotations

import logging
from datetime import timedelta
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.api.models import Song, WhisulJob
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
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    MAX_CONSECUTIVE_POLL_FAILURES,
    JobPoller,
    _in_seconds,
    check_poll_interval,
    check_timeout,
    within_not_found_grace,
)

RUNNING = WhisulJob("j-1", "running")
SONG: Song = {
    "job_id": "j-1",
    "prompt": "p",
    "title": "t",
    "bpm": 140,
    "duration_seconds": 167,
    "song_url": None,
    "image_url": None,
    "tags": [],
    "started_at": None,
    "finished_at": None,
}
COMPLETED = WhisulJob("j-1", "completed", song=SONG)
FAILED = WhisulJob("j-1", "failed", error="out of tune")
TRANSIENT = WhisulServerError("Whisul answered 500.")


def throttled(retry_after: float | None = None, cooldown: float | None = None) -> WhisulRateLimitError:
    """Return the error for a 429."""
    return WhisulRateLimitError(
        "Whisul answered 429.", job_id="j-1", http_status=429, retry_after=retry_after, cooldown=cooldown
    )


def refused(cooldown: float | None) -> WhisulRateLimitError:
    """Return the error for a poll that our rate limiter did not permit."""
    return WhisulRateLimitError("Nothing was sent.", cooldown=cooldown)


def poller_of(interval: float = 10, deadline: float = 3600) -> JobPoller:
    return JobPoller("j-1", interval, deadline)


# --- the first poll


@pytest.mark.parametrize(
    ("jitter", "now", "deadline", "not_before", "expected"),
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
def test_the_first_poll_waits_one_interval_and_jitter_or_until_not_before(
    jitter: float, now: float, deadline: float, not_before: float | None, expected: float
) -> None:
    assert poller_of(10, deadline).initial_delay(now, jitter, not_before) == pytest.approx(expected)


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 5), (0.7, 12)])
def test_a_resumed_wait_polls_first_after_the_least_interval_that_the_api_allows(
    jitter: float, expected: float
) -> None:
    """Not sooner: a trigger may be started again at any moment, and may end at its first poll."""
    assert poller_of(10, 3600).initial_delay(1000, jitter, resumed=True) == pytest.approx(expected)


def test_a_cooldown_beyond_the_deadline_ends_the_wait_before_the_first_poll() -> None:
    with pytest.raises(WhisulJobTimeoutError, match="may still be running"):
        poller_of(10, 60).initial_delay(0, 0.0, not_before=7200)


# --- a job that is still running


@pytest.mark.parametrize(
    ("now", "expected"), [(0, 10), (3589, 10), (3590, 10), (3592, 8), (3595, 5), (3596, 5), (3599.9, 5)]
)
@pytest.mark.parametrize("jitter", [0.0, 0.9])
def test_a_running_job_is_polled_every_interval_and_at_the_deadline(now: float, expected: float, jitter: float) -> None:
    assert poller_of().next_delay(RUNNING, now, jitter) == expected


@pytest.mark.parametrize("now", [3600, 3600.1, 99_999])
@pytest.mark.parametrize("result", [RUNNING, WhisulJob("j-1", "queued"), TRANSIENT, throttled()])
def test_waiting_for_a_job_that_has_not_ended_ends_at_the_deadline(result: WhisulJob | WhisulError, now: float) -> None:
    with pytest.raises(WhisulJobTimeoutError):
        poller_of().next_delay(result, now, 0.0)


@pytest.mark.parametrize("now", [0, 3600, 99_999])
def test_an_ended_job_counts_also_after_the_deadline(now: float) -> None:
    assert poller_of().next_delay(COMPLETED, now, 0.0) is None
    with pytest.raises(WhisulJobFailedError, match="Whisul job j-1 failed: out of tune"):
        poller_of().next_delay(FAILED, now, 0.0)


def test_an_undocumented_status_counts_as_running_and_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    poller = poller_of()
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul.polling"):
        assert [poller.next_delay(WhisulJob("j-1", word), 0, 0.0) for word in ("queued", "queued", "mixing")] == [
            10
        ] * 3
        assert poller.next_delay(RUNNING, 0, 0.0) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "Whisul reports the undocumented status 'queued' for job j-1; it counts as still running."
    ]


def test_documented_statuses_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="airflow_provider_whisul.polling"):
        poller_of().next_delay(RUNNING, 0, 0.0)
        poller_of().next_delay(COMPLETED, 0, 0.0)
    assert caplog.records == []


# --- polls that fail


def test_a_404_about_a_job_that_was_found_before_is_tolerated_for_a_minute() -> None:
    not_found, poller = WhisulJobNotFoundError("404"), poller_of()
    assert poller.next_delay(RUNNING, 100, 0.0) == 10
    assert [poller.next_delay(not_found, now, 0.0) for now in (110, 120, 169)] == [10, 10, 10]
    assert poller.next_delay(RUNNING, 179, 0.0) == 10
    assert poller.next_delay(not_found, 500, 0.0) == 10
    with pytest.raises(WhisulJobNotFoundError):
        poller.next_delay(not_found, 560, 0.0)


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
def test_an_error_that_is_not_transient_ends_the_wait_at_once(error: WhisulError, now: float) -> None:
    with pytest.raises(WhisulError) as raised:
        poller_of().next_delay(error, now, 0.0)
    assert raised.value is error


@pytest.mark.parametrize("error", [TRANSIENT, WhisulConnectionError("reset"), WhisulResponseError("HTML")], ids=type)
@pytest.mark.parametrize(
    ("interval", "now", "jitter", "expected"),
    [(5, 0, 0.0, 10), (5, 0, 0.5, 20), (10, 0, 1.0, 30), (60, 0, 0.5, 60), (10, 3585, 0.5, 15), (10, 3599, 0.5, 5)],
)
def test_after_a_transient_failure_the_job_is_polled_again(
    error: WhisulError,
    interval: float,
    now: float,
    jitter: float,
    expected: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul.polling"):
        assert poller_of(interval).next_delay(error, now, jitter) == expected
    assert [record.getMessage() for record in caplog.records] == [f"{error} Polling job j-1 again in {expected:.0f} s."]


def test_consecutive_transient_failures_are_tolerated_up_to_the_limit() -> None:
    poller = poller_of()
    for _ in range(MAX_CONSECUTIVE_POLL_FAILURES - 1):
        assert poller.next_delay(WhisulConnectionError("reset"), 0, 0.0) == 10
    with pytest.raises(WhisulServerError) as raised:
        poller.next_delay(TRANSIENT, 0, 0.0)
    assert raised.value is TRANSIENT


def test_a_successful_poll_resets_the_count_of_transient_failures() -> None:
    poller = poller_of()
    for _ in range(5):
        for _ in range(MAX_CONSECUTIVE_POLL_FAILURES - 1):
            poller.next_delay(TRANSIENT, 0, 0.0)
        poller.next_delay(RUNNING, 0, 0.0)


def test_a_429_does_not_reset_the_count_of_transient_failures() -> None:
    poller = poller_of()
    for _ in range(MAX_CONSECUTIVE_POLL_FAILURES - 1):
        poller.next_delay(TRANSIENT, 0, 0.0)
    poller.next_delay(throttled(), 0, 0.0)
    with pytest.raises(WhisulServerError):
        poller.next_delay(TRANSIENT, 0, 0.0)


@pytest.mark.parametrize(("interval", "retry_after"), [(5, None), (30, 15.0), (5, 300.0)])
def test_after_a_429_the_next_poll_is_due_after_the_poll_interval(interval: float, retry_after: float | None) -> None:
    """How long no request is sent is the rate limiter's decision."""
    poller = poller_of(interval)
    assert [poller.next_delay(throttled(retry_after), 0, 0.5) for _ in range(3)] == [interval] * 3


def test_no_number_of_429s_ends_the_wait() -> None:
    poller = poller_of(5)
    assert {poller.next_delay(throttled(), 0, 0.0) for _ in range(500)} == {5}


@pytest.mark.parametrize(
    ("now", "retry_after", "ends"),
    [(0, 3600.0, False), (0, 3600.5, True), (3590, None, False), (3591, None, True), (3000, 1e9, True)],
)
def test_a_retry_after_beyond_the_deadline_ends_the_wait_at_once(
    now: float, retry_after: float | None, ends: bool
) -> None:
    if ends:
        with pytest.raises(WhisulJobTimeoutError, match=r"The last poll failed: Whisul answered 429\."):
            poller_of().next_delay(throttled(retry_after), now, 0.0)
    else:
        assert poller_of().next_delay(throttled(retry_after), now, 0.0) == 10


@pytest.mark.parametrize(
    ("now", "cooldown", "ends"), [(0, 3600.0, False), (0, 3600.5, True), (3590, None, False), (3591, None, True)]
)
def test_a_cooldown_of_our_rate_limiter_beyond_the_deadline_ends_the_wait_at_once(
    now: float, cooldown: float | None, ends: bool
) -> None:
    if ends:
        with pytest.raises(WhisulJobTimeoutError, match=r"The last poll failed: Nothing was sent\."):
            poller_of().next_delay(refused(cooldown), now, 0.0)
    else:
        assert poller_of().next_delay(refused(cooldown), now, 0.0) == 10


def test_after_a_429_our_own_cooldown_does_not_end_the_wait() -> None:
    """The block may end sooner, at a probe of another request. Only the server's Retry-After is certain."""
    assert poller_of().next_delay(throttled(cooldown=4000.0), 0, 0.0) == 10


# --- the message of a timeout


def test_a_timeout_names_the_job_and_says_that_it_may_still_be_running() -> None:
    with pytest.raises(WhisulJobTimeoutError) as raised:
        poller_of(deadline=1_771_342_774.9).next_delay(RUNNING, 1_771_342_775, 0.0)
    message = str(raised.value)
    assert raised.value.job_id == "j-1"
    assert message.startswith(
        "Waiting for Whisul job j-1 has ended, since no further poll is possible by its deadline, "
        "2026-02-17 15:39:34 UTC"
    )
    assert "may still be running" in message
    assert "WhisulJobSensor" in message
    assert "last poll" not in message


@pytest.mark.parametrize(
    ("results", "named"),
    [([TRANSIENT], True), ([throttled(), TRANSIENT], True), ([TRANSIENT, RUNNING], False), ([RUNNING], False)],
)
def test_a_timeout_names_the_error_of_the_last_poll_only(results: list[WhisulJob | WhisulError], named: bool) -> None:
    poller = poller_of()
    for result in results[:-1]:
        poller.next_delay(result, 0, 0.0)
    with pytest.raises(WhisulJobTimeoutError) as raised:
        poller.next_delay(results[-1], 3600, 0.0)
    assert ("The last poll failed: Whisul answered 500." in str(raised.value)) is named


# --- any sequence of results

OUTCOMES = st.one_of(
    st.sampled_from([RUNNING, WhisulJob("j-1", "queued"), TRANSIENT, WhisulConnectionError("reset")]),
    st.builds(throttled, st.none() | st.floats(0, 400)),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    outcomes=st.lists(OUTCOMES, min_size=1, max_size=30),
    interval=st.floats(5, 120),
    timeout=st.floats(0.1, 2000),
    jitters=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
    latency=st.floats(0, 30),
    cooldown=st.none() | st.floats(-100, 100),
)
def test_no_delay_is_under_5_s_and_none_ends_after_the_deadline(
    outcomes: list[WhisulJob | WhisulError],
    interval: float,
    timeout: float,
    jitters: list[float],
    latency: float,
    cooldown: float | None,
) -> None:
    # Starts at zero, so that no rounding of large numbers blurs the bounds.
    now, deadline, slack = 0.0, timeout, 1e-6
    poller = JobPoller("j-1", interval, deadline)
    jitter = cycle(jitters)
    not_before = None if cooldown is None or cooldown > timeout else cooldown
    delay: float | None = poller.initial_delay(now, next(jitter), not_before)
    assert delay is not None
    assert delay >= (not_before or 0.0) - slack
    for polls, result in enumerate(cycle(outcomes), start=1):
        assert delay is not None, "only a completed job ends without an error"
        assert delay >= 5
        # The last poll falls on the deadline, or on the least that the API allows beyond it.
        assert now + delay <= max(deadline, now + 5) + slack
        assert polls == 1 or now < deadline
        now += delay
        assert polls <= timeout / 5 + 2, "polled more often than the API allows"
        now += latency
        try:
            delay = poller.next_delay(result, now, next(jitter))
        except WhisulJobTimeoutError:
            # It ends only at the deadline, or where the deadline comes before the next request may be sent.
            blocked_for = max(interval, result.retry_after or 0) if isinstance(result, WhisulRateLimitError) else 0
            assert now + blocked_for >= deadline - slack
            break
        except WhisulError as error:
            assert error is result  # noqa: PT017
            assert isinstance(error, (WhisulServerError, WhisulConnectionError))  # noqa: PT017
            assert polls >= MAX_CONSECUTIVE_POLL_FAILURES
            break
        if isinstance(result, WhisulRateLimitError):
            assert delay is not None
            assert delay == interval
    assert now <= max(deadline, 0.0) + 5 + latency + slack


# --- the grace after a submission


@pytest.mark.parametrize(
    ("since", "now", "tolerated"),
    [(None, 0, False), (1000, 1000, True), (1000, 1059.9, True), (1000, 1060, False), (1000, 99_999, False)],
)
def test_a_404_is_tolerated_for_60_s_after_the_submission(since: float | None, now: float, tolerated: bool) -> None:
    assert within_not_found_grace(since, now) is tolerated
    poller = JobPoller("j-1", 10, 200_000, submitted_at=since)
    if tolerated:
        assert poller.next_delay(WhisulJobNotFoundError("404"), now, 0.0) == 10
    else:
        with pytest.raises(WhisulJobNotFoundError):
            poller.next_delay(WhisulJobNotFoundError("404"), now, 0.0)


# --- arguments


@pytest.mark.parametrize(("value", "expected"), [(5, 5.0), (7.5, 7.5), (timedelta(minutes=1, milliseconds=500), 60.5)])
def test_a_duration_is_read_as_seconds(value: float | timedelta, expected: float) -> None:
    assert _in_seconds(value) == expected
    assert isinstance(_in_seconds(value), float)


@pytest.mark.parametrize("value", [5, 5.0, 10, 3600.5, timedelta(seconds=5), timedelta(days=1), DEFAULT_POLL_INTERVAL])
def test_a_poll_interval_of_5_s_or_more_is_accepted(value: float | timedelta) -> None:
    assert check_poll_interval(value, "poll_interval") == _in_seconds(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4.999, "4.999 s"),
        (1, "1 s"),
        (0, "0 s"),
        (-10, "-10 s"),
        (timedelta(seconds=4), "4 s"),
        (float("nan"), "nan s"),
        (float("inf"), "inf s"),
    ],
)
def test_a_poll_interval_that_the_api_forbids_is_refused_with_the_reason(value: float | timedelta, shown: str) -> None:
    with pytest.raises(ValueError, match=r"^poke_interval is ") as raised:
        check_poll_interval(value, "poke_interval")
    message = str(raised.value)
    assert shown in message
    assert "once every 5 to 10 s" in message
    assert "Use 5 or more" in message


@pytest.mark.parametrize("value", [0.001, 1, 3600, timedelta(hours=2), DEFAULT_TIMEOUT])
def test_a_positive_timeout_is_accepted(value: float | timedelta) -> None:
    assert check_timeout(value) == _in_seconds(value)


@pytest.mark.parametrize("value", [0, -1, timedelta(0), timedelta(seconds=-5), float("nan"), float("inf")])
def test_a_timeout_that_is_not_positive_is_refused_with_the_reason(value: float | timedelta) -> None:
    with pytest.raises(ValueError, match=r"^timeout is \S+ s; it must be a positive number of seconds\.$"):
        check_timeout(value)

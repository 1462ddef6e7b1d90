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
    WhisulSongMissingError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.outage import Outage
from airflow_provider_whisul.polling import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    LAST_POLL_MAX_WAIT,
    MAX_CONSECUTIVE_POLL_FAILURES,
    NOT_FOUND_GRACE,
    SONG_URL_GRACE,
    JobPoller,
    NotFoundGrace,
    _in_seconds,
    check_poll_interval,
    check_timeout,
    last_poll_max_wait,
)
from airflow_provider_whisul.rate_limit.backoff import NotBefore

RUNNING = WhisulJob("j-1", "running")
SONG: Song = {
    "job_id": "j-1",
    "prompt": "p",
    "title": "t",
    "bpm": 140,
    "duration_seconds": 167,
    "song_url": "https://media.test/song.wav",
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
        (0.0, 1000, 3600, (1060, 90), 60),
        (0.5, 1000, 3600, (1012, 90), 15),
        (0.0, 1000, 3600, (900, 90), 10),
        (0.0, 1000, 1060, (1060, 90), 60),
        # Beyond the deadline the last poll is at the deadline; a clock far ahead delays by no more than was to wait.
        (0.0, 1000, 1060, (1100, 100), 60),
        (0.0, 1000, 9000, (9000, 90), 90),
    ],
)
def test_the_first_poll_waits_one_interval_and_jitter_or_until_not_before(
    jitter: float, now: float, deadline: float, not_before: tuple[float, float] | None, expected: float
) -> None:
    until = None if not_before is None else NotBefore(*not_before)
    assert poller_of(10, deadline).initial_delay(now, jitter, until) == pytest.approx(expected)


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 5), (0.7, 12)])
def test_a_resumed_wait_polls_first_after_the_least_interval_that_the_api_allows(
    jitter: float, expected: float
) -> None:
    """Not sooner: a trigger may be started again at any moment, and may end at its first poll."""
    assert poller_of(10, 3600).initial_delay(1000, jitter, since=0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("interval", "age", "jitter", "expected"),
    [
        (10, 0, 0.5, 15),
        (10, 3, 0.5, 12),
        (10, 5, 0.0, 5),
        (10, 240, 0.5, 10),
        (60, 50, 0.0, 10),
        (60, 240, 0.5, 35),
        # The clock was put back, or is behind that of the machine that has submitted it.
        (10, -30, 0.5, 15),
    ],
)
def test_the_first_interval_of_a_job_that_nobody_has_polled_counts_from_its_submission(
    interval: float, age: float, jitter: float, expected: float
) -> None:
    """But the API's least interval counts from now on: a trigger that is started again may just have polled it."""
    poller = JobPoller("j-1", interval, 3600)
    assert poller.initial_delay(1000, jitter, since=1000 - age) == pytest.approx(expected)
    assert poller.initial_delay(1000, jitter) == pytest.approx(interval * (1 + jitter))


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
    with pytest.raises(WhisulJobFailedError, match=r"The song failed: out of tune.*job j-1"):
        poller_of().next_delay(FAILED, now, 0.0)


def test_an_undocumented_status_counts_as_running_and_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    poller = poller_of()
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul"):
        assert [poller.next_delay(WhisulJob("j-1", word), 0, 0.0) for word in ("queued", "queued", "mixing")] == [
            10
        ] * 3
        assert poller.next_delay(RUNNING, 0, 0.0) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "Whisul reports the undocumented status 'queued' for job j-1; it counts as still running."
    ]


def test_documented_statuses_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="airflow_provider_whisul"):
        poller_of().next_delay(RUNNING, 0, 0.0)
        poller_of().next_delay(COMPLETED, 0, 0.0)
    assert caplog.records == []


# --- polls that fail


NOT_FOUND = WhisulJobNotFoundError("404")


@pytest.mark.parametrize("found_before", [True, False])
def test_a_404_is_tolerated_for_a_minute_from_the_first_one_on(found_before: bool) -> None:
    poller = poller_of()
    if found_before:
        assert poller.next_delay(RUNNING, 100, 0.0) == 10
    assert [poller.next_delay(NOT_FOUND, now, 0.0) for now in (110, 120, 164)] == [10, 10, 6]
    with pytest.raises(WhisulJobNotFoundError) as raised:
        poller.next_delay(NOT_FOUND, 110 + NOT_FOUND_GRACE, 0.0)
    assert raised.value is NOT_FOUND


def test_a_job_that_is_found_again_has_another_minute() -> None:
    poller = poller_of()
    for begin in (0, 500, 560):
        assert poller.next_delay(NOT_FOUND, begin, 0.0) == 10
        assert poller.next_delay(NOT_FOUND, begin + 59, 0.0) == 5
        assert poller.next_delay(RUNNING, begin + 60, 0.0) == 10


def test_it_takes_two_polls_a_minute_apart_however_long_the_interval_is() -> None:
    poller = poller_of(600)
    assert poller.next_delay(NOT_FOUND, 0, 0.0) == NOT_FOUND_GRACE
    with pytest.raises(WhisulJobNotFoundError):
        poller.next_delay(NOT_FOUND, NOT_FOUND_GRACE, 0.0)


def test_a_404_at_the_deadline_is_a_timeout() -> None:
    with pytest.raises(WhisulJobTimeoutError, match="The last poll failed: 404"):
        poller_of(deadline=100).next_delay(NOT_FOUND, 100, 0.0)


@given(st.lists(st.floats(-7200, 7200), max_size=20))
def test_a_clock_that_is_set_never_prolongs_the_grace_by_more_than_itself(jumps: list[float]) -> None:
    grace, now = NotFoundGrace(), 0.0
    for jump in jumps:
        now += jump
        delay = grace.next_delay(now, 10)
        assert delay is None or 5 <= delay <= 10
    for _ in range(13):
        delay = grace.next_delay(now, 10)
        if delay is None:
            break
        now += delay
    assert delay is None


# --- a completed job without a song


@pytest.mark.parametrize("url", [None, "", "  "])
def test_a_completed_job_without_a_url_is_polled_on_for_minutes(
    url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    poller = poller_of()
    without_url = WhisulJob("j-1", "completed", prompt="p", song={**SONG, "song_url": url})
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul"):
        assert [poller.next_delay(without_url, now, 0.0) for now in (100, 110, 100 + SONG_URL_GRACE - 1)] == [10] * 3
    assert len(caplog.records) == 1
    assert poller.next_delay(COMPLETED, 399.5, 0.0) is None
    with pytest.raises(WhisulSongMissingError, match=r'job j-1 \("p"\) is completed, but has given no URL .*paid for'):
        poller.next_delay(without_url, 100 + SONG_URL_GRACE, 0.0)


def test_a_completed_job_without_a_url_is_no_timeout_at_the_deadline() -> None:
    without_url = WhisulJob("j-1", "completed", song={**SONG, "song_url": None})
    poller = poller_of(deadline=30)
    assert poller.next_delay(without_url, 0, 0.0) == 10
    with pytest.raises(WhisulSongMissingError):
        poller.next_delay(without_url, 30, 0.0)


# --- other failures


@pytest.mark.parametrize(
    "error",
    [
        WhisulUnauthorizedError("401"),
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
    with caplog.at_level(logging.WARNING, logger="airflow_provider_whisul"):
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


@pytest.mark.parametrize("error", [throttled(3700.0), throttled(cooldown=4000.0), throttled()])
@pytest.mark.parametrize(("now", "expected"), [(0, 10), (3592, 8)])
def test_a_429_ends_no_wait_before_its_deadline(error: WhisulRateLimitError, now: float, expected: float) -> None:
    poller = poller_of()
    assert poller.next_delay(error, now, 0.0) == expected
    with pytest.raises(
        WhisulJobTimeoutError, match=r"ended at 1970-01-01 01:00:00 UTC.* failed: Whisul answered 429\."
    ):
        poller.next_delay(error, 3600, 0.0)


@pytest.mark.parametrize(
    ("now", "cooldown", "expected"),
    [(0, None, 10), (0, 3.0, 10), (0, 500.0, 500), (0, 9000.0, 3600), (3590, 9000.0, 10), (3599, 9000.0, 5)],
)
def test_after_a_refusal_of_our_rate_limiter_the_job_is_polled_when_a_request_may_be_sent(
    now: float, cooldown: float | None, expected: float
) -> None:
    assert poller_of().next_delay(refused(cooldown), now, 0.0) == expected


@pytest.mark.parametrize(("now", "first", "later"), [(0, 3605, 3605), (3590, 15, 15), (3603, 5, 2), (9000, 5, 0)])
def test_a_poll_waits_for_the_rate_limiter_until_shortly_after_the_deadline(
    now: float, first: float, later: float
) -> None:
    poller = poller_of()
    assert poller.max_wait(now) == first
    poller.next_delay(RUNNING, 0, 0.0)
    assert poller.max_wait(now) == later


# --- what is logged of failures


def test_one_warning_when_failures_begin_and_one_line_when_they_are_over(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    pollers = [JobPoller(f"j-{number}", 10, 3600, outage=outage) for number in range(300)]
    with caplog.at_level(logging.INFO, logger="airflow_provider_whisul"):
        for now in (0, 10, 20):
            for poller in pollers:
                poller.next_delay(TRANSIENT, now, 0.0)
        for poller in pollers:
            poller.next_delay(RUNNING, 30, 0.0)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Whisul answered 500. Polling job j-0 again in 10 s."),
        ("INFO", "Whisul answers again, after 900 polls of 300 jobs had failed in 30 s."),
    ]


def test_jobs_that_are_given_up_end_no_outage_and_keep_none_open(caplog: pytest.LogCaptureFixture) -> None:
    poller = JobPoller("j-1", 10, 100)
    with caplog.at_level(logging.INFO, logger="airflow_provider_whisul"):
        poller.next_delay(TRANSIENT, 0, 0.0)
        with pytest.raises(WhisulJobTimeoutError):
            poller.next_delay(TRANSIENT, 100, 0.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with caplog.at_level(logging.INFO, logger="airflow_provider_whisul"):
        JobPoller("j-2", 10, 900, outage=poller.outage).next_delay(TRANSIENT, 200, 0.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


# --- the message of a timeout


def test_a_timeout_names_the_job_and_says_that_it_may_still_be_running() -> None:
    with pytest.raises(WhisulJobTimeoutError) as raised:
        poller_of(deadline=1_771_342_774.9).next_delay(RUNNING, 1_771_342_775, 0.0)
    message = str(raised.value)
    assert raised.value.job_id == "j-1"
    assert message.startswith("Waiting for Whisul job j-1 ended at 2026-02-17 15:39:34 UTC, by the timeout: ")
    assert "may still be running" in message
    assert "WhisulJobSensor" in message
    assert "last poll" not in message


def test_a_timeout_names_the_prompt_that_a_poll_has_told_and_what_its_deadline_came_from() -> None:
    poller = JobPoller("j-1", 10, 100, "execution_timeout")
    poller.next_delay(WhisulJob("j-1", "running", prompt="a song\n" + "la " * 50), 0, 0.0)
    with pytest.raises(WhisulJobTimeoutError) as raised:
        poller.next_delay(RUNNING, 100, 0.0)
    assert 'job j-1 ("a song la la' in str(raised.value)
    assert "by the task's execution_timeout" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 350


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
    delay: float | None = poller.initial_delay(
        now, next(jitter), None if cooldown is None else NotBefore(cooldown, max(cooldown, 0.0))
    )
    assert delay is not None
    assert delay >= min(cooldown or 0.0, deadline) - slack
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
            assert now >= deadline - slack
            break
        except WhisulError as error:
            assert error is result  # noqa: PT017
            assert isinstance(error, (WhisulServerError, WhisulConnectionError))  # noqa: PT017
            assert polls >= MAX_CONSECUTIVE_POLL_FAILURES
            break
    assert now <= max(deadline, 0.0) + 5 + latency + slack


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


def test_the_last_polls_of_many_jobs_wait_longer_unless_airflow_ends_the_task_meanwhile() -> None:
    assert last_poll_max_wait(1_000, "timeout", on_worker=True) == last_poll_max_wait(1_000, "timeout") == 240
    assert last_poll_max_wait(1_000, "execution_timeout", on_worker=True) == LAST_POLL_MAX_WAIT

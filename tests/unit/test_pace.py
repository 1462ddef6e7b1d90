"""The API's limits and ours, as numbers."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
)
from airflow_provider_whisul.pace import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    MAX_ATTEMPTS,
    check_poll_interval,
    check_timeout,
    in_seconds,
    parse_retry_after,
    retry_wait,
)

# 2026-02-17 15:39:34 UTC
NOW = 1_771_342_774.0


@pytest.mark.parametrize(
    ("consecutive", "retry_after", "expected"),
    [
        (1, None, 5),
        (2, None, 10),
        (3, None, 20),
        (4, None, 40),
        (5, None, 60),
        (6, None, 60),
        (1000, None, 60),
        (1, 0.0, 5),
        (1, 4.9, 5),
        (1, 5.1, 5.1),
        (1, 3600.0, 3600),
        (3, 12.0, 20),
        (5, 61.0, 61),
    ],
)
@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_after_429_the_ladder_or_retry_after_where_longer(
    consecutive: int, retry_after: float | None, expected: float, chance: float
) -> None:
    assert retry_wait(WhisulRateLimitError("m", retry_after=retry_after), consecutive, chance) == expected


@pytest.mark.parametrize("cls", [WhisulServerError, WhisulConnectionError, WhisulResponseError])
@pytest.mark.parametrize(("chance", "expected"), [(0.0, 10), (0.25, 15), (1.0, 30)])
@pytest.mark.parametrize("consecutive", [1, 19])
def test_after_a_blip_10_to_30_s(cls: type[WhisulError], chance: float, expected: float, consecutive: int) -> None:
    assert retry_wait(cls("m"), consecutive, chance) == expected


def test_six_attempts_take_every_rung_of_the_ladder_once() -> None:
    waits = [retry_wait(WhisulRateLimitError("m"), n, 0) for n in range(1, MAX_ATTEMPTS)]
    assert waits == [5, 10, 20, 40, 60]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("1.5", 1.5),
        ("-30", 0),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("9" * 400, None),
        ("Tue, 17 Feb 2026 15:41:34 GMT", 120),
        ("Tue, 17 Feb 2026 16:41:34 +0100", 120),
        ("Tue, 17 Feb 2026 15:41:34 -0000", 120),
        ("Tue, 17 Feb 2026 15:41:34", 120),
        ("Tue, 17 Feb 2026 15:39:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("86400", 86_400),
        ("86401", None),
        ("1771329600", None),
        ("1771329600000", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Fri, 99 Jan 2100 00:00:00 GMT", None),
        ("Fri, 01 Jan 2100 00:00:00 +9999", None),
        ("Fri, 01 Jan 99999999999 00:00:00 GMT", None),
        ("Fri, 01 Jan " + "9" * 5000 + " 00:00:00 GMT", None),
        ("", None),
        (" ", None),
        ("soon", None),
        ("5 s", None),
        ("\ud800", None),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_retry_after(header: str | None, expected: float | None) -> None:
    assert parse_retry_after(header, NOW) == expected


def test_a_date_without_a_zone_is_utc_wherever_this_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "UTC-9")
            time.tzset()
            assert parse_retry_after("Tue, 17 Feb 2026 15:41:34 -0000", NOW) == 120
    finally:
        time.tzset()


@pytest.mark.parametrize(("value", "expected"), [(5, 5.0), (7.5, 7.5), (timedelta(minutes=1, milliseconds=500), 60.5)])
def test_in_seconds(value: float | timedelta, expected: float) -> None:
    assert in_seconds(value) == expected
    assert isinstance(in_seconds(value), float)


@pytest.mark.parametrize("value", [5, 5.0, 10, 3600.5, timedelta(seconds=5), timedelta(days=1), DEFAULT_POLL_INTERVAL])
def test_poll_interval_accepted(value: float | timedelta) -> None:
    assert check_poll_interval(value, "poll_interval") == in_seconds(value)


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
def test_poll_interval_refused_with_the_reason(value: float | timedelta, shown: str) -> None:
    with pytest.raises(ValueError, match=r"^poke_interval is ") as refused:
        check_poll_interval(value, "poke_interval")
    message = str(refused.value)
    assert shown in message
    assert "once every 5 to 10 s" in message
    assert "Use 5 or more" in message


@pytest.mark.parametrize("value", [0.001, 1, 3600, timedelta(hours=2), DEFAULT_TIMEOUT])
def test_timeout_accepted(value: float | timedelta) -> None:
    assert check_timeout(value) == in_seconds(value)


@pytest.mark.parametrize("value", [0, -1, timedelta(0), timedelta(seconds=-5), float("nan"), float("inf")])
def test_timeout_refused_with_the_reason(value: float | timedelta) -> None:
    with pytest.raises(ValueError, match=r"^timeout is \S+ s; it must be a positive number of seconds\.$"):
        check_timeout(value)

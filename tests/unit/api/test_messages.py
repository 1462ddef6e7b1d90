"""What is sent, and what is read of a response before anything is known of its meaning."""

from __future__ import annotations

import json
import time

import pytest

from airflow_provider_whisul.api.messages import (
    MAX_RETRY_AFTER,
    NO_SUCH_JOB_ID,
    Request,
    Response,
    generate_request,
    job_request,
    parse_exhausted_for,
    parse_retry_after,
)
from airflow_provider_whisul.exceptions import WhisulInvalidInputError

JOB_ID = "81fa5ff7-6197-4c24-8062-c0ff8b62d58d"

# 2026-02-17 15:39:34 UTC
NOW = 1_771_342_774.0

# --- requests


@pytest.mark.parametrize("prompt", ["a trap song", "  lo-fi \n beats ", "ünïcode 🎵", "\x00", "x" * 100_000])
def test_a_prompt_is_sent_unchanged(prompt: str) -> None:
    assert generate_request(prompt) == Request("POST", "/generate", {"prompt": prompt})


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\u3000"])
def test_an_empty_prompt_is_refused_and_not_sent(prompt: str) -> None:
    with pytest.raises(WhisulInvalidInputError, match=r"prompt is empty.*Nothing was sent"):
        generate_request(prompt)


@pytest.mark.parametrize(
    ("prompt", "kind"), [(None, "NoneType"), (5, "int"), (b"song", "bytes"), (["song"], "list"), ({}, "dict")]
)
def test_a_prompt_that_is_not_a_string_is_refused_and_not_sent(prompt: object, kind: str) -> None:
    with pytest.raises(WhisulInvalidInputError, match=f"must be a string, not {kind}. Nothing was sent"):
        generate_request(prompt)


GOOD_JOB_IDS = [JOB_ID, NO_SUCH_JOB_ID, "a", "A_b-9", "-", "x" * 200]
BAD_JOB_IDS: list[object] = [
    "",
    " ",
    "a/b",
    "../generate",
    "..",
    ".",
    "a.b",
    "a?b=c",
    "a#b",
    "a&b",
    "a%2fb",
    "a\\b",
    "@evil.example",
    "https://evil.example/jobs/1",
    "a b",
    "a\nb",
    "abc\n",
    "\nabc",
    "abc\r",
    "a\x00b",
    "١٢٣",
    "abcé",
    "ａｂｃ",  # noqa: RUF001
    "\ud800",
    "x" * 201,
    None,
    5,
    1.5,
    True,
    [JOB_ID],
    {"id": JOB_ID},
]


@pytest.mark.parametrize("job_id", GOOD_JOB_IDS)
def test_a_job_is_polled_under_the_id_that_the_submission_returned(job_id: str) -> None:
    assert job_request(job_id) == Request("GET", f"/jobs/{job_id}")


@pytest.mark.parametrize(
    "job_id", [*BAD_JOB_IDS, JOB_ID.encode(), object(), pytest.param(10**5000, id="10**5000")], ids=ascii
)
def test_a_job_id_that_could_change_the_url_is_refused_and_not_sent(job_id: object) -> None:
    with pytest.raises(WhisulInvalidInputError, match=r"is not the id of a Whisul job, so nothing was sent") as raised:
        job_request(job_id)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


# --- Response


def test_a_response_keeps_what_was_received_and_hides_the_key() -> None:
    received = Response.from_http(
        status=429, headers={"Retry-After": "7"}, body=b"{}", complete=False, now=0.0, api_key="wh-secret-3f9a"
    )
    assert received == Response(429, b"{}", complete=False, retry_after=7.0, api_key="wh-secret-3f9a")
    assert "wh-secret-3f9a" not in repr(received)
    dated = {"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}
    late = Response.from_http(status=429, headers=dated, body=b"", complete=True, now=20.0, api_key="wh-secret-3f9a")
    assert late.retry_after == 40.0
    plain = Response.from_http(status=200, headers={}, body=b"", complete=True, now=0.0, api_key="wh-secret-3f9a")
    assert plain.retry_after is None


def test_a_key_is_hidden_in_utf_16_too() -> None:
    for encoding in ("utf-16", "utf-16-be", "utf-16-le"):
        page = Response(502, "<p>Bearer wh-secret-3f9a</p>".encode(encoding), api_key="wh-secret-3f9a")
        assert "***</p>" in page.text()


def test_a_key_that_is_a_piece_of_json_does_not_change_the_body() -> None:
    body = json.dumps({"status": "completed", "prompt": "a trap song"}).encode()
    received = Response.from_http(status=200, headers={}, body=body, complete=True, now=0.0, api_key='s": "c')
    assert received.body == body


OUT_OF_CREDITS = [
    {"error": "insufficient_quota"},
    {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota."}},
    {"detail": {"type": "insufficient-credits"}},
    {"message": "You are out of credits."},
    {"message": "Not enough credits", "error": "Too many requests"},
    {"message": "Your credits are used up"},
    {"message": "You exceeded your current quota, please check your plan and billing details."},
    {"message": "Not enough credits for this request, try again with less"},
    {"error": "Payment Required"},
    {"error": "Forbidden", "message": "Insufficient credits."},
]
RATE_LIMITS = [
    {"error": "Too many requests", "message": "Rate limit exceeded."},
    {"message": "Quota exceeded for requests per minute"},
    {"message": "You have no remaining quota for this minute"},
    {"message": "You exceeded your current quota of 10 requests per minute. Retry in 30 s."},
    {"message": "No quota left, try again in 20 seconds"},
    {"error": "Insufficient request quota"},
    {"prompt": "a blues about being out of credits"},
    {"message": "out of credibility"},
    {"error": {"error": {"error": "out of credits"}}},
    {"message": None},
    ["out of credits"],
    "out of credits",
]


@pytest.mark.parametrize("body", OUT_OF_CREDITS, ids=str)
def test_a_429_that_says_that_the_credits_are_used_up_does_not_throttle_the_key(body: object) -> None:
    received = Response(429, json.dumps(body).encode())
    assert (received.out_of_credits, received.throttled) == (True, False)


@pytest.mark.parametrize("body", OUT_OF_CREDITS, ids=str)
def test_a_403_may_say_so_in_the_same_words(body: object) -> None:
    received = Response(403, json.dumps(body).encode())
    assert (received.out_of_credits, received.throttled) == (True, False)


@pytest.mark.parametrize("body", [*RATE_LIMITS, {"error": "Forbidden", "message": "Invalid API key."}], ids=str)
def test_any_other_403_is_not_about_credits(body: object) -> None:
    assert not Response(403, json.dumps(body).encode()).out_of_credits
    assert not Response(403, b"<p>out of credits</p>").out_of_credits


@pytest.mark.parametrize("body", RATE_LIMITS, ids=str)
def test_any_other_429_throttles_the_key(body: object) -> None:
    received = Response(429, json.dumps(body).encode())
    assert (received.out_of_credits, received.throttled) == (False, True)
    page = Response(429, b"<p>out of credits</p>")
    assert (page.out_of_credits, page.throttled) == (False, True)


@pytest.mark.parametrize("status", [200, 400, 401, 402, 500])
def test_only_a_429_throttles_and_a_402_is_always_about_credits(status: int) -> None:
    received = Response(status, b'{"error": "insufficient_quota"}')
    assert (received.out_of_credits, received.throttled) == (status == 402, False)


# --- Retry-After


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
        ("900", 900),
        ("901", MAX_RETRY_AFTER),
        ("60000", MAX_RETRY_AFTER),
        ("1771329600000", MAX_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
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
def test_retry_after_is_read_as_seconds_from_now(header: str | None, expected: float | None) -> None:
    assert parse_retry_after(header, NOW) == expected


def test_a_date_without_a_zone_is_utc_whatever_this_machine_s_time_zone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "UTC-9")
            time.tzset()
            assert parse_retry_after("Tue, 17 Feb 2026 15:41:34 -0000", NOW) == 120
    finally:
        time.tzset()


@pytest.mark.parametrize("prefix", ["RateLimit-", "X-RateLimit-"])
@pytest.mark.parametrize(
    ("remaining", "reset", "expected"),
    [
        ("0", "12", 12.0),
        ("0.0", "0.5", 0.5),
        ("-1", "12", 12.0),
        ("0", f"{NOW + 30:.0f}", 30.0),
        ("0", "100000", 60.0),
        ("0", f"{NOW + 1e6:.0f}", 60.0),
        ("1", "12", None),
        ("0", "0", None),
        ("0", "-5", None),
        ("0", f"{NOW - 30:.0f}", None),
        ("0", "inf", None),
        ("nan", "12", None),
        ("0", "nan", None),
        ("zero", "12", None),
        ("0", "soon", None),
        ("0", None, None),
        (None, "12", None),
    ],
)
def test_headers_say_for_how_long_the_limit_is_used_up(
    prefix: str, remaining: str | None, reset: str | None, expected: float | None
) -> None:
    headers = {f"{prefix}Remaining": remaining, f"{prefix}Reset": reset}
    assert parse_exhausted_for({name: text for name, text in headers.items() if text is not None}, NOW) == expected


@pytest.mark.parametrize(
    ("status", "retry_after", "exhausted_for", "expected"),
    [
        (200, None, None, None),
        (200, None, 12.0, 12.0),
        (429, 7.0, None, 7.0),
        (429, 7.0, 12.0, 12.0),
        (429, 20.0, 12.0, 20.0),
        # A CDN's, of one request.
        (503, 60.0, None, None),
    ],
)
def test_a_response_asks_the_account_to_wait_by_a_429_or_where_the_limit_is_used_up(
    status: int, retry_after: float | None, exhausted_for: float | None, expected: float | None
) -> None:
    assert Response(status, retry_after=retry_after, exhausted_for=exhausted_for).asked_wait == expected

"""What is sent, and what a response means."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.api.messages import (
    NO_SUCH_JOB_ID,
    Request,
    Response,
    generate_request,
    is_retryable,
    job_request,
    may_have_been_accepted,
    parse_retry_after,
    read_job,
    read_submission,
)
from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.text import MAX_QUOTED

JOB_ID = "81fa5ff7-6197-4c24-8062-c0ff8b62d58d"

RESULT: dict[str, object] = {
    "title": "Midnight Grid",
    "bpm": 140,
    "duration": "2:47",
    "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3",
    "image_url": "https://cdn.whisul.com/covers/81fa5ff7.jpg",
    "tags": "trap, dark, 808s, synth, bass",
}
JOB: dict[str, object] = {
    "status": "completed",
    "prompt": "a trap song",
    "result": RESULT,
    "error": None,
    "started_at": "2026-02-17 15:39:34",
    "finished_at": "2026-02-17 15:41:58",
}
# 2026-02-17 15:39:34 UTC
NOW = 1_771_342_774.0

HTML = b"<html>\n<head><title>502 Bad Gateway</title></head></html>"


def response(status: int, data: object, complete: bool = True) -> Response:
    return Response(status, json.dumps(data).encode(), complete)


def submit(received: Response) -> object:
    return read_submission(received)


def poll(received: Response) -> object:
    return read_job(received, JOB_ID)


def error_from(read: Callable[[Response], object], received: Response) -> WhisulError:
    with pytest.raises(WhisulError) as raised:
        read(received)
    error = raised.value
    assert error.http_status == received.status
    assert error.job_id == (JOB_ID if read is poll else None)
    assert str(error).isprintable()
    assert len(str(error)) < 1500
    return error


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
    assert read_submission(response(202, {"job_id": job_id})) == job_id


@pytest.mark.parametrize(
    "job_id", [*BAD_JOB_IDS, JOB_ID.encode(), object(), pytest.param(10**5000, id="10**5000")], ids=ascii
)
def test_a_job_id_that_could_change_the_url_is_refused_and_not_sent(job_id: object) -> None:
    with pytest.raises(WhisulInvalidInputError, match=r"is not the id of a Whisul job, so nothing was sent") as raised:
        job_request(job_id)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("job_id", BAD_JOB_IDS, ids=ascii)
def test_a_202_with_an_unusable_job_id_is_an_error(job_id: object) -> None:
    error = error_from(submit, response(202, {"message": "Composition task received.", "job_id": job_id}))
    assert type(error) is WhisulResponseError
    assert "accepted the prompt (202) but gave no usable job_id" in str(error)


def test_a_202_without_a_job_id_is_an_error() -> None:
    assert "no usable job_id: None" in str(error_from(submit, response(202, {"jobId": JOB_ID})))


def test_the_poll_url_in_a_response_is_ignored() -> None:
    received = response(202, {"message": "ok", "job_id": JOB_ID, "poll_url": "https://evil.example/jobs/1"})
    assert read_submission(received) == JOB_ID


# --- statuses and their errors

ANY_REQUEST: list[tuple[int, type[WhisulError], str]] = [
    (401, WhisulUnauthorizedError, "Put a valid one into the password of the Airflow connection"),
    (403, WhisulUnauthorizedError, "Put a valid one into the password of the Airflow connection"),
    (429, WhisulRateLimitError, "another request at once would prolong the block"),
    *((status, WhisulServerError, "usually transient") for status in (500, 502, 503, 504, 520, 599)),
    *((status, WhisulResponseError, "redirect, which is not followed") for status in (300, 301, 302, 303, 307, 308)),
    *(
        (status, WhisulResponseError, "which is not documented. Check the host")
        for status in (201, 204, 402, 405, 410, 418, 422)
    ),
    *((status, WhisulResponseError, "which is not documented. Check the host") for status in (0, 100, 299, 499)),
]
STATUSES = [
    *((read, *row) for read in (submit, poll) for row in ANY_REQUEST),
    (submit, 400, WhisulInvalidInputError, "No job was made. Check that the prompt is a non-empty text"),
    (poll, 400, WhisulInvalidInputError, "Check the job's id"),
    (submit, 200, WhisulResponseError, "which is not documented"),
    (submit, 404, WhisulResponseError, "which is not documented. Check the host"),
    (poll, 202, WhisulResponseError, "which is not documented"),
    (poll, 404, WhisulJobNotFoundError, "the id is wrong, it belongs to another account, or the job has expired"),
]
FINAL = (WhisulInvalidInputError, WhisulUnauthorizedError, WhisulJobNotFoundError)


@pytest.mark.parametrize(("read", "status", "cls", "hint"), STATUSES)
def test_a_status_becomes_its_error_with_a_hint(
    read: Callable[[Response], object], status: int, cls: type[WhisulError], hint: str
) -> None:
    error = error_from(read, response(status, {"error": "Oops", "message": "The API's own message."}))
    assert type(error) is cls
    assert isinstance(error, AirflowFailException) is (cls in FINAL)
    assert error.transient is (cls not in FINAL)
    about = f"about job {JOB_ID}" if read is poll else "to the submission"
    assert str(error).startswith(f'Whisul answered {status} {about} ("The API\'s own message")')
    assert hint in str(error)


@pytest.mark.parametrize(("read", "status", "cls", "hint"), STATUSES)
@pytest.mark.parametrize(
    "received",
    [
        Response(0, HTML),
        Response(0, b""),
        Response(0, b'{"message": "cut of', complete=False),
        Response(0, b"", complete=False),
        Response(0, b"\xff\xfe\x00"),
        Response(0, b"[" * 100_000),
    ],
    ids=["html", "empty", "truncated", "nothing", "binary", "deep"],
)
def test_the_status_decides_whatever_the_body_is(
    read: Callable[[Response], object], status: int, cls: type[WhisulError], hint: str, received: Response
) -> None:
    error = error_from(read, Response(status, received.body, received.complete))
    assert type(error) is cls
    assert hint in str(error)
    assert "<" not in str(error)
    assert "cut of" not in str(error)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"message": "m", "error": "e", "detail": "d"}, ' ("m")'),
        ({"error": "Invalid input"}, ' ("Invalid input")'),
        ({"detail": "Not here."}, ' ("Not here")'),
        ({"message": "", "error": "e"}, ' ("e")'),
        ({"message": "  \n", "error": "e"}, ' ("e")'),
        ({"message": {"code": 1}, "error": "e"}, ' ("e")'),
        ({"message": None}, ""),
        ({"other": "o"}, ""),
        (["message"], ""),
        ("message", ""),
        ({"message": "two\nlines\x1b[31m\u2028and more"}, ' ("two lines�[31m and more")'),
        ({"message": "x" * 100_000}, f' ("{"x" * MAX_QUOTED}…")'),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_api_s_own_message_is_quoted(body: object, detail: str) -> None:
    assert str(error_from(submit, response(400, body))).startswith(
        f"Whisul answered 400 to the submission{detail}. No job"
    )


@pytest.mark.parametrize("read", [submit, poll])
@pytest.mark.parametrize(("seconds", "named"), [(None, False), (0.0, True), (120.0, True)])
def test_a_429_names_the_seconds_that_the_server_asks_to_wait(
    read: Callable[[Response], object], seconds: float | None, named: bool
) -> None:
    error = error_from(read, Response(429, b"{}", retry_after=seconds))
    assert isinstance(error, WhisulRateLimitError)
    assert (error.retry_after, error.cooldown) == (seconds, None)
    assert (f"and asks to wait {seconds or 0:.0f} s" in str(error)) is named


# --- responses that are not as documented


@pytest.mark.parametrize(("read", "status"), [(submit, 202), (poll, 200)])
@pytest.mark.parametrize(
    ("body", "excerpt"),
    [
        (HTML, '"<html> <head><title>502 Bad Gateway'),
        (b"", "but empty."),
        (b" \n", "but empty."),
        (b"null", '"null"'),
        (b"[]", '"[]"'),
        (b'"completed"', "completed"),
        (b'{"job_id": "abc"', '"{"job_id"'),
        (b"\xff\xff{}", "�"),
        (b"[" * 100_000, "[[["),
        (b'{"a":' * 100_000, '{"a"'),
        (b'{"bpm": ' + b"1" * 5000 + b"}", '{"bpm"'),
        (b"x" * 100_000, "x" * 80 + '".'),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_success_without_the_documented_json_is_an_error_with_an_excerpt(
    read: Callable[[Response], object], status: int, body: bytes, excerpt: str
) -> None:
    error = error_from(read, Response(status, body))
    assert type(error) is WhisulResponseError
    assert f"({status}) is not the documented JSON but " in str(error)
    assert excerpt in str(error)
    assert "x" * 81 not in str(error)


@pytest.mark.parametrize(("read", "status", "data"), [(submit, 202, {"job_id": JOB_ID}), (poll, 200, JOB)])
def test_a_success_whose_body_broke_off_is_an_error(
    read: Callable[[Response], object], status: int, data: object
) -> None:
    received = response(status, data, complete=False)
    error = error_from(read, received)
    assert type(error) is WhisulResponseError
    assert f"broke off after {len(received.body)} bytes" in str(error)


@pytest.mark.parametrize("status", [None, 5, True, ["running"], {}])
def test_a_job_without_a_status_is_an_error(status: object) -> None:
    error = error_from(poll, response(200, JOB | {"status": status}))
    assert type(error) is WhisulResponseError
    assert f"job {JOB_ID} has no status" in str(error)


@pytest.mark.parametrize("status", ["completed", " completed\n"])
@pytest.mark.parametrize("result", [None, "https://cdn.whisul.com/a.mp3", [RESULT], 1, True])
def test_a_completed_job_without_a_result_is_an_error(status: str, result: object) -> None:
    error = error_from(poll, response(200, JOB | {"status": status, "result": result}))
    assert type(error) is WhisulResponseError
    assert "is completed, but sends no result" in str(error)


def test_an_error_after_a_429_keeps_retry_after_and_our_cooldown_apart() -> None:
    error = error_from(poll, Response(429, b"{}", retry_after=7.0, cooldown=12.0))
    assert isinstance(error, WhisulRateLimitError)
    assert (error.retry_after, error.cooldown) == (7.0, 12.0)
    assert "asks to wait 7 s" in str(error)


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


ECHOES = [
    ("wh-secret-3f9a", '{"message": "bad key wh-secret-3f9a, really: wh-secret-3f9a"}'),
    ("12345678", '{"message": "bad key 12345678"}'),
    # The key as a JSON text may have it.
    ("base64/key+x==", '{"message": "bad key base64\\/key+x=="}'),
    ("secret&key<1>", '{"message": "bad key secret\\u0026key\\u003c1\\u003E"}'),
    ('quoted"key\\1', '{"message": "bad key quoted\\"key\\\\1"}'),
]


@pytest.mark.parametrize(("key", "body"), ECHOES)
@pytest.mark.parametrize(("read", "status"), [(submit, 401), (poll, 401), (poll, 429), (poll, 503)])
def test_a_key_that_the_api_echoes_is_masked_in_the_message(
    key: str, body: str, read: Callable[[Response], object], status: int
) -> None:
    assert key in json.loads(body)["message"]
    received = Response.from_http(status=status, headers={}, body=body.encode(), complete=True, now=0.0, api_key=key)
    message = str(error_from(read, received))
    assert key not in message
    assert "bad key ***" in message


def test_a_key_in_an_html_page_or_in_a_prompt_is_masked() -> None:
    key = "wh-secret-3f9a"
    page = Response.from_http(status=200, headers={}, body=f"<p>{key}".encode(), complete=True, now=0.0, api_key=key)
    assert '"<p>***"' in str(error_from(poll, page))
    body = json.dumps(JOB | {"prompt": f"sing {key}"}).encode()
    received = Response.from_http(status=200, headers={}, body=body, complete=True, now=0.0, api_key=key)
    assert read_job(received, JOB_ID).prompt == "sing ***"


def test_a_key_that_is_a_piece_of_json_does_not_change_the_body() -> None:
    body = json.dumps(JOB).encode()
    received = Response.from_http(status=200, headers={}, body=body, complete=True, now=0.0, api_key='s": "c')
    assert received.body == body


# --- what to do after an error

POST = Request("POST", "/generate", {"prompt": "p"})
GET = Request("GET", f"/jobs/{JOB_ID}")


@pytest.mark.parametrize(
    ("error", "get_retryable", "post_retryable"),
    [
        (WhisulRateLimitError("m", http_status=429), True, True),
        # Our rate limiter's refusal, after all the time that the request had.
        (WhisulRateLimitError("m"), False, False),
        (WhisulServerError("m"), True, False),
        (WhisulResponseError("m"), True, False),
        (WhisulConnectionError("m"), True, False),
        (WhisulConnectionError("m", request_sent=True), True, False),
        (WhisulConnectionError("m", request_sent=False), True, True),
        (WhisulTLSError("m"), False, False),
        (WhisulTLSError("m", request_sent=False), False, False),
        (WhisulInvalidInputError("m"), False, False),
        (WhisulUnauthorizedError("m"), False, False),
        (WhisulJobNotFoundError("m"), False, False),
        (WhisulJobFailedError("m"), False, False),
        (WhisulError("m"), False, False),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'request_sent', '')}" if str(value) == "m" else None,
)
def test_a_poll_is_retryable_after_a_transient_error_and_a_submission_only_where_it_made_no_job(
    error: WhisulError, get_retryable: bool, post_retryable: bool
) -> None:
    assert is_retryable(GET, error) is get_retryable
    assert is_retryable(POST, error) is post_retryable


@pytest.mark.parametrize(
    ("error", "ambiguous"),
    [
        (WhisulConnectionError("m"), True),
        (WhisulConnectionError("m", request_sent=False), False),
        (WhisulTLSError("m", request_sent=False), False),
        (WhisulServerError("m", http_status=502), True),
        (WhisulResponseError("m", http_status=202), True),
        (WhisulResponseError("m", http_status=200), True),
        (WhisulResponseError("m", http_status=302), False),
        (WhisulResponseError("m", http_status=418), False),
        (WhisulResponseError("m"), False),
        (WhisulRateLimitError("m", http_status=429), False),
        (WhisulInvalidInputError("m", http_status=400), False),
        (WhisulUnauthorizedError("m", http_status=401), False),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.http_status}" if isinstance(value, WhisulError) else None,
)
def test_a_submission_may_have_been_accepted_only_where_no_response_rules_it_out(
    error: WhisulError, ambiguous: bool
) -> None:
    assert may_have_been_accepted(error) is ambiguous


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

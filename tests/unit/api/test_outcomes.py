"""What the end of a submission and the end of a poll mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.api.connection import DEFAULT_BASE_URL, ConnectionSettings
from airflow_provider_whisul.api.messages import Request, Response
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.api.outcomes import (
    POLL_RULES,
    SUBMISSION_RULES,
    check_key,
    is_retryable,
    read_job,
    read_submission,
    submission_error,
)
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.text import MAX_QUOTED

JOB_ID = "81fa5ff7-6197-4c24-8062-c0ff8b62d58d"
JOB: dict[str, object] = {
    "status": "completed",
    "prompt": "a trap song",
    "result": {"title": "Midnight Grid", "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3"},
    "error": None,
    "started_at": "2026-02-17 15:39:34",
    "finished_at": "2026-02-17 15:41:58",
}
HTML = b"<html>\n<head><title>502 Bad Gateway</title></head></html>"

POST = Request("POST", "/generate", {"prompt": "p"})
GET = Request("GET", f"/jobs/{JOB_ID}")

Read = Callable[[Response], object]


def response(status: int, data: object, complete: bool = True) -> Response:
    return Response(status, json.dumps(data).encode(), complete)


def submit(received: Response) -> object:
    return read_submission(received)


def poll(received: Response) -> object:
    return read_job(received, JOB_ID)


def error_from(read: Read, received: Response) -> WhisulError:
    with pytest.raises(WhisulError) as raised:
        read(received)
    error = raised.value
    assert error.http_status == received.status
    assert error.job_id == (JOB_ID if read is poll else None)
    assert str(error).isprintable()
    assert len(str(error)) < 1500
    return error


# --- which job a submission made


@pytest.mark.parametrize("status", [200, 201, 202, 203, 207, 299])
@pytest.mark.parametrize("job_id", [JOB_ID, "a", "A_b-9", "-", "x" * 200])
def test_any_2xx_with_a_job_id_is_a_success(status: int, job_id: str) -> None:
    assert read_submission(response(status, {"message": "Composition task received.", "job_id": job_id})) == job_id


@pytest.mark.parametrize(("number", "job_id"), [(12345, "12345"), (0, "0"), (10**38, "1" + "0" * 38)])
def test_a_job_id_that_is_a_number_becomes_its_text(number: int, job_id: str) -> None:
    assert read_submission(response(202, {"job_id": number})) == job_id


@pytest.mark.parametrize("poll_url", [f"/jobs/{JOB_ID}", f"/jobs/{JOB_ID}/", f"/api/jobs/{JOB_ID}"])
@pytest.mark.parametrize("body", [{}, {"job_id": None}, {"job_id": "../x"}, {"job_id": -1}, {"job_id": True}], ids=str)
def test_the_poll_url_names_the_job_where_the_job_id_does_not(body: dict[str, object], poll_url: str) -> None:
    assert read_submission(response(202, body | {"poll_url": poll_url})) == JOB_ID


def test_a_job_id_comes_before_the_poll_url() -> None:
    received = response(202, {"message": "ok", "job_id": JOB_ID, "poll_url": "https://evil.example/jobs/1"})
    assert read_submission(received) == JOB_ID


@pytest.mark.parametrize("end", ['", "poll_u', '"', '"}'])
def test_an_id_that_is_whole_is_used_though_the_body_broke_off(end: str) -> None:
    assert read_submission(Response(202, f'{{"message": "ok", "job_id": "{JOB_ID}{end}'.encode(), False)) == JOB_ID


@pytest.mark.parametrize(
    "body",
    [f'{{"job_id": "{JOB_ID}', f'<pre>{{"job_id": "{JOB_ID}"}}</pre>', '{"job_id": "../x"', '{"job_id": 123'],
)
def test_half_an_id_and_the_example_in_a_page_of_html_are_not_used(body: str) -> None:
    error = error_from(submit, Response(202, body.encode(), complete=False))
    assert type(error) is WhisulAmbiguousSubmitError
    assert f"broke off after {len(body)} bytes" in str(error)


NO_IDS: list[object] = [
    *("", " ", "a/b", "../generate", "..", "a.b", "a?b=c", "a#b", "a%2fb", "a\\b", "https://evil.example/jobs/1"),
    *("abc\n", "a\x00b", "١٢٣", "ａｂｃ", "\ud800", "x" * 201),  # noqa: RUF001
    *(None, 1.5, -1, True, 10**200, [JOB_ID], {"id": JOB_ID}),
]


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("job_id", NO_IDS, ids=ascii)
def test_a_2xx_without_a_usable_job_id_is_ambiguous(job_id: object, status: int) -> None:
    error = error_from(submit, response(status, {"message": "Composition task received.", "job_id": job_id}))
    assert type(error) is WhisulAmbiguousSubmitError
    assert "no usable job_id" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (202, {"job_id": "../x?y"}, "with the job_id '../x?y' and the poll_url None"),
        (202, {"job_id": 1.5}, "with the job_id 1.5 "),
        (201, {"poll_url": "/songs/7"}, "with the job_id None and the poll_url '/songs/7'"),
        (202, {"jobId": JOB_ID}, f'naming no job: the body is "{{"jobId": "{JOB_ID}"'),
        (202, {"message": "Composition task received.", "data": {"job_id": JOB_ID}}, JOB_ID),
        (500, {"error": "Oops", "job_id": JOB_ID}, f"with the job_id '{JOB_ID}'"),
        (409, {"job_id": JOB_ID}, f"with the job_id '{JOB_ID}'"),
    ],
    ids=str,
)
def test_the_message_shows_which_job_an_ambiguous_response_names(status: int, body: object, shown: str) -> None:
    error = error_from(submit, response(status, body))
    assert type(error) is WhisulAmbiguousSubmitError
    assert shown in str(error)


# --- statuses and their errors

#: Of a JSON response: read, status, error, hint.
Row = tuple[Read, int, type[WhisulError], str]
ANY_REQUEST: list[tuple[int, type[WhisulError], str]] = [
    (401, WhisulUnauthorizedError, "Put the valid key into the password of the Airflow connection"),
    (403, WhisulUnauthorizedError, "Put the valid key into the password of the Airflow connection"),
    (402, WhisulOutOfCreditsError, "Top up the account, then clear the task"),
    (429, WhisulRateLimitError, "Another request at once would prolong the block"),
]
STATUSES: list[Row] = [
    *((read, *row) for read in (submit, poll) for row in ANY_REQUEST),
    *((submit, status, WhisulInvalidInputError, "No job was made") for status in (400, 413, 414, 422, 451)),
    *((submit, status, WhisulResponseError, "No job was made. Check the host") for status in (404, 405, 410, 415)),
    *(
        (submit, status, WhisulAmbiguousSubmitError, "a redirect came back")
        for status in (300, 301, 303, 304, 307, 308)
    ),
    *((submit, status, WhisulAmbiguousSubmitError, "failed to answer") for status in (500, 502, 503, 520, 599)),
    *((submit, status, WhisulAmbiguousSubmitError, "no usable job_id") for status in (200, 202, 204, 299)),
    *(
        (submit, status, WhisulAmbiguousSubmitError, "not documented")
        for status in (0, 100, 102, 199, 408, 409, 418, 423, 425, 444, 460, 499, 600)
    ),
    (poll, 400, WhisulInvalidInputError, "Check the job's id"),
    (poll, 404, WhisulJobNotFoundError, "The id is wrong, it belongs to another account, or the job has expired"),
    (poll, 410, WhisulJobNotFoundError, "The id is wrong, it belongs to another account, or the job has expired"),
    *((poll, status, WhisulServerError, "usually transient") for status in (500, 502, 503, 504, 520, 599)),
    *((poll, status, WhisulResponseError, "It is not followed") for status in (300, 301, 303, 307, 308)),
    *((poll, status, WhisulResponseError, "not documented") for status in (0, 100, 201, 202, 204, 405, 408, 422, 499)),
]
FINAL = (WhisulInvalidInputError, WhisulUnauthorizedError, WhisulJobNotFoundError, WhisulOutOfCreditsError)
NOT_SENT_AGAIN = (*FINAL, WhisulAmbiguousSubmitError)
ROWS = pytest.mark.parametrize(("read", "status", "cls", "hint"), STATUSES)


@ROWS
def test_a_status_becomes_its_error_with_a_hint(read: Read, status: int, cls: type[WhisulError], hint: str) -> None:
    error = error_from(read, response(status, {"error": "Oops", "message": "The API's own message."}))
    assert type(error) is cls
    assert isinstance(error, AirflowFailException) is (cls in FINAL)
    assert error.transient is (cls not in NOT_SENT_AGAIN)
    about = f"about job {JOB_ID}" if read is poll else "to the submission"
    said = ' ("The API\'s own message")' if status >= 300 else ""
    assert f"Whisul answered {status}{said} {about}" in str(error)
    assert hint in str(error)


BODIES = {
    "html": Response(0, HTML),
    "empty": Response(0, b""),
    "truncated": Response(0, b'{"message": "cut of', complete=False),
    "binary": Response(0, b"\xff\xfe\x00"),
    "deep": Response(0, b"[" * 100_000),
}


@ROWS
@pytest.mark.parametrize("received", BODIES.values(), ids=BODIES)
def test_a_refusal_of_the_key_needs_json_and_all_other_statuses_decide_alone(
    read: Read, status: int, cls: type[WhisulError], hint: str, received: Response
) -> None:
    error = error_from(read, Response(status, received.body, received.complete))
    if status in (401, 403):
        assert "says nothing about the API key" in str(error)
        cls = WhisulResponseError
    elif read is poll and status == 400:
        cls = WhisulResponseError
    assert type(error) is cls
    assert "<" not in str(error) or 200 <= status < 300


@pytest.mark.parametrize("read", [submit, poll])
@pytest.mark.parametrize("status", [401, 403])
def test_a_cdn_s_refusal_is_transient_and_the_request_is_sent_again(read: Read, status: int) -> None:
    error = error_from(read, Response(status, HTML))
    assert is_retryable(POST if read is submit else GET, error)


@pytest.mark.parametrize("read", [submit, poll])
def test_the_error_about_the_key_names_the_connection(read: Read) -> None:
    error = error_from(read, Response(401, b"{}", conn_id="whisul_prod"))
    assert "into the password of the Airflow connection 'whisul_prod', then clear the task" in str(error)
    assert ("continues with the same job, and nothing is paid twice" in str(error)) is (read is poll)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"message": "m", "error": "e", "detail": "d"}, ' ("m")'),
        ({"error": "Invalid input"}, ' ("Invalid input")'),
        ({"detail": "Not here."}, ' ("Not here")'),
        ({"message": "", "error": "e"}, ' ("e")'),
        ({"message": "  \n", "error": "e"}, ' ("e")'),
        ({"message": {"code": 1}, "error": "e"}, ' ("e")'),
        ({"error": {"code": "bad_prompt", "message": "Too long."}}, ' ("Too long")'),
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
        f"Whisul refused the prompt: Whisul answered 400{detail} to the submission. No job"
    )


@pytest.mark.parametrize("read", [submit, poll])
@pytest.mark.parametrize(("seconds", "named"), [(None, False), (0.0, True), (120.0, True)])
def test_a_429_names_the_seconds_that_the_server_asks_to_wait(read: Read, seconds: float | None, named: bool) -> None:
    error = error_from(read, Response(429, b"{}", retry_after=seconds, cooldown=12.0))
    assert isinstance(error, WhisulRateLimitError)
    assert (error.retry_after, error.cooldown) == (seconds, 12.0)
    assert (f"and asks to wait {seconds or 0:.0f} s" in str(error)) is named


@pytest.mark.parametrize("read", [submit, poll])
@pytest.mark.parametrize("status", [403, 429])
def test_a_403_or_429_about_credits_is_final_and_not_about_the_key(read: Read, status: int) -> None:
    error = error_from(read, response(status, {"error": "insufficient_quota"}))
    assert type(error) is WhisulOutOfCreditsError
    assert str(error).startswith(f"The Whisul account is out of credits: Whisul answered {status}")
    assert "API key" not in str(error)


@pytest.mark.parametrize("rules", [SUBMISSION_RULES, POLL_RULES])
def test_each_row_of_a_table_is_reached(rules: tuple[object, ...]) -> None:
    read = submit if rules is SUBMISSION_RULES else poll
    reached = set()
    for status in range(601):
        for body in (b"{}", HTML):
            if status == 200 and read is poll:
                continue
            message = str(error_from(read, Response(status, body)))
            reached.add(next(rule for rule in rules if rule.gist in message and rule.fits(Response(status, body))))  # type: ignore[attr-defined]
    assert reached == set(rules)


# --- responses that are not as documented


@pytest.mark.parametrize(("read", "status"), [(submit, 202), (poll, 200)])
@pytest.mark.parametrize(
    ("body", "excerpt"),
    [
        (HTML, '"<html> <head><title>502 Bad Gateway'),
        (b"", "the body is empty."),
        (b" \n", "the body is empty."),
        (b"null", '"null"'),
        (b"[]", '"[]"'),
        (b'"completed"', "completed"),
        (b'{"job_id" "abc"', '"{"job_id"'),
        (b"\xff\xff{}", "�"),
        (b"[" * 100_000, "[[["),
        (b'{"a":' * 100_000, '{"a"'),
        (b'{"bpm": ' + b"1" * 5000 + b"}", '{"bpm"'),
        (b"x" * 100_000, "x" * 79 + '…".'),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_success_without_the_documented_json_is_an_error_with_an_excerpt(
    read: Read, status: int, body: bytes, excerpt: str
) -> None:
    error = error_from(read, Response(status, body))
    assert type(error) is (WhisulAmbiguousSubmitError if read is submit else WhisulResponseError)
    assert "not with the documented JSON: the body is " in str(error)
    assert excerpt in str(error)
    assert "x" * 81 not in str(error)


def test_a_job_whose_body_broke_off_is_an_error() -> None:
    received = response(200, JOB, complete=False)
    error = error_from(poll, received)
    assert type(error) is WhisulResponseError
    assert f"broke off after {len(received.body)} bytes" in str(error)


@pytest.mark.parametrize("status", [None, 5, True, ["running"], {}])
def test_a_job_without_a_status_is_an_error(status: object) -> None:
    error = error_from(poll, response(200, JOB | {"status": status}))
    assert type(error) is WhisulResponseError
    assert "No status" in str(error)


@pytest.mark.parametrize("status", ["completed", " COMPLETED\n", "done"])
@pytest.mark.parametrize("result", [None, "https://cdn.whisul.com/a.mp3", ["a"], 1, True, {}])
def test_a_completed_job_without_a_result_has_no_song_url_yet(status: str, result: object) -> None:
    job = poll(response(200, JOB | {"status": status, "result": result}))
    assert isinstance(job, WhisulJob)
    assert job.completed
    assert not job.has_song_url


@pytest.mark.parametrize("status", ["error", "failure", "Error", "rejected"])
def test_the_envelope_of_a_general_error_is_not_a_failed_job(status: str) -> None:
    error = error_from(poll, response(200, {"status": status, "message": "Try again later."}))
    assert type(error) is WhisulResponseError
    assert error.transient


# --- the key


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
def test_a_key_that_the_api_echoes_is_masked_in_the_message(key: str, body: str, read: Read, status: int) -> None:
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


# --- what may be done after an error


@pytest.mark.parametrize(
    ("error", "get_retryable", "post_retryable"),
    [
        (WhisulRateLimitError("m", http_status=429), True, True),
        # Our rate limiter's refusal, after all the time that the request had.
        (WhisulRateLimitError("m"), False, False),
        (WhisulResponseError("m", http_status=403), True, True),
        (WhisulAmbiguousSubmitError("m", http_status=502), False, False),
        (WhisulConnectionError("m"), True, False),
        (WhisulConnectionError("m", request_sent=True), True, False),
        (WhisulConnectionError("m", request_sent=False), True, True),
        (WhisulTLSError("m"), False, False),
        (WhisulTLSError("m", request_sent=False), False, False),
        (WhisulInvalidInputError("m"), False, False),
        (WhisulUnauthorizedError("m"), False, False),
        (WhisulOutOfCreditsError("m"), False, False),
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


def test_a_submission_without_a_response_is_ambiguous_unless_it_was_not_sent() -> None:
    unsent = WhisulConnectionError("refused", request_sent=False)
    assert submission_error(unsent) is unsent
    meant = submission_error(WhisulConnectionError("No response: reset. The request may have arrived."))
    assert type(meant) is WhisulAmbiguousSubmitError
    assert "paid for: No response: reset" in str(meant)


@pytest.mark.parametrize("status", [303, 425, 500])
def test_the_ambiguous_error_leaves_it_to_the_task_to_say_what_a_retry_does(status: int) -> None:
    message = str(error_from(submit, Response(status)))
    assert message.endswith("another submission may pay for the song twice: see your Whisul dashboard if in doubt.")
    assert "on_ambiguous_submit" not in message


# --- what proves a key


SETTINGS = ConnectionSettings(DEFAULT_BASE_URL, "k")
NO_SUCH_JOB = [{"error": "Not found", "message": "No such job."}, {"message": "m"}, {"error": "e"}]


@pytest.mark.parametrize("body", NO_SUCH_JOB)
def test_a_404_in_the_shape_of_the_api_s_errors_proves_the_key_at_whisul_s_own_address(body: object) -> None:
    assert check_key(response(404, body), SETTINGS) == (True, "Whisul accepts the API key.")


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, base_url="https://intranet.example/api"),
        replace(SETTINGS, base_url="https://whisul.com/other"),
        replace(SETTINGS, base_url="https://whisul.com:8443/api"),
        replace(SETTINGS, verify=False),
    ],
    ids=str,
)
def test_elsewhere_such_a_404_is_reported_as_no_more_than_it_is(settings: ConnectionSettings) -> None:
    # Many servers answer so, and the documentation has no 404 that would tell them apart.
    proved, sentence = check_key(response(404, {"error": "Not Found", "message": "Cannot GET /jobs"}), settings)
    assert proved
    assert sentence == (
        f"{settings.base_url} answered as Whisul does for an unknown job. So the API key is accepted, if this is "
        "Whisul's API: other servers may answer alike."
    )


@pytest.mark.parametrize(
    "received",
    [
        *(Response(404, body) for body in (HTML, b"", b"{}", b"[]", b'{"detail": "Not Found"}', b'{"error": null}')),
        Response(404, b'{"error": "Not found"}', complete=False),
        response(200, JOB),
        response(410, {"error": "Gone"}),
    ],
    ids=str,
)
def test_no_other_answer_of_a_server_proves_the_key(received: Response) -> None:
    proved, sentence = check_key(received, SETTINGS)
    assert not proved
    assert f"{DEFAULT_BASE_URL} answered {received.status}" in sentence
    assert "this cannot tell" in sentence


@pytest.mark.parametrize(
    ("received", "says"),
    [
        (response(401, {}), "does not accept the API key"),
        (response(402, {}), "out of credits"),
        (response(403, {"error": "insufficient_credits"}), "out of credits"),
        (Response(403, HTML), "says nothing about the API key"),
        (Response(503, HTML), "failed to answer"),
        (Response(429), "Too many requests"),
        (Response(302), "A redirect came back"),
    ],
    ids=str,
)
def test_a_test_of_the_key_that_failed_says_why(received: Response, says: str) -> None:
    proved, sentence = check_key(received, SETTINGS)
    assert not proved
    assert says in sentence


@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 402, 403, 404, 410, 418, 429, 503])
@pytest.mark.parametrize("body", [b'{"error": "e"}', HTML], ids=["json", "html"])
def test_a_test_of_the_key_names_neither_a_task_nor_a_job_nor_the_id_under_which_airflow_tests(
    status: int, body: bytes
) -> None:
    _, sentence = check_key(replace(Response(status, body), conn_id="2J83ZWxK"), SETTINGS)
    for word in ("2J83ZWxK", "task", "job's id", "same job", "password", "the host"):
        assert word not in sentence

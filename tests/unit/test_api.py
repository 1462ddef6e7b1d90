"""What is sent, and what an answer means."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.api import (
    MAX_QUOTED,
    NO_SUCH_JOB_ID,
    Answer,
    Request,
    WhisulJob,
    WhisulTrack,
    generate_request,
    job_request,
    may_send_again,
    quote,
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
HTML = b"<html>\n<head><title>502 Bad Gateway</title></head></html>"


def answer(status: int, data: object, complete: bool = True) -> Answer:
    return Answer(status, json.dumps(data).encode(), complete)


def job(**changes: object) -> WhisulJob:
    return read_job(answer(200, JOB | changes), JOB_ID)


def track(**changes: object) -> WhisulTrack:
    made = job(result=RESULT | changes).track
    assert made is not None
    return made


def submit(reply: Answer) -> object:
    return read_submission(reply)


def look(reply: Answer) -> object:
    return read_job(reply, JOB_ID)


def error_from(read: Callable[[Answer], object], reply: Answer) -> WhisulError:
    with pytest.raises(WhisulError) as raised:
        read(reply)
    error = raised.value
    assert error.http_status == reply.status
    assert error.job_id == (JOB_ID if read is look else None)
    assert str(error).isprintable()
    assert len(str(error)) < 1500
    return error


# --- requests


@pytest.mark.parametrize("prompt", ["a trap song", "  lo-fi \n beats ", "ünïcode 🎵", "\x00", "x" * 100_000])
def test_a_prompt_is_sent_as_it_is(prompt: str) -> None:
    assert generate_request(prompt) == Request("POST", "/generate", {"prompt": prompt})


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\u3000"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(WhisulInvalidInputError, match=r"prompt is empty.*Nothing was sent"):
        generate_request(prompt)


@pytest.mark.parametrize(
    ("prompt", "kind"), [(None, "NoneType"), (5, "int"), (b"song", "bytes"), (["song"], "list"), ({}, "dict")]
)
def test_a_prompt_that_is_no_string_is_refused(prompt: object, kind: str) -> None:
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
def test_a_job_is_looked_at_under_its_id(job_id: str) -> None:
    assert job_request(job_id) == Request("GET", f"/jobs/{job_id}")
    assert read_submission(answer(202, {"job_id": job_id})) == job_id


@pytest.mark.parametrize(
    "job_id", [*BAD_JOB_IDS, JOB_ID.encode(), object(), pytest.param(10**5000, id="10**5000")], ids=ascii
)
def test_an_id_that_could_lead_elsewhere_is_not_sent(job_id: object) -> None:
    with pytest.raises(WhisulInvalidInputError, match=r"is not the id of a Whisul job, so nothing was sent") as refused:
        job_request(job_id)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("job_id", BAD_JOB_IDS, ids=ascii)
def test_a_submission_with_an_unusable_id_is_refused(job_id: object) -> None:
    error = error_from(submit, answer(202, {"message": "Composition task received.", "job_id": job_id}))
    assert type(error) is WhisulResponseError
    assert "accepted the prompt (202) but gave no usable job_id" in str(error)


def test_a_submission_without_an_id_is_refused() -> None:
    assert "no usable job_id: None" in str(error_from(submit, answer(202, {"jobId": JOB_ID})))


def test_poll_url_is_not_believed() -> None:
    reply = answer(202, {"message": "ok", "job_id": JOB_ID, "poll_url": "https://evil.example/jobs/1"})
    assert read_submission(reply) == JOB_ID


# --- statuses

ANY_REQUEST: list[tuple[int, type[WhisulError], str]] = [
    (401, WhisulUnauthorizedError, "Put a valid one into the password of the Airflow connection"),
    (403, WhisulUnauthorizedError, "Put a valid one into the password of the Airflow connection"),
    (429, WhisulRateLimitError, "asking again at once would prolong the block"),
    *((status, WhisulServerError, "usually transient") for status in (500, 502, 503, 504, 520, 599)),
    *((status, WhisulResponseError, "redirect, which is not followed") for status in (300, 301, 302, 303, 307, 308)),
    *((status, WhisulResponseError, "does not know. Check the host") for status in (201, 204, 402, 405, 410, 418, 422)),
    *((status, WhisulResponseError, "does not know. Check the host") for status in (0, 100, 299, 499)),
]
STATUSES = [
    *((read, *row) for read in (submit, look) for row in ANY_REQUEST),
    (submit, 400, WhisulInvalidInputError, "No job was made. Check that the prompt is a non-empty text"),
    (look, 400, WhisulInvalidInputError, "Check the job's id"),
    (submit, 200, WhisulResponseError, "does not know"),
    (submit, 404, WhisulResponseError, "does not know. Check the host"),
    (look, 202, WhisulResponseError, "does not know"),
    (look, 404, WhisulJobNotFoundError, "the id is wrong, it belongs to another account, or the job has expired"),
]
FINAL = (WhisulInvalidInputError, WhisulUnauthorizedError, WhisulJobNotFoundError)


@pytest.mark.parametrize(("read", "status", "cls", "advice"), STATUSES)
def test_status(read: Callable[[Answer], object], status: int, cls: type[WhisulError], advice: str) -> None:
    error = error_from(read, answer(status, {"error": "Oops", "message": "The API's own words."}))
    assert type(error) is cls
    assert isinstance(error, AirflowFailException) is (cls in FINAL)
    assert error.transient is (cls not in FINAL)
    about = f"about job {JOB_ID}" if read is look else "to the submission"
    assert str(error).startswith(f'Whisul answered {status} {about} ("The API\'s own words")')
    assert advice in str(error)


@pytest.mark.parametrize(("read", "status", "cls", "advice"), STATUSES)
@pytest.mark.parametrize(
    "reply",
    [
        Answer(0, HTML),
        Answer(0, b""),
        Answer(0, b'{"message": "cut of', complete=False),
        Answer(0, b"", complete=False),
        Answer(0, b"\xff\xfe\x00"),
        Answer(0, b"[" * 100_000),
    ],
    ids=["html", "empty", "truncated", "nothing", "binary", "deep"],
)
def test_the_status_counts_whatever_the_body(
    read: Callable[[Answer], object], status: int, cls: type[WhisulError], advice: str, reply: Answer
) -> None:
    error = error_from(read, Answer(status, reply.body, reply.complete))
    assert type(error) is cls
    assert advice in str(error)
    assert "<" not in str(error)
    assert "cut of" not in str(error)


@pytest.mark.parametrize(
    ("body", "words"),
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
def test_the_api_s_own_words(body: object, words: str) -> None:
    assert str(error_from(submit, answer(400, body))).startswith(
        f"Whisul answered 400 to the submission{words}. No job"
    )


@pytest.mark.parametrize("read", [submit, look])
@pytest.mark.parametrize(("seconds", "said"), [(None, False), (0.0, True), (120.0, True)])
def test_429_says_how_long_to_wait(read: Callable[[Answer], object], seconds: float | None, said: bool) -> None:
    error = error_from(read, Answer(429, b"{}", retry_after=seconds))
    assert isinstance(error, WhisulRateLimitError)
    assert error.retry_after == seconds
    assert (f"and asks to wait {seconds or 0:.0f} s" in str(error)) is said


# --- answers that are not what is documented


@pytest.mark.parametrize(("read", "status"), [(submit, 202), (look, 200)])
@pytest.mark.parametrize(
    ("body", "said"),
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
def test_a_success_that_is_not_the_documented_json(
    read: Callable[[Answer], object], status: int, body: bytes, said: str
) -> None:
    error = error_from(read, Answer(status, body))
    assert type(error) is WhisulResponseError
    assert f"({status}) is not the documented JSON but " in str(error)
    assert said in str(error)
    assert "x" * 81 not in str(error)


@pytest.mark.parametrize(("read", "status", "data"), [(submit, 202, {"job_id": JOB_ID}), (look, 200, JOB)])
def test_a_success_that_broke_off(read: Callable[[Answer], object], status: int, data: object) -> None:
    reply = answer(status, data, complete=False)
    error = error_from(read, reply)
    assert type(error) is WhisulResponseError
    assert f"broke off after {len(reply.body)} bytes" in str(error)


@pytest.mark.parametrize("status", [None, 5, True, ["running"], {}])
def test_a_job_without_a_status(status: object) -> None:
    error = error_from(look, answer(200, JOB | {"status": status}))
    assert type(error) is WhisulResponseError
    assert f"job {JOB_ID} has no status" in str(error)


@pytest.mark.parametrize("status", ["completed", " completed\n"])
@pytest.mark.parametrize("result", [None, "https://cdn.whisul.com/a.mp3", [RESULT], 1, True])
def test_completed_without_a_result_is_not_a_song(status: str, result: object) -> None:
    error = error_from(look, answer(200, JOB | {"status": status, "result": result}))
    assert type(error) is WhisulResponseError
    assert "is completed, but sends no result" in str(error)


# --- jobs


def test_the_documented_job() -> None:
    made = job()
    assert made.track == WhisulTrack(
        title="Midnight Grid",
        bpm=140,
        duration_seconds=167,
        song_url="https://cdn.whisul.com/audio/81fa5ff7.mp3",
        image_url="https://cdn.whisul.com/covers/81fa5ff7.jpg",
        tags=("trap", "dark", "808s", "synth", "bass"),
    )
    assert (made.started_at, made.finished_at) == (
        datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC),
        datetime(2026, 2, 17, 15, 41, 58, tzinfo=UTC),
    )
    song = made.song()
    assert song == {
        "job_id": JOB_ID,
        "prompt": "a trap song",
        "title": "Midnight Grid",
        "bpm": 140,
        "duration_seconds": 167,
        "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3",
        "image_url": "https://cdn.whisul.com/covers/81fa5ff7.jpg",
        "tags": ["trap", "dark", "808s", "synth", "bass"],
        "started_at": "2026-02-17T15:39:34+00:00",
        "finished_at": "2026-02-17T15:41:58+00:00",
    }
    assert json.loads(json.dumps(song, allow_nan=False)) == song


@pytest.mark.parametrize("result", [{}, *(dict.fromkeys(RESULT, junk) for junk in (None, True, {}))])
def test_a_bare_track_is_still_a_song(result: dict[str, object]) -> None:
    made = read_job(answer(200, {"status": "completed", "result": result}), JOB_ID)
    assert made.completed
    song = dict(made.song())
    assert (song.pop("job_id"), song.pop("tags")) == (JOB_ID, [])
    assert set(song.values()) == {None}


def test_a_job_without_a_track_has_a_song_of_its_shape() -> None:
    running = WhisulJob(JOB_ID, "running")
    assert running.song() == {**dict.fromkeys(job().song()), "job_id": JOB_ID, "tags": []}


@pytest.mark.parametrize(
    ("status", "read_as", "completed", "failed", "known"),
    [
        ("running", "running", False, False, True),
        ("completed", "completed", True, False, True),
        ("failed", "failed", False, True, True),
        ("queued", "queued", False, False, False),
        ("Completed", "Completed", False, False, False),
        ("", "", False, False, False),
        ("a\nb\x00", "a b�", False, False, False),
        ("x" * 5000, "x" * MAX_QUOTED + "…", False, False, False),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_status_of_a_job(status: str, read_as: str, completed: bool, failed: bool, known: bool) -> None:
    made = job(status=status)
    assert (made.status, made.completed, made.failed, made.status_known) == (read_as, completed, failed, known)


@pytest.mark.parametrize("status", ["running", "failed", "queued"])
def test_only_a_completed_job_needs_a_result(status: str) -> None:
    assert job(status=status, result=None).track is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Generation failed due to an internal error.", "Generation failed due to an internal error."),
        ("two\nlines", "two lines"),
        ("x" * 5000, "x" * MAX_QUOTED + "…"),
        (None, "Whisul gave no reason"),
        ("", "Whisul gave no reason"),
        ({"code": 5}, "Whisul gave no reason"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_failure(error: object, reason: str) -> None:
    failure = job(status="failed", result=None, error=error).failure()
    assert type(failure) is WhisulJobFailedError
    assert failure.job_id == JOB_ID
    assert str(failure).startswith(f"Whisul job {JOB_ID} failed: {reason}")
    assert "cannot be resumed: only a new submission" in str(failure)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("2:47", 167),
        ("0:00", 0),
        ("0:07", 7),
        ("61:01", 3661),
        ("1:02:03", 3723),
        (" 2:47 ", 167),
        (144, 144),
        (144.5, 144.5),
        (144.0, 144),
        ("144", 144),
        ("144.5", 144.5),
        (" 144\n", 144),
        (0, 0),
        ("1e2", 100),
        ("", None),
        (":", None),
        (":47", None),
        ("2:", None),
        ("2:4x", None),
        ("-2:47", None),
        ("2:-47", None),
        ("2:47.5", None),
        ("2:447", None),
        ("1:2:3:4", None),
        ("1" * 400 + ":00", None),
        ("9" * 5000, None),
        ("a while", None),
        (-1, None),
        ("-1", None),
        (float("nan"), None),
        (float("inf"), None),
        (float("-inf"), None),
        ("nan", None),
        ("inf", None),
        (10**9, None),
        (10**400, None),
        (True, None),
        (False, None),
        (None, None),
        ([2, 47], None),
        ({"seconds": 5}, None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_duration(duration: object, seconds: float | None) -> None:
    made = track(duration=duration).duration_seconds
    assert made == seconds
    assert type(made) is type(seconds)


@pytest.mark.parametrize(
    ("bpm", "expected"),
    [
        (140, 140),
        (92.5, 92.5),
        (140.0, 140),
        ("128", 128),
        (-1, None),
        ("fast", None),
        ("2:47", None),
        (True, None),
        (float("nan"), None),
        (None, None),
    ],
)
def test_bpm(bpm: object, expected: float | None) -> None:
    made = track(bpm=bpm).bpm
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("trap, dark, 808s", ("trap", "dark", "808s")),
        ("trap", ("trap",)),
        (" lo-fi ,, \n, hip hop ", ("lo-fi", "hip hop")),
        ("", ()),
        (",", ()),
        (["trap", " dark ", "", " ", None, 5, {}], ("trap", "dark")),
        (["a, b"], ("a, b",)),
        ("a\x00b,c\ud800", ("a�b", "c�")),
        (None, ()),
        (5, ()),
        ({"trap": 1}, ()),
    ],
    ids=ascii,
)
def test_tags(tags: object, expected: tuple[str, ...]) -> None:
    assert track(tags=tags).tags == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-02-17 15:39:34", "2026-02-17T15:39:34+00:00"),
        ("2026-02-17T15:39:34", "2026-02-17T15:39:34+00:00"),
        ("2026-02-17T15:39:34Z", "2026-02-17T15:39:34+00:00"),
        ("2026-02-17T15:39:34+02:00", "2026-02-17T13:39:34+00:00"),
        ("2026-02-17 15:39:34.5", "2026-02-17T15:39:34.500000+00:00"),
        ("2026-02-30 15:39:34", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("yesterday", None),
        ("", None),
        ("\ud800", None),
        (1771342774, None),
        (True, None),
        (None, None),
        ({}, None),
    ],
    ids=ascii,
)
def test_time(time: object, expected: str | None) -> None:
    song = job(started_at=time, finished_at=time).song()
    assert (song["started_at"], song["finished_at"]) == (expected, expected)


def test_what_a_database_cannot_store_is_replaced() -> None:
    odd = "a\x00b\ud83dc 🎵"
    made = job(prompt=odd, error=odd, result=RESULT | dict.fromkeys(["title", "song_url", "image_url", "tags"], odd))
    stored = "a�b�c 🎵"
    song = made.song()
    assert made.error == stored
    assert [song[field] for field in ("prompt", "title", "song_url", "image_url")] == [stored] * 4
    assert song["tags"] == [stored]
    assert json.dumps(song, ensure_ascii=False).encode("utf-8")


# --- what is kept of an answer, and what may be said of it


def test_an_answer_is_taken_in_as_it_came() -> None:
    received = Answer.received(
        status=429, headers={"Retry-After": "7"}, body=b"{}", complete=False, now=0.0, api_key="wh-secret-3f9a"
    )
    assert received == Answer(429, b"{}", complete=False, retry_after=7.0, api_key="wh-secret-3f9a")
    assert "wh-secret-3f9a" not in repr(received)
    dated = {"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}
    late = Answer.received(status=429, headers=dated, body=b"", complete=True, now=20.0, api_key="wh-secret-3f9a")
    assert late.retry_after == 40.0
    plain = Answer.received(status=200, headers={}, body=b"", complete=True, now=0.0, api_key="wh-secret-3f9a")
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
@pytest.mark.parametrize(("read", "status"), [(submit, 401), (look, 401), (look, 429), (look, 503)])
def test_a_key_that_the_api_echoes_is_masked(
    key: str, body: str, read: Callable[[Answer], object], status: int
) -> None:
    assert key in json.loads(body)["message"]
    reply = Answer.received(status=status, headers={}, body=body.encode(), complete=True, now=0.0, api_key=key)
    message = str(error_from(read, reply))
    assert key not in message
    assert "bad key ***" in message


def test_a_key_in_an_html_page_or_a_song_is_masked() -> None:
    key = "wh-secret-3f9a"
    page = Answer.received(status=200, headers={}, body=f"<p>{key}".encode(), complete=True, now=0.0, api_key=key)
    assert '"<p>***"' in str(error_from(look, page))
    body = json.dumps(JOB | {"prompt": f"sing {key}"}).encode()
    reply = Answer.received(status=200, headers={}, body=body, complete=True, now=0.0, api_key=key)
    assert read_job(reply, JOB_ID).prompt == "sing ***"


def test_a_toy_key_tears_no_json() -> None:
    body = json.dumps(JOB).encode()
    reply = Answer.received(status=200, headers={}, body=body, complete=True, now=0.0, api_key='s": "c')
    assert reply.body == body


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        (" \n ", ""),
        (" a\n\n b\t c\u2028d\x85e ", "a b c d e"),
        ("a\x00\x1b\x7f\u200b\ud800\u202eb", "a������b"),
        ("ünï 🎵", "ünï 🎵"),
        ("x" * MAX_QUOTED, "x" * MAX_QUOTED),
        ("x" * (MAX_QUOTED + 1), "x" * MAX_QUOTED + "…"),
        ("\x00" * 10_000, "�" * MAX_QUOTED + "…"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_quote(text: str, expected: str) -> None:
    assert quote(text) == expected


POST = Request("POST", "/generate", {"prompt": "p"})
GET = Request("GET", f"/jobs/{JOB_ID}")


@pytest.mark.parametrize(
    ("error", "get_again", "post_again"),
    [
        (WhisulRateLimitError("m"), True, True),
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
def test_may_send_again(error: WhisulError, get_again: bool, post_again: bool) -> None:
    assert may_send_again(GET, error) is get_again
    assert may_send_again(POST, error) is post_again

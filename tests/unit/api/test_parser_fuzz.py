"""Any response becomes an error of ours, or data that Airflow can store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.api.messages import Response, job_request, parse_retry_after
from airflow_provider_whisul.api.models import Song, WhisulJob
from airflow_provider_whisul.api.outcomes import read_job, read_submission
from airflow_provider_whisul.exceptions import WhisulError, WhisulInvalidInputError, error_from_dict
from airflow_provider_whisul.text import quote

JOB_ID = "81fa5ff7-6197-4c24-8062-c0ff8b62d58d"

fuzz = settings(
    derandomize=True,
    deadline=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
WORDS = st.sampled_from(
    ["running", "completed", "failed", " completed", "failed\n", "", "2:47", "1:2:3", "٢:٤٧", "nan", "1e999", "-5"]
) | st.sampled_from(
    ["a,b, ,\x00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9" * 5000, "x" * 5000, "\x00" * 5000]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    TEXT,
    WORDS,
    st.datetimes().map(str),
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)
STATUSES = st.sampled_from([200, 202]) | st.sampled_from([204, 301, 400, 401, 403, 404, 418, 429, 500, 502, 599])
STATUSES |= st.integers(-1, 1000)

RESULT_FIELDS = ("title", "bpm", "duration", "song_url", "image_url", "tags")
JOB_FIELDS = ("status", "prompt", "result", "error", "started_at", "finished_at")


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, object]:
    """A documented job with some of its fields replaced by junk, or gone."""
    result: dict[str, object] = {
        "title": "Midnight Grid",
        "bpm": 140,
        "duration": "2:47",
        "song_url": "https://cdn.whisul.com/audio/81fa5ff7.mp3",
        "image_url": "https://cdn.whisul.com/covers/81fa5ff7.jpg",
        "tags": "trap, dark",
    }
    job: dict[str, object] = {
        "status": draw(st.sampled_from(["completed", "running", "failed"])),
        "prompt": "a trap song",
        "result": result,
        "error": None,
        "started_at": "2026-02-17 15:39:34",
        "finished_at": "2026-02-17 15:41:58",
    }
    for target, names in ((result, RESULT_FIELDS), (job, JOB_FIELDS)):
        for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
            if draw(st.booleans()):
                target[name] = draw(JSON)
            else:
                del target[name]
    return job


@st.composite
def nested(draw: st.DrawFn) -> bytes:
    """JSON that no library writes: nesting and digits without end, in a place that is read."""
    depth = draw(st.integers(1, 1100) | st.sampled_from([5000, 100_000]))
    opening, closing = draw(st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"message":', "}]")]))
    core = draw(st.sampled_from(["1", "null", '"x"', "1" * 4400, "1e400", "-Infinity", "NaN", ""]))
    value = draw(st.sampled_from([opening * depth + core + closing * depth, opening * depth, core]))
    field = draw(st.sampled_from(["job_id", "message", *JOB_FIELDS]))
    inner = draw(st.sampled_from(RESULT_FIELDS))
    template = draw(
        st.sampled_from(
            [
                "%s",
                f'{{"status": "completed", "result": {{"{inner}": %s}}}}',
                f'{{"status": "completed", "result": {{}}, "{field}": %s}}',
            ]
        )
    )
    return (template % value).encode()


def check_error(error: WhisulError) -> None:
    message = str(error)
    assert message
    assert len(message) < 3000
    assert message.splitlines() == [message]
    assert message.isprintable()
    # It must also get through a trigger's event.
    event = json.loads(json.dumps(error.as_dict(), allow_nan=False))
    assert type(error_from_dict(event)) is type(error)


def check_song(song: Song) -> None:
    stored = json.dumps(song, allow_nan=False, ensure_ascii=False)
    assert stored.encode("utf-8")
    assert "\\u0000" not in re.sub(r"\\\\", "", stored)
    assert json.loads(stored) == song
    for text in (song["prompt"], song["title"], song["song_url"], song["image_url"]):
        assert text is None or isinstance(text, str)
    for number in (song["bpm"], song["duration_seconds"]):
        assert number is None or (type(number) in (int, float) and number >= 0 and math.isfinite(number))
    assert all(isinstance(tag, str) and tag and tag == tag.strip() for tag in song["tags"])


def check_job(job: WhisulJob) -> None:
    assert job.job_id == JOB_ID
    assert quote(job.status) == job.status
    if job.song is not None:
        check_song(job.song)
    for time in (job.started_at, job.finished_at):
        assert time is None or time.utcoffset() is not None
    assert job.completed is (job.song is not None)
    if job.failed:
        check_error(job.failed_error())


def check(response: Response) -> None:
    reads: tuple[Callable[[], object], ...] = (lambda: read_job(response, JOB_ID), lambda: read_submission(response))
    for read in reads:
        try:
            made = read()
        except WhisulError as error:
            assert error.http_status == response.status  # noqa: PT017
            check_error(error)
        else:
            if isinstance(made, WhisulJob):
                assert (response.status, response.complete) == (200, True)
                check_job(made)
            else:
                assert 200 <= response.status <= 299
                assert isinstance(made, str)
                assert re.fullmatch("[A-Za-z0-9_-]{1,200}", made, re.ASCII)


@fuzz
@given(st.binary(max_size=300), STATUSES, st.booleans(), st.none() | st.floats(0, 1e12))
def test_a_body_of_any_bytes(body: bytes, status: int, complete: bool, retry_after: float | None) -> None:
    check(Response(status, body, complete, retry_after))


@fuzz
@given(JSON, STATUSES, st.booleans())
def test_a_body_of_any_json(data: object, status: int, complete: bool) -> None:
    check(Response(status, json.dumps(data).encode(), complete))


@fuzz
@given(jobs(), st.just(200) | STATUSES)
@example({"status": " completed", "result": None}, 200)
@example({"status": "failed\n", "error": "\x00" * 5000}, 200)
def test_a_job_with_fields_of_any_type_or_none(job: dict[str, object], status: int) -> None:
    check(Response(status, json.dumps(job).encode()))


@fuzz
@given(st.fixed_dictionaries(dict.fromkeys(("job_id", "message", "error", "detail"), SCALARS | JSON)), STATUSES)
def test_a_submission_or_an_error_with_fields_of_any_type(data: dict[str, object], status: int) -> None:
    check(Response(status, json.dumps(data).encode()))


@fuzz
@given(jobs(), st.data())
def test_a_job_with_damaged_bytes_or_cut_off(job: dict[str, object], data: st.DataObject) -> None:
    body = bytearray(json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check(Response(data.draw(st.sampled_from([200, 202, 400])), bytes(body[: data.draw(st.integers(0, len(body)))])))
    check(Response(200, bytes(body)))


@settings(fuzz, max_examples=200)
@given(nested(), STATUSES)
def test_json_of_extreme_depth_or_length(body: bytes, status: int) -> None:
    check(Response(status, body))


@fuzz
@given(JSON | st.binary())
def test_a_job_id_of_any_type(job_id: object) -> None:
    try:
        path = job_request(job_id).path
    except WhisulInvalidInputError as error:
        check_error(error)
    else:
        assert re.fullmatch("/jobs/[A-Za-z0-9_-]{1,200}", path, re.ASCII)


NUMBERS = st.integers(-1, 70) | st.integers(0, 10**20)
DATES = st.builds(
    "Fri, {} {} {} {}:{}:{} {}".format,
    NUMBERS,
    st.sampled_from(["Jan", "Feb", "Foo"]),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.sampled_from(["GMT", "-0000", "+0100", "+9999", "-999999999", ""]),
)


@fuzz
@given(TEXT | st.integers().map(str) | st.floats().map(str) | DATES, st.floats(0, 1e11))
def test_a_retry_after_of_any_text(header: str, now: float) -> None:
    seconds = parse_retry_after(header, now)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))

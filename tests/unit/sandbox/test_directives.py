"""Each directive of a prompt."""

from __future__ import annotations

import pytest

from airflow_provider_whisul.sandbox.directives import parse


def ended(client, clock, prompt):
    job_id = client.make(prompt)
    clock.advance(100)
    return client.job(job_id)


def test_a_prompt_without_directives_asks_for_nothing():
    assert parse("a [sandbox] song, [verse: 1]") == parse("")


def test_fail_always(client, clock):
    for _ in range(3):
        body = ended(client, clock, "a song [sandbox:fail]")
        assert (body["status"], body["result"]) == ("failed", None)
        assert body["error"] == "Generation failed due to an internal error."
        assert body["finished_at"] > body["started_at"]


def test_fail_the_first_jobs_of_a_prompt(client, clock):
    prompts = ["a [sandbox:fail=2]", "b [sandbox:fail=2]", "a [sandbox:fail=2]", "a [sandbox:fail=2]"]
    assert [ended(client, clock, prompt)["status"] for prompt in prompts] == ["failed", "failed", "failed", "completed"]


def test_a_lost_post_that_made_no_job_does_not_count_as_one(client, clock):
    prompt = "a [sandbox:fail=1] [sandbox:post-500]"
    assert client.post(prompt).status_code == 500
    assert [ended(client, clock, prompt)["status"] for _ in range(2)] == ["failed", "completed"]


def test_expired(client, clock):
    job_id = client.make("[sandbox:expired] [sandbox:seconds=5]")
    clock.advance(4.9)
    assert client.job(job_id)["status"] == "running"
    clock.advance(0.1)
    assert client.get(job_id).status_code == 404


def test_seconds(client, clock):
    job_id = client.make("a song [sandbox:seconds=144]")
    clock.advance(143.9)
    assert client.job(job_id)["status"] == "running"
    clock.advance(0.1)
    assert client.job(job_id)["finished_at"] == "2026-02-17 15:41:58"


def test_status(client, clock):
    job_id = client.make("a song [sandbox:status=mastering]")
    assert client.job(job_id)["status"] == "mastering"
    clock.advance(100)
    assert client.job(job_id)["status"] == "completed"


def test_forever(client, clock):
    job_id = client.make("a song [sandbox:forever] [sandbox:seconds=1]")
    clock.advance(1e9)
    body = client.job(job_id)
    assert body["status"] == "running"
    assert "finished_at" not in body


def test_bare_track(client, clock):
    result = ended(client, clock, "[sandbox:bare-track]")["result"]
    assert result == {"title": None, "bpm": None, "song_url": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [("2:47", "2:47"), ("1:02:03", "1:02:03"), ("167", 167), ("about a minute", "about a minute"), ("", "")],
)
def test_duration(client, clock, text, value):
    result = ended(client, clock, f"a song [sandbox:duration={text}]")["result"]
    assert result["duration"] == value
    assert type(result["duration"]) is type(value)


def test_hostile(client, clock):
    result = ended(client, clock, "[sandbox:hostile]")["result"]
    assert result["title"].startswith("<script>")
    assert "<img src=x onerror=alert(1)>" in result["tags"].split(", ")


def test_several_directives_anywhere(client, clock):
    prompt = "[sandbox:seconds=3]lo-fi[sandbox:get-500=1] for [sandbox:fail=1]rain"
    job_id = client.make(prompt)
    clock.advance(3)
    assert client.get(job_id).status_code == 500
    body = client.job(job_id)
    assert (body["status"], body["prompt"]) == ("failed", prompt)


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("fial", "Unknown sandbox directive 'fial'; known: fail,"),
        ("get-501=2", "Unknown sandbox directive 'get-501'"),
        ("fail=often", "'fail' takes a whole number, not 'often'"),
        ("get-500=-1", "'get-500' takes a whole number, not '-1'"),
        ("get-slow=long", "'get-slow' takes a number of seconds, not 'long'"),
        ("seconds=inf", "'seconds' takes a number of seconds, not 'inf'"),
        ("seconds", "'seconds' needs a value"),
        ("duration", "'duration' needs a value"),
        ("forever=1", "'forever' takes no value"),
    ],
)
def test_a_directive_that_cannot_be_read_is_400(client, directive, message):
    answer = client.post(f"a song [sandbox:{directive}]")
    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid input")
    assert message in answer.json()["message"]
    assert client.sandbox.jobs == {}

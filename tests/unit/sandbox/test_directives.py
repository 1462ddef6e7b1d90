"""Each directive of a prompt."""

from __future__ import annotations

import pytest

from airflow_provider_whisul.sandbox.directives import parse


def ended(client, clock, prompt):
    job_id = client.make(prompt)
    clock.advance(100)
    return client.job(job_id)


def test_a_prompt_without_directives_has_none():
    assert parse("a [sandbox] song, [verse: 1]") == parse("")


def test_fail_makes_every_job_of_a_prompt_fail(client, clock):
    for _ in range(3):
        body = ended(client, clock, "a song [sandbox:fail]")
        assert (body["status"], body["result"]) == ("failed", None)
        assert body["error"] == "Generation failed due to an internal error."
        assert body["finished_at"] > body["started_at"]


def test_fail_with_a_number_makes_the_first_jobs_of_a_prompt_fail(client, clock):
    prompts = ["a [sandbox:fail=2]", "b [sandbox:fail=2]", "a [sandbox:fail=2]", "a [sandbox:fail=2]"]
    assert [ended(client, clock, prompt)["status"] for prompt in prompts] == ["failed", "failed", "failed", "completed"]


def test_a_dropped_post_that_made_no_job_does_not_count_as_a_job(client, clock):
    prompt = "a [sandbox:fail=1] [sandbox:post-500]"
    assert client.post(prompt).status_code == 500
    assert [ended(client, clock, prompt)["status"] for _ in range(2)] == ["failed", "completed"]


def test_expired_makes_a_completed_job_404(client, clock):
    job_id = client.make("[sandbox:expired] [sandbox:seconds=5]")
    clock.advance(4.9)
    assert client.job(job_id)["status"] == "running"
    clock.advance(0.1)
    assert client.get(job_id).status_code == 404


def test_seconds_sets_how_long_a_job_runs(client, clock):
    job_id = client.make("a song [sandbox:seconds=144]")
    clock.advance(143.9)
    assert client.job(job_id)["status"] == "running"
    clock.advance(0.1)
    assert client.job(job_id)["finished_at"] == "2026-02-17 15:41:58"


@pytest.mark.parametrize(("fail", "word"), [("", "COMPLETED"), ("[sandbox:fail]", "cancelled")])
def test_end_status_is_the_word_for_how_the_job_has_ended(client, clock, fail, word):
    job = ended(client, clock, f"a song {fail}[sandbox:end-status={word}]")
    assert job["status"] == word
    assert (job["result"] is None) is bool(fail)


def test_status_reports_an_undocumented_status(client, clock):
    job_id = client.make("a song [sandbox:status=mastering]")
    assert client.job(job_id)["status"] == "mastering"
    clock.advance(100)
    assert client.job(job_id)["status"] == "completed"


def test_forever_keeps_a_job_running(client, clock):
    job_id = client.make("a song [sandbox:forever] [sandbox:seconds=1]")
    clock.advance(1e9)
    body = client.job(job_id)
    assert body["status"] == "running"
    assert "finished_at" not in body


def test_bare_track_sends_a_song_without_title_bpm_and_url(client, clock):
    result = ended(client, clock, "[sandbox:bare-track]")["result"]
    assert result == {"title": None, "bpm": None, "song_url": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [("2:47", "2:47"), ("1:02:03", "1:02:03"), ("167", 167), ("about a minute", "about a minute"), ("", "")],
)
def test_duration_sets_the_duration_as_it_is_sent(client, clock, text, value):
    result = ended(client, clock, f"a song [sandbox:duration={text}]")["result"]
    assert result["duration"] == value
    assert type(result["duration"]) is type(value)


def test_hostile_sends_texts_that_a_client_must_not_trust(client, clock):
    result = ended(client, clock, "[sandbox:hostile]")["result"]
    assert result["title"].startswith("<script>")
    assert "<img src=x onerror=alert(1)>" in result["tags"].split(", ")


def test_a_prompt_may_hold_several_directives_anywhere(client, clock):
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
    response = client.post(f"a song [sandbox:{directive}]")
    assert (response.status_code, response.json()["error"]) == (400, "Invalid input")
    assert message in response.json()["message"]
    assert client.sandbox.jobs == {}

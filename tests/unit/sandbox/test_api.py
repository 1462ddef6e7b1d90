"""The documented statuses and bodies, and the key check."""

from __future__ import annotations

import uuid

import pytest


def test_post_makes_a_job(client, clock):
    response = client.post("a trap song")
    assert response.status_code == 202
    assert response.headers["Content-Type"] == "application/json"
    job_id = response.json()["job_id"]
    assert response.json() == {
        "message": "Composition task received.",
        "job_id": job_id,
        "poll_url": f"/jobs/{job_id}",
    }
    assert str(uuid.UUID(job_id)) == job_id
    job = client.sandbox.jobs[job_id]
    assert (job.prompt, job.started_at) == ("a trap song", clock.now)
    assert 10 <= job.ends_at - job.started_at <= 20


def test_a_job_runs_and_completes(client, clock):
    job_id = client.make("a trap song")
    assert client.job(job_id) == {
        "status": "running",
        "prompt": "a trap song",
        "result": None,
        "error": None,
        "started_at": "2026-02-17 15:39:34",
    }
    clock.advance(9.9)
    assert client.job(job_id)["status"] == "running"
    clock.advance(10.1)
    body = client.job(job_id)
    assert list(body) == ["status", "prompt", "result", "error", "started_at", "finished_at"]
    assert (body["status"], body["error"], body["started_at"]) == ("completed", None, "2026-02-17 15:39:34")
    assert "2026-02-17 15:39:44" <= body["finished_at"] <= "2026-02-17 15:39:54"
    result = body["result"]
    assert list(result) == ["title", "bpm", "duration", "song_url", "image_url", "tags"]
    minutes, seconds = result["duration"].split(":")
    assert (minutes, len(seconds)) == ("0", 2)
    assert isinstance(result["bpm"], int)
    assert len(result["tags"].split(", ")) == 4
    root = client.sandbox.base_url.removesuffix("/api")
    assert result["song_url"] == f"{root}/media/audio/{job_id}.wav"
    assert result["image_url"] == f"{root}/media/covers/{job_id}.png"


def test_a_job_is_the_same_at_every_poll(client, clock):
    job_id = client.make("a song")
    clock.advance(60)
    first = client.job(job_id)
    clock.advance(60)
    assert client.job(job_id) == first


def test_songs_and_times_depend_on_the_seed_and_not_on_the_order_of_prompts(start, clock):
    def songs(prompts, **options):
        client = start(**options)
        for prompt in prompts:
            client.make(prompt)
        jobs = client.sandbox.jobs.values()
        return {job.prompt: (job.title, job.bpm, job.seconds, job.tags, job.ends_at) for job in jobs}

    assert songs(["one", "two"]) == songs(["two", "one"])
    assert songs(["one"]) != songs(["one"], seed=1)


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", b"{}", "The 'prompt' field is required and must not be empty."),
        ("application/json", b'{"prompt": ""}', "The 'prompt' field is required and must not be empty."),
        ("application/json", b'{"prompt": " \\n"}', "The 'prompt' field is required and must not be empty."),
        ("application/json", b'{"prompt": 7}', "The 'prompt' field is required and must not be empty."),
        ("application/json", b'["a song"]', "The 'prompt' field is required and must not be empty."),
        ("application/json", b"", "The request body must be valid JSON."),
        ("application/json", b'{"prompt": "a so', "The request body must be valid JSON."),
        ("application/json", b"\xff\xfe", "The request body must be valid JSON."),
        ("application/json", b'{"prompt": "\\ud800"}', "The request body must be valid JSON."),
        ("text/plain", b'{"prompt": "a song"}', "The Content-Type header must be application/json."),
    ],
)
def test_a_bad_body_is_400_and_makes_no_job(client, content_type, body, message):
    url = f"{client.sandbox.base_url}/generate"
    response = client.session.post(url, data=body, headers={"Content-Type": content_type}, timeout=30)
    assert response.status_code == 400
    assert response.json() == {"error": "Invalid input", "message": message}
    assert client.sandbox.jobs == {}


def test_content_type_may_name_a_charset(client):
    url = f"{client.sandbox.base_url}/generate"
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = client.session.post(url, data='{"prompt": "très doux"}'.encode(), headers=headers, timeout=30)
    assert client.job(response.json()["job_id"])["prompt"] == "très doux"


@pytest.mark.parametrize("job_id", ["no-such-job", "..%2Fgenerate", "%0a", str(uuid.UUID(int=0))])
def test_an_unknown_job_is_404(client, job_id):
    response = client.get(job_id)
    assert response.status_code == 404
    assert response.json()["error"] == "Not found"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/generate", 405, "POST"),
        ("POST", "/jobs/x", 405, "GET"),
        ("POST", "/compose", 404, None),
        ("GET", "/jobs/x/y", 404, None),
    ],
)
def test_unknown_paths_are_404_and_wrong_methods_405(client, method, path, status, allow):
    response = client.session.request(method, client.sandbox.base_url + path, timeout=30)
    assert (response.status_code, response.headers.get("Allow")) == (status, allow)


def test_a_path_outside_the_api_is_404(client, anonymous):
    assert anonymous.get(client.sandbox.base_url.removesuffix("/api"), timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("header", "logged"),
    [
        (None, "missing"),
        ("Bearer wrong", "wrong"),
        ("Bearer ", "wrong"),
        ("a-secret-key-of-some-length", "wrong"),
        ("Basic a-secret-key-of-some-length", "wrong"),
        ("Bearer a-secret-key-of-some-length x", "wrong"),
    ],
)
def test_every_request_without_the_right_key_is_401(client, anonymous, header, logged):
    job_id = client.make("a song")
    headers = {} if header is None else {"Authorization": header}
    responses = [
        anonymous.get(f"{client.sandbox.base_url}/jobs/{job_id}", headers=headers, timeout=30),
        anonymous.post(f"{client.sandbox.base_url}/generate", json={"prompt": "no"}, headers=headers, timeout=30),
        anonymous.get(f"{client.sandbox.base_url}/nothing", headers=headers, timeout=30),
    ]
    assert [response.status_code for response in responses] == [401, 401, 401]
    assert responses[0].json()["error"] == "Unauthorized"
    assert [entry.authorization for entry in client.sandbox.requests[1:]] == [logged] * 3
    assert list(client.sandbox.jobs) == [job_id]


def test_a_revoked_key_is_401_at_once_and_a_new_one_is_accepted(client, anonymous):
    job_id = client.make("a song")
    client.sandbox.revoke_key()
    assert client.get(job_id).status_code == 401
    client.sandbox.restore_key("the-new-key")
    assert client.get(job_id).status_code == 401
    headers = {"Authorization": "bearer the-new-key"}
    assert anonymous.get(f"{client.sandbox.base_url}/jobs/{job_id}", headers=headers, timeout=30).status_code == 200
    assert '"password": "the-new-key"' in client.sandbox.connection
    client.sandbox.restore_key()
    assert client.get(job_id).status_code == 200


def test_a_new_key_must_be_one_that_a_header_can_carry(client):
    with pytest.raises(ValueError, match="printable ASCII"):
        client.sandbox.restore_key("two words")
    assert client.post("a song").status_code == 202


def test_a_job_expires(start, clock):
    client = start(expire_seconds=30.0, job_seconds=(10.0, 10.0))
    job_id = client.make("a song")
    clock.advance(39.9)
    assert client.job(job_id)["status"] == "completed"
    clock.advance(0.1)
    assert client.get(job_id).status_code == 404

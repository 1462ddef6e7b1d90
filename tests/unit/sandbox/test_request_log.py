"""The request log: what an entry holds, and that it never holds the key."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from airflow_provider_whisul.sandbox import LoggedRequest

KEY = "a-secret-key-of-some-length"


def test_an_entry_holds_the_request_and_its_outcome(client, clock):
    client.session.headers["User-Agent"] = "tester/1"
    job_id = client.make("a song")
    clock.advance(5)
    client.job(job_id)
    post, get = client.sandbox.requests
    assert post == LoggedRequest(
        at=clock.now - 5,
        method="POST",
        path="/api/generate",
        status=202,
        job_id=job_id,
        prompt="a song",
        authorization="ok",
        key_elsewhere=False,
        user_agent="tester/1",
        fault=None,
        connection=1,
    )
    assert (get.at, get.method, get.path) == (clock.now, "GET", f"/api/jobs/{job_id}")
    assert (get.status, get.job_id, get.prompt, get.connection) == (200, job_id, None, 1)


def test_connections_are_told_apart(client, anonymous):
    client.make("one")
    anonymous.get(f"{client.sandbox.base_url}/jobs/x", timeout=30)
    client.make("two")
    anonymous.get(f"{client.sandbox.base_url}/jobs/x", timeout=30)
    assert [entry.connection for entry in client.sandbox.requests] == [1, 2, 1, 2]


def test_a_snapshot_stays_as_it_was(client):
    client.make("one")
    requests, jobs = client.sandbox.requests, client.sandbox.jobs
    client.make("two")
    assert (len(requests), len(jobs)) == (1, 1)
    assert (len(client.sandbox.requests), len(client.sandbox.jobs)) == (2, 2)


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        (f"/jobs/x?key={KEY}", {}),
        ("/jobs/x?key=" + "".join(f"%{ord(letter):02x}" for letter in KEY), {}),
        (f"/jobs/{KEY}", {}),
        ("/jobs/x", {"headers": {"X-Api-Key": KEY}}),
        ("/jobs/x", {"headers": {"User-Agent": f"tester {KEY}"}}),
        ("/jobs/x", {"cookies": {"key": KEY}}),
        ("/jobs/x", {"data": f"key={KEY}"}),
        ("/generate", {"method": "POST", "json": {"prompt": f"a song with {KEY}"}}),
        ("/generate", {"method": "POST", "json": {"prompt": "a song", "api_key": KEY}}),
    ],
)
def test_the_key_in_another_place_is_noticed_and_not_shown(client, path, arguments):
    arguments = {"method": "GET", "timeout": 30, **arguments}
    client.session.request(url=client.sandbox.base_url + path, **arguments)
    assert client.last.key_elsewhere is True
    assert client.last.authorization == "ok"
    assert KEY not in str(asdict(client.last))


def test_an_earlier_key_is_noticed_too(client):
    client.sandbox.restore_key("another-key")
    client.session.get(f"{client.sandbox.base_url}/jobs/x?key={KEY}", timeout=30)
    assert (client.last.authorization, client.last.key_elsewhere) == ("wrong", True)


def test_a_short_key_counts_only_where_it_stands_alone(start):
    client = start(api_key="k")
    client.make("a folk song, keys and kazoo")
    assert (client.last.key_elsewhere, client.last.prompt) == (False, "a folk song, keys and kazoo")
    client.session.get(f"{client.sandbox.base_url}/jobs/x?key=k", timeout=30)
    assert (client.last.key_elsewhere, client.last.path) == (True, "/api/jobs/x?key=***")


def test_the_key_in_a_request_for_media_is_noticed(client, clock, anonymous):
    job_id = client.make("a song")
    clock.advance(100)
    url = client.job(job_id)["result"]["song_url"]
    anonymous.get(url, timeout=30)
    assert (client.last.authorization, client.last.key_elsewhere) == ("missing", False)
    assert (client.last.path, client.last.status, client.last.job_id) == (f"/media/audio/{job_id}.wav", 200, job_id)
    assert client.session.get(url, timeout=30).status_code == 200
    assert (client.last.authorization, client.last.key_elsewhere) == ("ok", True)


def test_the_log_over_http(client, anonymous):
    client.make("a song")
    root = client.sandbox.base_url.removesuffix("/api")
    assert anonymous.get(f"{root}/_sandbox/requests", timeout=30).json() == [
        asdict(entry) for entry in client.sandbox.requests
    ]
    assert len(client.sandbox.requests) == 1


def test_the_key_revoked_over_http(client, anonymous):
    root = client.sandbox.base_url.removesuffix("/api")
    response = anonymous.post(f"{root}/_sandbox/revoke-key", timeout=30)
    assert (response.status_code, response.json()) == (200, {"revoked": True})
    assert client.post("a song").status_code == 401

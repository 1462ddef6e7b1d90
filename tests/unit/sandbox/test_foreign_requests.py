"""Requests that a page of another site, or a broken client, sends to the sandbox."""

from __future__ import annotations

import json

import pytest

from airflow_provider_whisul.sandbox import Sandbox


def origin_of(sandbox: Sandbox) -> str:
    return sandbox.base_url.removesuffix("/api")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/_sandbox/revoke-key"), ("GET", "/_sandbox/requests")])
def test_a_page_of_another_site_neither_revokes_the_key_nor_reads_the_log(client, headers, method, path):
    client.make("a secret serenade")
    refused = client.session.request(method, f"{origin_of(client.sandbox)}{path}", headers=headers, timeout=30)
    assert refused.status_code == 403
    assert "serenade" not in refused.text
    assert client.post("a song").status_code == 202


def test_a_page_on_another_port_of_this_machine_does_not_revoke_the_key(client):
    headers = {"Origin": "http://127.0.0.1:1"}
    refused = client.session.post(f"{origin_of(client.sandbox)}/_sandbox/revoke-key", headers=headers, timeout=30)
    assert refused.status_code == 403
    assert client.post("a song").status_code == 202


def test_a_request_without_an_origin_or_from_the_sandbox_itself_is_served(client):
    root = origin_of(client.sandbox)
    assert client.session.get(f"{root}/_sandbox/requests", timeout=30).json() == []
    assert client.session.get(f"{root}/_sandbox/requests", headers={"Origin": root}, timeout=30).status_code == 200
    assert client.session.post(f"{root}/_sandbox/revoke-key", timeout=30).json() == {"revoked": True}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "localhost.", ""]
)
@pytest.mark.parametrize("path", ["/_sandbox/requests", "/api/jobs/x", "/media/audio/x.wav"])
def test_a_name_that_is_not_this_machines_is_refused_on_every_path(client, host, path):
    """DNS can point a page's own host name here, and the page could then read every response."""
    response = client.session.get(f"{origin_of(client.sandbox)}{path}", headers={"Host": host}, timeout=30)
    assert response.status_code == 421
    assert client.sandbox.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2:80", "localhost:80", "[::1]:80", "LOCALHOST"])
def test_every_name_of_loopback_is_served(client, host):
    response = client.session.get(f"{origin_of(client.sandbox)}/_sandbox/requests", headers={"Host": host}, timeout=30)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_sandbox/revoke-key", 405),
        ("DELETE", "/_sandbox/requests", 405),
        ("POST", "/_sandbox/unknown", 404),
        ("PUT", "/api/generate", 405),
        ("TRACE", "/api/jobs/x", 405),
    ],
)
def test_another_method_or_an_unknown_path_is_refused(client, method, path, status):
    response = client.session.request(method, f"{origin_of(client.sandbox)}{path}", timeout=30)
    assert response.status_code == status
    assert response.json()["error"]
    assert client.post("a song").status_code == 202


@pytest.mark.parametrize("nested", ["[" * 100_000 + "]" * 100_000, '{"prompt":' * 100_000 + "1" + "}" * 100_000])
def test_json_that_is_nested_too_deep_is_refused_as_malformed(client, nested):
    headers = {"Content-Type": "application/json"}
    response = client.session.post(f"{client.sandbox.base_url}/generate", data=nested, headers=headers, timeout=10)
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid input"


def test_a_body_that_is_too_large_is_refused_and_logged(client):
    body = json.dumps({"prompt": "a" * 17_000_000})
    headers = {"Content-Type": "application/json"}
    response = client.session.post(f"{client.sandbox.base_url}/generate", data=body, headers=headers, timeout=30)
    assert response.status_code == 413
    assert response.json()["error"] == "Payload too large"
    assert (client.last.method, client.last.status) == ("POST", 413)
    assert client.sandbox.jobs == {}


def test_a_range_of_thousands_of_digits_is_ignored(client, clock, anonymous):
    job_id = client.make("a song")
    clock.advance(100)
    url = client.job(job_id)["result"]["image_url"]
    response = anonymous.get(url, headers={"Range": f"bytes={'9' * 5_000}-"}, timeout=30)
    assert response.status_code == 200

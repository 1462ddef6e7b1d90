"""Each fault as a client sees it, and which requests it affects."""

from __future__ import annotations

import time

import pytest
import requests

from airflow_provider_whisul.sandbox.options import GET_FAULTS, POST_FAULTS
from tests.support.soon import soon, wait_until

STATUSES = {
    "get-500": 500,
    "get-502-html": 502,
    "get-429": 429,
    "get-redirect": 302,
    "get-404": 404,
    "get-html-200": 200,
    "get-401": 401,
    "get-402": 402,
    "get-403-html": 403,
    "get-410": 410,
    "post-500": 500,
    "post-502-html": 502,
    "post-429": 429,
    "post-html-202": 202,
    "post-redirect": 307,
    "post-no-id": 202,
    "post-bad-id": 202,
    "post-303": 303,
    "post-402": 402,
    "post-no-credits": 429,
    "post-403-html": 403,
    "post-413": 413,
    "post-422": 422,
    "post-201": 201,
    "post-int-id": 202,
    "post-poll-url": 202,
}
PAGES = {
    *("get-502-html", "get-html-200", "get-redirect", "get-403-html"),
    *("post-502-html", "post-html-202", "post-redirect", "post-303", "post-403-html", "post-413"),
}
BROKEN = {"get-drop", "get-truncated", "post-drop", "post-drop-before", "post-truncated"}
SLOW = {"get-slow", "post-slow"}
JOB_MADE = {
    *("post-drop", "post-truncated", "post-html-202", "post-slow", "post-no-id", "post-bad-id"),
    *("post-303", "post-201", "post-int-id", "post-poll-url"),
}


def test_every_fault_has_a_test():
    assert {*STATUSES, *BROKEN, *SLOW} == {*GET_FAULTS, *POST_FAULTS}


@pytest.mark.parametrize("fault", [name for name in STATUSES if name in GET_FAULTS])
def test_a_get_fault_happens_once_and_the_next_response_is_right(client, fault):
    job_id = client.make(f"a song [sandbox:{fault}]")
    response = client.get(job_id, allow_redirects=False)
    assert response.status_code == STATUSES[fault]
    assert response.headers["Content-Type"].startswith("text/html" if fault in PAGES else "application/json")
    assert (client.last.status, client.last.fault, client.last.job_id) == (STATUSES[fault], fault, job_id)
    assert client.job(job_id)["status"] == "running"
    assert client.last.fault is None


@pytest.mark.parametrize("fault", [name for name in STATUSES if name in POST_FAULTS])
def test_a_post_fault_happens_once_and_the_next_response_is_right(client, fault):
    prompt = f"a song [sandbox:{fault}]"
    response = client.post(prompt, allow_redirects=False)
    assert response.status_code == STATUSES[fault]
    assert response.headers["Content-Type"].startswith("text/html" if fault in PAGES else "application/json")
    made = list(client.sandbox.jobs)
    assert len(made) == (1 if fault in JOB_MADE else 0)
    assert (client.last.fault, client.last.job_id) == (fault, made[0] if made else None)
    assert client.make(prompt) in client.sandbox.jobs


def test_post_no_id_is_a_202_without_a_job_id(client):
    assert client.post("a [sandbox:post-no-id]").json() == {"message": "Composition task received."}


def test_post_int_id_and_post_poll_url_name_a_job_that_can_be_polled(client):
    number = client.post("a [sandbox:post-int-id]").json()["job_id"]
    assert isinstance(number, int)
    assert client.job(str(number))["status"] == "running"
    body = client.post("a [sandbox:post-poll-url]").json()
    assert "job_id" not in body
    assert client.job(body["poll_url"].removeprefix("/jobs/"))["status"] == "running"


def test_post_no_credits_is_a_429_that_says_so(client):
    assert client.post("a [sandbox:post-no-credits]").json()["error"] == "insufficient_quota"


def test_post_bad_id_is_a_202_with_an_id_that_is_a_path(client):
    body = client.post("a [sandbox:post-bad-id]").json()
    assert (body["job_id"], body["poll_url"]) == ("../x?y", "/jobs/../x?y")


@pytest.mark.parametrize("fault", ["get-drop", "post-drop", "post-drop-before"])
def test_a_dropped_connection(client, fault):
    prompt = f"a song [sandbox:{fault}]"
    if fault == "get-drop":
        job_id = client.make(prompt)
        with pytest.raises(requests.ConnectionError):
            client.get(job_id)
    else:
        with pytest.raises(requests.ConnectionError):
            client.post(prompt)
        assert len(client.sandbox.jobs) == (fault == "post-drop")
    assert (client.last.status, client.last.fault) == (None, fault)
    before = client.last.connection
    client.make(prompt)
    assert client.last.connection == before + 1


@pytest.mark.parametrize("fault", ["get-truncated", "post-truncated"])
def test_a_truncated_response_is_shorter_than_its_content_length(client, fault):
    prompt = f"a song [sandbox:{fault}]"
    if fault == "get-truncated":
        response = client.get(client.make(prompt), stream=True)
    else:
        response = client.post(prompt, stream=True)
    length = int(response.headers["Content-Length"])
    with pytest.raises(requests.exceptions.ChunkedEncodingError) as caught:
        _ = response.content
    assert f"IncompleteRead({length // 2} bytes read, {length - length // 2} more expected)" in str(caught.value)
    assert len(client.sandbox.jobs) == 1
    assert (client.last.status, client.last.fault) == (200 if fault == "get-truncated" else 202, fault)


def test_a_slow_get_is_answered_after_its_seconds(client):
    job_id = client.make("a song [sandbox:get-slow=0.2]")
    begin = time.monotonic()
    assert client.job(job_id)["status"] == "running"
    assert time.monotonic() - begin >= 0.2
    assert client.last.fault == "get-slow"
    client.job(job_id)
    assert client.last.fault is None


def test_a_slow_post_that_the_client_gives_up_on_makes_its_job(client):
    with pytest.raises(requests.ReadTimeout):
        client.session.post(
            f"{client.sandbox.base_url}/generate", json={"prompt": "a [sandbox:post-slow=60]"}, timeout=(30, 0.1)
        )
    wait_until(lambda: client.sandbox.jobs)
    assert len(client.sandbox.jobs) == 1
    assert (client.last.status, client.last.fault) == (202, "post-slow")


def test_a_slow_response_delays_no_other_request(client):
    slow = client.make("a [sandbox:get-slow=60]")
    with pytest.raises(requests.ReadTimeout):
        client.get(slow, timeout=(30, 0.05))
    with soon():
        client.make("another song")


def test_slow_without_a_number_takes_the_delay_of_the_options(start):
    client = start(slow_seconds=0.15)
    job_id = client.make("a song [sandbox:get-slow]")
    begin = time.monotonic()
    client.job(job_id)
    assert time.monotonic() - begin >= 0.15


@pytest.mark.parametrize("method", ["get", "post"])
def test_following_a_redirect_with_the_key_is_logged_as_key_elsewhere(client, method):
    if method == "get":
        response = client.get(client.make("a [sandbox:get-redirect]"))
    else:
        response = client.post("a [sandbox:post-redirect]")
    assert response.text.count("A redirect was followed") == 2
    assert client.last.path.startswith("/elsewhere/api/")
    assert client.last.method == method.upper()
    assert client.last.key_elsewhere is True


def test_get_faults_count_by_job_and_come_in_the_order_of_the_prompt(client):
    prompt = "[sandbox:get-500=2] a song [sandbox:get-404]"
    for job_id in (client.make(prompt), client.make(prompt)):
        assert [client.get(job_id).status_code for _ in range(4)] == [500, 500, 404, 200]


def test_post_faults_count_by_prompt(client):
    posts = ["a [sandbox:post-500=2]", "b [sandbox:post-500=2]", "a [sandbox:post-500=2]", "a [sandbox:post-500=2]"]
    assert [client.post(prompt).status_code for prompt in posts] == [500, 500, 500, 202]


def test_fault_rates_hold_on_average_and_depend_on_the_seed(start):
    def faults(**options):
        client = start(**options)
        job_id = client.make("a song")
        for _ in range(200):
            client.get(job_id)
        return [entry.fault for entry in client.sandbox.requests[1:]]

    rates = {"get-500": 0.3, "get-404": 0.2}
    first = faults(fault_rates=rates)
    assert 40 <= first.count("get-500") <= 80
    assert 20 <= first.count("get-404") <= 60
    assert first.count(None) == 200 - first.count("get-500") - first.count("get-404")
    assert faults(fault_rates=rates) == first
    assert faults(fault_rates=rates, seed=1) != first


def test_fault_rates_apply_to_posts_and_unknown_jobs_too(start):
    client = start(fault_rates={"post-500": 1.0, "get-429": 1.0})
    assert client.post("a song").status_code == 500
    assert client.get("unknown").status_code == 429


def test_a_refused_request_uses_up_no_fault(client):
    job_id = client.make("a [sandbox:get-500]")
    client.sandbox.revoke_key()
    assert client.get(job_id).status_code == 401
    client.sandbox.restore_key()
    assert [client.get(job_id).status_code for _ in range(2)] == [500, 200]

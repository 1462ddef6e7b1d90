"""The rate limit: a block that ends only after a time without requests."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest


def statuses(client, count):
    return [client.get("x").status_code for _ in range(count)]


def test_the_window_slides(start, clock):
    client = start(rate_limit=3, rate_window=10.0)
    assert statuses(client, 2) == [404, 404]
    clock.advance(6)
    assert statuses(client, 1) == [404]
    clock.advance(4)
    assert statuses(client, 2) == [404, 404]
    assert statuses(client, 1) == [429]


def test_a_block_ends_after_a_time_without_requests(start, clock):
    client = start(rate_limit=1, rate_window=1.0, block_seconds=10.0)
    assert statuses(client, 2) == [404, 429]
    clock.advance(10)
    assert statuses(client, 1) == [404]


def test_a_request_during_a_block_prolongs_it(start, clock):
    client = start(rate_limit=1, rate_window=1.0, block_seconds=10.0)
    assert statuses(client, 2) == [404, 429]
    for _ in range(5):
        clock.advance(9.9)
        assert statuses(client, 1) == [429]
    clock.advance(10)
    assert statuses(client, 1) == [404]


def test_a_blocked_post_makes_no_job(start):
    client = start(rate_limit=1)
    client.make("first")
    response = client.post("second")
    assert response.status_code == 429
    assert response.json()["error"] == "Too many requests"
    assert "Retry-After" not in response.headers
    assert [job.prompt for job in client.sandbox.jobs.values()] == ["first"]
    assert (client.last.status, client.last.prompt, client.last.job_id) == (429, "second", None)
    assert client.last.fault is None


def test_requests_without_the_key_count_against_no_limit(start, anonymous):
    client = start(rate_limit=2, rate_window=10.0)
    for _ in range(5):
        anonymous.get(f"{client.sandbox.base_url}/jobs/x", timeout=30)
    assert statuses(client, 3) == [404, 404, 429]


def test_each_key_has_a_limit_of_its_own(start):
    client = start(rate_limit=1)
    assert statuses(client, 2) == [404, 429]
    client.sandbox.restore_key("another-key")
    client.session.headers["Authorization"] = "Bearer another-key"
    assert statuses(client, 2) == [404, 429]


@pytest.mark.parametrize("fault", ["", "[sandbox:post-429]"])
def test_retry_after_in_seconds_is_rounded_up(start, fault):
    client = start(rate_limit=1, block_seconds=7.2, retry_after=True)
    if not fault:
        client.post("a song")
    response = client.post(f"a song {fault}")
    assert (response.status_code, response.headers["Retry-After"]) == (429, "8")


def test_retry_after_as_a_date_follows_the_clock(start, clock):
    client = start(rate_limit=1, block_seconds=7.2, retry_after="date")
    client.post("a song")
    header = client.post("a song").headers["Retry-After"]
    assert header.endswith(" GMT")
    assert parsedate_to_datetime(header).timestamp() == clock.now + 8

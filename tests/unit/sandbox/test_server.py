"""Starting, stopping, and the two ways to run."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time

import aiohttp
import pytest
import requests

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from tests.support.soon import SOON


def test_importing_the_sandbox_imports_neither_aiohttp_nor_airflow():
    code = (
        "import sys; from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions; Sandbox(SandboxOptions());"
        "print({'aiohttp', 'airflow', 'requests'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_connection_holds_the_key_and_the_base_url(client):
    assert json.loads(client.sandbox.connection) == {
        "conn_type": "whisul",
        "password": "a-secret-key-of-some-length",
        "host": client.sandbox.base_url,
    }
    assert client.sandbox.base_url.startswith("http://127.0.0.1:")
    assert client.sandbox.base_url.endswith("/api")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_anything_but_loopback_is_refused(host):
    with pytest.raises(ValueError, match="loopback only"):
        Sandbox(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_loopback_is_accepted(host, anonymous):
    with Sandbox(host=host) as sandbox:
        assert anonymous.get(f"{sandbox.base_url}/jobs/x", timeout=30).status_code == 401


def test_an_ipv6_address_stands_in_brackets(anonymous):
    try:
        with Sandbox(host="::1") as sandbox:
            assert sandbox.base_url.startswith("http://[::1]:")
            assert anonymous.get(f"{sandbox.base_url}/jobs/x", timeout=30).status_code == 401
    except OSError:
        with pytest.raises(OSError, match=r"."), socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))


def test_a_busy_port_is_an_error_in_the_caller():
    with Sandbox() as first:
        port = int(first.base_url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="in use"), Sandbox(port=port):
            pass
    with Sandbox(port=port) as again:
        assert again.base_url == first.base_url


def test_the_sandbox_has_no_address_before_it_is_started():
    with pytest.raises(RuntimeError, match="start it first"):
        _ = Sandbox().base_url


def test_the_sandbox_cannot_run_twice_at_once(client):
    with pytest.raises(RuntimeError, match="running already"), client.sandbox:
        pass
    assert client.post("still here").status_code == 202


def test_the_sandbox_keeps_its_jobs_over_a_restart(anonymous):
    sandbox = Sandbox(SandboxOptions(api_key="key-of-the-test"))
    headers = {"Authorization": "Bearer key-of-the-test"}
    with sandbox:
        url = f"{sandbox.base_url}/generate"
        job_id = anonymous.post(url, json={"prompt": "a song"}, headers=headers, timeout=30).json()["job_id"]
    assert len(sandbox.requests) == 1
    with pytest.raises(requests.ConnectionError):
        anonymous.get(f"{sandbox.base_url}/jobs/{job_id}", headers=headers, timeout=30)
    with sandbox:
        response = anonymous.get(f"{sandbox.base_url}/jobs/{job_id}", headers=headers, timeout=30)
    assert response.json()["status"] == "running"


def test_the_sandbox_stops_promptly_despite_idle_connections_and_a_slow_response(anonymous):
    before = set(threading.enumerate())
    sandbox = Sandbox(SandboxOptions(api_key="key-of-the-test"))
    headers = {"Authorization": "Bearer key-of-the-test"}
    errors = []

    def wait_for_the_slow_response(url):
        try:
            requests.post(url, json={"prompt": "[sandbox:post-slow=60]"}, headers=headers, timeout=30)
        except requests.ConnectionError as error:
            errors.append(error)

    with sandbox:
        url = f"{sandbox.base_url}/generate"
        anonymous.post(url, json={"prompt": "kept alive"}, headers=headers, timeout=30)
        waiting = threading.Thread(target=wait_for_the_slow_response, args=(url,))
        waiting.start()
        until = time.monotonic() + SOON
        while len(sandbox.jobs) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(sandbox.jobs) == 2
        begin = time.monotonic()
    assert time.monotonic() - begin < SOON
    waiting.join(SOON)
    assert len(errors) == 1
    assert set(threading.enumerate()) <= before


def test_faults_leave_no_trace_in_the_servers_log(client, caplog):
    with caplog.at_level(logging.INFO, logger="aiohttp"):
        for fault in ("post-drop", "post-truncated", "post-drop-before"):
            with pytest.raises(requests.RequestException):
                client.post(f"a [sandbox:{fault}]")
        client.make("a song")
    assert [record for record in caplog.records if record.name.startswith(("aiohttp", "asyncio"))] == []


def test_each_request_is_reported_when_it_arrives(anonymous):
    seen = []
    with Sandbox(on_request=seen.append) as sandbox:
        anonymous.get(f"{sandbox.base_url}/jobs/x", timeout=30)
        assert seen == sandbox.requests
    assert len(seen) == 1


def test_serve_in_the_callers_loop(clock):
    async def scenario():
        sandbox = Sandbox(SandboxOptions(api_key="key-of-the-test", job_seconds=(5.0, 5.0)), clock=clock)
        headers = {"Authorization": "Bearer key-of-the-test"}
        threads = threading.active_count()
        async with sandbox.serve() as served, aiohttp.ClientSession(headers=headers) as session:
            assert served is sandbox
            assert threading.active_count() == threads
            async with session.post(f"{sandbox.base_url}/generate", json={"prompt": "a song"}) as response:
                job_id = (await response.json())["job_id"]
            clock.advance(5)
            async with session.get(f"{sandbox.base_url}/jobs/{job_id}") as response:
                body = await response.json()
            sandbox.revoke_key()
            async with session.get(f"{sandbox.base_url}/jobs/{job_id}") as response:
                assert response.status == 401
            with pytest.raises(RuntimeError, match="running already"):
                async with sandbox.serve():
                    pass
        assert body["status"] == "completed"

    asyncio.run(scenario())


def test_many_jobs_at_once():
    async def scenario():
        sandbox = Sandbox(SandboxOptions(api_key="key-of-the-test"))
        headers = {"Authorization": "Bearer key-of-the-test"}
        async with sandbox.serve(), aiohttp.ClientSession(headers=headers) as session:

            async def make(number):
                async with session.post(f"{sandbox.base_url}/generate", json={"prompt": f"song {number}"}) as response:
                    return (await response.json())["job_id"]

            ids = await asyncio.gather(*(make(number) for number in range(300)))
        assert sandbox.jobs.keys() == set(ids)
        assert len(ids) == len(set(ids)) == len(sandbox.requests)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": ""}, "API key"),
        ({"api_key": "a key"}, "API key"),
        ({"api_key": "kéy"}, "API key"),
        ({"api_key": "key\n"}, "API key"),
        ({"job_seconds": (2.0, 1.0)}, "job_seconds"),
        ({"job_seconds": (-1.0, 1.0)}, "job_seconds"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"rate_window": 0.0}, "rate_window"),
        ({"block_seconds": -1.0}, "block_seconds"),
        ({"expire_seconds": float("nan")}, "expire_seconds"),
        ({"slow_seconds": -1.0}, "slow_seconds"),
        ({"retry_after": "soon"}, "retry_after"),
        ({"fault_rates": {"get-501": 0.1}}, "unknown fault 'get-501'"),
        ({"fault_rates": {"get-500": 1.1}}, "between 0 and 1"),
        ({"fault_rates": {"get-500": 0.6, "get-404": 0.6}}, "get faults add up"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SandboxOptions(**options)

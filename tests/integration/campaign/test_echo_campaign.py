"""
A seeded campaign of responses that echo the API key, somewhere and in some form, valid or broken.

A song, a batch, a sensor and both hooks meet them. Whatever the bytes are, the key is in no log record, error, cause,
XCom or trigger, every error is the provider's own, and every task ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import traceback
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, TaskDeferred

from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from tests.integration.campaign.judge import chain
from tests.integration.campaign.traffic import Traffic
from tests.integration.campaign.world import KEY, Log
from tests.support.airflow import Deferral, TaskContext, TaskStore, event_of
from tests.support.clock import LoopTime, VirtualLoop
from tests.support.servers import RawServer

#: More, or fewer, with the environment variable that seeds.py names.
SEEDS = 4
TASKS_PER_SEED = 40

STATUSES = (200, 201, 202, 204, 302, 400, 401, 402, 403, 404, 409, 413, 418, 422, 429, 500, 502, 503)
HEADERS = ("Location", "Retry-After", "Content-Type", "Set-Cookie", "X-Echo", "Server", "Content-Encoding", "Date")

#: How a response may hold the key. Of the last ones a reader of JSON makes the key again.
FORMS: tuple[Callable[[str], str], ...] = (
    lambda key: key,
    lambda key: f"Bearer {key}",
    lambda key: f"Authorization: Bearer {key}",
    lambda key: key.replace("~", "%7E"),
    lambda key: b64encode(f"Bearer {key}".encode()).decode(),
    lambda key: "".join(f"\\u{ord(character):04x}" for character in key),
    lambda key: "\\n".join(["a", key, "b"]),
    lambda key: key * 300,
)

#: What must be nowhere.
SECRETS = (KEY, KEY.replace("~", "%7E"), b64encode(f"Bearer {KEY}".encode())[:12].decode())


def a_body(rng: random.Random, echo: str) -> str:
    """Return a body that holds the key: as a job, a submission's response, an error or no JSON."""
    job = {"status": rng.choice(["completed", "completed", "failed", "running"]), "prompt": "a song", "error": "none"}
    song = {"title": "A title", "duration": "3:00", "tags": "loud", "image_url": "https://media.example/a.png"}
    song["song_url"] = "https://media.example/a.wav?key="
    for fields in (job, song):
        for name in rng.sample(sorted(fields), rng.randint(0, 2)):
            fields[name] += echo
    # The echo may be an escape of JSON already.
    in_job = ", ".join(f'"{name}": "{value}"' for name, value in job.items())
    in_song = ", ".join(f'"{name}": "{value}"' for name, value in song.items())
    return rng.choice(
        [
            f'{{{in_job}, "result": {{{in_song}}}}}',
            f'{{{in_job}, "result": {{{in_song}}}}}',
            f'{{"error": "{rng.choice(["Invalid", echo])}", "message": "{echo}"}}',
            f'{{"error": {{"code": "{echo}", "message": "{echo}"}}}}',
            f'{{"message": "{echo}", "job_id": "{rng.choice(["job-1", echo])}", "poll_url": "/jobs/{echo}"}}',
            f'{{"job_id": "job-1", "{echo}": "',
            f'["{echo}"]',
            f"<html><title>{echo}</title>{echo}</html>",
            echo,
        ]
    )


def a_response(rng: random.Random) -> bytes:
    """Return a response that echoes the key."""
    echo = rng.choice(FORMS)(KEY)
    status, reason = rng.choice(STATUSES), rng.choice(["OK", "OK", "OK", echo])
    body = a_body(rng, echo).encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16"]))
    headers = {"Content-Length": str(len(body)), "Connection": "close"}
    for header in rng.sample(HEADERS, rng.randint(0, 2)):
        headers[header] = rng.choice([echo, f"text/html; charset={echo}", f"http://{echo}/", f"a={echo}; path=/"])
    head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    response = head.encode() + b"\r\n" + body
    if rng.random() < 0.3:
        broken = ("HTTP/1.1 %s\r\n\r\n", "%s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n")
        broken += ("HTTP/1.1 200 OK\r\n%s\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n\r\n")
        return rng.choice(broken).replace("%s", echo).encode()
    if rng.random() < 0.3:
        # A byte is another one, or the rest is missing.
        place = rng.randrange(len(response))
        changed = b"" if rng.random() < 0.3 else bytes([rng.randrange(256)]) + response[place + 1 :]
        response = response[:place] + changed
    return response


def submit_and_wait(context: TaskContext, tasks: list[Callable[[], Any]], loop: Any, clock: Clock) -> Any:
    """Run a task, and its triggers, to its end; the first task executes, and each other one resumes it."""
    method: str | None = None
    arguments: dict[str, Any] | None = None
    for make in tasks:
        try:
            return context.run(make(), method, arguments)
        except TaskDeferred as deferred:
            deferral = Deferral.from_exception(deferred)
            context.xcom_push("deferral", [deferral.trigger_kwargs, deferral.kwargs])
            event = loop.run(event_of(deferral.trigger(clock)))
            method, arguments = deferral.resume_with(event)
            context.xcom_push("event", event)
    raise AssertionError("the task defers for ever")


def test_no_response_gets_the_key_out(
    seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for library in ("urllib3", "aiohttp", "asyncio"):
        caplog.set_level(logging.DEBUG, library)
    rng = random.Random(f"echoes {seed}")
    loop = VirtualLoop()
    time = LoopTime(loop, on_sleep=lambda seconds: None)
    clock = Clock(time=time.time, monotonic=time.monotonic, sleep=time.sleep, random=rng.random)
    traffic = Traffic(loop, monkeypatch)
    honest = b'{"job_id": "job-1"}'
    accepted = b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(honest), honest)
    sent: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        method, path = request.decode().split(" ")[:2]
        traffic.on_received(method, path)
        if request.startswith(b"POST") and request.endswith(b"\r\n\r\n"):
            connection.recv(1 << 16)
        sent.append(accepted if request.startswith(b"POST") and rng.random() < 0.6 else a_response(rng))
        connection.sendall(sent[-1])

    common: dict[str, Any] = {"task_id": "song", "timeout": 60.0}

    def operator(kind: str) -> Any:
        task: Any
        if kind == "batch":
            task = WhisulGenerateBatchOperator(prompts=["one", "two", "three"], attempts=1, **common)
        elif kind == "sensor":
            task = WhisulJobSensor(job_id="job-1", deferrable=True, **common)
        else:
            waits = {"wait_for_completion": True, "deferrable": kind == "deferred song"}
            task = WhisulGenerateOperator(prompt="a song", **waits, **common)
        task.clock = clock
        return task

    kinds, ended = ("song", "deferred song", "batch", "sensor", "hook"), set()
    with RawServer(answer) as server, asyncio.Runner(loop_factory=lambda: loop) as runner:
        traffic.settle = server.settle
        extra = {"max_requests_per_second": 1e6, "timeout": 30}
        connection = {"conn_type": "whisul", "password": KEY, "host": server.base_url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        for number in range(TASKS_PER_SEED):
            kind = kinds[number % len(kinds)]
            store, context = TaskStore(), TaskContext()
            context["task_state_store"] = store
            context.run_id = f"run-{number}"
            outcome: Any
            try:
                if kind == "hook":
                    hook = WhisulHook(clock=clock)
                    once = rng.random() < 0.7
                    outcome = hook.get_job("job-1", retry=False) if once else hook.wait_for_job("job-1", timeout=60.0)
                else:
                    tasks = [lambda kind=kind: operator(kind)] * 20
                    outcome = submit_and_wait(context, tasks, runner, clock)
            except Exception as error:
                outcome = error
            traffic.check(len(server.requests))
            texts = [log.take(), json.dumps([context.xcoms, store]), repr(outcome)]
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, WhisulError | AirflowSensorTimeout), (kind, sent[-1], outcome)
                texts += [*traceback.format_exception(outcome), *map(repr, chain(outcome))]
            for text in texts:
                for secret in SECRETS:
                    assert secret not in text, (kind, secret, text, sent[-1])
            ended.add(type(outcome).__name__)
            # A block of the key, or a failure of it, must not decide what the next task meets.
            time.now += 1000
    assert len(server.requests) >= TASKS_PER_SEED
    assert all(f"Bearer {KEY}".encode() in request for request in server.requests)
    assert len(ended) >= 5

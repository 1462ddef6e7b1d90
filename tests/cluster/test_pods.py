"""Songs that are submitted by pods: processes that share neither a folder nor a machine's file."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from dev.airflow_runner.services import Services
from tests.cluster.limiter_redis import connections, limiter_redis

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
#: Requests per second that the sandbox allows. A request during a block makes it last 6 s from then on.
RATE_LIMIT = 1
BLOCK_SECONDS = 6.0

PODS = 60
#: Of the seconds that the limit needs at least, and for the start of sixty processes: a busy machine is slow with it.
MAX_SLOWDOWN = 1.3
START_SECONDS = 90.0
MAX_THROTTLED = 10
#: To Redis, for each song. Where each pod asked for each permit there were a hundred.
MAX_ROUND_TRIPS = 40

PODS_APART = 15
SECONDS_APART = 60.0


@dataclass(frozen=True)
class Pods:
    """
    What came of some pods.

    :param songs: What each pod that has submitted its song says of it.
    :param status: The exit status of them all; None where they were ended before.
    :param seconds: Seconds from their start to the end of the last one.
    :param log: What they have logged.
    """

    songs: list[dict[str, object]]
    status: int | None
    seconds: float
    log: str


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    key = f"pods-{secrets.token_hex(16)}"
    with Sandbox(SandboxOptions(api_key=key, rate_limit=RATE_LIMIT, block_seconds=BLOCK_SECONDS)) as sandbox:
        yield sandbox


def run_pods(count: int, folder: Path, env: dict[str, str], max_seconds: float) -> Pods:
    """Submit a song from each of some pods, and end those that are not done in time."""
    began = time.monotonic()
    out, log = folder / "out", folder / "log"
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.pods", str(count), str(folder)],
            cwd=ROOT,
            env={**os.environ, "AIRFLOW_HOME": str(folder), "TMPDIR": str(folder), **env},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    status = None
    with suppress(subprocess.TimeoutExpired):
        status = process.wait(max_seconds)
    seconds = time.monotonic() - began
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    songs = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    return Pods(songs, status, seconds, log.read_text())


def throttled(sandbox: Sandbox) -> int:
    return sum(request.status == 429 for request in sandbox.requests)


def round_trips(redis_url: str) -> int:
    """Return how many scripts a Redis has run: each is a round trip of a rate limiter."""
    from redis import Redis

    with closing(Redis.from_url(redis_url)) as redis:
        return int(redis.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))


def made_jobs(sandbox: Sandbox) -> list[str]:
    """Return the prompt of each submission that made a job."""
    return sorted(
        request.prompt or "" for request in sandbox.requests if request.method == "POST" and request.status == 202
    )


def as_text(pods: Pods, count: int, sandbox: Sandbox) -> str:
    return (
        f"{len(pods.songs)} of {count} songs submitted in {pods.seconds:.0f} s, {throttled(sandbox)} 429s, "
        f"limit {RATE_LIMIT}/s"
    )


def test_pods_with_a_redis_share_the_limit_as_on_one_machine(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with limiter_redis(Services.from_environment(), sandbox, tmp_path) as (redis_url, _):
        before = round_trips(redis_url)
        pods = run_pods(PODS, tmp_path, connections(sandbox, redis_url), 200)
        round_trips_per_song = (round_trips(redis_url) - before) / PODS
    with capsys.disabled():
        print(f"\nPods with a Redis: {as_text(pods, PODS, sandbox)}, {round_trips_per_song:.0f} round trips per song")
    assert pods.status == 0, pods.log
    assert len(made_jobs(sandbox)) == len(set(made_jobs(sandbox))) == PODS
    assert {song["job_id"] for song in pods.songs} == set(sandbox.jobs)
    assert throttled(sandbox) <= MAX_THROTTLED
    assert round_trips_per_song <= MAX_ROUND_TRIPS
    assert pods.seconds <= MAX_SLOWDOWN * PODS / RATE_LIMIT + START_SECONDS


def test_pods_without_a_redis_are_slow_but_pay_once(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pods = run_pods(PODS_APART, tmp_path, connections(sandbox, None), SECONDS_APART)
    with capsys.disabled():
        print(f"\nPods without a Redis: {as_text(pods, PODS_APART, sandbox)}")
    assert pods.songs, pods.log
    assert len(made_jobs(sandbox)) == len(set(made_jobs(sandbox)))
    assert {song["job_id"] for song in pods.songs} <= set(sandbox.jobs)

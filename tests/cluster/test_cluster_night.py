"""
A night on several machines: Airflow on PostgreSQL and Celery, with a worker and a triggerer killed on the way.

All machines share one rate limiter, in a Redis that is killed and started again in the middle of the night.
``make test-cluster`` runs it. It needs a PostgreSQL and a Redis, and for the restart a ``redis-server`` on the PATH.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions
from dev.airflow_runner.client import FINISHED
from dev.airflow_runner.cluster import ClusterAirflow
from dev.airflow_runner.processes import LocalAirflowError
from dev.airflow_runner.services import HOW_TO_GET_THEM, Services
from tests.cluster.limiter_redis import connections, kept, limiter_redis
from tests.support.redis_server import BINARY, RedisServer

# The first test waits for all of it.
pytestmark = pytest.mark.timeout(1200)

DAGS = Path(__file__).parent / "dags"
DAG_ID = "whisul_cluster"
MAPPED = int(os.environ.get("WHISUL_TEST_MAPPED", "200"))
BATCH = int(os.environ.get("WHISUL_TEST_BATCH", "1000"))
#: Requests per second that the sandbox allows; 0 for no limit.
RATE_LIMIT = int(os.environ.get("WHISUL_TEST_RATE_LIMIT", "20"))
TIMEOUT = 900.0
MIN_PAUSE = 5.0
#: Seconds that one request may take. So long the batch waits for the response that was lost with its worker.
REQUEST_TIMEOUT = 10
#: Seconds that the night may take.
MAX_SECONDS = 600.0
MAX_THROTTLED = 10
#: How many songs the batch has submitted when its worker is killed, and when the Redis of the rate limiter is.
CRASH_AT = BATCH // 10
RESTART_REDIS_AT = BATCH * 3 // 5
#: Seconds of each part of the night in the report.
SPAN = 20
#: Seconds for which that Redis is away, and seconds from then on in which one more block may begin.
REDIS_AWAY_SECONDS = 2.0
AFTER_RESTART_SECONDS = 60.0

Song = tuple[str, int]


def song_of(prompt: str) -> Song:
    """The task and the index that a prompt ends with."""
    kind, index = prompt.split()[-2:]
    return kind, int(index)


@dataclass
class Night:
    """
    All that has happened.

    :param airflow: Airflow.
    :param sandbox: What it has asked for songs.
    :param redis_url: Where the rate limiter is kept.
    :param run_id: The run of the DAG.
    :param began_at: When it was started, in Unix seconds.
    :param victims: The tasks that ran on the worker when it was killed, by map index, with the try.
    :param worker_killed_at: Likewise.
    :param redis_killed_at: Likewise. 0 where the Redis is not ours to kill.
    :param triggerer_killed_at: Likewise.
    :param orphans: The tasks whose triggers were in the triggerer when it was killed.
    :param state: How the run ended.
    :param took: Seconds from the run's start to its end.
    """

    airflow: ClusterAirflow
    sandbox: Sandbox
    redis_url: str
    run_id: str
    began_at: float
    victims: dict[Song, int] = field(default_factory=dict)
    worker_killed_at: float = 0.0
    redis_killed_at: float = 0.0
    triggerer_killed_at: float = 0.0
    orphans: set[Song] = field(default_factory=set)
    state: str = ""
    took: float = 0.0

    @property
    def kills(self) -> list[float]:
        return [self.worker_killed_at, self.triggerer_killed_at]

    def posts(self) -> dict[Song, list[LoggedRequest]]:
        """The submissions of each song that made a job."""
        found: dict[Song, list[LoggedRequest]] = defaultdict(list)
        for request in self.sandbox.requests:
            if request.method == "POST" and request.prompt and request.status == 202:
                found[song_of(request.prompt)].append(request)
        return found

    def made(self, kind: str) -> int:
        """How many jobs there are."""
        return sum(song_of(job.prompt)[0] == kind for job in self.sandbox.jobs.values())

    def polled(self, kind: str) -> int:
        """How many jobs have been polled."""
        songs_by_job = self.songs_by_job()
        return sum(songs_by_job[job_id][0] == kind for job_id in self.polls())

    def songs_by_job(self) -> dict[str, Song]:
        """The song that each job is of."""
        return {job_id: song_of(job.prompt) for job_id, job in self.sandbox.jobs.items()}

    def polls(self) -> dict[str, list[LoggedRequest]]:
        """Every poll of each job."""
        found: dict[str, list[LoggedRequest]] = defaultdict(list)
        for request in self.sandbox.requests:
            if request.method == "GET" and request.job_id:
                found[request.job_id].append(request)
        return found

    def blocks(self) -> list[float]:
        """When each block began, in Unix seconds: the first of its 429s."""
        requests = sorted(self.sandbox.requests, key=lambda request: request.at)
        runs = groupby(requests, key=lambda request: request.status == 429)
        return [next(run).at for is_throttled, run in runs if is_throttled]

    def rows(self, query: str) -> list[Any]:
        return self.airflow.rows(query, self.run_id)

    def log(self, song: Song, try_number: int) -> str:
        task_id, index = ("song", song[1]) if song[0] == "mapped" else ("batch", -1)
        return self.airflow.task_log(DAG_ID, self.run_id, task_id, index, try_number)


def kill_a_worker(night: Night) -> Iterator[None]:
    """Kill the one that submits the batch, in the middle of it, and waits for a mapped song too."""
    while True:
        yield
        if night.made("batch") < CRASH_AT:
            continue
        running = night.rows(
            "SELECT task_id, map_index, try_number, pid FROM task_instance WHERE run_id = %s AND state = 'running'"
        )
        by_worker = {}
        for task_id, index, try_number, pid in running:
            if pid is not None and (worker := night.airflow.worker_of(pid)):
                song = ("mapped", index) if task_id == "song" else ("batch", -1)
                by_worker.setdefault(worker, {})[song] = try_number
        songs_by_job = night.songs_by_job()
        polled = {songs_by_job[job_id] for job_id in night.polls()}
        for worker, songs in by_worker.items():
            if ("batch", -1) in songs and polled & set(songs):
                worker.kill9()
                # Not before: until then it submits and polls.
                night.worker_killed_at = time.time()
                night.victims = songs
                return


def restart_redis(night: Night, server: RedisServer) -> Iterator[None]:
    """Kill the Redis that the rate limiter is kept in, while the batch is submitted, and start an empty one."""
    while night.made("batch") < RESTART_REDIS_AT:
        yield
    night.redis_killed_at = time.time()
    server.kill()
    while time.time() < night.redis_killed_at + REDIS_AWAY_SECONDS:
        yield
    server.start()


def kill_a_triggerer(night: Night) -> Iterator[None]:
    """Kill the one that waits for the batch, while it waits for mapped songs too where some are left."""
    while True:
        yield
        mapped_left = night.rows(
            "SELECT 1 FROM task_instance WHERE run_id = %s AND task_id = 'song'"
            " AND (state IS NULL OR state NOT IN ('success', 'failed'))"
        )
        waiting = defaultdict(set)
        for task_id, index, triggerer in night.rows(
            "SELECT task_id, map_index, triggerer_id FROM task_instance JOIN trigger ON trigger.id = trigger_id"
            " WHERE run_id = %s AND triggerer_id IS NOT NULL AND state = 'deferred'"
        ):
            waiting[triggerer].add(("mapped", index) if task_id == "song" else ("batch", -1))
        for triggerer, songs in waiting.items():
            enough = len(songs) > 1 or not mapped_left
            if ("batch", -1) in songs and enough and night.polled("batch") > BATCH // 10:
                night.airflow.triggerer_of(triggerer).kill9()
                night.triggerer_killed_at = time.time()
                night.orphans = songs
                return


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    services = Services.from_environment()
    assert not (missing := services.missing()), "\n".join([*missing, HOW_TO_GET_THEM])
    key = f"cluster-{secrets.token_hex(16)}"
    options = SandboxOptions(api_key=key, job_seconds=(20.0, 40.0), rate_limit=RATE_LIMIT or None)
    folder = tmp_path_factory.mktemp("redis")
    with Sandbox(options) as sandbox, limiter_redis(services, sandbox, folder) as (redis_url, server):
        env = {
            **connections(sandbox, redis_url, timeout=REQUEST_TIMEOUT),
            "WHISUL_TEST_MAPPED": str(MAPPED),
            "WHISUL_TEST_BATCH": str(BATCH),
        }
        with ClusterAirflow(DAGS, services, env=env) as airflow:
            airflow.wait_for_dags(DAG_ID)
            began = time.monotonic()
            night = Night(airflow, sandbox, redis_url, airflow.trigger(DAG_ID), time.time())
            scripts = [
                kill_a_worker(night),
                *([restart_redis(night, server)] if server else []),
                kill_a_triggerer(night),
            ]

            def is_over() -> bool:
                if scripts and next(scripts[0], scripts) is scripts:
                    del scripts[0]
                night.state = night.rows("SELECT state FROM dag_run WHERE run_id = %s")[0][0]
                return night.state in FINISHED

            try:
                airflow.wait_until(is_over, TIMEOUT, "the end of the night")
            except LocalAirflowError as error:
                states = night.rows(
                    "SELECT task_id, state, count(*) FROM task_instance WHERE run_id = %s GROUP BY 1, 2"
                )
                error.add_note(f"{len(scripts)} kills to come, {states}\n{as_text(night)}")
                raise
            night.took = time.monotonic() - began
            yield night


def as_text(night: Night) -> str:
    """What it took, as a table."""
    songs_by_job = night.songs_by_job()
    lines = [f"{'':10} {'SONGS':>6} {'POSTS':>6} {'POLLS':>6} {'429S':>6} {'CONNECTIONS':>12}"]
    for kind in ("mapped", "batch", "all"):
        requests = [
            (song, request)
            for request in night.sandbox.requests
            if (song := song_of(request.prompt) if request.prompt else songs_by_job.get(request.job_id or ""))
            and kind in (song[0], "all")
        ]
        posts = [request for _, request in requests if request.method == "POST" and request.status == 202]
        polls = [request for _, request in requests if request.method == "GET"]
        throttled = sum(request.status == 429 for _, request in requests)
        songs = len({song_of(post.prompt or "") for post in posts})
        connections = len({request.connection for _, request in requests})
        lines.append(f"{kind:10} {songs:>6} {len(posts):>6} {len(polls):>6} {throttled:>6} {connections:>12}")
    limit = f"{RATE_LIMIT} requests/s" if RATE_LIMIT else "no limit"
    lines.append(f"{night.took:.0f} s from the run's start to its end, {limit}")
    posts = [post.at for posts in night.posts().values() for post in posts]
    for what, times in (
        ("Last submission", [max(posts, default=0.0)]),
        (
            "Killed: worker, Redis, triggerer",
            [night.worker_killed_at, night.redis_killed_at, night.triggerer_killed_at],
        ),
        ("Blocks", night.blocks()),
    ):
        lines.append(f"{what} at {', '.join(f'{at - night.began_at:.0f}' for at in times if at) or '-'} s")
    lines.append(f"Submissions and polls in each {SPAN} s: {per_span(night)}")
    return "\n".join(lines)


def per_span(night: Night) -> str:
    """How many submissions and polls came in each part of the night, such as ``12+3 40+18``."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for request in night.sandbox.requests:
        counts[int((request.at - night.began_at) // SPAN)][request.method] += 1
    return " ".join(f"{counts[span]['POST']}+{counts[span]['GET']}" for span in range(max(counts, default=-1) + 1))


def pauses(night: Night) -> list[tuple[float, str, bool]]:
    """Each pause between two polls of a job, the job, and whether something was killed meanwhile."""
    kills = sorted(night.kills)
    return [
        (later.at - earlier.at, job_id, bisect_left(kills, earlier.at) != bisect_left(kills, later.at))
        for job_id, polls in night.polls().items()
        for earlier, later in pairwise(sorted(polls, key=lambda poll: poll.at))
    ]


def test_all_songs_are_delivered(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{as_text(night)}")
    assert night.state == "success"
    values = "SELECT map_index, value FROM xcom WHERE run_id = %s AND key = 'return_value' AND task_id = "
    songs = dict(night.rows(f"{values}'song'"))
    assert sorted(songs) == list(range(MAPPED))
    [(_, batch)] = night.rows(f"{values}'batch'")
    assert [result["prompt"] for result in batch] == [f"batch {index}" for index in range(BATCH)]
    assert {result["status"] for result in batch} == {"completed"}
    posts = night.posts()
    for index, song in songs.items():
        assert song["job_id"] == posts["mapped", index][-1].job_id
    for index, result in enumerate(batch):
        assert result["job_id"] == result["song"]["job_id"] == posts["batch", index][-1].job_id


def test_no_song_is_paid_for_twice_but_where_its_response_was_lost_which_is_said(night: Night) -> None:
    twice = {song: posts for song, posts in night.posts().items() if len(posts) > 1}
    for song, posts in twice.items():
        # Only what was under way on the worker that died can have been lost with it.
        assert song in night.victims or (song[0] == "batch" and ("batch", -1) in night.victims)
        log = night.log(song, 2)
        assert "A song may already have been paid for" in log
        assert song[0] == "mapped" or f"'batch {song[1]}'" in log
        assert len(posts) == 2
    assert sum(song[0] == "batch" for song in twice) <= 1


def test_the_tasks_of_the_killed_worker_went_on_with_their_jobs(night: Night) -> None:
    assert night.worker_killed_at
    batch = night.log(("batch", -1), 2)
    before = sum(posts[0].at < night.worker_killed_at for song, posts in night.posts().items() if song[0] == "batch")
    kept = int(batch.split("Re-attaching to ")[1].split()[0])
    assert before - 1 <= kept <= before
    went_on = [song for song in night.victims if "Re-attaching to an earlier try's job" in night.log(song, 2)]
    assert went_on
    polls = night.polls()
    polled_before = {
        song
        for job_id, song in night.songs_by_job().items()
        if song in night.victims and any(poll.at < night.worker_killed_at for poll in polls[job_id])
    }
    assert polled_before <= set(went_on)


def test_the_other_triggerer_took_over(night: Night) -> None:
    assert night.triggerer_killed_at
    assert ("batch", -1) in night.orphans
    tries = dict(night.rows("SELECT map_index, try_number FROM task_instance WHERE run_id = %s AND task_id = 'song'"))
    orphans = [song for song in night.orphans if song[0] == "mapped"]
    # Logged by each triggerer that runs the trigger.
    assert not orphans or any(night.log(song, tries[song[1]]).count("Polling Whisul job ") >= 2 for song in orphans)


def test_no_job_is_polled_twice_within_five_seconds(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    found = pauses(night)
    within = min(pause for pause in found if not pause[2])
    across = min((pause for pause in found if pause[2]), default=None)
    with capsys.disabled():
        print(f"\nShortest pause between two polls of a job: {within[0]:.1f} s", end="")
        print(f", and {across[0]:.1f} s where a worker or triggerer was killed between them" if across else "")
    assert len(found) > MAPPED
    assert within[0] >= MIN_PAUSE, within


def test_the_night_is_short(night: Night) -> None:
    assert night.took <= MAX_SECONDS


def test_429s_stay_few(night: Night) -> None:
    throttled = sum(request.status == 429 for request in night.sandbox.requests)
    assert throttled <= (MAX_THROTTLED if RATE_LIMIT else 0)


@pytest.mark.skipif(BINARY is None, reason="there is no redis-server on the PATH")
def test_a_restart_of_the_rate_limiters_redis_costs_one_block_at_most(night: Night) -> None:
    assert night.redis_killed_at
    since = [began - night.redis_killed_at for began in night.blocks()]
    assert sum(0 <= seconds <= AFTER_RESTART_SECONDS for seconds in since) <= 1, since


def test_the_key_is_nowhere_but_in_the_authorization_header(night: Night) -> None:
    assert not [request for request in night.sandbox.requests if request.key_elsewhere]
    key = json.loads(night.sandbox.connection)["password"]
    files = night.airflow.files()
    assert any("task_id=batch" in str(path) for path in files)
    assert not [path for path, content in files.items() if key.encode() in content]
    tables = [row[0] for row in night.airflow.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert "task_instance" in tables
    for table in tables:
        # Binary columns show in hexadecimal digits.
        query = f'SELECT count(*) FROM "{table}" AS row WHERE row::text LIKE %s OR row::text LIKE %s'
        assert night.airflow.rows(query, f"%{key}%", f"%{key.encode().hex()}%") == [(0,)], table
    in_redis = kept(night.redis_url, night.sandbox)
    assert in_redis
    assert not [name for name, value in in_redis.items() if key.encode() in name + value]

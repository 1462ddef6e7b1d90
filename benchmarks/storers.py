"""
The ways of storing many songs that are compared, each in a process of its own.

``python -m benchmarks.storers NAME …`` stores songs one time, and prints the seconds that it took as JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

#: How many songs are downloaded at once: the operator's default.
THREADS = 4

Song = dict[str, Any]


class Context(dict[str, Any]):
    """As much of a running task as the operator touches."""

    task_id, dag_id, run_id, map_index = "keep", "songs", "run", -1

    def __init__(self) -> None:
        super().__init__(ti=self)

    def xcom_push(self, key: str, value: object) -> None:
        pass


def store_with_operator(songs: list[Song], folder: Path) -> None:
    """Store songs with the operator, as its task does."""
    from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator

    operator = WhisulToObjectStorageOperator(
        task_id="keep",
        songs=songs,
        destination=f"file://{folder}",
        max_concurrent_downloads=THREADS,
        allow_private_media=True,
    )
    operator.execute(Context())


def store_with_requests(songs: list[Song], folder: Path) -> None:
    """Store songs with threads and a session of ``requests`` each, as one would by hand. Nothing is checked."""
    folder.mkdir(parents=True)
    local = threading.local()

    def store(song: Song) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        response = local.session.get(song["song_url"], timeout=60)
        response.raise_for_status()
        (folder / f"{song['job_id']}.mp3").write_bytes(response.content)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(store, songs))


STORERS: dict[str, Callable[[list[Song], Path], None]] = {
    "requests": store_with_requests,
    "operator": store_with_operator,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storers")
    parser.add_argument("name", choices=STORERS)
    parser.add_argument("--origin", required=True)
    parser.add_argument("--songs", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1_000_000, help="bytes of each song")
    parser.add_argument("--profile", help="write a profile of all threads, by their CPU time, to this file")
    arguments = parser.parse_args()
    songs = [
        {"job_id": f"{number:08d}-job", "song_url": f"{arguments.origin}/song/{arguments.size}/{number:08d}.mp3"}
        for number in range(arguments.songs)
    ]
    store = STORERS[arguments.name]
    with tempfile.TemporaryDirectory(prefix="whisul-bench-") as home:
        # What is loaded with the first song is not part of the work.
        store(songs[:1], Path(home, "warm-up"))
        # What is written to the disk by others, or by the warm-up, is not either.
        os.sync()
        profiles: list[cProfile.Profile] = []
        if arguments.profile:
            _profile_threads(profiles)
        wall, cpu = time.perf_counter(), time.process_time()
        store(songs, Path(home, "songs"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if arguments.profile:
            _dump(profiles, arguments.profile)
        stored = [path for path in Path(home, "songs").glob("*.mp3") if path.stat().st_size == arguments.size]
        if len(stored) != len(songs):
            raise SystemExit(f"{len(stored)} of {len(songs)} songs were stored.")
    print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


def _profile_threads(profiles: list[cProfile.Profile]) -> None:
    run = threading.Thread.run

    def profiled(self: threading.Thread) -> None:
        profile = cProfile.Profile(time.thread_time)
        profiles.append(profile)
        profile.runcall(run, self)

    threading.Thread.run = profiled  # type: ignore[method-assign]


def _dump(profiles: list[cProfile.Profile], path: str) -> None:
    import pstats

    together = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        together.add(profile)
    together.dump_stats(path)


if __name__ == "__main__":
    main()

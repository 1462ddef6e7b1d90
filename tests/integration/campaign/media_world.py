"""
The world of the media campaign: batches of songs, a media host with faults, and tries that are killed or run at once.

All HTTP is real. A try that is to be killed, and the second one of two tries at once, run in a forked process. The time
that tasks sleep is the campaign's, so that waits take none. How long a host may stall is cut to a second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions
from airflow_provider_whisul.storage import watchdog
from airflow_provider_whisul.storage.object_store import TEMPORARY_SUFFIX, ObjectStore
from airflow_provider_whisul.storage.partial_file import PartialFile
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.integration.campaign.world import KEY, Log
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock

BATCHES = 3
#: The batch whose system has no unnamed files. Its first try is killed.
NAMED_BATCH = "1"
SONGS = 6
RANDOM_TRIES = 3
#: Tries by which every song that can be stored is stored: each fault hits a few requests only.
MAX_TRIES = 9

MAX_AUDIO_BYTES = 400_000
#: So long that the six attempts at a file outlast a machine that stands still for seconds.
STALL_SECONDS = 1.0

#: What passes: the song can be stored by a later attempt or a later try.
PASSING = (
    *("media-403=2", "media-404", "media-404=3", "media-500", "media-500=2", "media-429", "media-drop", "media-cut"),
    *("media-cut=4", "media-slow=0.05", "media-stall", "media-html", "media-disguised", "media-empty"),
    *("media-wrong-length", "media-endless", "media-endless-chunks", "media-drip", "media-no-range", "media-redirect"),
    *("media-redirect-http", "media-redirect-file", "media-expired", "media-html=7"),
)
#: What stays: no try can store the song. Most is said of the audio and of the cover alike.
STAYING = ("media-gone", "media-size=500kB", "media-html=99")
#: Of these a batch has one at most: each takes real time.
STALLING = {"media-stall", "media-drip"}
#: Where a host may redirect to that must not be followed, or not be given the key. ``ORIGIN`` is the sandbox itself.
LOCATIONS = (
    "ORIGIN/api/jobs/some-job",
    "http://169.254.169.254/latest/meta-data",
    "http://localhost:1/admin/delete?song=1",
    "https://127.0.0.1:1/../../etc/passwd",
    "https://user:secret@127.0.0.1:1/",
)


@dataclass
class MediaTry:
    """
    A try, and what is known of it.

    :param kind: How it was run: ``alone``, ``killed``, ``twice`` (at once with another one) or ``stopped``.
    :param files_before: The content of each file that was in the destination when it began, by name.
    :param requests: The media host's and the API's requests during it.
    :param manifest: What it returned, None where it raised.
    :param error: What it raised.
    :param seconds: How long it took, in seconds of the machine.
    :param seconds_to_stop: How long it took after it was stopped, likewise; None where it was not.
    :param requests_to_stop: How many requests came after it was stopped.
    :param texts: All that it logged, raised and pushed, and its process beside it.
    """

    kind: str
    files_before: dict[str, bytes]
    requests: list[LoggedRequest] = field(default_factory=list)
    manifest: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    seconds_to_stop: float | None = None
    requests_to_stop: int = 0
    texts: list[str] = field(default_factory=list)


@dataclass
class MediaBatch:
    """
    Songs that are stored in one folder.

    :param songs: The songs, as the operators return them.
    :param faults: The sandbox's directives of each, by job.
    :param folder: The destination.
    :param root: The folder around it, in which nothing else may appear, but for ``tmp``.
    :param max_failures: The operator's argument, as are the next ones.
    :param unnamed: Whether the system has unnamed files.
    """

    songs: list[dict[str, Any]]
    faults: dict[str, list[str]]
    folder: Path
    root: Path
    max_failures: int
    max_concurrent_downloads: int
    unnamed: bool
    tries: list[MediaTry] = field(default_factory=list)

    @property
    def temporary(self) -> Path:
        """The worker's temporary folder."""
        return self.root / "tmp"

    @property
    def storable(self) -> set[str]:
        """The jobs of the songs whose faults pass."""
        return {job_id for job_id, faults in self.faults.items() if set(faults) <= set(PASSING)}

    @property
    def described(self) -> set[str]:
        """The jobs of the songs that have their JSON file."""
        return {path.stem.rpartition("_")[2] for path in self.folder.glob("*_*.json")}

    def content(self) -> dict[str, bytes]:
        """Return the content of each file in the destination, by name."""
        return {path.name: path.read_bytes() for path in self.folder.glob("*")}


class MediaWorld:
    """
    One seed's world.

    :param seed: The seed.
    :param log: Collects what each try logs and prints.
    :param root: A folder for all that the world writes.
    :param judge: Checks the last try of a batch.
    """

    def __init__(
        self,
        seed: int,
        log: Log,
        monkeypatch: pytest.MonkeyPatch,
        root: Path,
        judge: Callable[[MediaBatch, Sandbox], None],
    ) -> None:
        self.rng = random.Random(f"media {seed}")
        self.log = log
        self.monkeypatch = monkeypatch
        self.root = root
        self.judge = judge
        self.time = FakeClock()
        self.figures: Counter[str] = Counter()
        self._faults: list[str] = []
        self._on_request: Callable[[LoggedRequest], None] = lambda request: None
        monkeypatch.setattr(watchdog, "STALL_SECONDS", STALL_SECONDS)
        monkeypatch.setattr(watchdog, "STALL_BYTES", 1000)
        monkeypatch.setattr(watchdog, "INTERVAL", 0.03)

    def play(self) -> None:
        """Store all batches, and judge each try."""
        options = SandboxOptions(api_key=KEY, job_seconds=(0, 0), seed=self.rng.randrange(1000))
        with Sandbox(options, clock=self.time.time, on_request=lambda request: self._on_request(request)) as sandbox:
            connection = json.loads(sandbox.connection) | {"extra": {"max_requests_per_second": 1e6}}
            self.monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
            for number in range(BATCHES):
                with self.monkeypatch.context() as patched:
                    self._play_batch(self._make_batch(sandbox, self.root / str(number)), sandbox, patched)

    def _make_batch(self, sandbox: Sandbox, root: Path) -> MediaBatch:
        hook, faults, songs = WhisulHook(clock=self.time.clock), {}, []
        for number in range(SONGS):
            # The first one has none: it is what others must not lose.
            drawn = [self._next_fault() for _ in range(self.rng.choice((0, 1, 2, 3)))] if number else []
            if STALLING & {fault for other in faults.values() for fault in other}:
                self._faults[:0] = sorted(STALLING.intersection(drawn))
                drawn = [fault for fault in drawn if fault not in STALLING]
            if number and self.rng.random() < 0.2:
                location = self.rng.choice(LOCATIONS).replace("ORIGIN", sandbox.base_url.removesuffix("/api"))
                drawn = [self.rng.choice([*STAYING, f"media-location={location}"])]
            if "media-size=500kB" not in drawn and self.rng.random() < 0.2:
                drawn.append("media-size=300kB")
            prompt = f"song {number} of {root.name}" + "".join(f" [sandbox:{fault}]" for fault in drawn)
            job_id = hook.generate(prompt)
            song = hook.get_job(job_id).song
            assert song is not None
            songs.append(dict(song))
            faults[job_id] = [fault for fault in drawn if fault != "media-size=300kB"]
        batch = MediaBatch(
            songs=songs,
            faults=faults,
            folder=root / "stored" / "songs",
            root=root,
            max_failures=self.rng.choice((0, SONGS)),
            max_concurrent_downloads=self.rng.randint(1, 4),
            unnamed=hasattr(os, "O_TMPFILE") and root.name != NAMED_BATCH,
        )
        batch.temporary.mkdir(parents=True)
        return batch

    def _next_fault(self) -> str:
        """Return each fault once before any is returned again."""
        if not self._faults:
            self._faults = self.rng.sample(PASSING, len(PASSING))
        return self._faults.pop()

    def _play_batch(self, batch: MediaBatch, sandbox: Sandbox, patched: pytest.MonkeyPatch) -> None:
        patched.setattr("tempfile.tempdir", str(batch.temporary))
        if not batch.unnamed:
            patched.delattr(os, "O_TMPFILE", raising=False)
        kinds = [self.rng.choice(("alone", "killed", "killed", "twice", "stopped")) for _ in range(RANDOM_TRIES)]
        if not batch.unnamed:
            kinds[0] = "killed"
        for number in range(MAX_TRIES):
            self._try(batch, sandbox, kinds[number] if number < len(kinds) else "alone")
            self.judge(batch, sandbox)
            if number >= len(kinds) and batch.storable <= batch.described:
                break
            # Long enough for a retry, and too short for a file to count as never published.
            self.time.now += self.rng.choice((1, 30, 400))
        self.figures["batches"] += 1

    def _try(self, batch: MediaBatch, sandbox: Sandbox, kind: str) -> None:
        this = MediaTry(kind, batch.content())
        batch.tries.append(this)
        first, began = len(sandbox.requests), time.monotonic()
        self.log.take()
        if kind == "killed":
            self._run_and_kill(batch, this)
        elif kind == "twice":
            pid, outcome = self._fork(batch, lambda: None)
            time.sleep(self.rng.uniform(0, 0.1))
            self._run(batch, this, lambda operator: None)
            self._reap(pid)
            # What the other one logged and raised.
            this.texts.append(outcome.read_text())
        elif kind == "stopped":
            self._run_and_stop(batch, this, sandbox)
        else:
            self._run(batch, this, lambda operator: None)
        this.seconds = time.monotonic() - began
        this.requests = sandbox.requests[first:]
        ended = "killed" if kind == "killed" else type(this.error).__name__ if this.error else "stored"
        self.figures.update(["tries", f"tried: {kind}", f"ended: {ended}"])
        self.figures["left in the destination"] += any(name.endswith(TEMPORARY_SUFFIX) for name in batch.content())
        self.figures["media requests"] += sum(request.path.startswith("/media") for request in this.requests)
        self.figures.update(f"fault: {request.fault}" for request in this.requests if request.fault)

    def _operator(self, batch: MediaBatch) -> Any:
        operator = WhisulToObjectStorageOperator(
            task_id="keep",
            songs=batch.songs,
            destination=f"file://{batch.folder}",
            max_failures=batch.max_failures,
            max_concurrent_downloads=batch.max_concurrent_downloads,
            max_audio_bytes=MAX_AUDIO_BYTES,
        )
        operator.clock = self.time.clock
        return operator

    def _run(self, batch: MediaBatch, this: MediaTry, prepare: Callable[[Any], None]) -> None:
        """Run a try in this process."""
        context, operator = TaskContext(), self._operator(batch)
        prepare(operator)
        try:
            this.manifest = context.run(operator)
        except Exception as error:
            this.error = error
            this.texts += traceback.format_exception(error)
        this.texts += [self.log.take(), json.dumps(context.xcoms, default=str), repr(this.manifest)]

    def _run_and_stop(self, batch: MediaBatch, this: MediaTry, sandbox: Sandbox) -> None:
        """Run a try, and stop it as Airflow does when its timeout is over, at one of its requests."""
        left, stopped = [self.rng.randint(1, 10)], threading.Event()
        moment, requests = [0.0], [0]

        def prepare(operator: Any) -> None:
            def on_request(request: LoggedRequest) -> None:
                left[0] -= 1
                if left[0] == 0:
                    threading.Thread(target=stop).start()

            def stop() -> None:
                operator.on_kill()
                moment[0], requests[0] = time.monotonic(), len(sandbox.requests)
                stopped.set()

            self._on_request = on_request

        self._run(batch, this, prepare)
        self._on_request = lambda request: None
        if left[0] <= 0 and stopped.wait(60):
            this.seconds_to_stop = time.monotonic() - moment[0]
            this.requests_to_stop = len(sandbox.requests) - requests[0]

    def _run_and_kill(self, batch: MediaBatch, this: MediaTry) -> None:
        """Run a try in a process that is killed at some moment: at a request, or within a write."""
        moment = self.rng.choice(("request", "append", "publish", "published", "put_file"))
        if not batch.unnamed and self.rng.random() < 0.6:
            # Between the write and the move: only this leaves a file in the destination.
            moment = "put_file"
        left = self.rng.randint(1, 3 if moment == "put_file" else 6)

        def die(function: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
            calls = [left]

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                calls[0] -= 1
                result = function(*args, **kwargs) if after or calls[0] else None
                if not calls[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return wrapped

        def prepare() -> None:
            if moment == "append":
                PartialFile.append = die(PartialFile.append, after=True)  # type: ignore[method-assign]
            elif moment == "put_file":
                LocalFileSystem.put_file = die(LocalFileSystem.put_file, after=True)
            elif moment.startswith("publish"):
                ObjectStore.publish = die(ObjectStore.publish, moment == "published")  # type: ignore[method-assign]

        requests = [left]

        def on_request(request: LoggedRequest) -> None:
            requests[0] -= 1
            if requests[0] == 0 and moment == "request":
                os.kill(pid, signal.SIGKILL)

        # Known before the first request, as the child waits for it.
        started, start = os.pipe()
        pid, outcome = self._fork(batch, lambda: (os.read(started, 1), prepare()))
        self._on_request = on_request
        os.write(start, b"x")
        if self._reap(pid) == -signal.SIGKILL:
            self.figures[f"killed: {moment}"] += 1
        os.close(started)
        os.close(start)
        self._on_request = lambda request: None
        if outcome.exists():
            this.texts.append(outcome.read_text())

    def _fork(self, batch: MediaBatch, prepare: Callable[[], object]) -> tuple[int, Path]:
        """Run a try in a process of its own. It writes all its texts to a file, unless it is killed."""
        outcome = self.root / f"outcome-{batch.root.name}-{len(batch.tries)}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return pid, outcome
        try:
            prepare()
            other = MediaTry("other", {})
            self._run(batch, other, lambda operator: None)
            outcome.write_text("\n".join(other.texts))
        finally:
            # Nothing of the test may go on in this process.
            os._exit(0)

    def _reap(self, pid: int, seconds: float = 60.0) -> int:
        """Wait for a process, and return its exit status: negative for a signal."""
        deadline = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise AssertionError("a try did not end")
            time.sleep(0.005)

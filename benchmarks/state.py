"""What it costs to record a song, so that it is paid once: ``python -m benchmarks.state``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_home = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ.update(
    AIRFLOW_HOME=_home.name, AIRFLOW__CORE__LOAD_EXAMPLES="False", AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR"
)

from airflow.providers.common.compat.sdk import TaskDeferred  # noqa: E402

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator  # noqa: E402
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator  # noqa: E402
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions  # noqa: E402
from airflow_provider_whisul.state import retention  # noqa: E402
from airflow_provider_whisul.state.retention import sweep_daily  # noqa: E402
from airflow_provider_whisul.state.state_path import state_folder  # noqa: E402
from airflow_provider_whisul.storage.documents import LocalDocuments, ObjectDocuments  # noqa: E402
from benchmarks.tables import progress, table  # noqa: E402

METHODS = ("read", "write", "create", "delete", "names", "delete_older", "remove_folder")


class Meter:
    """Counts the calls of a folder's methods, and the seconds that they take."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def measured(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self.calls[name] += 1
                self.seconds[name] += time.perf_counter() - started

        return call

    @contextmanager
    def attached(self) -> Iterator[Meter]:
        """Measure every folder within the block."""
        originals = [
            (kind, name, getattr(kind, name)) for kind in (LocalDocuments, ObjectDocuments) for name in METHODS
        ]
        for kind, name, method in originals:
            setattr(kind, name, self.measured(name, method))
        try:
            yield self
        finally:
            for kind, name, method in originals:
                setattr(kind, name, method)


class Task(dict[str, Any]):
    """As much of a task as the operators touch."""

    task_id, dag_id, map_index, try_number, max_tries = "song", "songs", -1, 1, 0

    def __init__(self, run_id: str, operator: Any) -> None:
        super().__init__(ti=self, task=operator)
        self.run_id = run_id
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, key: str, **_: Any) -> Any:
        return self.xcoms.get(key)


def completed(job_id: str) -> dict[str, Any]:
    return {"status": "completed", "job_id": job_id, "song": {"job_id": job_id, "title": "Midnight Grid"}}


def one_by_one(songs: int) -> None:
    """Make songs, each in a task of its own that defers."""
    for number in range(songs):
        operator = WhisulGenerateOperator(task_id="song", prompt=f"song {number}", wait_for_completion=True)
        task = Task(f"run {number}", operator)
        try:
            operator.execute(task)  # type: ignore[arg-type]
        except TaskDeferred as deferred:
            # Another process continues the task.
            retention._asked.clear()
            event = completed(task.xcoms["job_id"])
            operator.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event}, task)  # type: ignore[arg-type]


def in_a_batch(songs: int) -> None:
    """Submit songs in one task, up to its deferral."""
    operator = WhisulGenerateBatchOperator(task_id="song", prompts=[f"song {number}" for number in range(songs)])
    try:
        operator.execute(Task("run of a batch", operator))  # type: ignore[arg-type]
    except TaskDeferred:
        return


@contextmanager
def local(folder: Path) -> Iterator[str]:
    yield str(folder)


@contextmanager
def s3(_: Path) -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    extra = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    os.environ["AIRFLOW_CONN_STATE"] = json.dumps(connection)
    credentials = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    boto3.client("s3", **extra, **credentials).create_bucket(Bucket="state")
    yield "s3://state@state/whisul"
    server.stop()


def measure(path: str, songs: int) -> list[tuple[str, ...]]:
    """Return the rows of one store."""
    os.environ["AIRFLOW__WHISUL__STATE_PATH"] = path
    folder = state_folder()
    assert folder is not None
    # The first task of a day, and the first request of a client.
    sweep_daily(folder, time.time())
    rows = []
    for way, make in (("deferred, each in its own task", one_by_one), ("submitted by one batch", in_a_batch)):
        progress(f"{folder.url}: {songs} songs, {way}")
        retention._asked.clear()
        with Meter().attached() as meter:
            make(songs)
        per_song = {name: meter.calls[name] / songs for name in METHODS}
        others = sum(per_song[name] for name in ("names", "delete_older", "remove_folder"))
        each = {name: 1_000 * meter.seconds[name] / max(meter.calls[name], 1) for name in ("read", "write", "create")}
        rows.append(
            (
                f"{folder.url.partition('://')[0]}: {way}",
                *(f"{per_song[name]:.2f}" for name in ("read", "write", "create", "delete")),
                f"{others:.2f}",
                " / ".join(f"{each[name]:.1f}" for name in ("read", "write", "create")),
                f"{1_000 * sum(meter.seconds.values()) / songs:.1f}",
            )
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state", description=__doc__)
    parser.add_argument("--songs", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="the local folder (default: a temporary one)")
    arguments = parser.parse_args(argv)
    stores: list[Callable[[Path], Any]] = [local]
    if all(importlib.util.find_spec(name) for name in ("moto", "s3fs")):
        stores.append(s3)
    else:
        progress("S3 is left out: it needs the packages of constraints/s3-*.txt (make .venvs/s3/installed).")
    rows = []
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as temporary,
        Sandbox(SandboxOptions(api_key="key")) as sandbox,
    ):
        extra = {"extra": {"max_requests_per_second": 1e6}}
        os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"] = json.dumps({**json.loads(sandbox.connection), **extra})
        for store in stores:
            with store(Path(temporary)) as path:
                rows += measure(path, arguments.songs)
    header = (
        "per song",
        "reads",
        "writes",
        "creates",
        "deletes",
        "listings",
        "ms of read / write / create",
        "ms in all",
    )
    table(f"Recording {arguments.songs} songs", header, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

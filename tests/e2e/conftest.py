"""One real Airflow and one sandbox for the whole session; the example DAGs run in it side by side."""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.version_compat import HAS_ASYNC_TASKS, HAS_REQUIRED_ACTIONS
from dev.airflow_runner.local import LocalAirflow
from tests.e2e import people

AIRFLOW = Version(version("apache-airflow"))
collect_ignore: list[str] = []
if Version("3.3") > AIRFLOW:
    # No task state store, and no partitions that a task names.
    collect_ignore += ["crash/test_crashes_with_airflows_store.py", "test_partitions.py"]
if Version("3.0") <= AIRFLOW < Version("3.3"):
    # The newest Airflow's backfill and Airflow 2's catch-up are proof enough.
    collect_ignore += ["test_past_days.py"]
if not HAS_REQUIRED_ACTIONS:
    collect_ignore += ["test_people.py"]

EXAMPLE_DAGS = Path(__file__).resolve().parents[2] / "example_dags"
NIGHTLY, ONE_SONG, RETRY = "whisul_nightly_songs", "whisul_one_song", "whisul_retry_failed_song"
THOUSAND, BATCH_SONGS = "whisul_nightly_thousand", 12
KEEP, TOLD = "whisul_keep_songs", "whisul_kept_songs"
PROMPT_FILES, ASYNC_TASK = "whisul_prompt_files", "whisul_async_task"
SINCE_3_2 = (ASYNC_TASK,) if HAS_ASYNC_TASKS else ()
TASKFLOW = "whisul_taskflow"
PARTITION_DAGS = Path(__file__).parent / "partition_dags"
ALBUMS, ALBUM = "whisul_albums", "whisul_album"
# Still running when the sensors look first, which on Airflow 3 is some seconds after the submission.
JOB_SECONDS = (12.0, 15.0)
# Requests per second that the API allows: worker and triggerer each alone would begin with more than half of it.
RATE_LIMIT = 3
# A busy machine needs five seconds of two cores to start a task, and Airflow 2 starts one at a time.
RUN_TIMEOUT = 1200.0


@dataclass(frozen=True)
class Finished:
    """
    The runs of the example DAGs, all over: the state and the id of each by its DAG, and where songs were kept.

    The runs that ask a person are in ``answered``, by their case.
    """

    airflow: LocalAirflow
    sandbox: Sandbox
    key: str
    run_ids: dict[str, str]
    states: dict[str, str]
    metrics: Counter[str]
    kept: Path
    answered: dict[str, people.Answered]
    #: Where OpenLineage's provider writes each event to a file of its own.
    lineage: Path


@contextmanager
def statsd() -> Iterator[tuple[int, Counter[str]]]:
    """Listen to what Airflow tells StatsD; yield the port, and how often each metric of ours has come."""
    metrics: Counter[str] = Counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        # What comes while this machine stands still is kept.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        listener.bind(("127.0.0.1", 0))

        def listen() -> None:
            while data := listener.recv(65_536):
                names = [line.partition(":")[0] for line in data.decode().splitlines()]
                metrics.update(name.removeprefix("airflow.") for name in names if name.startswith("airflow.whisul"))

        thread = threading.Thread(target=listen)
        thread.start()
        port: int = listener.getsockname()[1]
        try:
            yield port, metrics
        finally:
            # An empty datagram ends it.
            listener.sendto(b"", ("127.0.0.1", port))
            thread.join()


def _bundles(*folders: Path) -> str:
    """Return the setting of Airflow 3 that names several folders of DAG files."""
    return json.dumps(
        [
            {
                # `example_dags` alone is the name of Airflow's own examples.
                "name": f"whisul_{folder.name}",
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder)},
            }
            for folder in folders
        ]
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    kept, lineage = tmp_path_factory.mktemp("kept"), tmp_path_factory.mktemp("lineage")
    key = f"e2e-{secrets.token_hex(16)}"
    with (
        Sandbox(SandboxOptions(api_key=key, job_seconds=JOB_SECONDS, rate_limit=RATE_LIMIT)) as sandbox,
        statsd() as (port, metrics),
    ):
        extra = {"price_per_song": "0.08 USD"}
        env = {
            "AIRFLOW_CONN_WHISUL_DEFAULT": json.dumps({**json.loads(sandbox.connection), "extra": extra}),
            "AIRFLOW_VAR_WHISUL_ASK_ABOVE": str(people.ASK_ABOVE),
            "AIRFLOW_VAR_WHISUL_SONGS_A_NIGHT": str(BATCH_SONGS),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            # Airflow's own are many: a listener that is late would lose some of ours among them.
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "whisul",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(port),
            "AIRFLOW_VAR_WHISUL_SONGS_FOLDER": kept.as_uri(),
            "AIRFLOW__OPENLINEAGE__DISABLED": "False",
            # On a busy machine an event takes longer than the ten seconds of the default, and would be given up.
            "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "120",
            "AIRFLOW__CORE__TASK_SUCCESS_OVERTIME": "120",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(lineage / "event")}),
        }
        with_partitions = Version("3.3") <= AIRFLOW
        if with_partitions:
            env["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = _bundles(EXAMPLE_DAGS, PARTITION_DAGS)
        with LocalAirflow(EXAMPLE_DAGS, env=env) as airflow:
            started = (RETRY, ONE_SONG, KEEP, PROMPT_FILES, TASKFLOW, *SINCE_3_2)
            asking = (people.APPROVE, people.ASK) if HAS_REQUIRED_ACTIONS else ()
            airflow.wait_for_dags(*started, NIGHTLY, THOUSAND, TOLD, *asking)
            for dag_id in (NIGHTLY, THOUSAND, TOLD):
                airflow.unpause(dag_id)
            run_ids = {dag_id: airflow.trigger(dag_id) for dag_id in started}
            asked = people.start(airflow) if HAS_REQUIRED_ACTIONS else {}
            run_ids |= {dag_id: airflow.wait_for_scheduled_run(dag_id) for dag_id in (NIGHTLY, THOUSAND)}
            if with_partitions:
                airflow.wait_for_dags(ALBUMS, ALBUM)
                airflow.unpause(ALBUM)
                run_ids[ALBUMS] = airflow.trigger(ALBUMS, {"album": "shanties"})
            answered = people.answer(airflow, asked, RUN_TIMEOUT)
            states = {dag_id: airflow.wait(dag_id, run_id, RUN_TIMEOUT) for dag_id, run_id in run_ids.items()}
            run_ids[TOLD] = airflow.wait_for_scheduled_run(TOLD)
            states[TOLD] = airflow.wait(TOLD, run_ids[TOLD], RUN_TIMEOUT)
            yield Finished(airflow, sandbox, key, run_ids, states, metrics, kept, answered, lineage)

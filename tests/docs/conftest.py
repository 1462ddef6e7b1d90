from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from tests.docs.example import Example
from tests.docs.hasty_clock import HastyClock, install, restore
from tests.support.pages import REPOSITORY, Block, blocks

#: Seconds on the hasty clock.
JOB_SECONDS = (60.0, 120.0)


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Airflow's home, with a database."""
    from airflow.utils.db import initdb

    home = Path(os.environ["AIRFLOW_HOME"])
    initdb()
    return home


@pytest.fixture
def hasty_clock() -> Iterator[HastyClock]:
    """Let the provider wait on a clock on which waiting takes no time."""
    clock = HastyClock()
    before = install(clock)
    yield clock
    restore(before)


@pytest.fixture
def example(
    block: Block, airflow_home: Path, hasty_clock: HastyClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Example]:
    """A folder with all files that the page of a block names, and a sandbox that ``whisul_default`` leads to."""
    folder = tmp_path / "page"
    dags = folder / "dags"
    dags.mkdir(parents=True)
    bundle = {"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle"}
    monkeypatch.setenv(
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([{**bundle, "kwargs": {"path": str(dags)}}])
    )
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(dags))
    # The one with the database. The example may set variables itself: they are gone with the test.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "AIRFLOW_HOME": str(airflow_home), "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    environment["TMPDIR"] = str(tmp_path)
    with Sandbox(SandboxOptions(job_seconds=JOB_SECONDS), clock=hasty_clock.time) as sandbox:
        connection = {**json.loads(sandbox.connection), "extra": {"max_requests_per_second": 1e6}}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        environment["AIRFLOW_CONN_WHISUL_DEFAULT"] = sandbox.connection
        example = Example(block, folder, sandbox, environment)
        for other in blocks(block.page):
            if other.file_name:
                example.write(other.file_name, other.code)
        yield example

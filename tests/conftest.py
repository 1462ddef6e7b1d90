from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Airflow reads its home when it is first imported, and the suite must not touch the user's own.
_home = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = _home.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

# An example that takes long, or is long in the making, says only that the machine is busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# What they assert is told as in a test file.
pytest.register_assert_rewrite("tests.e2e.crash.cases", "tests.support.reconciliation")

from airflow_provider_whisul.rate_limit import file_store, redis_store  # noqa: E402
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions  # noqa: E402
from tests.support.clock import FakeClock  # noqa: E402
from tests.support.markers import markers_of  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests before pytest selects by marker, and deselect those that do not apply, as on another Airflow."""
    for item in items:
        for marker in markers_of(item.path):
            item.add_marker(marker)
    # A skip is for what is missing on the machine: .ci/run fails on one.
    unfit = [item for item in items if any(any(mark.args) for mark in item.iter_markers("skipif"))]
    if unfit:
        config.hook.pytest_deselected(items=unfit)
        items[:] = [item for item in items if item not in unfit]


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the machine's own proxies, CAs, .netrc, rate limiter files and records out of the tests."""
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "requests_ca_bundle",
        "curl_ca_bundle",
        "ssl_cert_file",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # Here the rate limiters keep what they have learnt: no test must learn from another one.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
    # Here the tasks record what they have submitted: no test must find another one's songs.
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow-home")))
    # A busy machine makes a Redis and a lock late. The tests of these bounds set their own.
    monkeypatch.setattr(redis_store, "SOCKET_TIMEOUT", 10.0)
    monkeypatch.setattr(file_store, "LOCK_TIMEOUT", 10.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def start_sandbox(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Iterator[Callable[..., Sandbox]]:
    """Start a sandbox on the test's clock, and make ``whisul_default`` lead to it."""
    started: list[Sandbox] = []

    def start(**options: object) -> Sandbox:
        options = {"api_key": "secret-sandbox-key", "job_seconds": (60.0, 60.0), **options}
        sandbox = Sandbox(SandboxOptions(**options), clock=clock.time)
        started.append(sandbox.__enter__())
        # A rate limit that delays nothing. The rate limiter has tests of its own.
        extra = {"extra": {"max_requests_per_second": 1e6}}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps({**json.loads(sandbox.connection), **extra}))
        return sandbox

    yield start
    for sandbox in started:
        sandbox.__exit__(None, None, None)


@pytest.fixture
def sandbox(start_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A sandbox whose jobs take a minute."""
    return start_sandbox()


@pytest.fixture
def make_songs(sandbox: Sandbox, clock: FakeClock) -> Callable[..., list[dict[str, Any]]]:
    """Submit prompts to the sandbox, and return the completed songs as the operators do."""

    def make_songs(*prompts: str) -> list[dict[str, Any]]:
        from airflow_provider_whisul.hooks.whisul import WhisulHook

        hook = WhisulHook(clock=clock.clock)
        job_ids = [hook.generate(prompt) for prompt in prompts]
        clock.now += 100
        return [dict(hook.get_job(job_id).song) for job_id in job_ids]

    return make_songs


@pytest.fixture
def start_transfer(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run the transfer operator in another process, which a test may kill, limit or measure."""
    started: list[subprocess.Popen[str]] = []

    def start(**arguments: Any) -> subprocess.Popen[str]:
        file = tmp_path / f"arguments-{len(started)}.json"
        file.write_text(json.dumps(arguments))
        temporary = tmp_path / "tmp"
        temporary.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.integration.storage.store_in_process", str(file)]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def task_log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """
    Return the lines that went into a task's log.

    Airflow 3 writes what operators and hooks log straight to the output, and Airflow 2's loggers do not propagate to
    where ``caplog`` listens.
    """
    keep = _Keep()
    loggers = [logging.getLogger(name) for name in ("airflow.task", "airflow_provider_whisul")]
    ours = logging.getLogger("airflow_provider_whisul")
    level = ours.level
    ours.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(keep)

    def lines() -> list[str]:
        printed = capsys.readouterr().out.splitlines()
        return keep.lines + [line for line in printed if not any(kept in line for kept in keep.lines)]

    yield lines
    ours.setLevel(level)
    for logger in loggers:
        logger.removeHandler(keep)

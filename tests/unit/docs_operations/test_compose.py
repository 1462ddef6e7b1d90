"""
docs/compose starts what the cluster suite starts, with the settings that its Airflow has.

No image can be pulled where the tests run, so nothing of it is started here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli.cli_parser import get_parser
from cryptography.fernet import Fernet

from airflow_provider_whisul.api.connection import ConnectionSettings
from dev.airflow_runner.cluster import ClusterAirflow
from dev.airflow_runner.services import Services
from tests.support.airflow_options import known_options, option_of

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / "docs" / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
RUNNING = (REPOSITORY / "docs" / "running.md").read_text()

#: What the cluster suite sets for a test's sake, and a night on real machines has no need of.
ONLY_FOR_TESTS = {
    "API__HOST",  # loopback only
    "API__WORKERS",  # one, as the machine is small
    "CELERY_BROKER_TRANSPORT_OPTIONS__GLOBAL_KEYPREFIX",  # the Redis is not its own
    "CORE__DAGBAG_IMPORT_TIMEOUT",  # the tests' machine is busy
    "CORE__DAGS_ARE_PAUSED_AT_CREATION",  # the default
    "CORE__PARALLELISM",  # goes with the number of its workers
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS",  # without a login
    "DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT",  # likewise
    "DAG_PROCESSOR__REFRESH_INTERVAL",  # sooner
    "LOGGING__COLORED_CONSOLE_LOG",
    "OPENLINEAGE__DISABLED",  # its provider is installed there
    "SCHEDULER__ENABLE_HEALTH_CHECK",  # no fixed port
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC",  # sooner
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME",  # sooner
    # How soon a killed process is noticed.
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL",
    "SCHEDULER__TASK_QUEUED_TIMEOUT",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD",
    "USAGE_DATA_COLLECTION__ENABLED",  # its tests send nothing
}


@pytest.fixture
def cluster(tmp_path: Path) -> ClusterAirflow:
    """The Airflow of the cluster suite, which is not started."""
    airflow = ClusterAirflow(tmp_path, Services("postgresql://postgres@127.0.0.1/postgres", "redis://127.0.0.1/0"))
    airflow.home = tmp_path
    return airflow


def of_airflow() -> dict[str, Any]:
    return {name: service for name, service in SERVICES.items() if service.get("image") == "airflow-with-whisul"}


def environment(name: str = "worker") -> dict[str, str]:
    """Return the environment of a service, with a value for each variable that the user sets."""
    values = {key: re.sub(r"\$\{(\w+):?[?-][^}]*\}", r"\1", str(value)) for key, value in _environment(name).items()}
    return {key: value.replace("$$", "$") for key, value in values.items()}


def _environment(name: str) -> dict[str, Any]:
    found: dict[str, Any] = SERVICES[name]["environment"]
    return found


def test_the_components_are_those_of_the_cluster_suite(cluster: ClusterAirflow) -> None:
    started = {" ".join(word for word in command[:2] if not word.startswith("-")) for command in commands(cluster)}
    assert {service["command"] for service in of_airflow().values()} == started | {"db migrate"}


def commands(cluster: ClusterAirflow) -> list[list[str]]:
    return list(cluster._commands().values())


def test_airflow_has_every_command() -> None:
    parser = get_parser()
    checks = [SERVICES["triggerer"]["healthcheck"]["test"][1].removeprefix("airflow ")]
    for command in checks + [service["command"] for service in of_airflow().values()]:
        # The command of Celery is its provider's, which the cluster suite installs and starts.
        if not command.startswith("celery "):
            parser.parse_args(shlex.split(command))


def test_every_setting_of_the_cluster_suite_is_set_or_only_for_tests(cluster: ClusterAirflow) -> None:
    settings = set(cluster._settings())
    ours = {name.removeprefix("AIRFLOW__") for name in environment() if name.startswith("AIRFLOW__")}
    assert settings - ours == {name for name in ONLY_FOR_TESTS if name in settings} | {
        "WORKERS__MIN_HEARTBEAT_INTERVAL"
    }
    assert ours & ONLY_FOR_TESTS == set()


def test_every_variable_of_airflow_is_an_option() -> None:
    variables = {name for service in of_airflow() for name in environment(service) if name.startswith("AIRFLOW__")}
    assert len(variables) > 15
    assert {option_of(name) for name in variables} - known_options() == set()


def test_all_components_agree_on_the_settings() -> None:
    common = environment("scheduler")
    for name in of_airflow():
        assert common.items() <= environment(name).items(), name


def test_postgres_and_redis_are_where_airflow_looks_for_them() -> None:
    env = environment()
    urls = [value for value in env.values() if re.match(r"(db\+)?(redis|postgresql)", value)]
    assert len(urls) == 4
    hosts = {re.search(r"@([\w-]+)", url)[1] for url in urls}  # type: ignore[index]
    assert hosts == {"postgres", "redis"} <= set(SERVICES)
    assert env["AIRFLOW__METRICS__STATSD_HOST"] in SERVICES
    assert "//api-server:8080/" in env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"]
    # The broker and the rate limiter are in two databases of one Redis.
    assert env["AIRFLOW__CELERY__BROKER_URL"].endswith("/0")
    assert env["AIRFLOW_CONN_WHISUL_REDIS"].endswith("/1")


def test_the_connections_can_be_used() -> None:
    env = environment()
    connection = json.loads(env["AIRFLOW_CONN_WHISUL_DEFAULT"])
    assert connection.pop("conn_type") == "whisul"
    fields = {"host": None, "schema": None, "port": None, "extra": {}, **connection}
    settings = ConnectionSettings.from_connection("whisul_default", **fields)
    assert settings.api_key == "WHISUL_API_KEY"
    assert env["AIRFLOW__WHISUL__RATE_LIMIT_CONN_ID"] == "whisul_redis"
    assert env["AIRFLOW_CONN_WHISUL_REDIS"].startswith("redis://:REDIS_PASSWORD@")


def test_the_records_are_in_a_volume_that_every_worker_has() -> None:
    state_path = environment()["AIRFLOW__WHISUL__STATE_PATH"]
    for name, service in of_airflow().items():
        assert f"whisul:{state_path}" in service["volumes"], name
    # A new volume has the owner of the folder in the image.
    assert state_path in DOCKERFILE


def test_every_volume_and_every_service_that_is_named_is_there() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (FOLDER / source).is_dir(), volume
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert set(COMPOSE["volumes"]) <= used


def test_only_the_metrics_are_optional() -> None:
    optional = {name for name, service in SERVICES.items() if service.get("profiles")}
    assert optional == {"statsd-exporter", "prometheus", "grafana"}


def test_no_port_is_open_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_page_has_a_value_for_each_variable_that_must_be_set() -> None:
    needed = set(re.findall(r"\$\{(\w+):\?\}", TEXT))
    assert len(needed) == 6
    (command,) = re.findall(r"^printf .*?/\.env$", RUNNING, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"(\w+)=", command)) == needed


def test_the_command_of_the_page_writes_the_file_of_variables(tmp_path: Path) -> None:
    (command,) = re.findall(r"^printf .*?/\.env$", RUNNING, re.MULTILINE | re.DOTALL)
    (tmp_path / "docs" / "compose").mkdir(parents=True)
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, timeout=60)
    lines = (tmp_path / "docs" / "compose" / ".env").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    Fernet(values["FERNET_KEY"])
    # The passwords are parts of URLs.
    assert all(re.fullmatch(r"[0-9a-f]{32,}", values[f"{name}_PASSWORD"]) for name in ("POSTGRES", "REDIS"))


def test_the_image_has_the_newest_airflow_that_is_tested() -> None:
    constraints = (REPOSITORY / "constraints").glob("airflow-*.txt")
    newest = max((path.stem.removeprefix("airflow-") for path in constraints), key=lambda text: text.split("."))
    assert set(re.findall(r"\b\d+\.\d+\.\d+\b", DOCKERFILE)) == {newest}
    assert f"Airflow {newest}" in TEXT.splitlines()[0]


def test_docker_accepts_the_file() -> None:
    """Where there is no Docker with Compose, the file has at least no key that the services of others do not have."""
    keys = set().union(*SERVICES.values())
    assert keys <= {
        "build",
        "command",
        "depends_on",
        "environment",
        "healthcheck",
        "image",
        "ports",
        "profiles",
        "restart",
        "stop_grace_period",
        "volumes",
    }
    docker = shutil.which("docker")
    compose = [docker or "docker", "compose"]
    if docker is None or subprocess.run([*compose, "version"], capture_output=True, timeout=60).returncode:
        return
    values = dict.fromkeys(re.findall(r"\$\{(\w+)", TEXT), "value")
    checked = subprocess.run(
        [*compose, "--file", str(FOLDER / "compose.yaml"), "--profile", "metrics", "config", "--quiet"],
        env={"PATH": str(Path(docker).parent), **values},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr

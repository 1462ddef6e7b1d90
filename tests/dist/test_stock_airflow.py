"""The wheel beside a stock Airflow: what Airflow knows of it, and songs from its DAGs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_provider_whisul import __version__
from airflow_provider_whisul.get_provider_info import get_provider_info
from dev.dist import CHECKOUT, PACKAGE
from tests.dist.stock_airflow import TIMEOUT, StockAirflow

pytestmark = pytest.mark.timeout(2 * TIMEOUT)

SMALLEST, STORING = "nightly_songs", "whisul_keep_songs"


@dataclass(frozen=True)
class Runs:
    """The output of ``airflow dags test`` by its DAG, how often each request was sent, and where songs were stored."""

    output: dict[str, str]
    requests: Counter[str]
    kept: Path


@pytest.fixture(scope="module")
def runs(stock: StockAirflow) -> Runs:
    """The smallest DAG of the README and an example DAG that stores songs, each in an Airflow of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (CHECKOUT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (smallest,) = [block for block in blocks if f'DAG("{SMALLEST}"' in block]
    (stock.dags / "readme.py").write_text(smallest)
    shutil.copy(CHECKOUT / "example_dags" / f"{STORING}.py", stock.dags)
    kept, log = stock.folder / "kept", stock.folder / "requests.jsonl"
    kept.mkdir()
    output = {}
    with stock.sandbox(log) as connection, ExitStack() as stack:
        variables = {**connection, "AIRFLOW_VAR_WHISUL_SONGS_FOLDER": kept.as_uri()}
        processes = {}
        for dag_id in (SMALLEST, STORING):
            home = stock.copy_of_home(dag_id)
            started = stock.start("airflow", "dags", "test", dag_id, home=home, **variables)
            processes[dag_id] = stack.enter_context(started)
        for dag_id, process in processes.items():
            output[dag_id] = process.communicate(timeout=TIMEOUT)[0]
            assert process.returncode == 0, output[dag_id]
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    return Runs(output, Counter(request["method"] for request in requests), kept)


def test_pip_finds_no_broken_requirement(stock: StockAirflow) -> None:
    assert "No broken requirements" in stock.output("python", "-m", "pip", "check", home=stock.folder)


def test_the_package_is_that_of_the_wheel_and_no_checkout_is_on_the_path(stock: StockAirflow) -> None:
    code = "import airflow, sys, airflow_provider_whisul as p; print(airflow.__version__, p.__version__, p.__file__)"
    version, ours, file = stock.output("python", "-c", code).splitlines()[-1].split()
    assert (version, ours) == (stock.version, __version__)
    assert Path(file).is_relative_to(stock.python.parents[1])
    paths = json.loads(stock.output("python", "-c", "import json, sys; print(json.dumps(sys.path))"))
    assert str(CHECKOUT) not in paths


def test_airflow_lists_the_provider(stock: StockAirflow) -> None:
    (ours,) = [found for found in stock.json("providers", "list") if found["package_name"] == PACKAGE]
    assert ours["version"] == __version__
    assert "Whisul" in ours["description"]


def test_airflow_has_the_providers_information(stock: StockAirflow) -> None:
    (found,) = stock.json("providers", "get", PACKAGE, "--full")
    assert found["integrations"] == get_provider_info()["integrations"]


def test_airflow_has_the_connection_type(stock: StockAirflow) -> None:
    (ours,) = [hook for hook in stock.json("providers", "hooks") if hook["connection_type"] == "whisul"]
    assert ours["class"] == "airflow_provider_whisul.hooks.whisul.WhisulHook"


def test_airflow_has_loaded_the_plugin(stock: StockAirflow) -> None:
    (ours,) = [plugin for plugin in stock.json("plugins") if plugin["name"] == "whisul_tracks"]
    assert PACKAGE in ours["source"]


def test_airflow_has_the_options_of_the_provider(stock: StockAirflow) -> None:
    assert stock.output("airflow", "config", "get-value", "whisul", "tracks_tab").splitlines()[-1] == "True"


def test_the_smallest_dag_of_the_readme_makes_its_songs(runs: Runs) -> None:
    assert re.search(r"state.{0,3}success", runs.output[SMALLEST]), runs.output[SMALLEST]


def test_an_example_dag_stores_its_songs(runs: Runs) -> None:
    (manifest,) = runs.kept.glob("*/manifest.json")
    songs = json.loads(manifest.read_text())["songs"]
    assert len(songs) == 3
    for song in songs:
        assert (manifest.parent / song["audio"]["name"]).stat().st_size == song["audio"]["size"] > 0
        assert json.loads((manifest.parent / song["metadata"]).read_text()) == song


def test_each_prompt_was_submitted_once(runs: Runs) -> None:
    assert runs.requests["POST"] == 2 + 3

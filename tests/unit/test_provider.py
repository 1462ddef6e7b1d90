"""What Airflow sees of the provider before any task runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml
from airflow import __version__ as airflow_version

from airflow_provider_whisul.get_provider_info import get_provider_info
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor

REPOSITORY = Path(__file__).resolve().parents[2]

DAG_MODULES = (
    "airflow_provider_whisul.operators.whisul",
    "airflow_provider_whisul.operators.whisul_batch",
    "airflow_provider_whisul.sensors.whisul",
    "airflow_provider_whisul.transfers.whisul_to_object_storage",
    "airflow_provider_whisul.triggers.whisul",
    "airflow_provider_whisul.triggers.whisul_batch",
)

DECORATOR_MODULES = (
    "airflow_provider_whisul.decorators.whisul",
    "airflow_provider_whisul.decorators.whisul_batch",
)


def test_the_entry_point_loads_the_provider_info() -> None:
    (entry_point,) = entry_points(group="apache_airflow_provider").select(name="provider_info", module=MODULE)
    assert entry_point.load() is get_provider_info


MODULE = "airflow_provider_whisul.get_provider_info"


def test_airflow_accepts_the_provider_info() -> None:
    import airflow

    with open(f"{airflow.__path__[0]}/provider_info.schema.json") as file:
        jsonschema.validate(get_provider_info(), json.load(file))


def test_the_guides_and_the_logo_are_files_of_the_documentation() -> None:
    """Airflow's documentation reads such paths from the root of a provider, and they begin with /docs/."""
    info = get_provider_info()
    paths = [transfer["how-to-guide"] for transfer in info["transfers"]]
    for integration in info["integrations"]:
        paths += [*integration["how-to-guide"], integration["logo"]]
    assert all(path.startswith("/docs/") for path in paths)
    assert [path for path in paths if not (REPOSITORY / path[1:]).is_file()] == []


def test_the_logo_loads_nothing_and_runs_nothing() -> None:
    (logo,) = [integration["logo"] for integration in get_provider_info()["integrations"]]
    # It is a file of the repository.
    elements = list(ElementTree.parse(REPOSITORY / logo[1:]).iter())
    assert {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in elements} <= {
        *("svg", "g", "rect", "path", "circle")
    }
    assert not [name for element in elements for name in element.attrib if "href" in name or name.startswith("on")]


def test_the_registrys_file_names_every_class_of_the_provider_info() -> None:
    registry, info = yaml.safe_load((REPOSITORY / ".airflow-registry.yaml").read_text()), get_provider_info()
    assert registry["package-name"] == info["package-name"]
    assert registry["display-name"] == info["name"]
    assert registry["logo"].endswith(info["integrations"][0]["logo"])
    for kind in ("operators", "sensors", "transfers", "hooks", "triggers", "task-decorators"):
        named = [entry["module"].rpartition(".") for entry in registry[kind]]
        assert all(hasattr(importlib.import_module(module), name) for module, _, name in named), kind
        modules: set[str] = set()
        for entry in info[kind]:
            modules.update(entry.get("python-modules", ()))
            modules.update({entry["python-module"]} if "python-module" in entry else ())
            modules.update({entry["class-name"].rpartition(".")[0]} if "class-name" in entry else ())
        assert {module for module, _, _ in named} == modules, kind
        assert all(entry["description"].endswith(".") for entry in registry[kind]), kind


@pytest.mark.parametrize("kind", ["hooks", "operators", "sensors", "triggers"])
def test_the_modules_exist(kind: str) -> None:
    for integration in get_provider_info()[kind]:
        for module in integration["python-modules"]:
            importlib.import_module(module)


def test_the_transfer_modules_exist() -> None:
    (transfer,) = get_provider_info()["transfers"]
    assert transfer["source-integration-name"] == get_provider_info()["integrations"][0]["integration-name"]
    importlib.import_module(transfer["python-module"])


def test_every_module_that_a_dag_file_imports_is_in_the_provider_info() -> None:
    info = get_provider_info()
    named = {
        module for kind in ("operators", "sensors", "triggers") for it in info[kind] for module in it["python-modules"]
    }
    named |= {transfer["python-module"] for transfer in info["transfers"]}
    assert named == set(DAG_MODULES)


def test_the_task_decorators_are_functions_of_these_modules() -> None:
    named = [decorator["class-name"].rpartition(".") for decorator in get_provider_info()["task-decorators"]]
    assert [module for module, _, _ in named] == list(DECORATOR_MODULES)
    assert all(callable(getattr(importlib.import_module(module), name)) for module, _, name in named)


def test_the_connection_type_is_that_of_the_hook() -> None:
    (connection_type,) = get_provider_info()["connection-types"]
    module, _, name = connection_type["hook-class-name"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is WhisulHook
    assert connection_type["connection-type"] == WhisulHook.conn_type
    assert connection_type["hook-name"] == WhisulHook.hook_name


def test_the_extra_links_exist() -> None:
    """Airflow 2 creates only the links whose classes are named there."""
    named = {tuple(name.rpartition(".")[::2]) for name in get_provider_info()["extra-links"]}
    used = {type(link) for task in (WhisulGenerateOperator, WhisulJobSensor) for link in task.operator_extra_links}
    assert {getattr(importlib.import_module(module), name) for module, name in named} == used


def test_both_forms_of_the_connection_have_the_same_fields() -> None:
    (connection_type,) = get_provider_info()["connection-types"]
    if airflow_version.startswith("2."):
        assert set(WhisulHook.get_connection_form_widgets()) == set(connection_type["conn-fields"])
    behaviour = WhisulHook.get_ui_field_behaviour()
    assert behaviour["relabeling"] == connection_type["ui-field-behaviour"]["relabeling"]
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
    # Airflow 3.3.1 and 3.3.2 test no saved connection without one.
    assert behaviour["placeholders"]["port"] == "443, for the Test button"


_MEASURE = """
import sys, time
try:
    from airflow.sdk import BaseOperator, BaseSensorOperator, DAG
except ImportError:
    from airflow import DAG
    from airflow.models.baseoperator import BaseOperator
    from airflow.sensors.base import BaseSensorOperator
from airflow.providers.common.compat.sdk import DecoratedOperator
import airflow.triggers.base
loaded = {{name for name in ("requests", "aiohttp", "redis", "openlineage") if name in sys.modules}}
start = time.process_time()
import {modules}
spent = time.process_time() - start
print(spent, *{{name for name in ("requests", "aiohttp", "redis", "openlineage") if name in sys.modules}} - loaded)
"""


def test_reading_a_dag_file_imports_no_http_client_and_takes_under_100_ms() -> None:
    """CPU time, best of ten runs: some 25 ms on an idle machine, and up to three times that on a busy one."""
    code = _MEASURE.format(modules=", ".join(DAG_MODULES + DECORATOR_MODULES))
    best = 1.0
    for _ in range(10):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        spent, *loaded = out.splitlines()[-1].split()
        assert loaded == []
        best = min(best, float(spent))
        if best < 0.1:
            break
    assert best < 0.1


def test_a_task_process_does_not_import_the_triggerers_http_client() -> None:
    """aiohttp would cost each task that talks to Whisul some 80 ms of CPU."""
    code = _MEASURE.format(modules="airflow_provider_whisul.hooks.whisul")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "aiohttp" not in out.splitlines()[-1].split()

"""The reference has every public name, and its tables are those of the code."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator
from airflow.triggers.base import BaseTrigger

import airflow_provider_whisul
from airflow_provider_whisul import sandbox
from airflow_provider_whisul.get_provider_info import CONFIG, CONN_FIELDS, get_provider_info
from dev import docs_options

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
PACKAGE = airflow_provider_whisul.__name__
DOCUMENTED = {
    name
    for page in REFERENCE.glob("*.rst")
    for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", page.read_text(), re.MULTILINE)
}
#: The classes that Airflow loads.
KINDS = (BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator, BaseTrigger)


def test_what_airflow_loads_is_in_the_reference() -> None:
    info = get_provider_info()
    modules = [
        name
        for kind in ("hooks", "operators", "sensors", "triggers")
        for part in info[kind]
        for name in part["python-modules"]
    ]
    modules += [transfer["python-module"] for transfer in info["transfers"]]
    public = {
        f"{module}.{name}"
        for module in modules
        for name, found in vars(importlib.import_module(module)).items()
        if inspect.isclass(found) and issubclass(found, KINDS) and found.__module__ == module
    }
    public |= {decorator["class-name"] for decorator in info["task-decorators"]}
    assert len(public) >= 10
    assert public | set(info["extra-links"]) <= DOCUMENTED


def test_what_the_sandbox_exports_is_in_the_reference() -> None:
    assert {f"{PACKAGE}.sandbox.{name}" for name in sandbox.__all__} <= DOCUMENTED


def test_all_errors_are_in_the_reference_as_members_of_their_module() -> None:
    page = (REFERENCE / "exceptions.rst").read_text()
    assert f".. automodule:: {PACKAGE}.exceptions\n   :members:\n" in page
    (left_out,) = re.findall(r":exclude-members: (.*)", page)
    assert not re.findall(r"\w+Error(?<!SerializedError)\b", left_out)


def test_every_name_of_the_reference_exists() -> None:
    for name in DOCUMENTED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


def test_the_tables_of_options_are_up_to_date() -> None:
    assert docs_options.PAGE.read_text() == docs_options.page(), "Run make docs."


def test_the_tables_of_options_have_every_option_and_field() -> None:
    page = docs_options.PAGE.read_text()
    names = {*CONN_FIELDS, *(name for section in CONFIG.values() for name in section["options"])}
    assert {name for name in names if f"\n### `{name}`\n" in page} == names

"""What is published beside the packages: constraints and the list of what the wheel brings."""

from __future__ import annotations

import email.message
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airflow_provider_whisul import __version__
from dev.dist import BESIDE, CHECKOUT, PACKAGE, SBOM, TOOLS, of_package
from tests.dist.stock_airflow import STOCK_AIRFLOWS, StockAirflow

SUPPORTED = sorted(path.stem.removeprefix("airflow-") for path in (CHECKOUT / "constraints").glob("airflow-*.txt"))


@pytest.fixture(scope="module")
def sbom() -> dict[str, Any]:
    return dict(json.loads((BESIDE / SBOM).read_text()))


def pins(path: Path) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in path.read_text().split())}


def test_each_supported_airflow_has_its_constraints() -> None:
    names = {f"constraints-airflow-{version}.txt" for version in SUPPORTED}
    assert {path.name for path in BESIDE.iterdir()} == {*names, SBOM}


def test_a_stock_airflow_with_the_wheel_has_the_versions_of_its_constraints(stock: StockAirflow) -> None:
    allowed = pins(BESIDE / f"constraints-airflow-{stock.version}.txt")
    frozen = stock.output("python", "-m", "pip", "--disable-pip-version-check", "freeze", home=stock.folder).split("\n")
    installed = dict(line.split("==") for line in frozen if "==" in line)
    assert {name for name in installed if allowed.get(canonicalize_name(name)) != installed[name]} == set()
    # The wheel, which comes from a file.
    assert [line.partition(" @ ")[0] for line in frozen if line and "==" not in line] == [PACKAGE]


def test_the_sbom_is_that_of_the_wheel(sbom: dict[str, Any], wheel: Path) -> None:
    subject = sbom["metadata"]["component"]
    assert (sbom["bomFormat"], subject["name"], subject["version"]) == ("CycloneDX", PACKAGE, __version__)
    assert subject["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", sbom["serialNumber"])


_VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(str(error) if error else 0)
"""


def test_the_sbom_has_the_form_of_cyclonedx() -> None:
    text = (BESIDE / SBOM).read_text()
    run = subprocess.run([TOOLS, "-c", _VALIDATE], input=text, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_sbom_names_every_dependency_of_the_wheel_with_the_version_that_was_tested(
    sbom: dict[str, Any], metadata: email.message.Message
) -> None:
    listed = {canonicalize_name(component["name"]): component for component in sbom["components"]}
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {canonicalize_name(requirement.name) for requirement in required} <= set(listed)
    tested = pins(CHECKOUT / "constraints" / f"airflow-{STOCK_AIRFLOWS[-1]}.txt")
    for name, component in listed.items():
        # Every environment brings these two, in versions of its own.
        assert name in {"pip", "setuptools"} or component["version"] == tested[name], name
        assert component["purl"].startswith("pkg:pypi/"), name
    of_the_wheel = {entry["ref"]: entry["dependsOn"] for entry in sbom["dependencies"]}
    assert len(of_the_wheel[sbom["metadata"]["component"]["bom-ref"]]) == len(required)


def test_the_sbom_names_no_address_and_no_folder_of_this_machine(sbom: dict[str, Any]) -> None:
    text = json.dumps(sbom)
    assert set(re.findall(r"\w+://[^/\"]*", text)) <= {"http://cyclonedx.org"}
    assert str(CHECKOUT) not in text
    assert not re.search(r"\"(/|file:)", text)


def test_the_constraints_have_exact_versions_and_nothing_else() -> None:
    for path in BESIDE.glob("constraints-*.txt"):
        assert [line for line in path.read_text().splitlines() if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []


def test_what_the_wheel_does_not_need_is_not_in_the_sbom() -> None:
    def component(name: str) -> dict[str, Any]:
        references = [{"url": "file:///home/somebody"}]
        return {"bom-ref": f"{name}==1", "name": name, "version": "1", "externalReferences": references}

    listed = {
        "metadata": {"tools": {}, "component": {}},
        "components": [component(name) for name in (PACKAGE, "a", "b", "of-an-extra", "pip")],
        "dependencies": [
            {"ref": f"{PACKAGE}==1", "dependsOn": ["a==1", "of-an-extra==1"]},
            {"ref": "a==1", "dependsOn": ["b==1"]},
            {"ref": "b==1", "dependsOn": ["a==1"]},
            {"ref": "pip==1"},
        ],
    }
    made = of_package(listed, "00", {"a"})
    assert [found["name"] for found in made["components"]] == ["a", "b"]
    assert made["metadata"]["component"]["name"] == PACKAGE
    assert "file:" not in json.dumps(made)
    assert made["serialNumber"] != of_package(listed, "01", {"a"})["serialNumber"]

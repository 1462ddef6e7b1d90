"""What ``make scan`` says about the dependencies."""

from __future__ import annotations

import json

import pytest

from dev.scan import packages, tell

VERSIONS = {"requests": "2.31.0", "yarl": "1.9.0"}
FOUND = {"id": "PYSEC-1", "fix_versions": ["2.32.4"], "aliases": [], "description": "…"}
CLEAN = {"name": "yarl", "version": "1.9.0", "vulns": []}


def report(*dependencies: object) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_the_packages_are_those_that_the_requirements_bring_without_airflow_s() -> None:
    found = packages(["requests>=2.32", "apache-airflow>=2.11", "apache-airflow-providers-common-compat>=1.23"])
    assert {"requests", "urllib3", "idna"} <= set(found)
    assert not [name for name in found if name.startswith("apache-airflow") or name == "pysocks"]


def test_a_vulnerability_fails_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    vulnerable = {"name": "requests", "version": "2.31.0", "vulns": [FOUND]}
    assert tell(report(vulnerable, CLEAN), "", VERSIONS) == 1
    assert "requests 2.31.0: PYSEC-1, mended in 2.32.4" in capsys.readouterr().out


def test_a_vulnerability_without_a_fix_fails_too() -> None:
    vulnerable = {"name": "requests", "version": "2.31.0", "vulns": [FOUND | {"fix_versions": []}]}
    assert tell(report(vulnerable), "", VERSIONS) == 1


def test_a_package_that_is_not_looked_up_is_not_called_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """pip-audit says "no known vulnerabilities found" then, and succeeds."""
    skipped = {"name": "requests", "skip_reason": "Dependency not found"}
    assert tell(report(skipped, CLEAN), "No known vulnerabilities found", VERSIONS) == 0
    output = capsys.readouterr().out
    assert "NOT LOOKED UP" in output
    assert "1 of 2 packages looked up" in output


@pytest.mark.parametrize("written", ["", "Traceback …", "[]", "{}", "null"])
def test_a_database_that_cannot_be_reached_is_said_with_the_reason(
    written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(written, "Traceback …\nConnectionError: no route", VERSIONS) == 0
    assert "NOT LOOKED UP" in (output := capsys.readouterr().out)
    assert "ConnectionError: no route" in output


def test_everything_looked_up_and_nothing_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(report(CLEAN, {**CLEAN, "name": "requests"}), "", VERSIONS) == 0
    assert capsys.readouterr().out == "pip-audit: 2 of 2 packages looked up, 0 findings.\n"

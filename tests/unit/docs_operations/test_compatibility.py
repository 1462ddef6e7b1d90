"""docs/compatibility.md names the versions that the suites run, and options and keys that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from airflow_provider_whisul.state.retention import LEDGER_DAYS, RECORD_DAYS

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "compatibility.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
VERSIONS = sorted(
    path.stem.removeprefix("airflow-") for path in (REPOSITORY / "constraints").glob("airflow-[0-9]*.txt")
)
#: Airflow, Python and the commands of each row of the first table: those of each change, and those of each week.
OF_A_CHANGE, OF_A_WEEK = (
    [
        (row[0], row[1], re.findall(r"`make ([\w.-]+)`", row[column]))
        for row in re.findall(r"^\| (\d[\d.]+) \| (\d[\d.]+) \|([^|]*)\|([^|]*)\|", PAGE, re.MULTILINE)
    ]
    for column in (2, 3)
)
ROWS = OF_A_CHANGE + OF_A_WEEK
NEWEST = max(VERSIONS, key=lambda version: [int(part) for part in version.split(".")])


def suites_of_versions(target: str) -> set[str]:
    """Return the suites that a target of make lists and that have a row in the table."""
    command = ["make", "--no-print-directory", "--silent", target]
    suites = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    return {suite for suite in suites if re.search(r"\d|browser|lowest|s3", suite)}


def test_the_rows_are_the_versions_with_constraints() -> None:
    assert sorted({airflow for airflow, _, _ in ROWS}) == VERSIONS


@pytest.mark.parametrize(
    ("rows", "target", "others"),
    [(OF_A_CHANGE, "suites", {"test", "test-cluster"}), (OF_A_WEEK, "weekly-suites", set())],
    ids=["change", "week"],
)
def test_every_suite_of_a_version_has_its_row(
    rows: list[tuple[str, str, list[str]]], target: str, others: set[str]
) -> None:
    named = [command for _, _, commands in rows for command in commands]
    assert len(named) == len(set(named))
    assert set(named) == suites_of_versions(target) | others


def test_a_command_is_in_the_row_of_its_version() -> None:
    for airflow, python, commands in ROWS:
        for command in commands:
            version = re.search(r"-(\d+\.\d+\.\d+)$", command)
            assert airflow == (version[1] if version else VERSIONS[0] if command == "test-lowest" else NEWEST), command
            of_python = re.search(r"-py([\d.]+)$", command)
            assert python == (of_python[1] if of_python else "3.11"), command


def test_the_python_that_a_suite_takes_is_the_oldest_one() -> None:
    assert 'requires-python = ">=3.11"' in PYPROJECT
    assert "for minor in $(seq 11" in (REPOSITORY / "dev" / "make_venv.sh").read_text()


def test_the_lowest_airflow_is_that_of_the_package() -> None:
    (lowest,) = re.findall(r'"apache-airflow>=(\d+\.\d+)\.0"', PYPROJECT)
    assert f"Python 3.11 or later and Airflow {lowest} or later" in PAGE
    assert f"| operators, sensor, hook, transfer, records that outlive a try | {lowest} |" in PAGE


def test_the_page_says_how_long_records_and_ledger_are_kept() -> None:
    assert f"| the record of a task | {RECORD_DAYS} days |" in PAGE
    assert f"| the ledger | {LEDGER_DAYS} days |" in PAGE


def test_the_warning_that_the_page_promises_is_airflows() -> None:
    from airflow.exceptions import AirflowProviderDeprecationWarning

    assert AirflowProviderDeprecationWarning.__name__ in PAGE

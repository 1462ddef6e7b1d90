"""Which tests ``make check FILE=path`` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.check import find_tests, main

FILES = (
    "airflow_provider_whisul/text.py",
    "airflow_provider_whisul/clock.py",
    "airflow_provider_whisul/api/models.py",
    "airflow_provider_whisul/operators/base.py",
    "airflow_provider_whisul/operators/whisul.py",
    "airflow_provider_whisul/operators/whisul_batch.py",
    "dev/check.py",
    "tests/unit/test_text.py",
    "tests/unit/dev/test_check.py",
    "tests/unit/operators/test_whisul.py",
    "tests/integration/operators/test_whisul.py",
    "tests/integration/operators/test_whisul_durable.py",
    "tests/integration/operators/test_whisul_batch.py",
    "tests/integration/operators/conftest.py",
)


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("airflow_provider_whisul/text.py", ["unit/test_text.py"]),
        ("airflow_provider_whisul/clock.py", []),
        ("airflow_provider_whisul/api/models.py", []),
        (
            "airflow_provider_whisul/operators/whisul.py",
            [
                "integration/operators/test_whisul.py",
                "integration/operators/test_whisul_durable.py",
                "unit/operators/test_whisul.py",
            ],
        ),
        ("airflow_provider_whisul/operators/whisul_batch.py", ["integration/operators/test_whisul_batch.py"]),
        (
            "airflow_provider_whisul/operators/base.py",
            [
                "integration/operators/test_whisul.py",
                "integration/operators/test_whisul_batch.py",
                "integration/operators/test_whisul_durable.py",
                "unit/operators/test_whisul.py",
            ],
        ),
        ("dev/check.py", ["unit/dev/test_check.py"]),
        ("tests/unit/test_text.py", ["unit/test_text.py"]),
        ("tests/integration/operators/conftest.py", []),
    ],
)
def test_the_tests_of_a_file_are_found_by_its_place(tmp_path: Path, file: str, tests: list[str]) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_tests(Path(file), tmp_path) == [Path("tests", name) for name in tests]


@pytest.mark.parametrize("arguments", [[], ["no/such/file.py"], ["/etc/hostname"], ["dev/check.py", "dev/demo.py"]])
def test_anything_but_one_file_of_the_checkout_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "make check FILE=" in capsys.readouterr().err

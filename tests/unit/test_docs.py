"""The documentation says what the code does."""

from __future__ import annotations

from airflow_provider_whisul.exceptions import WhisulError, all_errors
from dev import troubleshooting
from dev.failure_table import CASES, COSTS, PAGE, page


def test_the_table_of_failures_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "Run make docs."


def test_the_table_of_failures_has_every_error() -> None:
    assert {type(error) for _, error in CASES} == set(all_errors().values()) - {WhisulError}


def test_every_error_has_its_cost() -> None:
    assert set(COSTS) == set(all_errors()) - {"WhisulError"}


def test_the_table_of_errors_and_what_to_do_is_up_to_date() -> None:
    assert troubleshooting.PAGE.read_text() == troubleshooting.page(), "Run make docs."


def test_every_error_has_what_to_do_about_it() -> None:
    assert set(troubleshooting.ACTIONS) == set(all_errors()) - {"WhisulError"}

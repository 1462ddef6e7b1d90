"""Every option of Airflow's configuration that a document names exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path

import pytest

from tests.support.airflow_options import known_options, option_of

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "docs" / "compose" / "compose.yaml",
]
KNOWN = known_options()


def named(text: str) -> Iterator[tuple[str, str]]:
    """Yield each option that a text names: as ``[section] option``, as a variable, or in a piece of airflow.cfg."""
    yield from re.findall(r"`\[(\w+)\] (\w+)", text)
    yield from map(option_of, re.findall(r"\bAIRFLOW__[A-Z0-9_]+__[A-Z0-9_]+\b", text))
    for block in re.findall(r"^ *```ini\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        parser = RawConfigParser()
        parser.read_string(re.sub(r"^ +", "", block, flags=re.MULTILINE))
        yield from ((section, name) for section in parser.sections() for name in parser.options(section))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_that_a_document_names_exists(document: Path) -> None:
    assert set(named(document.read_text())) - KNOWN == set()


def test_what_is_no_option_is_found() -> None:
    text = "`[core] executer` `AIRFLOW__CORE__EXECUTER`\n```ini\n[whisul]\nstat_path = x\n```\n"
    assert set(named(text)) == {("core", "executer"), ("whisul", "stat_path")}
    assert set(named(text)) & KNOWN == set()


def test_the_pages_name_options_at_all() -> None:
    assert len({option for document in DOCUMENTS for option in named(document.read_text())}) > 20

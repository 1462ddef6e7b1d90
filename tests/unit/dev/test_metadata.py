"""What the package says of itself on a package index."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.support.make import make

CHECKOUT = Path(__file__).resolve().parents[3]
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SOURCE = PROJECT["urls"]["Source"]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: Any address of this repository, whoever its owner is.
_ADDRESS = re.compile(r"(https://(?:raw\.githubusercontent|github)\.com/[\w.-]+/airflow-provider-whisul)\b")


def readme_of_the_package() -> str:
    text = (CHECKOUT / "README.md").read_text()
    for substitution in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    return text


def text_files() -> Iterator[Path]:
    """Yield the text files that may name the repository's address: those of its folders, but for what is installed."""
    folders = (".github", "airflow_provider_whisul", "benchmarks", "dev", "docs", "example_dags")
    for file in [*CHECKOUT.iterdir(), *(file for name in folders for file in (CHECKOUT / name).rglob("*"))]:
        if file.is_file() and file.suffix in {".md", ".toml", ".yaml", ".yml", ".py", ".html"}:
            yield file


def test_the_urls_lead_to_files_of_the_repository_or_to_its_pages() -> None:
    assert set(PROJECT["urls"]) == {"Documentation", "Source", "Changelog", "Issues", "Security"}
    for url in PROJECT["urls"].values():
        assert url.startswith(SOURCE)
        kind, _, path = url.removeprefix(SOURCE).removeprefix("/").partition("/")
        assert (kind, path) in {("", ""), ("issues", ""), ("security", "policy")} or (
            kind in {"blob", "tree"} and (CHECKOUT / path.removeprefix("main/")).exists()
        ), url


def test_every_address_of_the_repository_is_that_of_the_metadata() -> None:
    raw = SOURCE.replace("github.com", "raw.githubusercontent.com")
    found = {file: set(_ADDRESS.findall(file.read_text())) for file in text_files()}
    assert found[CHECKOUT / "pyproject.toml"] == {SOURCE, raw}
    assert {file: addresses for file, addresses in found.items() if addresses - {SOURCE, raw}} == {}


def test_every_link_of_the_packages_readme_leads_into_the_repository_at_its_tag() -> None:
    text = (CHECKOUT / "README.md").read_text()
    relative = [target for target in _LINK.findall(text) if "://" not in target and not target.startswith("#")]
    assert relative
    shown = _LINK.findall(readme_of_the_package())
    assert [target for target in shown if "://" not in target and not target.startswith("#")] == []
    raw = SOURCE.replace("github.com", "raw.githubusercontent.com")
    for target in relative:
        absolute = {f"{SOURCE}/blob/v$HFPR_VERSION/{target}", f"{raw}/v$HFPR_VERSION/{target}"}
        assert absolute & set(shown), target
    # A picture comes from the raw file.
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", readme_of_the_package())
    assert all(picture.startswith(f"{raw}/") for picture in pictures)


def test_the_pythons_of_the_classifiers_are_those_that_the_suites_run_on() -> None:
    named = set(re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"])))
    run = {suite.removeprefix("test-py") for suite in make("suites").split() if suite.startswith("test-py")}
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert named == {oldest, *run}

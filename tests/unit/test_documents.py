"""The documents lead to files, headings and names that exist."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_provider_whisul
from airflow_provider_whisul.sandbox.directives import DIRECTIVES
from airflow_provider_whisul.sandbox.options import FAULTS
from tests.support.pages import PAGES, REPOSITORY, blocks, without_code

PACKAGE_NAME = airflow_provider_whisul.__name__
PACKAGE = REPOSITORY / PACKAGE_NAME
README = REPOSITORY / "README.md"
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
MAX_README_LINES = 120

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_DOTTED_NAME = re.compile(rf"`({PACKAGE_NAME}(?:\.\w+)+)`")
#: Such as `` `hooks/whisul.py`: `WhisulHook.generate` ``.
_REFERENCE = re.compile(r"`(?!tests/)([\w/]+)\.py`:\s+`([\w.]+)`")
#: Such as `` `tests/unit/test_text.py`: `test_quoted_text` ``.
_TEST = re.compile(r"`(tests/[\w/]+\.py)`:\s+`(test_\w+)`")
_TREE_LINE = re.compile(r"^  (\S+)  +\S.*$", re.MULTILINE)

by_document = pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    found: Counter[str] = Counter()
    names = set()
    for heading in _HEADING.findall(without_code(text)):
        plain = _LINK.sub(lambda link: link[0][1:].partition("]")[0], heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return names


def broken_links(document: Path) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("", without_code(document.read_text()))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.is_file() or (anchor and anchor not in anchors(file.read_text())):
            yield target


def resolve(module: str, name: str | None) -> object:
    """Return a module, or what a dotted name in it stands for. Raise ImportError or AttributeError if there is none."""
    found: object = importlib.import_module(module)
    for part in name.split(".") if name else ():
        # A field of a dataclass or a TypedDict without a default is no attribute.
        found = getattr(found, "__annotations__", {}).get(part) or getattr(found, part)
    return found


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


@by_document
def test_relative_links_lead_to_files_and_headings(document: Path) -> None:
    assert list(broken_links(document)) == []


def listed(index: Path) -> set[Path]:
    """Return the pages that an index page has in its lists, from which the menu of the site is made."""
    return {
        index.parent / target for target in re.findall(r"^- \[[^\]]+\]\(([^)#]+)\)", index.read_text(), re.MULTILINE)
    }


def test_the_readme_leads_to_the_list_of_all_pages() -> None:
    assert "docs/index.md" in _LINK.findall(README.read_text())


def test_every_page_of_the_documentation_is_in_the_menu_of_the_site() -> None:
    docs = REPOSITORY / "docs"
    assert listed(docs / "index.md") >= {*docs.glob("*.md"), docs / "reference" / "index.md"} - {docs / "index.md"}
    reference = docs / "reference"
    assert listed(reference / "index.md") == {*reference.glob("*.md"), *reference.glob("*.rst")} - {
        reference / "index.md"
    }


@by_document
def test_dotted_names_in_the_text_are_the_packages(document: Path) -> None:
    for dotted in _DOTTED_NAME.findall(without_code(document.read_text())):
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            module, _, name = dotted.rpartition(".")
            resolve(module, name)


def test_the_tree_names_the_packages_folders_and_root_modules() -> None:
    folders = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    (tree,) = [block.code for block in blocks(ARCHITECTURE) if block.code.startswith(f"{PACKAGE_NAME}/")]
    assert sorted(_TREE_LINE.findall(tree)) == sorted(folders + modules)


@by_document
def test_references_to_code_name_what_the_code_has(document: Path) -> None:
    for path, name in _REFERENCE.findall(document.read_text()):
        resolve(f"{PACKAGE_NAME}.{path.replace('/', '.')}", name)


@by_document
def test_references_to_tests_name_tests_that_there_are(document: Path) -> None:
    for path, name in _TEST.findall(document.read_text()):
        nodes = ast.walk(ast.parse((REPOSITORY / path).read_text()))
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, path


def test_the_pages_with_references_have_them() -> None:
    assert len(_REFERENCE.findall(ARCHITECTURE.read_text())) > 60
    security = (REPOSITORY / "docs" / "security.md").read_text()
    assert len(_REFERENCE.findall(security)) > 15
    assert len(_TEST.findall(security)) > 25


@by_document
def test_every_backtick_has_its_counterpart(document: Path) -> None:
    for line in re.split(r"\n(?=\||-|\n)", without_code(document.read_text())):
        assert line.count("`") % 2 == 0, line


def test_the_way_of_a_prompt_is_numbered_in_order() -> None:
    _, _, rest = ARCHITECTURE.read_text().partition("## From a prompt to a stored song")
    section, _, _ = rest.partition("\n## ")
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)) != []


def test_the_page_of_the_sandbox_has_every_directive_and_fault() -> None:
    page = (REPOSITORY / "docs" / "sandbox.md").read_text()
    directives = set(re.findall(r"\[sandbox:([\w-]+)", page))
    faults = set(re.findall(r"`((?:get|post|media)-[\w-]+)`", page))
    assert directives - set(FAULTS) == set(DIRECTIVES)
    assert faults == set(FAULTS)

"""The layout of the package as a test: what may import what, how long a file may be, and the words in it."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "airflow_provider_whisul"
ROOT = REPOSITORY / PACKAGE

#: The folders and root modules of the package, the lowest layer first. A module imports from its own folder or from
#: a lower layer, and never from another folder or root module of its own layer.
LAYERS = (
    {"command_line", "text", "clock", "exceptions", "version_compat", "get_provider_info"},
    {"api"},
    {"metrics"},
    {"rate_limit", "outage"},
    {"polling", "limiter"},
    {"retry_policy"},
    {"storage"},
    {"state"},
    {"ledger"},
    {"hooks", "links"},
    {"triggers"},
    {"tracks"},
    {"operators"},
    {"decorators", "sensors", "transfers"},
)

#: The sandbox stands beside the layers: it imports nothing of the package, and nothing of the package imports it.
SANDBOX = "sandbox"

MAX_ROOT_MODULES = 10
MAX_PACKAGE_LINES = 400
MAX_TEST_LINES = 600

OLD_WORDS = re.compile(
    r"(?<![a-z])("
    r"look(s|ed|ing) at|blips?|ladders?|rungs?|patience|keep_quiet|wait_for_turn|said_at|landing|landers?|landed"
    r"|lived through)(?![a-z])",
    re.IGNORECASE,
)

MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imported_modules(source: str) -> set[str]:
    """Return the package's modules that a source imports at run time, inside functions too."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "The package imports by full names."
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in MODULES else str(node.module) for name in names)
        waiting.extend(ast.iter_child_nodes(node))
    return {name for name in found if name.split(".")[0] == PACKAGE}


GRAPH = {name: imported_modules(path.read_text()) for name, path in MODULES.items()}


def room(module: str) -> str:
    """Return a module's folder, or the root module itself; blank for the package's ``__init__``."""
    return f"{module}..".split(".")[1]


def layer(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if name in rooms)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def package_files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*") if path.suffix in (".py", ".js", ".css"))


def short(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


# --- imports


def test_each_folder_and_root_module_is_in_exactly_one_layer() -> None:
    assert sorted({room(module) for module in MODULES} - {""}) == sorted(
        [SANDBOX, *(name for rooms in LAYERS for name in rooms)]
    )


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) not in ("", SANDBOX)])
def test_a_module_imports_only_from_its_own_folder_and_lower_layers(module: str) -> None:
    own = room(module)
    upwards = [
        imported
        for imported in GRAPH[module]
        if room(imported) not in ("", own) and (room(imported) == SANDBOX or layer(room(imported)) >= layer(own))
    ]
    assert upwards == []


def test_the_package_itself_imports_none_of_its_modules() -> None:
    assert GRAPH[PACKAGE] == set()


def test_the_sandbox_imports_nothing_of_the_package() -> None:
    imported = {name for module in MODULES if room(module) == SANDBOX for name in GRAPH[module]}
    assert {room(name) for name in imported} == {SANDBOX}


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_imports_that_are_checked_include_those_in_functions_but_not_those_for_type_checking() -> None:
    source = """
from typing import TYPE_CHECKING
import airflow_provider_whisul.clock
from airflow_provider_whisul import __version__, metrics
if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul import WhisulHook
else:
    from airflow_provider_whisul.text import quote
def lazily():
    from airflow_provider_whisul.api.models import Song
"""
    assert imported_modules(source) == {
        PACKAGE,
        f"{PACKAGE}.clock",
        f"{PACKAGE}.metrics",
        f"{PACKAGE}.text",
        f"{PACKAGE}.api.models",
    }


# --- sizes


def test_the_root_of_the_package_holds_at_most_ten_modules() -> None:
    modules = sorted(path.name for path in ROOT.glob("*.py") if path.name != "__init__.py")
    assert len(modules) <= MAX_ROOT_MODULES, modules


def test_no_file_of_the_package_is_over_400_lines() -> None:
    assert {short(path): lines(path) for path in package_files() if lines(path) > MAX_PACKAGE_LINES} == {}


def test_no_test_file_is_over_600_lines() -> None:
    files = sorted((REPOSITORY / "tests").rglob("*.py"))
    assert {short(path): lines(path) for path in files if lines(path) > MAX_TEST_LINES} == {}


# --- words


def old_words(text: str) -> list[str]:
    """Return the replaced words in a text, also where they are parts of a name."""
    return [match.group() for match in OLD_WORDS.finditer(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text))]


@pytest.mark.parametrize("path", package_files(), ids=short)
def test_a_file_uses_no_word_that_the_vocabulary_has_replaced(path: Path) -> None:
    found = {number: old_words(line) for number, line in enumerate(path.read_text().splitlines(), start=1)}
    assert {number: words for number, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# It looks at a job.", ["looks at"]),
        ("BLIP = 1", ["BLIP"]),
        ("RATE_LIMIT_LADDER", ["LADDER"]),
        ("two rungs, patience=3", ["rungs", "patience"]),
        ("self.keep_quiet(); wait_for_turn()", ["keep_quiet", "wait_for_turn"]),
        ("SongLander: LandedSong", ["Lander", "Landed"]),
        ("look at your dashboard", []),
        ("calendar, outlander, bladder, wrung", []),
    ],
)
def test_replaced_words_are_found_in_comments_and_in_names(text: str, words: list[str]) -> None:
    assert old_words(text) == words

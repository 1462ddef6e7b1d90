"""What the package imports is what its metadata asks for."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGE = REPOSITORY / "airflow_provider_whisul"

#: What Airflow brings along: its templates, the forms of Airflow 2, and the UI of Airflow 3.
OF_AIRFLOW = {"airflow", "jinja2", "flask_appbuilder", "wtforms", "starlette"}

#: Imported only where a user has configured what they are for, by the extra that they are installed with: what is
#: imported, and the package that the extra asks for. OpenLineage's provider needs attrs itself.
OF_EXTRAS = {"redis": ("redis", "redis"), "openlineage": ("attrs", "apache-airflow-providers-openlineage")}

METADATA = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DEPENDENCIES = {
    re.split("[^A-Za-z0-9._-]", line, maxsplit=1)[0]: line.removeprefix(re.split("[<>=]", line)[0])
    for line in METADATA["dependencies"]
}


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
        waiting.extend(ast.iter_child_nodes(node))
    return found - set(sys.stdlib_module_names) - {PACKAGE.name}


def test_each_library_that_is_imported_is_declared_and_no_other_one() -> None:
    found = {name for path in PACKAGE.rglob("*.py") for name in imported(ast.parse(path.read_text()))}
    declared = {name for name in DEPENDENCIES if not name.startswith("apache-airflow")}
    of_extras = {module for module, _ in OF_EXTRAS.values()}
    assert found - OF_AIRFLOW - of_extras == declared
    assert found >= of_extras
    for name, (_, package) in OF_EXTRAS.items():
        assert [re.split("[<>=]", line)[0] for line in METADATA["optional-dependencies"][name]] == [package]
        # The suite runs with it.
        assert METADATA["optional-dependencies"][name][0] in METADATA["optional-dependencies"]["dev"]


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_allowed() -> None:
    (file,) = (REPOSITORY / "constraints").glob("lowest-*.txt")
    tested = dict(line.split("==") for line in file.read_text().split())
    extras = {package: METADATA["optional-dependencies"][name][0] for name, (_, package) in OF_EXTRAS.items()}
    lowest = {name: re.findall("[0-9][0-9.]*", bounds)[0] for name, bounds in {**DEPENDENCIES, **extras}.items()}
    # Airflow itself asks for a higher one of packaging, and 2.11.2 stands for all of 2.11.
    for name in lowest.keys() - {"apache-airflow", "packaging"}:
        assert tested[name] == lowest[name], name

"""
What ``docs/conf.py`` makes of the pages before Sphinx reads them: they are written to read well on GitHub too.

A link to a file of the repository's root leads to the page that shows it, one to an example DAG downloads it, one to
another file of the repository becomes plain text, and the lists of links in an index page become the site's menu.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
EXAMPLES = REPOSITORY / "example_dags"

#: The projects whose documentation the reference links to. Their names are in ``docs/inventories``.
PROJECTS = ("airflow", "python")

#: The pages of the site that show a file of the repository's root.
ROOT_PAGES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "security_policy": "SECURITY.md"}

#: The page of the site that each file of the root is shown on. The README's text is spread over the others.
_SHOWN_ON = {**{name: f"{page}.md" for page, name in ROOT_PAGES.items()}, "README.md": "index.md"}

_FENCE = re.compile(r"^( *```.*?^ *```)$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<![!`])\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_ITEM = re.compile(r"^- \[([^\]]+)\]\(([^)\s#]+)\)", re.MULTILINE)


def page_source(name: str, text: str) -> str:
    """
    Return what Sphinx reads as a page.

    :param name: The page, without its extension, as ``reference/index``.
    :param text: What is in its file.
    """
    page = DOCS / f"{name}.md"
    if name in ROOT_PAGES:
        source = REPOSITORY / ROOT_PAGES[name]
        text = source.read_text()
    else:
        source = page
    text = outside_of_code(text, lambda part: _LINK.sub(lambda link: _site_link(link, source, page), part))
    return with_menu(text) if page.name == "index.md" else text


def outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """Return a text with its parts outside of code blocks changed."""
    return "".join(part if part.lstrip().startswith("```") else change(part) for part in _FENCE.split(text))


def with_menu(text: str) -> str:
    """Return an index page with the links of its lists as entries of the menu: one part of it for each section."""
    before, *sections = _SECTION.split(text)
    menus = [("", before), *zip(sections[::2], sections[1::2], strict=True)]
    for caption, section in menus:
        if entries := "".join(f"{name} <{target}>\n" for name, target in _ITEM.findall(section)):
            head = f":caption: {caption}\n" if caption else ""
            text += f"\n```{{toctree}}\n:hidden:\n{head}\n{entries}```\n"
    return text


def _site_link(link: re.Match[str], source: Path, page: Path) -> str:
    """Return a link of a source file as one of its page."""
    label, target, anchor = link.groups()
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    file = Path(os.path.normpath(source.parent / target))
    if file.is_relative_to(DOCS):
        shown = file
    elif file.parent == REPOSITORY and file.name in _SHOWN_ON:
        shown = DOCS / _SHOWN_ON[file.name]
        anchor = "" if file.name == "README.md" else anchor
    elif file.parent == EXAMPLES:
        return f"{{download}}`{label.strip('`')} <{os.path.relpath(file, page.parent)}>`"
    else:
        return str(label)
    return f"[{label}]({os.path.relpath(shown, page.parent)}{anchor or ''})"


def full_name(name: str, documented: Iterable[str]) -> str | None:
    """
    Return the whole name of what a docstring or an annotation names without its module; None where nothing has it.

    :param name: The name, such as ``timedelta``, ``WhisulHook.generate`` or one of a module that re-exports it.
    :param documented: The names of all that the reference has.
    """
    last = name.rpartition(".")[2]
    others = [line.split()[0] for project in PROJECTS for line in _inventory_lines(project)]
    found = {other for other in documented if other.endswith(f".{name}")}
    found |= {other for other in others if other != name and other.rpartition(".")[2] == last}
    return found.pop() if len(found) == 1 else None


def plain_type(text: str) -> str:
    """Return a type with the words that an argument may be in place of the name that the code has for them."""
    from airflow_provider_whisul.operators.whisul_batch import OnEmpty
    from airflow_provider_whisul.state.song_state import OnAmbiguousSubmit

    for name, words in (("OnAmbiguousSubmit", OnAmbiguousSubmit), ("OnEmpty", OnEmpty)):
        if text.rpartition(".")[2] == name:
            return " | ".join(map(repr, get_args(words)))
    return text


def plain_signature(text: str) -> str:
    """Return a signature with a name in place of the contents of a clock."""
    return re.sub(r"clock=Clock\(.*?run=<function \w+>\)", "clock=SYSTEM_CLOCK", text)


def _inventory_lines(project: str) -> list[str]:
    """Return the lines of an inventory that are no comments."""
    lines = (DOCS / "inventories" / f"{project}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def write_inventory(project: str, folder: Path) -> Path:
    """
    Write the inventory that Sphinx reads of another project, from the names of it that are used.

    :param project: The project, whose names are in ``docs/inventories``.
    :param folder: Where the inventory is written to.
    :return: The inventory.
    """
    lines = []
    for line in _inventory_lines(project):
        name, role, uri = line.split()
        lines.append(f"{name} {role} 1 {uri} -\n")
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The rest is compressed using zlib.\n"
    folder.mkdir(parents=True, exist_ok=True)
    inventory = folder / f"{project}.inv"
    inventory.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return inventory

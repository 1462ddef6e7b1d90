"""The documents of the repository, and the code blocks in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")

#: The documents that are written in Markdown.
PAGES = [
    path
    for path in (
        *(REPOSITORY / name for name in _NAMES),
        *sorted((REPOSITORY / "docs").glob("*.md")),
        *sorted((REPOSITORY / "docs" / "reference").glob("*.md")),
    )
    if path.exists()
]

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
#: Such as ``# dags/nightly.py`` in the first line of a block.
_FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """
    A code block of a document.

    :param page: The document.
    :param line: The line of its first fence, from 1 on.
    :param language: What follows the fence, such as ``python``; blank where nothing does.
    :param code: Its lines, without the indentation of a list that it is in.
    """

    page: Path
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        """The block as a test names it, such as ``docs/storage.md:6``."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file that the block is, which a comment in its first line names; None where there is no such line."""
        found = _FILE_NAME.match(self.code)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a document, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2].strip(), textwrap.dedent(found[3]))
        for found in _FENCE.finditer(text)
    ]


def without_code(text: str) -> str:
    """Return the text of a document without its code blocks."""
    return _FENCE.sub("", text)

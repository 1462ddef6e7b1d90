"""
Every code block of the documents is run, or checked as far as it can be. Its language decides how.

CONTRIBUTING.md, "Write documentation", has the rules.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.docs.console_blocks import ELSEWHERE, run_console
from tests.docs.data_blocks import check_dockerfile, check_ini, check_json, check_toml, check_yaml
from tests.docs.example import Example
from tests.docs.python_blocks import run_python
from tests.support.pages import PAGES, REPOSITORY, Block, blocks

#: How a block of each language is checked. ``text`` is what something prints, or a tree: it is not checked.
LANGUAGES: dict[str, Callable[[Example], None]] = {
    "console": run_console,
    "dockerfile": check_dockerfile,
    "ini": check_ini,
    "json": check_json,
    "python": run_python,
    "toml": check_toml,
    "yaml": check_yaml,
}
NOT_CHECKED = {"text"}

BLOCKS = [block for page in PAGES for block in blocks(page)]


def test_every_block_has_a_language_that_says_how_it_is_checked() -> None:
    known = {*LANGUAGES, *NOT_CHECKED}
    assert [f"{block.place}: {block.language!r}" for block in BLOCKS if block.language not in known] == []


def test_what_runs_the_commands_that_are_not_run_here_exists() -> None:
    assert [place for place in ELSEWHERE.values() if not (REPOSITORY / place).exists()] == []


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language in LANGUAGES], ids=lambda block: block.place
)
def test_the_block_does_what_it_shows(block: Block, example: Example) -> None:
    LANGUAGES[block.language](example)

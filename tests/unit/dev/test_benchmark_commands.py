"""The commands that docs/benchmarks.md names can be given."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
DOCUMENT = (CHECKOUT / "docs" / "benchmarks.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"^```console\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


class Accepted(Exception):
    """Raised in place of the benchmark, once its parser has taken the command line."""


def accept(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> None:
    _, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    raise Accepted


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_a_documented_command_is_accepted(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if command[0] == "make":
        (target,) = command[1:]
        assert re.search(rf"^{re.escape(target)}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
        return
    python, option, module, *arguments = command
    assert (python, option) == ("python", "-m")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accept)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Accepted):
        runpy.run_module(module, run_name="__main__")

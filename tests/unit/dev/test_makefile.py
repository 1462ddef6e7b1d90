"""What ``make help`` lists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
# What other targets use, and the targets of one version, which have a line of their own.
NOT_LISTED = {"suites", "weekly-suites", "chromium"}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_help_lists_every_command_in_aligned_columns() -> None:
    # Run by another make, this one would print its directory.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    output = subprocess.run(["make", "help"], cwd=CHECKOUT, env=env, capture_output=True, text=True, check=True).stdout
    lines = output.partition("\n\n")[0].splitlines()
    listed = {line.split()[1]: re.match(r"make \S+ +", line) for line in lines}
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    commands = set(re.findall(r"(?<![\w$(,-])[a-z][a-z0-9-]*(?![\w%,])", re.sub(r"\$\(.*\)", "", phony)))
    assert commands - NOT_LISTED == set(listed)
    assert len({match.end() for match in listed.values() if match}) == 1
    assert all(len(line) <= 120 for line in lines)

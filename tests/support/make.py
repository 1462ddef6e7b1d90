"""The Makefile of the repository, for tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> str:
    """
    Return what make prints, as somebody sees it who runs it in a terminal.

    :param arguments: Its options and targets.
    """
    # Run by another make, this one would print its directory, and take over variables of that one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    command = ["make", "--silent", *arguments]
    run = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout

"""What every kind of example has: its block, a folder with the files of its page, and a sandbox."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_whisul.sandbox import Sandbox
from tests.support.pages import Block

#: The object stores of the examples, none of which can be reached from here, and their folders of the machine.
_STORE = re.compile(r"(?:s3|gs|abfs)://(?:[\w-]+@)?([\w.-]+)|file:///tmp/([\w.-]+)")


@dataclass(frozen=True)
class Example:
    """
    A code block that is run.

    :param block: The block.
    :param folder: The folder that it runs in: the files that its page names, and DAGs in ``dags``.
    :param sandbox: The sandbox that the connection ``whisul_default`` leads to.
    :param environment: The environment of a command.
    """

    block: Block
    folder: Path
    sandbox: Sandbox
    environment: dict[str, str]

    def localize(self, code: str) -> str:
        """Return some code with a folder of the example for every store."""
        return _STORE.sub(lambda store: f"file://{self.folder}/stores/{store[1] or store[2]}", code)

    def write(self, name: str, code: str) -> Path:
        """Write a file of the page, and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.localize(code))
        return path

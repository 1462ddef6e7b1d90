"""What the package's commands share. Imports no Airflow, which logs to the standard output from its import on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """A parser that prints its help to where the report goes."""

    out: TextIO | None = None

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help."""
        super().print_help(file or self.out)


def with_report_alone(main: Callable[[TextIO], int]) -> int:
    """
    Run a command whose standard output has the report alone. All else goes to the standard error.

    :param main: The command: prints its report to the file that it is given, and returns the exit status.
    """
    report = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(report, "w") as out:
        return main(out)

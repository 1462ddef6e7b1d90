"""How the benchmarks print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median


def say(text: str) -> None:
    """Print, and flush the output, which may be a pipe."""
    print(text, flush=True)


def progress(text: str) -> None:
    """Print a line of progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, its columns aligned: the first one to the left, the others to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    say("\n".join(["", f"## {title}", "", lines[0], rule, *lines[1:], ""]))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, and in brackets the minimum and the maximum."""
    middle = f"{median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def verdict(target: str, is_met: bool) -> str:
    """Return a target with whether it is met."""
    return f"{'met   ' if is_met else 'MISSED'}  {target}"

"""
Adds up the JUnit reports of the suites and prints what passed, what failed, and what took longest.

``python -m dev.ci_summary FOLDER SUITE…`` ends with a line such as ``2336 passed, 0 failed, 0 skipped``. Its status is
1 if a suite has no report or no tests, or if a test failed or was skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

#: How many of the slowest tests are shown.
SLOWEST = 15

OUTCOMES = ("passed", "failed", "skipped")

#: The file in which make notes how long its other steps took: the name, a tab and the seconds.
STEPS_FILE = "steps.tsv"


@dataclass(frozen=True)
class Test:
    """
    A test, as a suite ran it.

    :param suite: The suite.
    :param name: The test's class and name.
    :param seconds: How long it took.
    :param outcome: ``passed``, ``failed`` (errors too) or ``skipped``.
    """

    suite: str
    name: str
    seconds: float
    outcome: str


@dataclass
class Suite:
    """
    What a suite reports.

    :param name: Its name, which is that of its report.
    :param problem: Why its report counts for nothing; empty if it counts.
    :param seconds: How long it took, the collection of the tests included.
    :param tests: Its tests.
    """

    name: str
    problem: str = ""
    seconds: float = 0.0
    tests: list[Test] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        """Return how many tests have an outcome."""
        return sum(test.outcome == outcome for test in self.tests)


def read_suite(folder: Path, name: str) -> Suite:
    """
    Return what a suite reports.

    :param folder: The folder of the reports.
    :param name: The suite.
    """
    try:
        # Our own pytest wrote it.
        root = ElementTree.parse(folder / f"{name}.xml").getroot()
    except FileNotFoundError:
        return Suite(name, "no report")
    except ElementTree.ParseError:
        return Suite(name, "broken report")
    suite = Suite(name, seconds=sum(float(part.get("time", "0")) for part in root.iter("testsuite")))
    for case in root.iter("testcase"):
        label = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name', '')}"
        suite.tests.append(Test(name, label, float(case.get("time", "0")), _outcome(case)))
    if not suite.tests:
        suite.problem = "no tests"
    return suite


def read_steps(folder: Path) -> list[tuple[str, float]]:
    """Return the name and the seconds of each other step, the longest one first."""
    file = folder / STEPS_FILE
    lines = file.read_text().splitlines() if file.exists() else []
    steps = [(name, float(seconds)) for name, seconds in (line.split("\t") for line in lines)]
    return sorted(steps, key=lambda step: -step[1])


def summary(suites: Sequence[Suite], steps: Sequence[tuple[str, float]]) -> str:
    """Return the tables, and the closing line."""
    tests = [test for suite in suites for test in suite.tests]
    slowest = sorted(tests, key=lambda test: -test.seconds)[:SLOWEST]
    times = [(f"{test.suite}: {test.name}", test.seconds) for test in slowest] + [*steps]
    bad = sorted((test for test in tests if test.outcome != "passed"), key=lambda test: test.outcome)
    parts = [
        "\n".join(["SUITE             PASSED  FAILED  SKIPPED  SECONDS", *map(_row, suites)]),
        "\n".join(["SECONDS  WHAT TOOK LONGEST", *(f"{seconds:7.0f}  {name}" for name, seconds in times)]),
        "\n".join(f"{test.outcome}  {test.suite}: {test.name}" for test in bad),
        ", ".join(f"{sum(suite.count(outcome) for suite in suites)} {outcome}" for outcome in OUTCOMES),
    ]
    return "\n\n".join(part for part in parts if part)


def is_good(suites: Sequence[Suite]) -> bool:
    """Return whether every suite has a report, and every test passed."""
    return not any(suite.problem or suite.count("failed") or suite.count("skipped") for suite in suites)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the summary and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dev.ci_summary", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the reports")
    parser.add_argument("suites", nargs="+", help="the suites that must have one, SUITE.xml")
    arguments = parser.parse_args(argv)
    suites = [read_suite(arguments.folder, name) for name in arguments.suites]
    print(summary(suites, read_steps(arguments.folder)))
    return 0 if is_good(suites) else 1


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def _row(suite: Suite) -> str:
    if suite.problem:
        return f"{suite.name:<16}  {suite.problem}"
    passed, failed, skipped = (suite.count(outcome) for outcome in OUTCOMES)
    return f"{suite.name:<16}  {passed:>6}  {failed:>6}  {skipped:>7}  {suite.seconds:>7.0f}"


if __name__ == "__main__":
    sys.exit(main())

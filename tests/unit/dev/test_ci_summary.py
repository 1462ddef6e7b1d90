"""The summary of the JUnit reports, with which .ci/run ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from dev.ci_summary import main

ALL_OUTCOMES = """
import pytest

def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("no")

@pytest.fixture
def broken(): raise RuntimeError

def test_has_an_error(broken): pass
"""


def report(folder: Path, suite: str, **seconds: float) -> None:
    """Write the report of a suite whose tests passed, from how long each took."""
    cases = "".join(
        f"<testcase classname='tests.unit' name={quoteattr(name)} time='{took}'/>" for name, took in seconds.items()
    )
    total = sum(seconds.values()) + 2
    (folder / f"{suite}.xml").write_text(f"<testsuites><testsuite time='{total}'>{cases}</testsuite></testsuites>")


def test_suites_that_passed_are_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, "test-quick", test_one=1, test_two=2)
    report(tmp_path, "test-e2e", test_three=40)
    assert main([str(tmp_path), "test-e2e", "test-quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["SUITE", "PASSED", "FAILED", "SKIPPED", "SECONDS"],
        ["test-e2e", "1", "0", "0", "42"],
        ["test-quick", "2", "0", "0", "5"],
    ]
    assert lines[-1] == "3 passed, 0 failed, 0 skipped"


def test_pytest_writes_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_all_outcomes.py").write_text(ALL_OUTCOMES)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--junit-xml=suite.xml",
        "test_all_outcomes.py",
    ]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert main([str(tmp_path), "suite"]) == 1
    out = capsys.readouterr().out
    assert "failed  suite: test_all_outcomes::test_fails\n" in out
    assert "failed  suite: test_all_outcomes::test_has_an_error\n" in out
    assert "skipped  suite: test_all_outcomes::test_is_skipped\n" in out
    assert out.splitlines()[-1] == "1 passed, 2 failed, 1 skipped"


@pytest.mark.parametrize("outcome", ["<failure/>", "<error/>", "<skipped/>"])
def test_one_test_that_did_not_pass_makes_the_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], outcome: str
) -> None:
    report(tmp_path, "good", test_one=1)
    (tmp_path / "bad.xml").write_text(f"<testsuite><testcase name='test_two'>{outcome}</testcase></testsuite>")
    assert main([str(tmp_path), "good", "bad"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 passed, ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "no report"), ("<testsuites><testsuite", "broken report"), ("<testsuites/>", "no tests")],
)
def test_a_suite_without_a_usable_report_makes_the_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, problem: str
) -> None:
    report(tmp_path, "test-quick", test_one=1)
    if content is not None:
        (tmp_path / "test-s3.xml").write_text(content)
    assert main([str(tmp_path), "test-quick", "test-s3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"test-s3 {problem}" in [" ".join(line.split()) for line in lines]
    assert lines[-1] == "1 passed, 0 failed, 0 skipped"


def test_the_slowest_tests_of_all_suites_and_the_other_steps_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path, "quick", **{f"test_{seconds}": seconds for seconds in range(1, 31)})
    report(tmp_path, "e2e", test_slow=150)
    (tmp_path / "steps.tsv").write_text("lint\t9\ninstall .venv\t44\n")
    main([str(tmp_path), "quick", "e2e"])
    listed = capsys.readouterr().out.split("WHAT TOOK LONGEST")[1].splitlines()[1:18]
    assert listed[0].split() == ["150", "e2e:", "unit::test_slow"]
    assert [line.split()[2] for line in listed[1:15]] == [f"unit::test_{number}" for number in range(30, 16, -1)]
    assert [line.split() for line in listed[15:]] == [["44", "install", ".venv"], ["9", "lint"]]

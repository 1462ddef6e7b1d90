"""The workflows, forms and settings of the repository's host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.make import make

CHECKOUT = Path(__file__).resolve().parents[3]
GITHUB = CHECKOUT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").iterdir())
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")
MAKEFILE = (CHECKOUT / "Makefile").read_text()

by_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
by_form = pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)


class UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping in which a key comes twice, as the host does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[Any, Any]:
    # A SafeLoader, with one check more.
    return dict(yaml.load(path.read_text(), UniqueKeys))


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return dict(load(path)["jobs"])


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(path).values():
        yield from job["steps"]


def make_targets(path: Path) -> set[str]:
    """Return the targets of make that a workflow runs, with those of its matrix."""
    found: set[str] = set()
    for job in jobs(path).values():
        matrix = job.get("strategy", {}).get("matrix", {})
        found.update(matrix.get("target", ()), (extra["target"] for extra in matrix.get("include", ())))
        for step in job["steps"]:
            found.update(re.findall(r"\bmake ([a-z][\w.-]*)", step.get("run", "")))
    return found


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.y*ml")), ids=lambda path: path.name)
def test_each_file_of_the_host_is_yaml_without_a_key_that_comes_twice(path: Path) -> None:
    assert load(path)


@by_workflow
def test_the_make_targets_of_a_workflow_exist(path: Path) -> None:
    # Not by a dry run of the targets: make runs what a recipe marks with a plus also then.
    known = set(re.findall(r"^([\w.-]+):", make("--dry-run", "--print-data-base", "suites"), re.MULTILINE))
    assert make_targets(path) <= known


def test_the_suites_of_ci_are_those_of_the_supported_versions() -> None:
    suites = make("suites").split()
    of_a_version = {suite for suite in suites if re.fullmatch(r"test-(py)?\d[\d.]*", suite)}
    targets = make_targets(GITHUB / "workflows" / "ci.yaml")
    assert {target for target in targets if re.fullmatch(r"test-(py)?\d[\d.]*", target)} == of_a_version
    assert "dist" in targets


@by_workflow
def test_every_action_is_pinned_to_a_commit_and_says_its_version(path: Path) -> None:
    lines = re.findall(r"uses: (.*)$", path.read_text(), re.MULTILINE)
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []
    # Each action in one version.
    actions = {line.partition("@")[0] for line in lines}
    assert len(set(lines)) == len(actions)


@by_workflow
def test_no_workflow_uses_a_secret_or_puts_text_of_others_into_a_command(path: Path) -> None:
    assert "secrets." not in path.read_text()
    for step in steps(path):
        assert "${{" not in step.get("run", "")
        if "actions/checkout@" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_nothing_of_a_pull_request_runs_with_permissions() -> None:
    for path in WORKFLOWS:
        # YAML 1.1 reads the key `on` as true.
        assert "pull_request_target" not in load(path)[True]
    ci = load(GITHUB / "workflows" / "ci.yaml")
    assert ci["permissions"] == {"contents": "read"}
    assert not [name for name, job in ci["jobs"].items() if "permissions" in job]


@by_workflow
def test_every_job_ends_by_itself(path: Path) -> None:
    assert [name for name, job in jobs(path).items() if "timeout-minutes" not in job] == []


def test_the_release_starts_with_a_tag_and_each_job_has_only_the_permissions_that_it_needs() -> None:
    release = load(GITHUB / "workflows" / "release.yaml")
    assert release[True] == {"push": {"tags": ["v*"]}}
    assert release["permissions"] == {}
    assert {name: job["permissions"] for name, job in release["jobs"].items()} == {
        "build": {"contents": "read"},
        "attest": {"attestations": "write", "id-token": "write"},
        "publish": {"id-token": "write"},
        "release": {"contents": "write"},
    }
    assert [release["jobs"][name]["needs"] for name in ("attest", "publish", "release")] == [
        *("build", "attest", "publish")
    ]


def test_a_job_of_the_release_that_may_write_runs_nothing_of_the_repository() -> None:
    for name, job in jobs(GITHUB / "workflows" / "release.yaml").items():
        if name != "build":
            used = {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step}
            assert used <= {"actions/download-artifact", "actions/attest", "pypa/gh-action-pypi-publish"}
            assert all(step["run"].startswith("gh release create ") for step in job["steps"] if "run" in step)


def test_the_release_checks_its_tag_before_it_builds() -> None:
    runs = [step["run"] for step in jobs(GITHUB / "workflows" / "release.yaml")["build"]["steps"] if "run" in step]
    assert 'python -m dev.dist_notes "$TAG" --repository "$GITHUB_REPOSITORY"' in runs[0]
    assert runs[1:] == ["make dist"]


@by_form
def test_a_form_asks_for_the_versions_and_keeps_keys_out(path: Path) -> None:
    form = load(path)
    fields = {part["id"]: part for part in form["body"] if part["type"] != "markdown"}
    assert len(fields) == len([part for part in form["body"] if part["type"] != "markdown"])
    assert "versions" in fields
    if "connection" in fields:
        assert fields["connection"]["attributes"]["label"] == "Connection, without the key"
    if "log" in fields:
        assert fields["no-key"]["attributes"]["options"][0]["required"] is True


def test_a_bug_needs_versions_dag_and_log() -> None:
    fields = {part["id"]: part for part in load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"] if "id" in part}
    assert all(fields[name]["validations"]["required"] for name in ("what", "versions", "dag", "log"))
    assert "connection" in fields


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.*")), ids=lambda path: path.name)
def test_the_files_and_commands_that_the_hosts_files_name_exist(path: Path) -> None:
    text = path.read_text()
    assert [name for name in re.findall(r"\bdocs/[\w/.-]+\.md", text) if not (CHECKOUT / name).is_file()] == []
    assert [name for name in re.findall(r"\bdev\.(\w+)", text) if not (CHECKOUT / "dev" / f"{name}.py").is_file()] == []
    assert [target for target in re.findall(r"`make ([a-z-]+)", text) if f"\n{target}:" not in MAKEFILE] == []

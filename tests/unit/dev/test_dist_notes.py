"""The form of the changelog, and which tag may be released."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from airflow_provider_whisul import __version__
from dev.dist_notes import Release, check_repository, main, notes, read_changelog

CHECKOUT = Path(__file__).resolve().parents[3]
CHANGELOG = (CHECKOUT / "CHANGELOG.md").read_text()
SOURCE = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["urls"]["Source"]

#: The kinds of changes that Keep a Changelog knows.
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

READY = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-31

### Fixed

- A song.

## [0.1.0] - 2026-12-01

### Added

- Songs.

[Unreleased]: https://example.com/compare/v0.2.0...HEAD
[0.2.0]: https://example.com/releases/tag/v0.2.0
"""


def numbers(release: Release) -> tuple[int, ...]:
    return tuple(map(int, release.version.split(".")))


def test_the_newest_version_of_the_changelog_is_that_of_the_package() -> None:
    _, releases = read_changelog(CHANGELOG)
    assert releases[0].version == __version__


def test_the_versions_come_newest_first_and_only_the_newest_may_lack_a_date() -> None:
    _, releases = read_changelog(CHANGELOG)
    assert [numbers(release) for release in releases] == sorted({numbers(it) for it in releases}, reverse=True)
    days = [release.date for release in releases if release.date is not None]
    assert len(days) >= len(releases) - 1
    assert days == sorted(days, reverse=True)
    assert all(release.date is not None for release in releases[1:])


def test_the_changes_of_each_version_are_grouped_by_their_kind() -> None:
    unreleased, releases = read_changelog(CHANGELOG)
    for section in (unreleased, *(release.notes for release in releases)):
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert set(kinds) <= KINDS
        assert len(kinds) == len(set(kinds))
        # No change comes before the first kind.
        assert not re.search(r"^- ", section.partition("\n### ")[0] if kinds else section, re.MULTILINE)
    assert all("\n- " in release.notes for release in releases)


def test_each_version_has_its_link() -> None:
    _, releases = read_changelog(CHANGELOG)
    newest = releases[0].version
    links = dict(re.findall(r"^\[([^\]]+)\]: (.*)$", CHANGELOG, re.MULTILINE))
    assert links.pop("Unreleased") == f"{SOURCE}/compare/v{newest}...HEAD"
    assert set(links) == {release.version for release in releases}
    assert links[releases[-1].version] == f"{SOURCE}/releases/tag/v{releases[-1].version}"


def test_the_notes_of_a_release_are_the_section_of_its_version() -> None:
    assert notes("v0.2.0", READY, "0.2.0") == "### Fixed\n\n- A song."


@pytest.mark.parametrize(
    ("tag", "changelog", "reason"),
    [
        ("v0.1.0", READY, "the tag is v0.1.0, but the version of the package is 0.2.0"),
        ("0.2.0", READY, "the tag is 0.2.0"),
        ("v0.2.0", READY.replace("[0.2.0] - ", "[0.2.1] - "), "the newest version in the changelog is not 0.2.0"),
        ("v0.2.0", READY.replace("2027-01-31", "unreleased"), "0.2.0 has no date"),
        ("v0.2.0", READY.replace("2027-01-31", "31.1.2027"), "not a version and its date"),
        ("v0.2.0", READY.replace("2027-01-31", "2027-02-31"), "day"),
        ("v0.2.0", READY.replace("[Unreleased]\n", "[Unreleased]\n\n### Added\n\n- More.\n"), "not those of 0.2.0"),
        ("v0.2.0", READY.replace("## [Unreleased]\n", ""), "the first heading"),
        ("v0.2.0", "# Changelog\n\n## [Unreleased]\n", "the newest version in the changelog is not"),
    ],
)
def test_a_tag_for_which_the_changelog_is_not_ready_is_refused(tag: str, changelog: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        notes(tag, changelog, "0.2.0")


def test_only_the_repository_that_the_package_names_releases_it(capsys: pytest.CaptureFixture[str]) -> None:
    check_repository(SOURCE.removeprefix("https://github.com/"))
    assert main(["v0.1.0", "--repository", "somebody/a-fork"]) == 1
    assert "Not released: this is somebody/a-fork" in capsys.readouterr().err

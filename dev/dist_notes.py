"""
``python -m dev.dist_notes TAG``: check that a tag may be released, and print the notes of its release.

The notes are the section of its version in CHANGELOG.md. It needs no more than a Python.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from airflow_provider_whisul import __version__

CHECKOUT = Path(__file__).resolve().parent.parent

#: In place of a date: the version has no tag yet.
NO_DATE = "unreleased"

_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_RELEASE = re.compile(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2}|" + NO_DATE + ")")
_LINK = re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """
    A version's section in the changelog.

    :param version: The version, such as ``0.1.0``.
    :param date: The day of its tag; None before.
    :param notes: Its text, without the heading.
    """

    version: str
    date: date | None
    notes: str


def read_changelog(text: str) -> tuple[str, list[Release]]:
    """
    Return what is not released, and the versions in the order of the changelog.

    :param text: The changelog.
    :raises ValueError: A heading is none of Keep a Changelog's.
    """
    _, *parts = _HEADING.split(_LINK.sub("", text))
    headings, sections = parts[::2], [section.strip() for section in parts[1::2]]
    if not headings or headings[0] != "[Unreleased]":
        raise ValueError("the first heading of the changelog is not [Unreleased]")
    releases = []
    for heading, section in zip(headings[1:], sections[1:], strict=True):
        match = _RELEASE.fullmatch(heading)
        if match is None:
            raise ValueError(f"not a version and its date: {heading}")
        day = None if match[2] == NO_DATE else date.fromisoformat(match[2])
        releases.append(Release(match[1], day, section))
    return sections[0], releases


def notes(tag: str, changelog: str, version: str) -> str:
    """
    Return the notes of the release of a tag.

    :param tag: The tag, such as ``v0.1.0``.
    :param changelog: The changelog.
    :param version: The package's version.
    :raises ValueError: The tag is not that of the package's version, or the changelog is not ready for it.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, but the version of the package is {version}")
    unreleased, releases = read_changelog(changelog)
    if not releases or releases[0].version != version:
        raise ValueError(f"the newest version in the changelog is not {version}")
    if releases[0].date is None:
        raise ValueError(f"{version} has no date in the changelog")
    if unreleased:
        raise ValueError(f"the changelog has changes that are not those of {version}")
    return releases[0].notes


def check_repository(repository: str) -> None:
    """
    Check that the addresses in the package lead to a repository.

    :param repository: Its owner and name, as ``GITHUB_REPOSITORY`` has them.
    :raises ValueError: They lead to another one.
    """
    source = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    if source != f"https://github.com/{repository}":
        raise ValueError(f"this is {repository}, but Source in pyproject.toml is {source}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the notes and return the exit status: 1 where the tag may not be released."""
    parser = argparse.ArgumentParser(prog="python -m dev.dist_notes", description=main.__doc__)
    parser.add_argument("tag", help="the tag, such as v0.1.0")
    parser.add_argument("--repository", help="owner and name of the repository that releases it")
    arguments = parser.parse_args(argv)
    try:
        if arguments.repository:
            check_repository(arguments.repository)
        print(notes(arguments.tag, (CHECKOUT / "CHANGELOG.md").read_text(), __version__))
    except ValueError as error:
        print(f"Not released: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

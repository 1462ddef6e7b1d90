"""The pictures of the documentation show the pages as they are now. The browser suite compares them pixel by pixel."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support.pictures import (
    DIGESTS,
    MAX_BYTES,
    PAGE,
    PICTURES,
    REPOSITORY,
    SOURCES,
    WIDTH,
    WORDS,
    digest_of_folder,
    normalise,
    read_texts,
    read_width,
)

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
#: Characters that it takes to say what a picture shows.
MIN_ALT = 20

_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")

by_picture = pytest.mark.parametrize("name", DIGESTS)


def test_each_picture_has_a_test_that_makes_it() -> None:
    assert {path.name for path in PICTURES.iterdir()} == set(DIGESTS)


@by_picture
def test_the_sources_of_a_page_are_those_that_its_picture_shows(name: str) -> None:
    kept = read_texts((PICTURES / name).read_bytes())
    assert kept[SOURCES] == DIGESTS[name](), f"What {name} shows has changed since. Run `make pictures`."


@by_picture
def test_a_picture_is_small_and_as_wide_as_the_others(name: str) -> None:
    png = (PICTURES / name).read_bytes()
    assert len(png) <= MAX_BYTES
    assert read_width(png) == WIDTH


@by_picture
def test_a_picture_shows_no_address_of_the_machine_and_no_directive_of_the_sandbox(name: str) -> None:
    words = read_texts((PICTURES / name).read_bytes())[WORDS]
    assert len(words) > 100
    assert not re.search(r"000\.0\.0\.0|localhost|file:|sandbox|/(tmp|home|root)\b", words)


def test_each_picture_is_shown_with_a_text_that_says_what_is_seen() -> None:
    shown: Counter[str] = Counter()
    for document in DOCUMENTS:
        for alt, target in _IMAGE.findall(document.read_text()):
            if "://" in target:
                continue
            path = (document.parent / target).resolve()
            assert path.parent == PICTURES, f"{document.name} shows {target}, which `make pictures` does not make."
            assert len(alt) >= MIN_ALT, f"{document.name} does not say what {target} shows."
            shown[path.name] += 1
    assert set(shown) == set(DIGESTS)


def test_any_change_of_a_file_of_the_page_changes_the_digest(tmp_path: Path) -> None:
    folder = shutil.copytree(PAGE, tmp_path / "page")
    before = digest_of_folder(folder)
    assert before == digest_of_folder(PAGE)
    style = folder / "tracks.css"
    style.write_text(style.read_text().replace("1rem", "2rem", 1))
    changed = digest_of_folder(folder)
    style.rename(folder / "other.css")
    assert len({before, changed, digest_of_folder(folder)}) == 3


def test_words_are_compared_without_their_digits_and_their_spaces() -> None:
    assert normalise("17 songs:\n  14 done ") == normalise("23 songs: 20 done") == "00 songs: 00 done"
    assert normalise("14 done") != normalise("14 failed")

"""What becomes of a page before Sphinx reads it."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from dev.docs_site import (
    DOCS,
    ROOT_PAGES,
    full_name,
    page_source,
    plain_signature,
    plain_type,
    with_menu,
    write_inventory,
)


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("storage", "[a](failures.md#b)", "[a](failures.md#b)"),
        ("storage", "[a](#b)", "[a](#b)"),
        ("storage", "[a](https://a.example/b.md)", "[a](https://a.example/b.md)"),
        ("storage", "[a](../SECURITY.md#b)", "[a](security_policy.md#b)"),
        ("storage", "[a](../README.md#install)", "[a](index.md)"),
        ("storage", "[`a`](../example_dags/whisul_one_song.py)", "{download}`a <../example_dags/whisul_one_song.py>`"),
        ("storage", "[a](../pyproject.toml)", "a"),
        ("reference/configuration", "[a](../state.md)", "[a](../state.md)"),
        ("reference/configuration", "[a](../../CHANGELOG.md)", "[a](../changelog.md)"),
        ("storage", "```text\n[a](../SECURITY.md)\n```", "```text\n[a](../SECURITY.md)\n```"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site(page: str, link: str, shown: str) -> None:
    assert page_source(page, link) == shown


@pytest.mark.parametrize("page", ROOT_PAGES)
def test_a_page_that_shows_a_file_of_the_root_has_its_text_and_links_within_the_site(page: str) -> None:
    text = page_source(page, (DOCS / f"{page}.md").read_text())
    assert text.startswith("# ")
    assert "](docs/" not in text.replace("`[text](page.md#anchor)`", "")
    assert len(text.splitlines()) > 20


def test_the_lists_of_an_index_become_the_menu() -> None:
    text = with_menu("# A\n\n- [B](b.md): c\n\n## D\n\n- [E](e.md)\n- no link\n")
    assert text.endswith(
        "\n```{toctree}\n:hidden:\n\nB <b.md>\n```\n\n```{toctree}\n:hidden:\n:caption: D\n\nE <e.md>\n```\n"
    )


def test_an_inventory_has_the_names_of_its_file(tmp_path: Path) -> None:
    head, _, body = write_inventory("python", tmp_path).read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2\n")
    names = [line.split()[0] for line in zlib.decompress(body).decode().splitlines()]
    assert "datetime.timedelta" in names
    assert names == sorted(names)


def test_a_short_name_is_found_where_one_thing_has_it() -> None:
    documented = ["a.WhisulHook.generate", "a.Song", "b.Song"]
    assert full_name("WhisulHook.generate", documented) == "a.WhisulHook.generate"
    assert full_name("timedelta", documented) == "datetime.timedelta"
    assert full_name("airflow.sdk.exceptions.AirflowException", documented) == "airflow.exceptions.AirflowException"
    assert full_name("Song", documented) is None
    assert full_name("Nothing", documented) is None


def test_types_and_signatures_are_made_for_readers() -> None:
    assert plain_type("OnAmbiguousSubmit") == "'retry' | 'fail'"
    assert plain_type("int | None") == "int | None"
    clock = "clock=Clock(time=<f>, run=<function run_in_event_loop>)"
    assert plain_signature(f"(a='b', *, {clock})") == "(a='b', *, clock=SYSTEM_CLOCK)"

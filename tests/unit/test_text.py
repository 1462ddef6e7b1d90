"""Text of unknown origin, made fit for a message."""

from __future__ import annotations

import pytest

from airflow_provider_whisul.text import MAX_QUOTED, quote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        (" \n ", ""),
        (" a\n\n b\t c\u2028d\x85e ", "a b c d e"),
        ("a\x00\x1b\x7f\u200b\ud800\u202eb", "a������b"),
        ("ünï 🎵", "ünï 🎵"),
        ("x" * MAX_QUOTED, "x" * MAX_QUOTED),
        ("x" * (MAX_QUOTED + 1), "x" * MAX_QUOTED + "…"),
        ("\x00" * 10_000, "�" * MAX_QUOTED + "…"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_quoted_text_is_one_printable_line_of_bounded_length(text: str, expected: str) -> None:
    assert quote(text) == expected

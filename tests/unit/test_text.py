"""Text of unknown origin, made fit for a message."""

from __future__ import annotations

import base64
import sys

import pytest

from airflow_provider_whisul.text import MAX_EXCERPT, MAX_QUOTED, count, excerpt, mask, quote, truncate_to_sentence


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a waltz", "a waltz"),
        ("", ""),
        (" two\n lines\x1b\u202e", "two lines��"),
        ("x" * MAX_EXCERPT, "x" * MAX_EXCERPT),
        ("x" * (MAX_EXCERPT + 1), "x" * (MAX_EXCERPT - 1) + "…"),
        ("🎵" * 10_000, "🎵" * (MAX_EXCERPT - 1) + "…"),
        (" " * 1_000 + "x", "x"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_excerpt_is_one_printable_line_that_ends_in_an_ellipsis_where_it_is_cut(text: str, expected: str) -> None:
    assert excerpt(text) == expected


@pytest.mark.parametrize(
    "form",
    [
        "wh-secret/+='x",
        "wh-secret%2F%2B%3D%27x",
        "wh-secret/%2B%3D%27x",
        "wh%2dsecret/%2b%3D'x",
        "wh-secret/&#43;=&#x27;x",
        r"wh-secret\/+='x",
        r"wh-secret/\u002B=\u0027x",
        "".join(f"\\u{ord(char):04x}" for char in "wh-secret/+='x"),
        base64.b64encode(b"wh-secret/+='x").decode(),
        base64.b64encode(b"Bearer wh-secret/+='x").decode(),
        base64.b64encode(b"Bearer wh-secret/+='x, and more").decode(),
    ],
)
def test_a_secret_is_masked_in_every_form_that_a_server_may_echo(form: str) -> None:
    masked = mask(f"before {form} after", "wh-secret/+='x")
    assert masked.startswith("before ***")
    assert masked.endswith(" after")
    assert form[:12] not in masked


def test_what_a_secret_looks_like_is_not_worked_out_anew_for_each_text() -> None:
    """A poll masks each text of its response, and a thousand jobs are polled for hours."""
    calls: list[str] = []
    mask("a text of an earlier response", "wh-secret/+='x")
    sys.setprofile(lambda _frame, event, _argument: calls.append(event))
    try:
        mask("a song about the sea", "wh-secret/+='x")
    finally:
        sys.setprofile(None)
    # One replacement for each form that the secret may have.
    assert len(calls) < 50


def test_without_a_secret_nothing_is_masked() -> None:
    assert mask("a text", "") == "a text"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Short.", "Short."),
        ("One sentence. And another one.", "One sentence."),
        ("Is it? Yes. It is quite so.", "Is it? Yes."),
        ("job 3.5 has failed for good", "job 3.5 has failed…"),
        ("x" * 30, "x" * 19 + "…"),
        ("Just twenty letters. And more.", "Just twenty letters."),
    ],
)
def test_a_text_is_cut_at_a_sentence_or_else_at_a_word(text: str, expected: str) -> None:
    assert truncate_to_sentence(text, 20) == expected


def test_a_count_has_its_noun_in_singular_or_plural() -> None:
    assert [count(number, "song") for number in (0, 1, 1000)] == ["0 songs", "1 song", "1,000 songs"]

"""Which media URLs may be downloaded, and how a message shows them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulMediaUnsafeError
from airflow_provider_whisul.storage.urls import redact_url, require_https


@pytest.mark.parametrize(
    ("url", "redirected_from"),
    [
        ("https://media.example/x?signature=1", None),
        ("http://127.0.0.1:8000/x", None),
        ("http://localhost/x", None),
        ("http://[::1]:8000/x", None),
        ("http://127.0.0.1:8001/y", "http://127.0.0.1:8000/x"),
        ("https://media.example/x", "http://127.0.0.1:8000/x"),
        ("https://other.example/x", "https://media.example/x"),
    ],
)
def test_https_and_http_to_this_machine_are_accepted(url: str, redirected_from: str | None) -> None:
    assert require_https(url, "a-job", redirected_from=redirected_from) == url


def test_a_redirect_may_be_relative() -> None:
    url = require_https("/y?z=1", "a-job", redirected_from="https://media.example/x")
    assert url == "https://media.example/y?z=1"


@pytest.mark.parametrize(
    ("url", "redirected_from"),
    [
        ("http://media.example/x", None),
        ("http://127.0.0.1.media.example/x", None),
        ("http://127.0.0.1:8000/x", "https://media.example/x"),
        ("http://media.example/x", "http://127.0.0.1:8000/x"),
        ("https://user:password@media.example/x", None),
        ("https://media.example\\@127.0.0.1/x", None),
        ("https://media.example:99999/x", None),
        ("https://", None),
        ("https://media.example/x\n", None),
        ("ftp://media.example/x", None),
        ("file:///etc/passwd", None),
        ("media.example/x", None),
        ("", None),
    ],
)
def test_every_other_url_is_refused(url: str, redirected_from: str | None) -> None:
    with pytest.raises(WhisulMediaUnsafeError, match="of job a-job"):
        require_https(url, "a-job", redirected_from=redirected_from)


@given(st.text())
def test_any_text_is_an_http_url_or_refused(url: str) -> None:
    with suppress(WhisulMediaUnsafeError):
        assert require_https(url, "a-job").lower().startswith(("https://", "http://"))


@pytest.mark.parametrize("query", ["?signature=secret", "?a=1#secret", "#secret"])
def test_a_message_shows_neither_user_nor_signature_of_a_url(query: str) -> None:
    assert redact_url(f"https://user:secret@media.example:8443/x.mp3{query}") == "https://media.example:8443/x.mp3"

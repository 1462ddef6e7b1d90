"""Which media URLs and addresses may be requested, and how a message shows a URL."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulMediaUnsafeError
from airflow_provider_whisul.storage.urls import MediaAccess, is_public, location_text, redact_url, require_allowed

PUBLIC = MediaAccess("https://whisul.com/api")
SANDBOX = MediaAccess("http://127.0.0.1:8000/api")
PERMITTED = MediaAccess("https://whisul.com/api", allow_private=True)


@pytest.mark.parametrize(
    ("url", "access", "redirected_from"),
    [
        ("https://media.example/x?signature=1", PUBLIC, None),
        ("https://other.example/x", PUBLIC, "https://media.example/x"),
        ("https://93.184.216.34/x", PUBLIC, None),
        ("http://127.0.0.1:8000/x", SANDBOX, None),
        ("http://localhost:8000/x", SANDBOX, None),
        ("http://127.0.0.1:8000/y", SANDBOX, "http://127.0.0.1:8000/x"),
        ("https://127.0.0.1:9000/x", SANDBOX, None),
        ("https://media.example/x", SANDBOX, "http://127.0.0.1:8000/x"),
        ("http://[::1]:8000/x", MediaAccess("http://localhost:8000/api"), None),
        ("http://127.0.0.1/x", MediaAccess("http://127.0.0.1/api"), None),
        ("http://127.0.0.1:8001/y", PERMITTED, "http://127.0.0.1:8000/x"),
        ("https://10.0.0.1/x", PERMITTED, None),
        ("https://10.0.0.1/x", MediaAccess("https://10.0.0.2/api"), None),
    ],
)
def test_https_and_http_to_the_sandbox_are_accepted(url: str, access: MediaAccess, redirected_from: str | None) -> None:
    assert require_allowed(url, "a-job", access, redirected_from=redirected_from) == url


@pytest.mark.parametrize("access", [PUBLIC, SANDBOX, PERMITTED, MediaAccess()])
@pytest.mark.parametrize(
    ("url", "redirected_from"),
    [
        ("http://media.example/x", None),
        ("http://10.0.0.1/x", None),
        ("http://127.0.0.1.media.example/x", None),
        ("http://127.0.0.1:8000/x", "https://media.example/x"),
        ("http://media.example/x", "http://127.0.0.1:8000/x"),
        ("https://user:password@media.example/x", None),
        ("https://media.example\\@127.0.0.1/x", None),
        ("https://media.example:99999/x", None),
        ("https://media .example/x", None),
        ("https://media%2eexample/x", None),
        ("https://", None),
        ("https://media.example/x\ny", None),
        ("https://media.example/x\x00", None),
        ("https://media.example/\ud800", None),
        ("ftp://media.example/x", None),
        ("file:///etc/passwd", None),
        ("media.example/x", None),
        ("", None),
    ],
)
def test_every_other_url_is_refused(url: str, access: MediaAccess, redirected_from: str | None) -> None:
    with pytest.raises(WhisulMediaUnsafeError, match="of job a-job"):
        require_allowed(url, "a-job", access, redirected_from=redirected_from)


@pytest.mark.parametrize(
    ("url", "access"),
    [
        ("http://127.0.0.1:8000/x", PUBLIC),
        ("http://127.0.0.1:8000/x", MediaAccess()),
        ("http://127.0.0.1:8001/x", SANDBOX),
        ("http://127.0.0.2:8000/x", SANDBOX),
        ("http://127.0.0.1:443/x", MediaAccess("https://127.0.0.1/api")),
    ],
)
def test_plain_http_to_another_server_than_the_sandbox_is_refused(url: str, access: MediaAccess) -> None:
    with pytest.raises(WhisulMediaUnsafeError, match="only to the host and port of the Airflow connection"):
        require_allowed(url, "a-job", access)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"]
)
def test_an_address_that_is_not_public_is_refused_by_name(host: str) -> None:
    with pytest.raises(WhisulMediaUnsafeError, match=r"no public address.*set allow_private_media=True"):
        require_allowed(f"https://{host}/x", "a-job", PUBLIC)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
    ],
)
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "encoded"),
    [
        ("https://media.example/a song.mp3?a=b c", "https://media.example/a%20song.mp3?a=b%20c"),
        ("https://media.example/guté.mp3", "https://media.example/gut%C3%A9.mp3"),
        ("https://media.example/a%20b?x=%2F&y=a+b", "https://media.example/a%20b?x=%2F&y=a+b"),
        (" https://media.example/x\n", "https://media.example/x"),
        ("https://media.example/x#part", "https://media.example/x"),
        ("https://m\u00fcnchen.example/x", "https://m\u00fcnchen.example/x"),
    ],
)
def test_a_url_is_encoded_as_browsers_do(url: str, encoded: str) -> None:
    assert require_allowed(url, "a-job", PUBLIC) == encoded


@pytest.mark.parametrize(
    ("location", "absolute"),
    [
        ("/y?z=1", "https://media.example/y?z=1"),
        ("/gut\u00c3\u00a9.mp3", "https://media.example/gut%C3%A9.mp3"),
        ("/gut\u00e9.mp3", "https://media.example/gut%E9.mp3"),
        ("/two words", "https://media.example/two%20words"),
    ],
)
def test_a_redirect_may_be_relative_and_not_encoded(location: str, absolute: str) -> None:
    text = location_text(location)
    assert require_allowed(text, "a-job", PUBLIC, redirected_from="https://media.example/x") == absolute


@given(st.text())
def test_any_text_is_an_http_url_or_refused(url: str) -> None:
    with suppress(WhisulMediaUnsafeError):
        assert require_allowed(url, "a-job", PUBLIC).lower().startswith("https://")


@given(st.text())
def test_any_path_is_requested_as_ascii(path: str) -> None:
    with suppress(WhisulMediaUnsafeError):
        assert require_allowed(f"https://media.example/{path}", "a-job", PUBLIC).isascii()


def test_a_message_shows_an_ipv6_address_in_brackets() -> None:
    assert redact_url("https://[::1]:8443/x.mp3?a=b") == "https://[::1]:8443/x.mp3"


@pytest.mark.parametrize("query", ["?signature=secret", "?a=1#secret", "#secret"])
def test_a_message_shows_neither_user_nor_signature_of_a_url(query: str) -> None:
    assert redact_url(f"https://user:secret@media.example:8443/x.mp3{query}") == "https://media.example:8443/x.mp3"

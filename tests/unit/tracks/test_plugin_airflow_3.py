"""The Tracks page as it is served, and the song link, on Airflow 3: 2 has no ASGI server, and computes links later."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.tracks import plugin
from airflow_provider_whisul.tracks.cards import KEY_PREFIX
from airflow_provider_whisul.tracks.plugin import HEADERS, TracksPage

PAGE = Path(plugin.__file__).with_name("page")
CONTENT_TYPES = {".html": "text/html", ".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def _get(path: str) -> tuple[int, dict[str, str], bytes]:
    """Request a file from the page's ASGI application, as the API server does."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": [], "query_string": b""}
    asyncio.run(TracksPage()(scope, receive, send))
    start, *rest = sent
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(message.get("body", b"") for message in rest)


def test_the_page_has_files_of_every_content_type() -> None:
    assert {file.suffix for file in PAGE.iterdir()} == CONTENT_TYPES.keys()


@pytest.mark.parametrize("path", ["", *sorted(file.name for file in PAGE.iterdir())])
def test_each_file_is_served_with_the_headers(path: str) -> None:
    file = PAGE / (path or "index.html")
    status, headers, body = _get(f"/{path}")
    assert status == 200
    assert CONTENT_TYPES[file.suffix] in headers["content-type"]
    assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
    assert body == file.read_bytes()


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://cdn.whisul.com/a.mp3", "https://cdn.whisul.com/a.mp3"),
        ("http://127.0.0.1:1/a.wav", "http://127.0.0.1:1/a.wav"),
        ("javascript:alert(1)", ""),
        ("https:", ""),
        ("https://[", ""),
        ("/etc/passwd", ""),
        (None, ""),
    ],
)
def test_the_song_link_opens_only_http_urls(url: str | None, link: str) -> None:
    assert WhisulSongLink().get_link(SimpleNamespace(song_url=url), ti_key=None) == link  # type: ignore[arg-type]


def test_there_is_no_song_link_without_a_song() -> None:
    assert WhisulSongLink().get_link(SimpleNamespace(), ti_key=None) == ""  # type: ignore[arg-type]


def test_the_song_links_xcom_is_not_read_as_cards() -> None:
    assert not WhisulSongLink().xcom_key.startswith(KEY_PREFIX)

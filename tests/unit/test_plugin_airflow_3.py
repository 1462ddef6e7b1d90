"""What the provider adds to the UI of Airflow 3 (Airflow 2 has no ASGI server, and asks for links later)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.plugins import tracks
from airflow_provider_whisul.plugins.tracks import HEADERS, TracksPage
from airflow_provider_whisul.tracks import KEY_PREFIX

FILES = Path(tracks.__file__).with_name("tracks_page")


def _get(path: str) -> tuple[int, dict[str, str], bytes]:
    """Ask the page's application for a file, as the API server does."""
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


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/tracks.js", "javascript"), ("/tracks.css", "text/css"), ("/note.svg", "image/svg+xml")],
)
def test_each_file_comes_with_the_headers(path: str, kind: str) -> None:
    status, headers, body = _get(path)
    assert status == 200
    assert kind in headers["content-type"]
    assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
    assert body == (FILES / (path[1:] or "index.html")).read_bytes()


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
def test_only_a_web_address_is_linked(url: str | None, link: str) -> None:
    assert WhisulSongLink().get_link(SimpleNamespace(song_url=url), ti_key=None) == link  # type: ignore[arg-type]


def test_there_is_no_link_before_there_is_a_song() -> None:
    assert WhisulSongLink().get_link(SimpleNamespace(), ti_key=None) == ""  # type: ignore[arg-type]


def test_the_link_has_a_key_of_its_own() -> None:
    assert not WhisulSongLink().xcom_key.startswith(KEY_PREFIX)

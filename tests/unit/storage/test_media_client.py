"""The parts of the downloader that need no server."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import requests

from airflow_provider_whisul.storage import media_client
from airflow_provider_whisul.storage.media_client import MediaClient, reason_of
from airflow_provider_whisul.storage.urls import MediaAccess


def test_no_password_of_netrc_is_sent_to_the_media_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No request is made here: for this machine, which a test can reach, ``.netrc`` is not read anyway."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine media.example login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    session = MediaClient(MediaAccess())._session()
    prepared = session.prepare_request(requests.Request("GET", "https://media.example/song"))
    assert "Authorization" not in prepared.headers


def test_the_ca_file_is_read_once_however_many_threads_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(media_client, "find_ca", lambda: found.append("ca.pem") or "ca.pem")
    client = MediaClient(MediaAccess())
    sessions = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: sessions.append(client._session()))
        thread.start()
        thread.join()
    assert len({id(session) for session in sessions}) == 3
    assert [session.verify for session in sessions] == ["ca.pem"] * 3
    assert found == ["ca.pem"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("Could not find a file,\nnamed /x?signature=secret or so"), "Could not find a file, named /x or so"),
        (OSError("no end " * 1000), f"{'no end ' * 28}no e"),
        (OSError(), "OS"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("https://media.example/?signature=secret"), "Timeout"),
        (UnicodeError("label too long"), "the host name is invalid"),
    ],
)
def test_the_reason_of_a_failed_connection_is_short_and_holds_no_query(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason

"""The parts of the downloader that need no server."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from airflow_provider_whisul.storage import downloader
from airflow_provider_whisul.storage.downloader import Downloader


def test_no_password_of_netrc_is_sent_to_the_media_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No request is made here: for this machine, which a test can reach, ``.netrc`` is not read anyway."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine media.example login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Downloader() as client:
        session = client._session()
        assert session.trust_env
        prepared = session.prepare_request(requests.Request("GET", "https://media.example/song"))
    assert "Authorization" not in prepared.headers


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
    assert downloader._reason(error) == reason

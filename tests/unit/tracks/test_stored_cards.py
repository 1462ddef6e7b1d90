"""The addresses from which browsers can play stored songs."""

from __future__ import annotations

import json
import logging

import pytest
from airflow.providers.common.compat.sdk import conf

from airflow_provider_whisul.tracks.stored_cards import browser_address

FOLDERS = {
    "s3://bucket/songs": "https://songs.example.com",
    "s3://bucket/songs/loud/": "http://loud.example.com:8080/a%20b/",
}


@pytest.mark.parametrize(
    ("folder", "address"),
    [
        ("s3://bucket/songs", "https://songs.example.com"),
        ("s3://bucket/songs/2026-11-26", "https://songs.example.com/2026-11-26"),
        ("s3://bucket/songs/a b?#", "https://songs.example.com/a%20b%3F%23"),
        ("s3://bucket/songs/loud/1", "http://loud.example.com:8080/a%20b/1"),
        ("s3://bucket/songs-of-others", None),
        ("s3://bucket", None),
        ("gs://bucket/songs", None),
    ],
)
def test_a_folder_has_the_address_of_the_longest_folder_that_holds_it(
    monkeypatch: pytest.MonkeyPatch, folder: str, address: str | None
) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STORED_SONGS_URL", json.dumps(FOLDERS))
    assert browser_address(folder) == address


@pytest.mark.parametrize("setting", [None, "", "  "])
def test_without_the_setting_no_folder_has_an_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, setting: str | None
) -> None:
    if setting is not None:
        monkeypatch.setenv("AIRFLOW__WHISUL__STORED_SONGS_URL", setting)
    assert browser_address("s3://bucket/songs") is None
    assert not caplog.records


@pytest.mark.parametrize(
    "setting",
    [
        "https://songs.example.com",
        "[]",
        '"s3://bucket"',
        '{"s3://bucket": null}',
        '{"s3://bucket": "javascript:alert(1)"}',
        '{"s3://bucket": "ftp://songs.example.com"}',
        '{"s3://bucket": "https://user:secret@songs.example.com"}',
        '{"s3://bucket": "https://songs.example.com/?key=secret"}',
        '{"s3://bucket": "https://"}',
        '{"s3://bucket": "https://[secret"}',
    ],
)
def test_a_setting_that_cannot_be_used_is_logged_without_its_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STORED_SONGS_URL", setting)
    with caplog.at_level(logging.WARNING):
        assert browser_address("s3://bucket/songs") is None
    assert "stored_songs_url must be a JSON object" in caplog.text
    assert "secret" not in caplog.text


def test_a_single_percent_sign_in_airflow_cfg_is_logged_without_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    """Where Airflow wants two of them. The songs are stored by then: the task must not fail."""
    setting = '{"s3://bucket/songs": "https://secret.example.com/my%20songs"}'
    conf.read_string(f"[whisul]\nstored_songs_url = {setting}\n")
    try:
        assert browser_address("s3://bucket/songs") is None
    finally:
        conf.remove_option("whisul", "stored_songs_url")
    assert "stored_songs_url must be a JSON object" in caplog.text
    assert "secret" not in caplog.text

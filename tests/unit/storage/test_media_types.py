"""What a downloaded file is, by its first bytes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.storage.media_types import detect_media_type

WAV, MP3, PNG, JPEG = b"RIFF1234WAVEfmt ", b"ID3\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"


@pytest.mark.parametrize(
    ("role", "head", "content_type", "extension"),
    [
        ("audio", WAV, "", ".wav"),
        ("audio", MP3, "application/octet-stream", ".mp3"),
        ("audio", b"\xff\xfb\x90\x00", "text/plain", ".mp3"),
        ("audio", b"\xff\xf1\x50\x80", "", ".aac"),
        ("audio", b"fLaC", "", ".flac"),
        ("audio", b"OggS", "", ".ogg"),
        ("audio", b"\0\0\0\x20ftypM4A ", "", ".m4a"),
        ("cover", b"\0\0\0\x20ftypavif", "", ".avif"),
        ("cover", PNG, "text/html", ".png"),
        ("cover", JPEG, "", ".jpg"),
        ("cover", b"RIFF1234WEBP", "", ".webp"),
        # Without a known signature the server's Content-Type decides.
        ("audio", b"NEWCODEC\x01", "audio/x-new; rate=1", ".bin"),
        ("cover", b"BM6\x00", "image/bmp", ".bmp"),
    ],
)
def test_audio_and_images_get_an_extension(role: Any, head: bytes, content_type: str, extension: str) -> None:
    media_type = detect_media_type(role, head, content_type)
    assert media_type is not None
    assert media_type.extension == extension


@pytest.mark.parametrize(
    ("role", "head", "content_type"),
    [
        ("audio", b"", "audio/mpeg"),
        ("audio", b"  \n", "audio/mpeg"),
        ("audio", b"<!DOCTYPE html>", "audio/mpeg"),
        ("audio", b"\xef\xbb\xbf <html>", "audio/mpeg"),
        ("audio", b'{"error": "no"}', "audio/mpeg"),
        ("audio", b"\xff\xfe<\0h\0t\0", "text/html"),
        ("audio", b"error code: 1015", "audio/mpeg"),
        ("audio", b"error code: 1015".ljust(64, b"\n"), "audio/mpeg"),
        ("audio", b"\xef\xbb\xbfNot Found\r\n", "audio/mpeg"),
        ("cover", b"Not Found", "image/jpeg"),
        ("audio", b"NEWCODEC\x01", "application/octet-stream"),
        ("audio", b"NEWCODEC\x01", "audio/../../x"),
        ("audio", PNG, "audio/mpeg"),
        ("cover", WAV, "image/png"),
        ("cover", b"\x1f\x8b\x08", "application/gzip"),
    ],
)
def test_text_and_files_for_another_role_are_refused(role: Any, head: bytes, content_type: str) -> None:
    assert detect_media_type(role, head, content_type) is None


@given(head=st.binary(max_size=64), content_type=st.text(max_size=40), role=st.sampled_from(["audio", "cover"]))
def test_an_extension_is_always_safe_in_a_file_name(head: bytes, content_type: str, role: Any) -> None:
    media_type = detect_media_type(role, head, content_type)
    assert media_type is None or re.fullmatch(r"\.[a-z0-9]{1,8}", media_type.extension)

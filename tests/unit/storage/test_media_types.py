"""What a downloaded file is, by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.sandbox import media
from airflow_provider_whisul.storage.media_types import SIGNATURE_BYTES, detect_media_type, is_known, known_media_types

ID3 = b"ID3\x04\x00\x00\x00\x00\x02\x01"
OGG = b"OggS\x00\x02" + bytes(20) + b"\x01"
WAV, PNG, JPEG = b"RIFF\x24\x08\x00\x00WAVEfmt ", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"
GIF = b"GIF89a\x00\x01\x00\x01"
HTML = "<!DOCTYPE html><script>alert(1)</script>"
SVG = '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (ID3, ".mp3"),
        (b"\xff\xfb\x90\x00", ".mp3"),
        (b"\xff\xf3\x48\xc4", ".mp3"),
        (b"\xff\xe3\x18\xc4", ".mp3"),
        (WAV, ".wav"),
        (b"RF64\xff\xff\xff\xffWAVEds64", ".wav"),
        (b"fLaC\x00\x00\x00\x22", ".flac"),
        (OGG + b"\x1e\x01vorbis", ".ogg"),
        (OGG + b"\x13OpusHead", ".opus"),
        (b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00", ".m4a"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00", ".m4a"),
        (b"\xff\xf1\x50\x80", ".aac"),
        (b"FORM\x00\x00\x10\x00AIFF", ".aiff"),
        (b"FORM\x00\x00\x10\x00AIFC", ".aiff"),
        (
            b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82\x84webm",
            ".webm",
        ),
        (b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska", ".mka"),
        (b"caff\x00\x01\x00\x00desc", ".caf"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", ".wma"),
    ],
)
def test_audio_gets_the_extension_of_its_first_bytes(head: bytes, extension: str) -> None:
    media_type = detect_media_type("audio", head)
    assert media_type is not None
    assert media_type.extension == extension
    assert detect_media_type("cover", head) is None


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (JPEG, ".jpg"),
        (PNG, ".png"),
        (GIF, ".gif"),
        (b"RIFF\x24\x08\x00\x00WEBPVP8 ", ".webp"),
        (b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00", ".avif"),
        (b"\x00\x00\x00\x20ftypmif1\x00\x00\x00\x00mif1avif", ".avif"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", ".heic"),
        (b"BM\x36\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00", ".bmp"),
        (b"II\x2a\x00\x08\x00\x00\x00", ".tiff"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", ".jxl"),
    ],
)
def test_a_picture_gets_the_extension_of_its_first_bytes(head: bytes, extension: str) -> None:
    media_type = detect_media_type("cover", head)
    assert media_type is not None
    assert media_type.extension == extension
    assert detect_media_type("audio", head) is None


def test_the_files_of_the_sandbox_are_recognised() -> None:
    song, cover = detect_media_type("audio", media.song("x", 90, 1)), detect_media_type("cover", media.cover("x"))
    assert (song and song.extension, cover and cover.extension) == (".wav", ".png")


@pytest.mark.parametrize("role", ["audio", "cover"])
@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"  \n",
        *(text.encode(encoding) for text in (HTML, SVG) for encoding in ("ascii", "utf-8-sig", "utf-16", "utf-16-le")),
        *(HTML.encode(encoding) for encoding in ("utf-16-be", "utf-32", "utf-7")),
        b'{"error": "no"}',
        "Accès refusé : le lien a expiré.".encode(),
        "Accès refusé : le lien a expiré.".encode("latin-1"),
        "Доступ запрещён".encode("koi8-r"),
        # Text that begins as a file does.
        b"ID3 is the name of a tag.",
        b"OggS is how a file begins.",
        b"fLaC is how a file begins.",
        b"FORM not found. Try AIFF.",
        b"GIF89a is how a picture begins.",
        b"BMP files are not served here.",
        b"II*\tis how a picture begins.",
        # Archives and programs.
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        b"PK\x03\x04\x14\x00\x00\x00",
        b"%PDF-1.7\n\xe2\xe3\xcf\xd3",
        b"\x7fELF\x02\x01\x01\x00",
        b"MZ\x90\x00\x03\x00\x00\x00",
        b"\x00asm\x01\x00\x00\x00",
        # A frame header that no MP3 has: a reserved rate.
        b"\xff\xfb\xff\xff",
        bytes(SIGNATURE_BYTES),
    ],
)
def test_anything_else_is_refused(role: Any, head: bytes) -> None:
    assert detect_media_type(role, head[:SIGNATURE_BYTES]) is None


@given(text=st.text(min_size=1, max_size=40), encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-16-be"]))
def test_a_text_that_begins_with_markup_is_refused_in_every_encoding(text: str, encoding: str) -> None:
    head = f"<{text}".encode(encoding, "replace")
    assert detect_media_type("audio", head) is None
    assert detect_media_type("cover", head) is None


@given(head=st.binary(max_size=SIGNATURE_BYTES), role=st.sampled_from(["audio", "cover"]))
def test_a_file_gets_a_media_type_of_the_table_or_none(head: bytes, role: Any) -> None:
    media_type = detect_media_type(role, head)
    assert media_type is None or media_type in known_media_types(role)


@pytest.mark.parametrize("role", ["audio", "cover"])
def test_the_extensions_are_safe_in_file_names_and_no_type_of_the_table_runs_scripts(role: Any) -> None:
    for media_type in known_media_types(role):
        assert re.fullmatch(r"\.[a-z0-9]{2,5}", media_type.extension)
        assert re.fullmatch(r"(audio|image)/[a-z0-9-]+", media_type.content_type)
        assert is_known(role, media_type.extension, media_type.content_type)
    assert not is_known(role, ".svg", "image/svg+xml")
    assert not is_known(role, ".mp3", "text/html")


def test_the_documentation_prints_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "storage.md").read_text()
    for role in ("audio", "cover"):
        line = ", ".join(f"`{media_type.extension}`" for media_type in known_media_types(role))
        assert f"| {role} | {line} |" in text

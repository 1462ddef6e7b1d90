"""What a downloaded file is, decided by its first bytes. No I/O."""

from __future__ import annotations

import mimetypes
import re
from dataclasses import dataclass
from typing import Literal

#: The first bytes of a file that :func:`detect_media_type` needs.
SIGNATURE_BYTES = 64

#: What a file is for its song.
Role = Literal["audio", "cover"]


@dataclass(frozen=True)
class MediaType:
    """
    The media type of a file.

    :param extension: The end of the file's name, such as ``.mp3``.
    :param content_type: The MIME type, such as ``audio/mpeg``.
    """

    extension: str
    content_type: str


_SIGNATURES: tuple[tuple[Role, re.Pattern[bytes], MediaType], ...] = (
    ("audio", re.compile(rb"ID3|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd]"), MediaType(".mp3", "audio/mpeg")),
    ("audio", re.compile(rb"RIFF.{4}WAVE", re.DOTALL), MediaType(".wav", "audio/wav")),
    ("audio", re.compile(rb"fLaC"), MediaType(".flac", "audio/flac")),
    ("audio", re.compile(rb"OggS"), MediaType(".ogg", "audio/ogg")),
    ("audio", re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), MediaType(".aac", "audio/aac")),
    ("audio", re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL), MediaType(".aiff", "audio/aiff")),
    ("cover", re.compile(rb".{4}ftyp(?:avif|avis|heic|heix|mif1)", re.DOTALL), MediaType(".avif", "image/avif")),
    ("audio", re.compile(rb".{4}ftyp", re.DOTALL), MediaType(".m4a", "audio/mp4")),
    ("audio", re.compile(rb"\x1a\x45\xdf\xa3"), MediaType(".webm", "audio/webm")),
    ("cover", re.compile(rb"\xff\xd8\xff"), MediaType(".jpg", "image/jpeg")),
    ("cover", re.compile(rb"\x89PNG\r\n\x1a\n"), MediaType(".png", "image/png")),
    ("cover", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), MediaType(".webp", "image/webp")),
    ("cover", re.compile(rb"GIF8[79]a"), MediaType(".gif", "image/gif")),
)


def detect_media_type(role: Role, head: bytes, content_type: str) -> MediaType | None:
    """
    Return the media type of a file, None where it is neither audio nor an image: HTML, an error as JSON or text.

    The first bytes decide. Where no known signature matches them, the server's ``Content-Type`` does, if it says audio
    or an image: a song that was paid for must not be refused because its format is new.

    :param role: What the file should be.
    :param head: The first :data:`SIGNATURE_BYTES` bytes of the file, or all of a shorter file.
    :param content_type: The server's ``Content-Type``, empty if there was none.
    """
    for signature_role, signature, media_type in _SIGNATURES:
        if signature.match(head):
            return media_type if signature_role == role else None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    # A page or an error, also a plain one such as "error code: 1015". No audio and no image is nothing but text.
    if text.startswith((b"<", b"{", b"[")) or re.fullmatch(rb"[\t\n\r\x20-\x7e]*", text):
        return None
    mime_type = content_type.partition(";")[0].strip().lower()
    if not re.fullmatch(rf"{'audio' if role == 'audio' else 'image'}/[a-z0-9.+-]+", mime_type):
        return None
    extension = mimetypes.guess_extension(mime_type, strict=False) or ".bin"
    return MediaType(extension if re.fullmatch(r"\.[a-z0-9]{1,8}", extension) else ".bin", mime_type)

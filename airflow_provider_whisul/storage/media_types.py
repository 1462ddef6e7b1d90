"""What a downloaded file is, decided by its first bytes. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: The first bytes of a file that :func:`detect_media_type` needs.
SIGNATURE_BYTES = 128

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


# The first match counts. SVG is not here: it is text, and can hold a script, which would run in the browser of whoever
# opens the picture in the bucket.
_SIGNATURES: tuple[tuple[Role, bytes, MediaType], ...] = (
    # A tag of ID3 2.2 to 2.4: its length follows in bytes below 128.
    ("audio", rb"ID3[\x02-\x04][^\xff].[\x00-\x7f]{4}", MediaType(".mp3", "audio/mpeg")),
    # A frame of MPEG layer 3 or 2, with a bit rate and a sample rate that are not reserved.
    (
        "audio",
        rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][%b]" % b"".join(b"\\x%x0-\\x%xb" % (rate, rate) for rate in range(15)),
        MediaType(".mp3", "audio/mpeg"),
    ),
    ("audio", rb"(?:RIFF|RIFX|RF64|BW64).{4}WAVE", MediaType(".wav", "audio/wav")),
    # The first block has 34 bytes, whatever the song.
    ("audio", rb"fLaC[\x00\x80]\x00\x00\x22", MediaType(".flac", "audio/flac")),
    ("audio", rb"OggS\x00[\x00-\x07].{20}\x01.OpusHead", MediaType(".opus", "audio/ogg")),
    ("audio", rb"OggS\x00[\x00-\x07]", MediaType(".ogg", "audio/ogg")),
    # A frame of AAC, with a sample rate that is not reserved.
    ("audio", rb"\xff[\xf0\xf1\xf8\xf9][\x00-\x33\x40-\x73\x80-\xb3\xc0-\xf3]", MediaType(".aac", "audio/aac")),
    ("audio", rb"FORM.{4}AIF[FC]", MediaType(".aiff", "audio/aiff")),
    # Pictures and songs share the container of MP4: the brand tells which.
    (
        "cover",
        rb"\x00\x00..ftyp(?:avif|avis|(?:mif1|msf1|miaf).{4}(?:.{4})*?avi[fs])",
        MediaType(".avif", "image/avif"),
    ),
    ("cover", rb"\x00\x00..ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", MediaType(".heic", "image/heic")),
    ("audio", rb"\x00\x00..ftyp[A-Za-z0-9 ]{4}", MediaType(".m4a", "audio/mp4")),
    ("audio", rb"\x1a\x45\xdf\xa3.{1,60}?\x42\x82\x84webm", MediaType(".webm", "audio/webm")),
    ("audio", rb"\x1a\x45\xdf\xa3.{1,60}?\x42\x82\x88matroska", MediaType(".mka", "audio/x-matroska")),
    ("audio", rb"caff\x00\x01\x00\x00", MediaType(".caf", "audio/x-caf")),
    (
        "audio",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
        MediaType(".wma", "audio/x-ms-wma"),
    ),
    ("cover", rb"\xff\xd8\xff[\xc0-\xfe]", MediaType(".jpg", "image/jpeg")),
    ("cover", rb"\x89PNG\r\n\x1a\n", MediaType(".png", "image/png")),
    ("cover", rb"RIFF.{4}WEBP", MediaType(".webp", "image/webp")),
    # Less than 8,192 pixels wide and high.
    ("cover", rb"GIF8[79]a.[\x00-\x1f].[\x00-\x1f]", MediaType(".gif", "image/gif")),
    ("cover", rb"BM.{4}\x00{4}.{4}[\x0c-\x7c]\x00\x00\x00", MediaType(".bmp", "image/bmp")),
    ("cover", rb"II\x2a\x00|MM\x00\x2a", MediaType(".tiff", "image/tiff")),
    ("cover", rb"\x00\x00\x00\x0cJXL \r\n\x87\n", MediaType(".jxl", "image/jxl")),
)

_PATTERNS = tuple((role, re.compile(signature, re.DOTALL), found) for role, signature, found in _SIGNATURES)


def detect_media_type(role: Role, head: bytes) -> MediaType | None:
    """
    Return the media type of a file, None where its first bytes are not those of audio, or of a raster picture.

    Neither the server's ``Content-Type`` nor the URL counts: anything can be sent as ``audio/mpeg``.

    :param role: What the file should be.
    :param head: The first :data:`SIGNATURE_BYTES` bytes of the file, or all of a shorter file.
    """
    for signature_role, signature, media_type in _PATTERNS:
        if signature.match(head):
            return media_type if signature_role == role else None
    return None


def known_media_types(role: Role) -> list[MediaType]:
    """
    Return the media types that a file can have.

    :param role: What the file should be.
    """
    return list(dict.fromkeys(found for signature_role, _, found in _SIGNATURES if signature_role == role))


def is_known(role: Role, extension: str, content_type: str) -> bool:
    """
    Return whether :func:`detect_media_type` can have returned this media type.

    :param role: What the file is for its song.
    :param extension: The end of the file's name, such as ``.mp3``.
    :param content_type: The MIME type.
    """
    return MediaType(extension, content_type) in known_media_types(role)

"""The part of a file that was received so far: whether it can be resumed, and whether it is complete."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from airflow_provider_whisul.storage.media_client import AttemptError
from airflow_provider_whisul.storage.media_types import SIGNATURE_BYTES, MediaType, Role, detect_media_type
from airflow_provider_whisul.storage.new_file import write_all
from airflow_provider_whisul.storage.urls import redact_url

# These may pass: other downloads of this machine end, and their files are removed.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class DownloadedFile:
    """
    A complete file.

    :param size: The length in bytes.
    :param sha256: The SHA-256 digest in hexadecimal digits.
    :param media_type: The media type.
    """

    size: int
    sha256: str
    media_type: MediaType


class WrongMediaTypeError(AttemptError):
    """The file is complete, but is not what it should be."""


class NothingFitsError(AttemptError):
    """There is no space left for the first bytes of the file, so that no other file would fit either."""


class LocalFileError(Exception):
    """The local file cannot be written, and waiting does not help. The text continues a sentence."""


@dataclass
class PartialFile:
    """
    The bytes of a file that were received so far.

    :param file: The open file that they are written to, without a buffer.
    :param place: The folder that it is in, for messages.
    :param size: How many bytes were received.
    :param digest: The digest of these bytes.
    :param validator: ``ETag`` or ``Last-Modified`` of this version of the file, None where it cannot be resumed.
    :param total: The length of the complete file, None where the host does not say.
    :param content_type: The host's ``Content-Type``.
    """

    file: BinaryIO
    place: str
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    validator: str | None = None
    total: int | None = None
    content_type: str = ""

    def restart(self) -> None:
        """Forget what was received."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self.digest = 0, hashlib.sha256()
        self.validator, self.total, self.content_type = None, None, ""

    def append(self, chunk: bytes) -> None:
        """
        Write the next bytes.

        :param chunk: The bytes.
        :raises AttemptError: There is no space left, but may be later. The space that the file took is free again.
        :raises LocalFileError: The file cannot be written.
        """
        try:
            write_all(self.file, chunk)
        except OSError as error:
            nothing_fits = self.size == 0
            self.restart()
            if error.errno in _NO_SPACE:
                kind = NothingFitsError if nothing_fits else AttemptError
                raise kind(f"there is no space left in {self.place}") from None
            raise LocalFileError(error.strerror or type(error).__name__) from None
        self.digest.update(chunk)
        self.size += len(chunk)

    def begin(self, headers: Mapping[str, str], url: str) -> None:
        """
        Begin with a 200: read how long the file is, what it should be and whether it can be resumed.

        :param headers: The response's headers.
        :param url: The URL, for the messages.
        :raises AttemptError: Whether the body is complete could not be told.
        """
        self.restart()
        chunked = check_framing(headers, url)
        length = headers.get("Content-Length", "")
        self.total = int(length) if re.fullmatch("[0-9]{1,18}", length) and not chunked else None
        if self.total is None and not chunked:
            raise AttemptError(
                f"{redact_url(url)} has no Content-Length, so that a broken download could not be detected"
            )
        self.content_type = headers.get("Content-Type", "")
        if "bytes" in headers.get("Accept-Ranges", "").lower() and self.total is not None:
            etag = headers.get("ETag", "")
            # A weak ETag does not promise the same bytes.
            self.validator = etag if etag.startswith('"') else headers.get("Last-Modified")

    def resume(self, headers: Mapping[str, str], url: str) -> None:
        """
        Go on with a 206, unless it is of another version of the file: some hosts ignore ``If-Range``.

        :param headers: The response's headers.
        :param url: The URL, for the messages.
        :raises AttemptError: The range is another one, or of another version, or its end could not be told.
        """
        other_range = _content_range(headers.get("Content-Range", "")) != (self.size, self.total)
        validated_by = "ETag" if (self.validator or "").startswith('"') else "Last-Modified"
        if other_range or headers.get(validated_by, self.validator) != self.validator:
            self.restart()
            what = "another range than was requested" if other_range else "a range of another version of the file"
            raise AttemptError(f"the host sent {what}")
        check_framing(headers, url)

    def complete(self, role: Role) -> DownloadedFile:
        """
        Return the file if it is complete and what it should be.

        :param role: What it should be.
        :raises AttemptError: Bytes are missing, or too many.
        :raises WrongMediaTypeError: It is something else.
        """
        if self.total not in (None, self.size):
            raise AttemptError(f"{self.size:,} of {self.total:,} bytes were received")
        size, content_type = self.size, self.content_type
        digest = self.digest.hexdigest()
        self.file.seek(0)
        head = self.file.read(SIGNATURE_BYTES)
        media_type = detect_media_type(role, head)
        if media_type is None:
            self.restart()
            what = f"a file of {size:,} bytes that is no {role}" if size else "an empty file"
            raise WrongMediaTypeError(f"the host sent {what} (Content-Type {content_type[:60]!r})")
        return DownloadedFile(size, digest, media_type)


def check_framing(headers: Mapping[str, str], url: str) -> bool:
    """
    Return whether a body is chunked, and raise where its end, or its content, could not be told.

    The HTTP client decodes ``chunked`` alone. With ``gzip, chunked`` it reads until the connection ends, and a body
    that was cut would seem complete.

    :param headers: The response's headers.
    :param url: The URL, for the messages.
    :raises AttemptError: The body has another ``Transfer-Encoding``, or a ``Content-Encoding``.
    """
    transfer_encoding = headers.get("Transfer-Encoding")
    content_encoding = headers.get("Content-Encoding", "").strip().lower()
    if transfer_encoding is not None and transfer_encoding.lower() != "chunked":
        name, value = "Transfer-Encoding", transfer_encoding
    elif content_encoding not in ("", "identity"):
        name, value = "Content-Encoding", content_encoding
    else:
        return transfer_encoding is not None
    raise AttemptError(f"{redact_url(url)} has the {name} {value[:20]!r}, which was not requested")


def _content_range(value: str) -> tuple[int, int] | None:
    """Return where a range begins and how long the file is, None unless the range reaches the end of the file."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", value.strip())
    if match is None or int(match[2]) != int(match[3]) - 1:
        return None
    return int(match[1]), int(match[3])

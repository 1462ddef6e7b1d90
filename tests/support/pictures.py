"""The pictures of the documentation: which there are, and what each of them keeps of the page that it shows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_provider_whisul.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "docs" / "pictures"
PAGE = REPOSITORY / "airflow_provider_whisul" / "tracks" / "page"
#: Pixels.
WIDTH = 1280
MAX_BYTES = 100_000
#: Names of the text chunks of a picture: the digest of the sources of what it shows, and the words that it shows.
SOURCES, WORDS = "Sources", "Words"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def digest_of_folder(folder: Path) -> str:
    """Return the digest of the files of a folder and of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def digest_of_page() -> str:
    """Return the digest of the pages that show songs."""
    return digest_of_folder(PAGE)


def digest_of_form() -> str:
    """Return the digest of what Airflow makes the connection form of."""
    return hashlib.sha256(json.dumps([CONN_FIELDS, UI_FIELD_BEHAVIOUR]).encode()).hexdigest()


#: What returns the digest of the sources of each picture, by the name of its file.
DIGESTS: dict[str, Callable[[], str]] = {
    "tracks-tab.png": digest_of_page,
    "tracks-tab-dark.png": digest_of_page,
    "songs-page.png": digest_of_page,
    "failed-song.png": digest_of_page,
    "connection-form.png": digest_of_form,
    "connection-fields.png": digest_of_form,
}


def normalise(words: str) -> str:
    """Return words with one space between them, and with 0 for each digit: times and counts are not compared."""
    return re.sub(r"\d", "0", " ".join(words.split()))


def read_texts(png: bytes) -> dict[str, str]:
    """Return the international text chunks of a PNG file by their names."""
    texts = {}
    for kind, data in _chunks(png):
        if kind == b"iTXt":
            name, _, rest = data.partition(b"\0")
            # Two bytes that say it is not compressed, then a language and a translated name, both empty.
            texts[name.decode("latin-1")] = rest[2:].split(b"\0", 2)[2].decode()
    return texts


def read_width(png: bytes) -> int:
    """Return the width of a PNG file in pixels."""
    return int.from_bytes(dict(_chunks(png))[b"IHDR"][:4])


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    assert png.startswith(_SIGNATURE)
    position = len(_SIGNATURE)
    while position < len(png):
        length = int.from_bytes(png[position : position + 4])
        yield png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        position += length + 12

"""Text of unknown origin, made fit for a message, a log line, an XCom or a database."""

from __future__ import annotations

import json
import re
from itertools import accumulate

#: Characters of a text from outside that a message or a log line repeats at most.
MAX_QUOTED = 500

# What PostgreSQL's JSON and UTF-8 cannot hold: a song must not be lost because its title has a stray NUL.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def quote(text: str) -> str:
    """
    Return a text of unknown origin on one line: at most :data:`MAX_QUOTED` characters of it, then an ellipsis.

    :param text: The text.
    """
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "�" for character in line)
    return line if len(line) <= MAX_QUOTED else line[:MAX_QUOTED] + "…"


def storable(text: str) -> str:
    """
    Return a text with each character replaced that no database can hold.

    :param text: The text.
    """
    return _UNSTORABLE.sub("�", text)


def truncate(text: str, max_characters: int) -> str:
    """
    Return a text, or its beginning and an ellipsis where it is too long.

    :param text: The text.
    :param max_characters: Characters of the result at most.
    """
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def truncate_json(text: str, max_bytes: int) -> str:
    """
    Return a text, or its beginning and an ellipsis where its JSON is too long.

    :param text: The text.
    :param max_bytes: Bytes that the text may take as JSON, which escapes all that is not ASCII.
    """
    if len(json.dumps(text)) <= max_bytes:
        return text
    ellipsis = "…"
    # The two quotes of a JSON string count once, not for each character.
    room = max_bytes - len(json.dumps(ellipsis))
    lengths = accumulate(len(json.dumps(character)) - 2 for character in text[:max_bytes])
    return text[: sum(length <= room for length in lengths)] + ellipsis

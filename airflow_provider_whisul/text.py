"""Text of unknown origin, made fit for a message, a log line, an XCom or a database."""

from __future__ import annotations

import base64
import json
import re
from functools import lru_cache
from itertools import accumulate
from urllib.parse import quote as percent_encode

#: Characters of a text from outside that a message or a log line repeats at most.
MAX_QUOTED = 500

#: Characters of a prompt, or of another text that only names something, in a message or a log line.
MAX_EXCERPT = 60

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


def excerpt(text: str) -> str:
    """
    Return the beginning of a text of unknown origin, as a message names it: at most :data:`MAX_EXCERPT` characters.

    :param text: The text. Where it is cut, an ellipsis is the last of the characters.
    """
    return truncate(quote(text), MAX_EXCERPT)


def mask(text: str, secret: str) -> str:
    """
    Return a text with a secret replaced by ``***``, also where it is percent-encoded, in base64 or escaped.

    :param text: The text.
    :param secret: The secret. Blank for none.
    """
    if not secret:
        return text
    forms, escaped = _forms(secret)
    for form in forms:
        text = text.replace(form, "***")
    # Without one of these nothing is escaped, and the search takes its time.
    return escaped.sub("***", text) if any(sign in text for sign in "%&\\") else text


@lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[list[str], re.Pattern[str]]:
    """Return the forms of a secret, the longest first, and what finds it with any of its characters escaped."""
    forms = {
        secret,
        percent_encode(secret),
        percent_encode(secret, safe=""),
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
    }
    for prefix in ("", "Bearer ", "Bearer%20"):
        data = f"{prefix}{secret}".encode()
        # Whole groups of three bytes: those after them depend on what follows.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(data[: len(data) // 3 * 3]).decode() if len(data) >= 6 else secret)
    # Some encoders escape more characters than they need to.
    escaped = (
        rf"(?:\\?{re.escape(char)}|(?i:%{ord(char):02x}|&#{ord(char)};|&#x{ord(char):x};|\\u{ord(char):04x}))"
        for char in secret
    )
    return sorted(forms, key=len, reverse=True), re.compile("".join(escaped))


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


def truncate_to_sentence(text: str, max_characters: int) -> str:
    """
    Return a text, or as many of its first sentences as fit; where not even one does, its first words and an ellipsis.

    :param text: The text.
    :param max_characters: Characters of the result at most.
    """
    if len(text) <= max_characters:
        return text
    end = max(text.rfind(f"{mark} ", 0, max_characters + 1) for mark in ".!?")
    if end > 0:
        return text[: end + 1]
    space = text.rfind(" ", 0, max_characters)
    return text[: space if space > 0 else max_characters - 1] + "…"


def count(number: int, noun: str) -> str:
    """
    Return a number with its noun, such as ``1 song`` or ``1,000 songs``.

    :param number: The number.
    :param noun: The noun in the singular, whose plural ends in an s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

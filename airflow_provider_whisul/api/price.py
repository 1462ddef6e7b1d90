"""What a song costs, as the Airflow connection says, and what some songs cost. Decimal arithmetic, without rounding."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from airflow_provider_whisul.text import count

#: What a price may be at most, and how many digits after the point it may have. A price times the songs of years stays
#: exact within the 28 digits that Decimal computes with.
MAX_PRICE = Decimal(1_000_000)
MAX_DECIMALS = 9

#: Characters of a unit.
MAX_UNIT = 12

_PRICE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(\D*)")

#: The API's own unit, the only one whose plural is known.
_CREDIT = re.compile(r"(credit)s?", re.IGNORECASE)


@dataclass(frozen=True)
class Price:
    """
    What one song costs.

    :param amount: The amount, with as many digits after the point as the user gave it.
    :param unit: Such as ``USD`` or ``credit``; blank for none.
    """

    amount: Decimal
    unit: str = ""

    @classmethod
    def parse(cls, value: object) -> Price | None:
        """
        Read a price as an Airflow connection has it.

        :param value: A number, or a text of a number and a unit, such as ``0.08 USD``. None or blank for no price.
        :raises ValueError: It is anything else. The message does not repeat it.
        """
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("not a price")
        # The shortest decimal that is the same float, without an exponent.
        text = value if isinstance(value, str) else f"{Decimal(repr(value)):f}"
        match = _PRICE.fullmatch(text.strip())
        if match is None:
            raise ValueError("not a price")
        amount, unit = Decimal(match[1]), match[2]
        decimals = len(match[1].partition(".")[2])
        if not 0 < amount <= MAX_PRICE or decimals > MAX_DECIMALS or not _is_unit(unit):
            raise ValueError("not a price")
        return cls(amount, unit)


def format_price(price: Price | None, songs: int) -> str:
    """
    Return what some songs cost, such as ``0.24 USD``, blank where the price is not known.

    :param price: What one song costs.
    :param songs: How many songs.
    """
    if price is None:
        return ""
    amount = price.amount * songs
    unit = price.unit
    if credit := _CREDIT.fullmatch(unit):
        unit = credit[1] if amount == 1 else f"{credit[1]}s"
    return f"{amount:,f} {unit}".rstrip()


def count_songs(songs: int, price: Price | None) -> str:
    """
    Return a number of songs with what they cost, such as ``3 songs (0.24 USD)``.

    :param songs: How many songs.
    :param price: What one song costs, None where that is not known.
    """
    return count(songs, "song") + in_brackets(price, songs)


def in_brackets(price: Price | None, songs: int) -> str:
    """
    Return what some songs cost, in brackets and after a space; blank where the price is not known.

    :param price: What one song costs.
    :param songs: How many songs.
    """
    return "" if price is None else f" ({format_price(price, songs)})"


def _is_unit(text: str) -> bool:
    """Letters and currency signs only: nothing else reaches a log or a key of an XCom."""
    return len(text) <= MAX_UNIT and all(char.isalpha() or unicodedata.category(char) == "Sc" for char in text)

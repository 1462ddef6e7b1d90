"""What a song costs: which prices a connection may have, and how amounts are written."""

from __future__ import annotations

from decimal import Decimal

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.price import Price, count_songs, format_price
from airflow_provider_whisul.exceptions import WhisulConfigurationError

KEY = "wh-secret-3f9a"


def price_of(value: object) -> Price | None:
    return ConnectionSettings.from_connection(
        "my_conn", host=None, schema=None, port=None, password=KEY, extra={"price_per_song": value}
    ).price_per_song


def test_a_connection_without_a_price_has_none() -> None:
    settings = ConnectionSettings.from_connection(
        "my_conn", host=None, schema=None, port=None, password=KEY, extra={"timeout": 5}
    )
    assert settings.price_per_song is None


@pytest.mark.parametrize(
    ("value", "amount", "unit"),
    [
        (1, "1", ""),
        (0.08, "0.08", ""),
        (0.1, "0.1", ""),
        (1e-07, "0.0000001", ""),
        ("0.08", "0.08", ""),
        ("0.10", "0.10", ""),
        ("0.08 USD", "0.08", "USD"),
        (" 0.08  USD ", "0.08", "USD"),
        ("0.08USD", "0.08", "USD"),
        ("0.08 €", "0.08", "€"),
        ("1 credit", "1", "credit"),
        ("2 Credits", "2", "Credits"),
        ("3 złotych", "3", "złotych"),
        (1_000_000, "1000000", ""),
    ],
)
def test_a_number_is_a_price_and_a_number_with_a_unit_too(value: object, amount: str, unit: str) -> None:
    price = price_of(value)
    assert price == Price(Decimal(amount), unit)
    assert str(price.amount) == amount or price.amount == Decimal("1e-7")


@pytest.mark.parametrize("value", [None, ""])
def test_a_blank_field_is_no_price(value: object) -> None:
    assert price_of(value) is None


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        "0 USD",
        "0.00",
        "-0.08 USD",
        True,
        [0.08],
        {"USD": 0.08},
        float("nan"),
        float("inf"),
        pytest.param(10**5000, id="10**5000"),
        1_000_001,
        0.1 + 0.2,
        "0.0000000001",
        "USD",
        "USD 0.08",
        "$0.08",
        "0,08 USD",
        "1e2",
        "1_000",
        "٣ USD",
        " ",
        "0.08 US Dollar",
        "0.08 USD/song",
        "0.08 U$D!",
        "0.08 USD\nUSD",
        "0.08 a" + "b" * 12,
        f"0.08 {KEY}",
        KEY,
        "1" * 5_000,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_price_is_refused_without_being_repeated(value: object) -> None:
    with pytest.raises(WhisulConfigurationError) as raised:
        price_of(value)
    assert str(raised.value) == (
        "Airflow connection 'my_conn' cannot be used: its extra 'price_per_song' must be a positive number, or one and "
        "a unit, such as 0.08, 0.08 USD or 1 credit."
    )
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("value", "songs", "text"),
    [
        ("0.08 USD", 3, "0.24 USD"),
        ("0.08 USD", 1, "0.08 USD"),
        ("0.08 USD", 0, "0.00 USD"),
        ("0.50 USD", 2, "1.00 USD"),
        ("0.08 USD", 1_000_000, "80,000.00 USD"),
        # 0.1 * 3 is 0.30000000000000004 as floats.
        (0.1, 3, "0.3"),
        (0.07, 7, "0.49"),
        (1e-07, 3, "0.0000003"),
        ("999999.999999999 USD", 9_999_999, "9,999,998,999,999.990000001 USD"),
        ("1 credit", 1, "1 credit"),
        ("1 credit", 3, "3 credits"),
        ("2 credits", 3, "6 credits"),
        ("0.5 credits", 2, "1.0 credit"),
        ("1 Credits", 1, "1 Credit"),
        ("0.08 €", 3, "0.24 €"),
        (None, 3, ""),
    ],
)
def test_an_amount_is_exact_and_has_the_digits_of_the_price(value: object, songs: int, text: str) -> None:
    assert format_price(Price.parse(value), songs) == text


def test_a_number_of_songs_is_said_with_what_they_cost() -> None:
    assert count_songs(3, Price.parse("0.08 USD")) == "3 songs (0.24 USD)"
    assert count_songs(1, Price.parse("1 credit")) == "1 song (1 credit)"
    assert count_songs(1_000, None) == "1,000 songs"


def test_a_price_changes_no_fingerprint_since_the_account_stays_the_same() -> None:
    def fingerprint(**extra: object) -> str:
        return ConnectionSettings.from_connection(
            "my_conn", host=None, schema=None, port=None, password=KEY, extra=extra
        ).fingerprint

    assert fingerprint(price_per_song="0.08 USD") == fingerprint()

"""The settings in an Airflow connection: what is accepted, what is refused, and that no message has the key."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.exceptions import WhisulConfigurationError

KEY = "wh-secret-3f9a/b+c=&"


def settings_from(
    host: str | None = None,
    schema: str | None = None,
    port: int | None = None,
    password: str | None = KEY,
    **extra: object,
) -> ConnectionSettings:
    return ConnectionSettings.from_connection(
        "my_conn", host=host, schema=schema, port=port, password=password, extra=extra
    )


def refusal(
    host: str | None = None,
    schema: str | None = None,
    port: int | None = None,
    password: str | None = KEY,
    **extra: object,
) -> str:
    with pytest.raises(WhisulConfigurationError) as raised:
        settings_from(host, schema, port, password, **extra)
    message = str(raised.value)
    assert isinstance(raised.value, AirflowFailException)
    assert message.startswith("Airflow connection 'my_conn' cannot be used: its ") or "it has no API key" in message
    assert KEY not in message
    assert message.isprintable()
    assert len(message) < 1000
    # The refused URL must not come back through the chained error either.
    assert raised.value.__suppress_context__
    return message


@pytest.mark.parametrize(
    ("host", "schema", "port", "expected"),
    [
        (None, None, None, "https://whisul.com/api"),
        ("", "", None, "https://whisul.com/api"),
        ("  ", "http", 80, "https://whisul.com/api"),
        ("https://whisul.com/api", None, None, "https://whisul.com/api"),
        ("https://whisul.com/api/", None, None, "https://whisul.com/api"),
        ("https://whisul.com/api//", None, None, "https://whisul.com/api"),
        ("https://whisul.com", None, None, "https://whisul.com/api"),
        ("https://whisul.com/", None, None, "https://whisul.com/api"),
        (" https://whisul.com/api\n", None, None, "https://whisul.com/api"),
        ("https://proxy.example:8443/music/v2", None, None, "https://proxy.example:8443/music/v2"),
        # A full URL needs neither schema nor port.
        ("https://whisul.com/api", "http", 8000, "https://whisul.com/api"),
        ("whisul.com", None, None, "https://whisul.com/api"),
        ("whisul.com", "https", None, "https://whisul.com/api"),
        ("whisul.com", "", 8443, "https://whisul.com:8443/api"),
        ("whisul.com:8443", None, None, "https://whisul.com:8443/api"),
        ("whisul.com/v2/", "https", None, "https://whisul.com/v2"),
        ("whisul.com/v2", "https", 8443, "https://whisul.com:8443/v2"),
        ("localhost", "http", 8000, "http://localhost:8000/api"),
        ("LOCALHOST", "http", 8000, "http://LOCALHOST:8000/api"),
        ("127.0.0.1", "http", 8000, "http://127.0.0.1:8000/api"),
        ("127.8.9.10", "http", None, "http://127.8.9.10/api"),
        ("::1", "http", 8000, "http://[::1]:8000/api"),
        ("[::1]", "http", 8000, "http://[::1]:8000/api"),
        ("[::1]:8000/api", "http", None, "http://[::1]:8000/api"),
        ("2001:db8::1", None, 8443, "https://[2001:db8::1]:8443/api"),
        ("http://127.0.0.1:8000/api", None, None, "http://127.0.0.1:8000/api"),
        ("http://[::1]:8000", None, None, "http://[::1]:8000/api"),
        ("HTTP://localhost:8000", None, None, "http://localhost:8000/api"),
    ],
)
def test_host_schema_and_port_make_the_base_url(
    host: str | None, schema: str | None, port: int | None, expected: str
) -> None:
    assert settings_from(host, schema, port).base_url == expected


@pytest.mark.parametrize(
    "hostname",
    [
        "whisul.com",
        "10.0.0.1",
        "0.0.0.0",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example/localhost",
        "evil.example/127.0.0.1",
        "notlocalhost",
        "localhost.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[2001:db8::1]",
        "[::]",
        "127.0.0.1%2eevil.example",
    ],
)
def test_plain_http_to_another_machine_is_refused(hostname: str) -> None:
    assert "plain http" in refusal(f"http://{hostname}")
    assert "plain http" in refusal(hostname, schema="http")


@pytest.mark.parametrize(
    ("host", "schema", "port", "reason"),
    [
        ("http://127.0.0.1@evil.example", None, None, "user name or a password"),
        ("http://127.0.0.1\\@evil.example", None, None, "user name or a password"),
        ("http://localhost:80@evil.example/", None, None, "user name or a password"),
        ("https://user@whisul.com", None, None, "user name or a password"),
        ("https://user:pass@whisul.com", None, None, "user name or a password"),
        ("https://@whisul.com", None, None, "user name or a password"),
        ("user@whisul.com", None, None, "user name or a password"),
        ("user:pass@whisul.com", "https", 443, "user name or a password"),
        ("https://whisul.com/api?key=1", None, None, "plain URL"),
        ("https://whisul.com?x", None, None, "plain URL"),
        ("https://whisul.com/api#part", None, None, "plain URL"),
        ("whisul.com?x=1", None, None, "plain URL"),
        ("http://localhost#@evil.example", None, None, "plain URL"),
        ("http://localhost?@evil.example", None, None, "plain URL"),
        ("https://", None, None, "plain URL"),
        ("https:///api", None, None, "plain URL"),
        ("https://:8000", None, None, "plain URL"),
        ("//whisul.com", None, None, "plain URL"),
        ("/api", None, None, "plain URL"),
        ("https://whisul.com/a b", None, None, "plain URL"),
        ("whis ul.com", None, None, "plain URL"),
        ("https://whisul.com/a\nb", None, None, "plain URL"),
        ("ht\ntps://whisul.com", None, None, "plain URL"),
        ("https://whisul.com\x00", None, None, "plain URL"),
        ("https://whisul.com\u200b", None, None, "plain URL"),
        ("https://whisul.com\\evil.com", None, None, "plain URL"),
        ("ftp://whisul.com", None, None, "schema must be https"),
        ("file:///etc/passwd", None, None, "schema must be https"),
        ("http+unix://x", None, None, "schema must be https"),
        ("whisul.com", "ws", None, "schema must be https"),
        ("https://whisul.com:port", None, None, "make no URL"),
        ("https://whisul.com:99999", None, None, "make no URL"),
        ("whisul.com:8443", None, 9000, "make no URL"),
        ("whisul.com", None, 70000, "make no URL"),
        ("https://[::1", None, None, "make no URL"),
        ("https://[whisul.com]", None, None, "make no URL"),
        ("a:b:c", None, None, "make no URL"),
        ("https://whisul℀.com", None, None, "make no URL"),
    ],
)
def test_a_host_that_makes_no_safe_url_is_refused_with_the_reason(
    host: str, schema: str | None, port: int | None, reason: str
) -> None:
    assert reason in refusal(host, schema, port)


@pytest.mark.parametrize("password", [None, ""])
def test_a_missing_key_is_refused(password: str | None) -> None:
    message = refusal(password=password)
    assert "no API key" in message
    assert "password" in message


@pytest.mark.parametrize(
    "template", ["{} ", " {}", "{}\n", "{}\r\n", "a {}", "{}\t", "{}\x00", "{}\x7f", "{}é", "{}\u200b", "“{}”", " "]
)
def test_a_malformed_key_is_refused(template: str) -> None:
    message = refusal(password=template.format(KEY))
    assert "API key" in message
    assert "a space, a line break or another character" in message


@pytest.mark.parametrize("password", ["k", "!~", KEY, "x" * 4000])
def test_any_visible_ascii_text_is_accepted_as_a_key(password: str) -> None:
    assert settings_from(password=password).api_key == password


def test_the_key_is_in_no_repr() -> None:
    made = settings_from("https://whisul.com", timeout=7, verify=False)
    assert KEY not in repr(made)
    assert "https://whisul.com/api" in repr(made)
    assert KEY not in str(made)


# The alphabet of a URL schema, since that is where an unknown word would be repeated from.
PASTED = "wh-Secret-3f9A.b"


@pytest.mark.parametrize(
    ("host", "schema", "extra"),
    [
        (f"http://{PASTED}", None, {}),
        (PASTED, "http", {}),
        (f"{PASTED}://whisul.com", None, {}),
        ("whisul.com", PASTED, {}),
        (f"https://user:{PASTED}@whisul.com", None, {}),
        (f"https://whisul.com:{PASTED}", None, {}),
        (f"https://[{PASTED}]", None, {}),
        (f"https://whisul.com/api?key={PASTED}", None, {}),
        (f"https://whisul.com/ {PASTED}", None, {}),
        (None, None, {"timeout": PASTED}),
        (None, None, {"verify": PASTED}),
        (None, None, {"rate_limit_conn_id": PASTED}),
        (None, None, {"rate_limit_conn_id": f"redis://:{PASTED}@cache"}),
    ],
)
@pytest.mark.parametrize("password", [PASTED, None])
def test_a_key_pasted_into_another_field_is_not_in_the_message(
    host: str | None, schema: str | None, extra: dict[str, object], password: str | None
) -> None:
    with pytest.raises(WhisulConfigurationError) as raised:
        settings_from(host, schema, password=password, **extra)
    # A URL's schema and host come back in lower case.
    assert PASTED.lower() not in str(raised.value).lower()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        (None, False),
        ("https://localhost.evil.example", False),
        ("https://192.168.0.1", False),
        ("https://[2001:db8::1]", False),
        ("http://localhost:8000", True),
        ("https://LocalHost", True),
        ("http://127.0.0.1:8000/api", True),
        ("http://[::1]:8000", True),
    ],
)
def test_only_this_machine_is_loopback(host: str | None, loopback: bool) -> None:
    assert settings_from(host).is_loopback is loopback


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 30), ("", 30), (5, 5), (0.5, 0.5), ("12", 12), (" 7.5 ", 7.5), ("1e2", 100)]
)
def test_a_positive_timeout_is_accepted(value: object, expected: float) -> None:
    made = settings_from(timeout=value).timeout
    assert made == expected
    assert isinstance(made, float)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        "0",
        "nan",
        float("nan"),
        float("inf"),
        "inf",
        "9" * 400,
        pytest.param(10**400, id="10**400"),
        "thirty",
        " ",
        "30 s",
        "1\n2",
        True,
        [30],
        {"connect": 5},
        "x" * 5000,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_timeout_that_is_not_a_positive_number_is_refused(value: object) -> None:
    assert "its extra 'timeout' must be a positive number of seconds." in refusal(timeout=value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True),
        ("", True),
        (True, True),
        (False, False),
        ("true", True),
        ("True", True),
        (" FALSE ", False),
        ("false", False),
    ],
)
def test_verify_is_read_as_true_or_false(value: object, expected: bool) -> None:
    assert settings_from(verify=value).verify is expected


def test_verify_accepts_the_path_of_a_ca_file(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    assert settings_from(verify=str(ca)).verify == str(ca)


@pytest.mark.parametrize(
    "value",
    [
        "/no/such/ca.pem",
        "yes",
        0,
        1,
        ["ca.pem"],
        "ca\x00.pem",
        # The certificate itself in place of its path.
        "-----BEGIN CERTIFICATE-----\n" + ("A" * 64 + "\n") * 30 + "-----END CERTIFICATE-----\n",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_verify_that_is_neither_bool_nor_ca_file_is_refused(value: object) -> None:
    assert "its extra 'verify' must be true, false or the path of a CA file that exists" in refusal(verify=value)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (7, 7), ("7", 7), (" 7 ", 7), (7.0, 7), (None, None), ("", None)]
)
def test_a_whole_number_of_submissions_is_accepted(value: object, expected: int | None) -> None:
    assert settings_from(max_submissions_per_day=value).max_submissions_per_day == expected


@pytest.mark.parametrize(
    "value", [-1, 0.5, "many", "1e999", math.nan, math.inf, True, False, [3], {"a": 1}, "0x10", KEY, 10**400]
)
def test_a_ceiling_that_is_no_whole_number_is_refused(value: object) -> None:
    message = refusal(max_submissions_per_day=value)
    assert "its extra 'max_submissions_per_day' must be a whole number, zero or more." in message


@pytest.mark.parametrize(
    ("value", "expected"), [("my_redis", "my_redis"), (" a.b-c ", "a.b-c"), (None, None), ("", None)]
)
def test_the_id_of_the_connection_of_a_redis_is_accepted(value: object, expected: str | None) -> None:
    assert settings_from(rate_limit_conn_id=value).rate_limit_conn_id == expected


@pytest.mark.parametrize("value", [3, True, ["my_redis"], "my redis", "redis://user:word@cache", "x" * 251, KEY])
def test_what_is_no_id_of_a_connection_is_refused(value: object) -> None:
    message = refusal(rate_limit_conn_id=value)
    assert "its extra 'rate_limit_conn_id' must be the id of an Airflow connection." in message

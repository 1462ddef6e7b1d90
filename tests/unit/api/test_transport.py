"""Which proxy and which CA file a URL is requested with."""

from __future__ import annotations

from pathlib import Path

import pytest
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from airflow_provider_whisul.api.transport import find_ca, find_proxy
from airflow_provider_whisul.exceptions import WhisulConfigurationError

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": PROXY}, PROXY),
        ({"https_proxy": PROXY}, PROXY),
        ({"ALL_PROXY": PROXY}, PROXY),
        ({"HTTPS_PROXY": PROXY, "ALL_PROXY": "http://other.example"}, PROXY),
        ({"HTTPS_PROXY": "http://other.example", "https_proxy": PROXY}, PROXY),
        ({"HTTP_PROXY": PROXY}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "proxy.example:3128"}, PROXY),
        ({"HTTPS_PROXY": "//proxy.example:3128"}, PROXY),
        ({"HTTPS_PROXY": " HTTP://proxy.example:3128/ "}, PROXY),
        ({"HTTPS_PROXY": "https://proxy.example:3128"}, "https://proxy.example:3128"),
        ({"HTTPS_PROXY": "http://[2001:db8::1]:3128"}, "http://[2001:db8::1]:3128"),
        ({"HTTPS_PROXY": "me:pass%40word@proxy.example"}, "http://me:pass%40word@proxy.example"),
    ],
)
def test_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], proxy: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy("https://whisul.com/api") == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("whisul.com", "https://whisul.com/api", True),
        ("whisul.com", "https://cdn.whisul.com/song", True),
        (".whisul.com", "https://cdn.whisul.com/song", True),
        ("other.example, whisul.com", "https://whisul.com/api", True),
        ("other.example", "https://whisul.com/api", False),
        ("whisul.com:8443", "https://whisul.com:8443/api", True),
        ("whisul.com:8443", "https://whisul.com/api", False),
        # Every other client takes the scheme's default port for that of a URL without one.
        ("whisul.com:443", "https://whisul.com/api", True),
        ("whisul.com:443", "https://WHISUL.com:/api", True),
        ("whisul.com:443", "https://cdn.whisul.com/song", True),
        ("whisul.com:443", "https://whisul.com:8443/api", False),
        ("whisul.com:80", "https://whisul.com/api", False),
        ("other.example:443", "https://whisul.com/api", False),
        ("[2001:db8::1]:443", "https://whisul.com/api", False),
        ("whisul.com:443", "https://[2001:db8::1]/api", False),
        ("*", "https://whisul.com/api", True),
        ("10.0.0.0/8", "https://10.1.2.3/api", True),
        ("10.0.0.0/8", "https://11.1.2.3/api", False),
        ("10.1.2.3", "https://10.1.2.3/api", True),
        ("", "http://127.0.0.1:8000/api", True),
        ("", "http://localhost:8000/api", True),
    ],
)
def test_no_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, direct: bool) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert find_proxy(url) == (None if direct else PROXY)


@pytest.mark.parametrize(
    "proxy",
    ["socks5://proxy", "SOCKS5H://proxy", "ftp://proxy", "http://", "http://a b", "http://proxy:x", "me:Ő@proxy"],
)
def test_a_proxy_that_a_client_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"{proxy}?secret")
    with pytest.raises(WhisulConfigurationError, match=r"HTTPS_PROXY.*Nothing was sent") as caught:
        find_proxy("https://whisul.com/api")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_ca_files_are_looked_for_in_the_connection_and_then_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_ca() == DEFAULT_CA_BUNDLE_PATH
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        file = tmp_path / name
        file.write_bytes(Path(DEFAULT_CA_BUNDLE_PATH).read_bytes())
        monkeypatch.setenv(name, str(file))
        assert find_ca() == str(file)
    assert find_ca(str(tmp_path)) == str(tmp_path)
    assert find_ca(False) is False

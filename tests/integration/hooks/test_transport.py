"""Proxies, CA files, time-outs and malformed responses: alike for the worker's client and the triggerer's."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_whisul.api import transport
from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulError,
    WhisulJobNotFoundError,
    WhisulResponseError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock
from tests.support.servers import Proxy, RawServer, drip
from tests.support.soon import soon

KEY = "secret-sandbox-key"

Poll = Callable[[], object]


def connect(monkeypatch: pytest.MonkeyPatch, host: str, **extra: object) -> None:
    extra = {"max_requests_per_second": 1e6, **extra}
    connection = {"conn_type": "whisul", "password": KEY, "host": host, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))


def poll_in_worker() -> object:
    return WhisulHook(clock=FakeClock().clock).get_job("some-job", retry=False)


def poll_in_triggerer() -> object:
    return asyncio.run(WhisulAsyncHook().get_job("some-job"))


@pytest.fixture(params=[poll_in_worker, poll_in_triggerer], ids=["worker", "triggerer"])
def poll(request: pytest.FixtureRequest) -> Poll:
    return request.param  # type: ignore[no-any-return]


def submit() -> str:
    return WhisulHook(clock=FakeClock().clock).generate("a song")


def everything_in(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error.__context__) + repr(error.__cause__)


@pytest.fixture
def all_logs() -> Iterator[list[str]]:
    """What any library logs, at any level."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(logging.Formatter("%(message)s").format(record))

    keep, names = Keep(logging.DEBUG), ("urllib3", "aiohttp", "asyncio")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).addHandler(keep)
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield records
    for name, level in levels.items():
        logging.getLogger(name).removeHandler(keep)
        logging.getLogger(name).setLevel(level)


class TestTime:
    """A connection's ``timeout`` bounds a whole request, however slowly its bytes come."""

    @pytest.mark.parametrize(
        "beginning", [b"HTTP/1.1 200 O", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\nC: "]
    )
    def test_a_response_whose_header_drips_is_given_up_in_time(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, beginning: bytes
    ) -> None:
        with RawServer(drip(beginning)) as server:
            connect(monkeypatch, server.base_url, timeout=0.5)
            with soon(), pytest.raises(WhisulConnectionError, match="timed out"):
                poll()

    def test_a_response_whose_body_drips_is_given_up_in_time(self, monkeypatch: pytest.MonkeyPatch, poll: Poll) -> None:
        with RawServer(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")) as server:
            # Enough for a header that comes late.
            connect(monkeypatch, server.base_url, timeout=2)
            with soon(), pytest.raises(WhisulResponseError, match="broke off"):
                poll()

    def test_a_proxy_whose_response_drips_is_given_up_in_time_and_nothing_was_sent(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll
    ) -> None:
        with RawServer(drip(b"HTTP/1.1 200 OK\r\nA: ")) as server:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
            connect(monkeypatch, "https://whisul.test", timeout=0.5)
            with soon(), pytest.raises(WhisulConnectionError, match="was not sent") as caught:
                poll()
            assert not caught.value.request_sent

    def test_a_tls_handshake_that_drips_is_given_up_in_time_and_nothing_was_sent(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll
    ) -> None:
        # The beginning of a long TLS record.
        with RawServer(drip(b"\x16\x03\x03\x40\x00")) as server:
            connect(monkeypatch, f"https://127.0.0.1:{server.port}", timeout=0.5)
            with soon(), pytest.raises(WhisulConnectionError, match="was not sent"):
                poll()

    def test_a_submission_whose_response_drips_is_ambiguous(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with RawServer(drip(b"HTTP/1.1 202 Acc")) as server:
            connect(monkeypatch, server.base_url, timeout=2)
            with soon(), pytest.raises(WhisulAmbiguousSubmitError, match="may have arrived"):
                submit()

    def test_each_request_on_a_kept_connection_has_the_whole_time(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ahead = 0.0
        monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))
        connect(monkeypatch, sandbox.base_url, timeout=30)
        hook = WhisulHook(clock=FakeClock().clock)
        job_id = hook.generate("a song")
        for _ in range(3):
            ahead += 20
            assert hook.get_job(job_id, retry=False).status == "running"
        assert len({request.connection for request in sandbox.requests}) == 1

    def test_another_address_of_a_host_is_tried_where_the_first_gives_no_response(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = int(sandbox.base_url.split(":")[2].split("/")[0])
        with socket.create_server(("127.0.0.2", port), backlog=0):
            full_up = [socket.socket() for _ in range(4)]
            for waiting in full_up:
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.2", port))
            addresses = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")
            ]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: addresses)
            # Half of it is for the first address. The other one may be late.
            connect(monkeypatch, f"http://localhost:{port}/api", timeout=4)
            with soon(), pytest.raises(WhisulJobNotFoundError):
                poll_in_worker()
            for waiting in full_up:
                waiting.close()


ECHOES = {
    "status line": b"HTTP/1.1 Authorization: Bearer %s\r\n\r\n",
    "no status line": b"Authorization: Bearer %s\r\n\r\n",
    "status": b"HTTP/1.1 2%s OK\r\n\r\n",
    "header without colon": b"HTTP/1.1 404 Not Found\r\nBearer %s\r\nContent-Length: 0\r\n\r\n",
    "header with a control character": b"HTTP/1.1 404 Not Found\r\nA: %s\x01\r\nContent-Length: 0\r\n\r\n",
    "length": b"HTTP/1.1 404 Not Found\r\nContent-Length: %s\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n\r\n",
    "encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: 3\r\n\r\nabc",
    "cookie": b"HTTP/1.1 404 Not Found\r\nSet-Cookie: a=b; %s(@=1\r\nContent-Length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n",
    "long line": b"HTTP/1.1 404 Not Found\r\nA: %s" + b"x" * 200_000,
}


class TestEchoes:
    """A server that echoes the API key gets it into no message, no cause of an error and no log."""

    @pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
    def test_a_malformed_response_that_echoes_the_key(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, echo: bytes, all_logs: list[str]
    ) -> None:
        with RawServer(lambda connection, _: connection.sendall(echo.replace(b"%s", KEY.encode()))) as server:
            connect(monkeypatch, server.base_url)
            with pytest.raises(WhisulError) as caught:
                poll()
        assert f"Bearer {KEY}".encode() in server.requests[0]
        # Also none of its parts, as a client cuts what it repeats.
        assert KEY[:10] not in everything_in(caught.value)
        assert KEY[:10] not in "\n".join(all_logs)

    @pytest.mark.parametrize("echo", ["status line", "no status line", "status"])
    def test_a_submission_with_such_a_response_is_ambiguous(self, monkeypatch: pytest.MonkeyPatch, echo: str) -> None:
        answer = ECHOES[echo].replace(b"%s", KEY.encode())
        with RawServer(lambda connection, _: connection.sendall(answer)) as server:
            connect(monkeypatch, server.base_url)
            with pytest.raises(WhisulAmbiguousSubmitError, match="may have been paid for") as caught:
                submit()
        assert len(server.requests) == 1
        assert KEY[:10] not in everything_in(caught.value)

    def test_what_a_client_logs_outside_of_our_requests_is_kept(self, all_logs: list[str]) -> None:
        for name in ("urllib3.connection", "aiohttp.client"):
            logging.getLogger(name).warning("of another library's request")
        assert len(all_logs) == 2


class TestNothingSent:
    """What goes wrong before a request is written: nothing was sent, and nothing can have been paid for."""

    @staticmethod
    def check(poll: Poll, error: type[WhisulError], message: str) -> None:
        for ask in (poll, submit):
            with pytest.raises(error, match=message) as caught:
                ask()
            assert type(caught.value) is error
            assert not getattr(caught.value, "request_sent", False)
            assert "sent" in str(caught.value)

    def test_a_certificate_that_is_not_verified_behind_a_proxy(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, proxy: Proxy
    ) -> None:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        connect(monkeypatch, "https://whisul.test")
        self.check(poll, WhisulTLSError, "could not be verified")
        assert proxy.asked

    @pytest.mark.parametrize("content", [None, "this is no certificate"])
    @pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
    def test_a_ca_file_of_the_environment_that_cannot_be_used(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, tmp_path: Path, content: str | None, variable: str
    ) -> None:
        file = tmp_path / "ca.pem"
        if content:
            file.write_text(content)
        monkeypatch.setenv(variable, str(file))
        connect(monkeypatch, "https://whisul.test")
        self.check(poll, WhisulConfigurationError, variable)

    def test_a_ca_file_of_the_connection_that_is_none(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, tmp_path: Path
    ) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("this is no certificate")
        connect(monkeypatch, "https://whisul.test", verify=str(file))
        self.check(poll, WhisulConfigurationError, "extra 'verify'")

    @pytest.mark.parametrize(
        "proxy_url",
        [
            "socks5://127.0.0.1:9",
            "socks5h://proxy",
            "http://",
            "http://:3128",
            "proxy:port",
            "http://a..b:1",
            "ftp://p",
        ],
    )
    def test_a_proxy_that_cannot_be_used(self, monkeypatch: pytest.MonkeyPatch, poll: Poll, proxy_url: str) -> None:
        monkeypatch.setenv("HTTPS_PROXY", proxy_url)
        connect(monkeypatch, "https://whisul.test")
        self.check(poll, WhisulConfigurationError, "proxy that the environment names")

    @pytest.mark.parametrize("alert", [b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
    def test_a_tls_handshake_that_the_server_ends(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, alert: bytes
    ) -> None:
        with RawServer(lambda connection, _: connection.sendall(alert)) as server:
            connect(monkeypatch, f"https://127.0.0.1:{server.port}")
            self.check(poll, WhisulConnectionError, "was not sent")

    @pytest.mark.parametrize("status", [403, 407, 502])
    def test_a_proxy_that_refuses(self, monkeypatch: pytest.MonkeyPatch, poll: Poll, proxy: Proxy, status: int) -> None:
        proxy.status = status
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("://", "://somebody:pass%40word@"))
        connect(monkeypatch, "https://whisul.test")
        self.check(poll, WhisulConnectionError, f"the proxy answered {status}")
        with pytest.raises(WhisulConnectionError) as caught:
            poll()
        assert "word" not in everything_in(caught.value)

    @pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nno TLS"])
    def test_a_proxy_that_answers_nonsense(self, monkeypatch: pytest.MonkeyPatch, poll: Poll, answer: bytes) -> None:
        with RawServer(lambda connection, _: connection.sendall(answer)) as server:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
            connect(monkeypatch, "https://whisul.test")
            self.check(poll, WhisulConnectionError, "was not sent")


class TestProxies:
    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
    @pytest.mark.parametrize("scheme", ["", "http://", "HTTP://"])
    def test_a_proxy_of_the_environment_is_used(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, proxy: Proxy, variable: str, scheme: str
    ) -> None:
        monkeypatch.delenv("HTTPS_PROXY")
        monkeypatch.setenv(variable, f"{scheme}127.0.0.1:{proxy.server_port}")
        connect(monkeypatch, "https://whisul.test")
        with pytest.raises(WhisulJobNotFoundError):
            poll()
        assert [asked for asked, _ in proxy.asked] == ["whisul.test:443"]

    @pytest.mark.parametrize("scheme", ["", "http://"])
    def test_user_and_password_are_sent_to_the_proxy(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, proxy: Proxy, scheme: str
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}somebody:pass%40w%C3%B6rd@127.0.0.1:{proxy.server_port}")
        connect(monkeypatch, "https://whisul.test")
        with pytest.raises(WhisulJobNotFoundError):
            poll()
        ((_, headers),) = proxy.asked
        sent = {name.lower(): value for name, value in headers.items()}["proxy-authorization"]
        assert sent == "Basic c29tZWJvZHk6cGFzc0B39nJk"

    @pytest.mark.parametrize("excepted", [".test", "whisul.test:443"])
    def test_no_proxy_is_heeded(self, monkeypatch: pytest.MonkeyPatch, poll: Poll, proxy: Proxy, excepted: str) -> None:
        monkeypatch.setenv("NO_PROXY", excepted)
        connect(monkeypatch, "https://whisul.test")
        with pytest.raises(WhisulConnectionError, match="was not sent"):
            poll()
        assert proxy.asked == []


class TestReplacedKey:
    """The key was regenerated in the dashboard, and the Airflow connection updated, while a task waits."""

    @pytest.fixture
    def replace_key(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        def replace_key() -> None:
            sandbox.restore_key("a-new-sandbox-key")
            connection = {**json.loads(sandbox.connection), "extra": {"max_requests_per_second": 1e6}}
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))

        return replace_key

    def test_a_worker_submits_and_polls_with_the_new_key(
        self, sandbox: Sandbox, replace_key: Callable[[], None]
    ) -> None:
        hook = WhisulHook(clock=FakeClock().clock)
        earlier = hook.generate("a song")
        replace_key()
        later = hook.generate("another")
        assert set(sandbox.jobs) == {earlier, later}
        assert hook.get_job(earlier).status == "running"
        assert [request.status for request in sandbox.requests] == [202, 401, 202, 200]

    def test_the_triggerer_polls_with_the_new_key(self, sandbox: Sandbox, replace_key: Callable[[], None]) -> None:
        job_id = WhisulHook(clock=FakeClock().clock).generate("a song")

        async def main() -> None:
            async with WhisulAsyncHook() as hook:
                await hook.get_job(job_id)
                replace_key()
                for _ in range(2):
                    assert (await hook.get_job(job_id)).status == "running"

        asyncio.run(main())
        polls = [request for request in sandbox.requests if request.method == "GET"]
        assert [request.status for request in polls] == [200, 401, 200, 200]
        # The session of the new key is kept too.
        assert polls[2].connection == polls[3].connection

    def test_a_key_that_is_refused_and_not_replaced_is_sent_once(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, poll: Poll
    ) -> None:
        sandbox.revoke_key()
        with pytest.raises(WhisulUnauthorizedError):
            poll()
        assert len(sandbox.requests) == 1

    def test_a_connection_that_is_gone_by_then_is_logged_and_the_401_is_the_error(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
    ) -> None:
        hook = WhisulHook()
        assert hook.settings
        monkeypatch.delenv("AIRFLOW_CONN_WHISUL_DEFAULT")
        sandbox.revoke_key()
        with pytest.raises(WhisulUnauthorizedError):
            hook.get_job("some-job", retry=False)
        (line,) = [line for line in task_log() if "could not be read again" in line]
        assert "'whisul_default' could not be read again: WhisulConfigurationError" in line

    @pytest.fixture
    def _new_key_at_each_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        numbers = itertools.count()
        real = ConnectionSettings.from_connection

        def leased(*args: Any, **fields: Any) -> ConnectionSettings:
            return real(*args, **{**fields, "password": f"lease-{next(numbers)}"})

        monkeypatch.setattr(ConnectionSettings, "from_connection", leased)

    @pytest.mark.usefixtures("_new_key_at_each_reading")
    def test_a_backend_with_another_key_at_each_reading_is_asked_once_more_and_no_further(
        self, sandbox: Sandbox
    ) -> None:
        with pytest.raises(WhisulUnauthorizedError):
            WhisulHook(clock=FakeClock().clock).generate("a song")
        assert len(sandbox.requests) == 2

        async def main() -> None:
            async with WhisulAsyncHook() as hook:
                with pytest.raises(WhisulUnauthorizedError):
                    await hook.get_job("some-job")

        asyncio.run(main())
        assert len(sandbox.requests) == 4


class TestUnusableConnection:
    def test_a_connection_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch, poll: Poll) -> None:
        monkeypatch.delenv("AIRFLOW_CONN_WHISUL_DEFAULT", raising=False)
        with pytest.raises(WhisulConfigurationError, match=r"no Airflow connection 'whisul_default'.*connections add"):
            poll()

    @pytest.mark.parametrize("rest", ["", ', "port": "many"}'])
    def test_a_connection_that_airflow_cannot_read(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, rest: str
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", '{"conn_type": "whisul", "password": "secret-key"' + rest)
        # Airflow's versions differ in what they raise.
        with pytest.raises(WhisulConfigurationError, match=r"'whisul_default'.* can(not be used| read)") as caught:
            poll()
        assert "secret-key" not in everything_in(caught.value)

    @pytest.mark.parametrize(
        "value",
        [
            '{"conn_type": "whisul", "password": "secret-sandbox-key", "extra": "[1, 2]"}',
            '{"conn_type": "whisul", "password": "secret-sandbox-key", "extra": "{no JSON"}',
            '{"conn_type": "whisul", "password": "secret-sandbox-key", "extra": {"timeout": 1e12}}',
            '{"conn_type": "whisul", "password": "secret-sandbox-key", "host": "whisul..com"}',
            '{"conn_type": "whisul", "password": "secret-sandbox-key", "host": "https://whisul.com:99999/api"}',
        ],
    )
    def test_a_connection_that_cannot_be_used(
        self, monkeypatch: pytest.MonkeyPatch, poll: Poll, value: str, all_logs: list[str]
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", value)
        # Some versions of Airflow do not read such an extra at all.
        message = "connection 'whisul_default'(, or none that Airflow can read| cannot be used)"
        with pytest.raises(WhisulConfigurationError, match=message) as caught:
            poll()
        assert KEY not in str(caught.value)

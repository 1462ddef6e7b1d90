"""What the media host never receives, which URLs are never requested, and what no message holds."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulConfigurationError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulTLSError,
)
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage import media_client
from tests.integration.storage.helpers import (
    PNG,
    WAV,
    MakeSongs,
    MediaHost,
    Transfer,
    file_names,
    respond,
    respond_in_turn,
)
from tests.support.clock import FakeClock
from tests.support.servers import A_SONG, Proxy, fetched


def error_texts(error: BaseException | None) -> list[str]:
    """Return the texts of an error and its causes, all of which Airflow logs."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts


class TestTheMediaHostReceives:
    def test_no_api_key_and_no_password_of_netrc(
        self,
        sandbox: Sandbox,
        make_songs: MakeSongs,
        transfer: Transfer,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password something\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        transfer(make_songs("a waltz", "a tango [sandbox:media-expired]"))
        assert len(fetched(sandbox)) == 5
        assert {request.authorization for request in fetched(sandbox)} == {"missing"}
        assert not any(request.key_elsewhere for request in sandbox.requests)

    def test_no_cookie(self, host: MediaHost, transfer: Transfer) -> None:
        host.responses["/song"] = respond(200, WAV, Set_Cookie="who=you; Path=/")
        host.responses["/cover"] = respond(200, PNG)
        transfer(host.song(image_url=f"{host.url}/cover"))
        assert [path for path, _ in host.requests] == ["/song", "/cover"]
        assert not [headers for _, headers in host.requests if "Cookie" in headers]


class TestUrlsThatAreNotHttps:
    @pytest.mark.parametrize(
        "location",
        ["http://media.example/song", "http://169.254.169.254/x", "ftp://127.0.0.1/x", "https://u:p@m.example/x"],
    )
    def test_a_redirect_is_not_followed(self, host: MediaHost, transfer: Transfer, folder: Path, location: str) -> None:
        host.responses["/song"] = respond(302, Location=location)
        with pytest.raises(WhisulMediaUnsafeError, match=f"The redirect from {host.url}/song of job some-job"):
            transfer(host.song(song_url=f"{host.url}/song?signature=secret"))
        assert len(host.requests) == 1
        assert file_names(folder) == set()

    @pytest.mark.parametrize(
        "url", ["http://media.example/song", "file:///etc/passwd", "https://a:b@media.example/x", "x"]
    )
    def test_a_song_s_own_url_is_not_requested(self, host: MediaHost, transfer: Transfer, url: str) -> None:
        with pytest.raises(WhisulMediaUnsafeError, match="of job some-job"):
            transfer(host.song(song_url=url))


class TestTheQueryOfAUrl:
    def test_is_in_no_error_and_no_log_line(
        self, host: MediaHost, transfer: Transfer, task_log: Callable[[], list[str]], clock: FakeClock
    ) -> None:
        host.responses["/song"] = respond_in_turn(
            respond(500), respond(200, b"RIFF", Content_Length="900"), respond(302, Location="/gone?signature=secret")
        )
        host.responses["/gone"] = respond(404)
        with pytest.raises(WhisulMediaExpiredError) as raised:
            transfer(host.song(song_url=f"{host.url}/song?signature=secret"))
        lines = [*task_log(), *error_texts(raised.value)]
        assert any("Trying again in 2 s (attempt 2 of 6 failed)" in line for line in lines)
        assert not [line for line in lines if "secret" in line]

    def test_is_not_in_the_error_of_a_refused_connection(self, host: MediaHost, transfer: Transfer) -> None:
        song = host.song(song_url="http://127.0.0.1:1/song?signature=secret")
        message = r"no response from http://127.0.0.1:1/song: Connection refused"
        with pytest.raises(WhisulMediaError, match=message) as raised:
            transfer(song)
        assert not [text for text in error_texts(raised.value) if "secret" in text]


def test_a_certificate_that_cannot_be_verified_is_an_error(
    self_signed: str, host: MediaHost, transfer: Transfer
) -> None:
    with pytest.raises(WhisulTLSError, match=r"could not be verified \(self.signed certificate\)") as raised:
        transfer(host.song(song_url=f"{self_signed}/song?signature=secret"))
    assert not [text for text in error_texts(raised.value) if "secret" in text]


class TestProxies:
    def test_the_proxy_of_the_environment_is_not_used_for_this_machine(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        songs = make_songs("a waltz")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        assert transfer(songs)["count"] == 1

    def test_songs_are_downloaded_through_the_proxy_of_the_environment(
        self, host: MediaHost, transfer: Transfer, folder: Path, proxy: Proxy
    ) -> None:
        manifest = transfer(host.song(song_url="https://whisul.test/song.wav?signature=secret"))
        assert (folder / manifest["songs"][0]["audio"]["name"]).read_bytes() == A_SONG
        assert [target for target, _ in proxy.asked] == ["whisul.test:443"]

    def test_a_proxy_that_refuses_is_named_as_the_reason(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", host.url)
        song = host.song(song_url="https://media.example/song?signature=secret")
        with pytest.raises(WhisulMediaError, match=r"no response from .*: Tunnel connection failed: 501") as raised:
            transfer(song)
        assert "secret" not in str(raised.value)

    def test_a_ca_file_that_does_not_exist_is_named_as_the_reason(
        self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/ca.pem")
        song = host.song(song_url="https://media.example/song?signature=secret")
        with pytest.raises(WhisulConfigurationError, match="CA file that REQUESTS_CA_BUNDLE names") as raised:
            transfer(song)
        assert "secret" not in str(raised.value)


class TestPrivateAddresses:
    @pytest.fixture
    def resolve_to(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Let every host name resolve to these addresses, one list for each look-up."""

        def resolve_to(*lookups: list[str]) -> None:
            left = iter(lookups)
            monkeypatch.setattr(
                socket,
                "getaddrinfo",
                lambda host, port, *args, **kwargs: [
                    (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                    for address in next(left)
                ],
            )

        return resolve_to

    @pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["10.0.0.1", "169.254.169.254"]])
    def test_a_host_name_that_resolves_to_one_is_not_connected_to(
        self, transfer: Transfer, resolve_to: Callable[..., None], addresses: list[str]
    ) -> None:
        resolve_to(addresses)
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            server.settimeout(0.1)
            url = f"https://media.example:{server.getsockname()[1]}/admin/delete"
            with pytest.raises(WhisulMediaUnsafeError, match=r"leads to .*, which is no public address"):
                transfer({"job_id": "a-job", "title": None, "song_url": url, "image_url": None})
            with pytest.raises(TimeoutError):
                server.accept()

    def test_a_dns_response_that_changes_is_checked_each_time(
        self, transfer: Transfer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

        monkeypatch.setattr(media_client, "create_connection", refuse)
        resolve_to(["93.184.216.34"], ["127.0.0.1"])
        song = {"job_id": "a-job", "title": None, "song_url": "https://media.example/song", "image_url": None}
        with pytest.raises(WhisulMediaUnsafeError, match=r"leads to 127\.0\.0\.1, which is no public address"):
            transfer(song)

    def test_plain_http_to_another_port_of_this_machine_than_the_sandbox_s_is_not_requested(
        self, sandbox: Sandbox, host: MediaHost, transfer: Transfer
    ) -> None:
        host.responses["/admin/delete"] = respond(200, WAV)
        song = host.song(song_url=f"{host.url}/admin/delete")
        with pytest.raises(WhisulMediaUnsafeError, match="only to the host and port of the Airflow connection"):
            transfer(song, allow_private_media=False)
        assert host.requests == []

    def test_a_proxy_may_have_one(self, transfer: Transfer, proxy: Proxy) -> None:
        url = "https://whisul.test/song.wav"
        assert transfer({"job_id": "a-job", "title": None, "song_url": url, "image_url": None})["count"] == 1

    def test_one_in_the_url_is_refused_behind_a_proxy_too(self, transfer: Transfer, proxy: Proxy) -> None:
        song = {"job_id": "a-job", "title": None, "song_url": "https://10.0.0.1/song", "image_url": None}
        with pytest.raises(WhisulMediaUnsafeError, match=r"leads to 10\.0\.0\.1, which is no public address"):
            transfer(song)
        assert proxy.asked == []

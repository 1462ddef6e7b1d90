"""Each fault of songs and covers, as a client sees it."""

from __future__ import annotations

import socket
import time
import zlib
from urllib.parse import urlsplit

import pytest
import requests
import urllib3

from airflow_provider_whisul.sandbox.options import MEDIA_FAULTS

STATUSES = {
    **{f"media-{status}": status for status in (403, 404, 429, 500)},
    **dict.fromkeys(("media-redirect", "media-redirect-http", "media-redirect-file"), 302),
}
CONTENTS = {"media-html", "media-disguised", "media-empty", "media-no-range"}
BROKEN = {"media-drop", "media-cut", "media-wrong-length"}
ENDLESS = {"media-endless", "media-endless-chunks", "media-drip", "media-stall"}


def finished(client, clock, prompt):
    job_id = client.make(prompt)
    clock.advance(100)
    return client.job(job_id)["result"]


def test_every_fault_has_a_test():
    assert {*STATUSES, *CONTENTS, *BROKEN, *ENDLESS, "media-slow"} == {*MEDIA_FAULTS}


@pytest.mark.parametrize("field", ["song_url", "image_url"])
@pytest.mark.parametrize("fault", STATUSES)
def test_a_media_fault_happens_once_per_file_and_the_next_response_is_right(client, clock, anonymous, fault, field):
    url = finished(client, clock, f"a song [sandbox:{fault}]")[field]
    response = anonymous.get(url, timeout=30, allow_redirects=False)
    assert response.status_code == STATUSES[fault]
    assert (client.last.fault, client.last.status) == (fault, STATUSES[fault])
    assert anonymous.get(url, timeout=30).status_code == 200
    assert client.last.fault is None


def test_a_redirect_leads_to_the_file(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-redirect]")["song_url"]
    moved = anonymous.get(url, timeout=30)
    assert (moved.status_code, moved.url) == (200, f"{url}?moved")
    assert moved.content == anonymous.get(url, timeout=30).content


def test_a_redirect_to_plain_http(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-redirect-http]")["song_url"]
    response = anonymous.get(url, timeout=30, allow_redirects=False)
    assert response.headers["Location"].startswith("http://media.example/")


def test_a_redirect_to_a_file_of_the_client_s_machine(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-redirect-file]")["song_url"]
    response = anonymous.get(url, timeout=30, allow_redirects=False)
    assert response.headers["Location"] == "file:///etc/passwd"


def test_media_html_is_a_page_instead_of_a_song(client, clock, anonymous):
    response = anonymous.get(finished(client, clock, "[sandbox:media-html]")["song_url"], timeout=30)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("field", "content_type", "beginning"),
    [("song_url", "audio/wav", "<!DOCTYPE html>"), ("image_url", "image/png", "<svg ")],
)
def test_media_disguised_is_markup_that_is_said_to_be_the_file(
    client, clock, anonymous, field, content_type, beginning
):
    response = anonymous.get(finished(client, clock, "[sandbox:media-disguised]")[field], timeout=30)
    assert (response.status_code, response.headers["Content-Type"]) == (200, content_type)
    assert response.content.decode("utf-16").startswith(beginning)


def test_an_empty_file(client, clock, anonymous):
    response = anonymous.get(finished(client, clock, "[sandbox:media-empty]")["song_url"], timeout=30)
    assert (response.status_code, response.content, response.headers["Content-Length"]) == (200, b"", "0")
    assert response.headers["Content-Type"] == "audio/wav"


@pytest.mark.parametrize(("fault", "share"), [("media-cut", 0.5), ("media-wrong-length", 1)])
def test_a_cut_file_is_shorter_than_its_content_length(client, clock, anonymous, fault, share):
    url = finished(client, clock, f"a song [sandbox:{fault}]")["song_url"]
    response = anonymous.get(url, timeout=30, stream=True)
    length = int(response.headers["Content-Length"])
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="bytes read"):
        _ = response.content
    whole = anonymous.get(url, timeout=30).content
    assert length == (len(whole) if share < 1 else len(whole) + 1000)


def test_the_rest_of_a_cut_file_can_be_requested(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-cut]")["song_url"]
    first = anonymous.get(url, timeout=30, stream=True)
    came = first.raw.read(10_000)
    rest = anonymous.get(url, headers={"Range": "bytes=10000-", "If-Range": first.headers["ETag"]}, timeout=30)
    assert rest.status_code == 206
    assert came + rest.content == anonymous.get(url, timeout=30).content


def test_if_range_of_another_version_gets_the_whole_file(client, clock, anonymous):
    url = finished(client, clock, "a song")["song_url"]
    response = anonymous.get(url, headers={"Range": "bytes=10-", "If-Range": '"another"'}, timeout=30)
    assert response.status_code == 200


def test_a_host_without_ranges_sends_the_whole_file(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-no-range]")["song_url"]
    response = anonymous.get(url, headers={"Range": "bytes=10-"}, timeout=30)
    assert response.status_code == 200
    assert "Accept-Ranges" not in response.headers
    assert anonymous.get(url, headers={"Range": "bytes=10-"}, timeout=30).status_code == 206


def test_a_dropped_connection(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-drop]")["song_url"]
    with pytest.raises(requests.ConnectionError):
        anonymous.get(url, timeout=30)
    assert (client.last.status, client.last.fault) == (None, "media-drop")


def test_a_slow_file(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-slow=0.2]")["song_url"]
    begin = time.monotonic()
    assert anonymous.get(url, timeout=30).status_code == 200
    assert time.monotonic() - begin >= 0.2


def test_media_fault_rates_hold(start, clock, anonymous):
    client = start(fault_rates={"media-500": 1.0})
    assert anonymous.get(finished(client, clock, "a song")["song_url"], timeout=30).status_code == 500


def test_expired_with_a_number_makes_the_first_urls_expire(client, clock, anonymous):
    job_id = client.make("a song [sandbox:media-expired=2]")
    clock.advance(100)
    urls = [client.job(job_id)["result"]["song_url"] for _ in range(3)]
    assert len(set(urls)) == 3
    assert [anonymous.get(url, timeout=30).status_code for url in urls] == [403, 403, 200]
    assert anonymous.get(urls[0].partition("?")[0], timeout=30).status_code == 403


def test_expired_without_a_number_makes_one_url_expire(client, clock, anonymous):
    job_id = client.make("a song [sandbox:media-expired]")
    clock.advance(100)
    urls = [client.job(job_id)["result"]["image_url"] for _ in range(2)]
    assert [anonymous.get(url, timeout=30).status_code for url in urls] == [403, 200]


def test_media_gone_makes_every_url_fail(client, clock, anonymous):
    result = finished(client, clock, "a song [sandbox:media-gone]")
    assert [anonymous.get(result[field], timeout=30).status_code for field in ("song_url", "image_url")] == [410, 410]


@pytest.mark.parametrize(("text", "size"), [("1MB", 1_000_000), ("300kB", 300_000), ("400000", 400_000)])
def test_a_large_song_has_the_size_of_the_directive(client, clock, anonymous, text, size):
    url = finished(client, clock, f"a song [sandbox:media-size={text}]")["song_url"]
    response = anonymous.get(url, timeout=30)
    assert int(response.headers["Content-Length"]) == len(response.content) == size
    assert response.content.startswith(b"RIFF")
    middle = anonymous.get(url, headers={"Range": f"bytes=1000-{size - 2}"}, timeout=30)
    assert zlib.crc32(middle.content) == zlib.crc32(response.content[1000:-1])
    head = anonymous.head(url, timeout=30)
    assert (int(head.headers["Content-Length"]), head.content) == (size, b"")


def test_a_large_song_can_be_cut(client, clock, anonymous):
    url = finished(client, clock, "a song [sandbox:media-size=1MB] [sandbox:media-cut]")["song_url"]
    response = anonymous.get(url, timeout=30, stream=True)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="500000 bytes read, 500000 more expected"):
        _ = response.content


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("media-size=much", "'media-size' takes a number of B, kB, MB or GB, not 'much'"),
        ("media-size", "'media-size' needs a value"),
        ("media-gone=1", "'media-gone' takes no value"),
        ("media-expired=x", "'media-expired' takes a whole number"),
    ],
)
def test_a_directive_that_cannot_be_read_is_400(client, directive, message):
    response = client.post(f"a song [sandbox:{directive}]")
    assert response.status_code == 400
    assert message in response.json()["message"]


def test_a_file_that_never_ends(client, clock, anonymous):
    url = finished(client, clock, "[sandbox:media-endless]")["song_url"]
    with anonymous.get(url, timeout=30, stream=True) as response:
        assert int(response.headers["Content-Length"]) > 10**14
        assert sum(len(response.raw.read(1 << 20)) for _ in range(8)) == 8 << 20
    assert anonymous.get(url, timeout=30).status_code == 200


def test_a_file_that_never_ends_in_chunks(client, clock, anonymous):
    url = finished(client, clock, "[sandbox:media-endless-chunks]")["song_url"]
    with anonymous.get(url, timeout=30, stream=True) as response:
        assert (response.headers["Transfer-Encoding"], "Content-Length" in response.headers) == ("chunked", False)
        assert sum(len(response.raw.read(1 << 20)) for _ in range(8)) == 8 << 20
    assert anonymous.get(url, timeout=30).status_code == 200


def test_a_file_of_which_nothing_more_comes_after_the_middle(client, clock, anonymous):
    url = finished(client, clock, "[sandbox:media-stall]")["song_url"]
    with anonymous.get(url, timeout=30, stream=True) as response:
        half = int(response.headers["Content-Length"]) // 2
        assert len(response.raw.read(half)) == half
        response.raw.connection.sock.settimeout(0.5)
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            response.raw.read(1)
    assert anonymous.get(url, timeout=30).status_code == 200


def test_a_header_that_never_ends(client, clock, anonymous):
    url = finished(client, clock, "[sandbox:media-drip]")["song_url"]
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        connection.sendall(f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        beginning = b"HTTP/1.1 200 OK\r\nX-Drip: "
        came = b""
        while len(came) <= len(beginning):
            came += connection.recv(1000)
        # More than one, where this machine stood still.
        assert came.rstrip(b".") == beginning
    assert anonymous.get(url, timeout=30).status_code == 200

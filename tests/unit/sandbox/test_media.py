"""The audio and covers that the sandbox serves."""

from __future__ import annotations

import io
import struct
import wave
import zlib

import pytest

from airflow_provider_whisul.sandbox import media


def finished(client, clock, prompt="a song"):
    job_id = client.make(prompt)
    clock.advance(100)
    return client.job(job_id)["result"]


def test_the_song_is_a_wav_of_its_duration(client, clock, anonymous):
    result = finished(client, clock)
    response = anonymous.get(result["song_url"], timeout=30)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "audio/wav")
    assert int(response.headers["Content-Length"]) == len(response.content) < 200_000
    with wave.open(io.BytesIO(response.content)) as song:
        assert (song.getnchannels(), song.getsampwidth(), song.getframerate()) == (1, 1, 8000)
        seconds = song.getnframes() / song.getframerate()
        samples = song.readframes(song.getnframes())
    assert f"0:{seconds:02.0f}" == result["duration"]
    assert min(samples) < 50 < 200 < max(samples)


@pytest.mark.parametrize(("duration", "seconds"), [("0:03", 3), ("2", 2), ("0:01:02", 62), ("9:59:59", media.LONGEST)])
def test_the_wav_has_the_duration_of_the_directive_up_to_a_limit(client, clock, anonymous, duration, seconds):
    url = finished(client, clock, f"a song [sandbox:duration={duration}]")["song_url"]
    with wave.open(io.BytesIO(anonymous.get(url, timeout=30).content)) as song:
        assert song.getnframes() == seconds * song.getframerate()


def test_the_cover_is_a_png(client, clock, anonymous):
    response = anonymous.get(finished(client, clock)["image_url"], timeout=30)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/png")
    data = response.content
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == int.from_bytes(data[at + 8 + length : at + 12 + length])
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (width, height, depth, colour) == (media.COVER_SIZE, media.COVER_SIZE, 8, 2)
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)


def test_each_job_has_media_of_its_own_that_never_change(client, clock, anonymous):
    one, two = (finished(client, clock) for _ in range(2))
    for url in ("song_url", "image_url"):
        assert anonymous.get(one[url], timeout=30).content != anonymous.get(two[url], timeout=30).content
        assert anonymous.get(one[url], timeout=30).content == anonymous.get(one[url], timeout=30).content


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-99", 0, 99), ("bytes=100-", 100, None), ("bytes=-50", -50, None), ("bytes=10-99999999", 10, None)],
)
def test_a_range_is_sent_as_206(client, clock, anonymous, wanted, first, last):
    url = finished(client, clock)["song_url"]
    whole = anonymous.get(url, timeout=30)
    assert whole.headers["Accept-Ranges"] == "bytes"
    size = len(whole.content)
    part = anonymous.get(url, headers={"Range": wanted}, timeout=30)
    first = first % size
    last = size - 1 if last is None else last
    assert part.status_code == 206
    assert part.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
    assert int(part.headers["Content-Length"]) == last + 1 - first
    assert part.content == whole.content[first : last + 1]


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_416(client, clock, anonymous, wanted):
    url = finished(client, clock)["image_url"]
    size = len(anonymous.get(url, timeout=30).content)
    response = anonymous.get(url, headers={"Range": wanted}, timeout=30)
    assert (response.status_code, response.content) == (416, b"")
    assert response.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=-", "bytes=0-1,4-5", "lines=1-2"])
def test_a_range_that_cannot_be_read_is_ignored(client, clock, anonymous, wanted):
    url = finished(client, clock)["image_url"]
    response = anonymous.get(url, headers={"Range": wanted}, timeout=30)
    assert response.status_code == 200
    assert response.content == anonymous.get(url, timeout=30).content


def test_head_returns_the_length_and_no_body(client, clock, anonymous):
    url = finished(client, clock)["song_url"]
    size = len(anonymous.get(url, timeout=30).content)
    response = anonymous.head(url, timeout=30)
    assert (response.status_code, int(response.headers["Content-Length"]), response.content) == (200, size, b"")


def test_media_of_other_than_finished_jobs_is_404(client, clock, anonymous):
    failed, running = client.make("[sandbox:fail]"), client.make("[sandbox:forever]")
    done = client.make("a song")
    clock.advance(100)
    root = client.sandbox.base_url.removesuffix("/api")
    for path in (
        f"audio/{failed}.wav",
        f"audio/{running}.wav",
        "audio/unknown.wav",
        f"audio/{done}.mp3",
        f"covers/{done}.wav",
        f"{done}.wav",
    ):
        assert anonymous.get(f"{root}/media/{path}", timeout=30).status_code == 404, path
    assert anonymous.get(f"{root}/media/audio/{done}.wav", timeout=30).status_code == 200


def test_a_post_to_media_is_405(client, clock, anonymous):
    response = anonymous.post(finished(client, clock)["song_url"], timeout=30)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")


def test_pages_of_other_sites_may_read_media_unless_the_prompt_forbids_it(client, clock, anonymous):
    for prompt, allowed in {"a song": "*", "a song [sandbox:media-no-cors]": None}.items():
        for url in (finished(client, clock, prompt)[field] for field in ("song_url", "image_url")):
            assert anonymous.get(url, timeout=30).headers.get("Access-Control-Allow-Origin") == allowed


def test_media_redirect_to_the_url_of_the_directive(client, clock, anonymous):
    location = "http://127.0.0.1:1/api/v2/auth/logout?a=b"
    result = finished(client, clock, f"a song [sandbox:media-location={location}]")
    for url in (result["song_url"], result["image_url"]):
        response = anonymous.get(url, timeout=30, allow_redirects=False)
        assert (response.status_code, response.headers["Location"]) == (302, location)


def test_a_location_that_is_no_url_is_refused(client):
    for location in ("javascript:alert(1)", "http://a b", "http://a\r\nX: y"):
        assert client.post(f"a song [sandbox:media-location={location}]").status_code == 400

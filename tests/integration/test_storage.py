"""Landing songs in a folder, from the sandbox's media host and from worse ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException
from packaging.version import Version

from airflow_provider_whisul import media, storage
from airflow_provider_whisul.exceptions import (
    WhisulConnectionError,
    WhisulFileExistsError,
    WhisulInvalidInputError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulServerError,
    WhisulStorageError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.landing import song_name
from airflow_provider_whisul.operators.whisul_storage import WhisulToObjectStorageOperator
from airflow_provider_whisul.sandbox import Sandbox
from tests.support import A_SONG, FakeClock, Proxy, TaskContext, fetched, outcome_of

LARGE = "500MB" if Version(airflow_version) >= Version("3.3") else "150MB"
MOST_GROWTH_KB = 40_000
WAV = b"RIFF\x00\x00\x00\x00WAVE" + bytes(20_000)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(2_000)

Song = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "songs"


@pytest.fixture
def land(store: Path, clock: FakeClock) -> Callable[..., Any]:
    """Run the operator."""

    def land(songs: object, context: TaskContext | None = None, **kwargs: Any) -> Any:
        operator = WhisulToObjectStorageOperator(
            task_id="keep", **{"songs": songs, "destination": f"file://{store}", **kwargs}
        )
        operator.clock = clock.clock
        return (context or TaskContext()).run(operator)

    return land


Make = Callable[..., list[Song]]
Land = Callable[..., Any]


def names(store: Path) -> set[str]:
    return {path.name for path in store.iterdir()} if store.exists() else set()


def assert_whole(store: Path, manifest: Any) -> None:
    """The manifest and the files beside each song are all there, and nothing else is."""
    assert json.loads((store / manifest["manifest"]).read_text()) == manifest
    expected = {manifest["manifest"]}
    for song in manifest["songs"]:
        assert json.loads((store / song["metadata"]).read_text()) == song
        expected.add(song["metadata"])
        for file in (song["audio"], song["cover"]):
            content = (store / file["name"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
            expected.add(file["name"])
    assert names(store) == expected


def test_lands_audio_cover_metadata_and_last_a_manifest(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path
) -> None:
    songs = make_songs("a waltz", "a tango")
    manifest = land(songs)
    assert_whole(store, manifest)
    assert {key: value for key, value in manifest.items() if key not in ("songs", "landed_at")} == {
        "destination": f"file://{store}",
        "manifest": "manifest.json",
        "dag_id": "songs",
        "task_id": "song",
        "run_id": "some-run",
        "map_index": -1,
        "count": 2,
        "failed": [],
    }
    landed = manifest["songs"][0]
    for key in ("job_id", "prompt", "title", "bpm", "duration_seconds", "tags", "started_at", "finished_at"):
        assert landed[key] == songs[0][key]
    assert landed["audio"]["name"].endswith(".wav")
    assert landed["audio"]["content_type"] == "audio/wav"
    assert landed["cover"]["name"].endswith(".png")
    written = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert max(written, key=lambda name: written[name]) == "manifest.json"
    assert [request.status for request in fetched(sandbox)] == [200] * 4


def test_the_media_host_sees_no_key_and_no_netrc(
    sandbox: Sandbox, make_songs: Make, land: Land, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    land(make_songs("a waltz", "a tango [sandbox:media-expired]"))
    assert len(fetched(sandbox)) == 5
    assert {request.authorization for request in fetched(sandbox)} == {"missing"}
    assert not any(request.key_elsewhere for request in sandbox.requests)


def test_no_other_media_host_sees_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not looked for on this machine itself anyway, so that no request is made here."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine media.example login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with media.MediaClient() as client:
        session = client._session()
        assert session.trust_env
        prepared = session.prepare_request(requests.Request("GET", "https://media.example/song"))
    assert "Authorization" not in prepared.headers


def test_takes_what_a_batch_returns_and_says_which_failed(
    make_songs: Make, land: Land, store: Path, task_log: Callable[[], list[str]]
) -> None:
    (song,) = make_songs("a waltz")
    batch = [
        {"prompt": "a waltz", "job_id": song["job_id"], "status": "completed", "track": song, "error": None},
        {"prompt": "a tango", "job_id": "gone", "status": "failed", "track": None, "error": "Out of rhythm."},
    ]
    manifest = land(batch)
    assert_whole(store, manifest)
    assert manifest["count"] == 1
    assert manifest["failed"] == [{"job_id": "gone", "prompt": "a tango", "error": "Out of rhythm."}]
    assert any("Passed over: 'a tango': Out of rhythm." in line for line in task_log())


def test_a_song_that_was_too_much_for_the_batch_is_asked_for(make_songs: Make, land: Land, store: Path) -> None:
    (song,) = make_songs("a waltz")
    result = {"prompt": "a waltz", "job_id": song["job_id"], "status": "completed", "track": None, "error": None}
    manifest = land([result])
    assert_whole(store, manifest)
    assert manifest["songs"][0]["title"] == song["title"]


def test_a_song_whose_title_only_its_job_knew_is_found_when_the_job_is_gone(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path
) -> None:
    (song,) = make_songs("a waltz")
    result = {"prompt": "a waltz", "job_id": song["job_id"], "status": "completed", "track": None, "error": None}
    first = land([result])
    # Of the same job in name only.
    (store / f"mine_{song['job_id']}.json").write_text("{}")
    (store / f"a-b_{song['job_id']}.json").write_text(json.dumps({"job_id": song["job_id"]}))
    sandbox.revoke_key()
    assert land([result])["songs"] == first["songs"]
    assert len(fetched(sandbox)) == 2
    (store / first["songs"][0]["cover"]["name"]).unlink()
    with pytest.raises(WhisulMediaExpiredError):
        land([result])


def test_songs_of_mapped_tasks_and_of_mapped_batches_are_each_landed_once(
    make_songs: Make, land: Land, store: Path
) -> None:
    one, two, three = make_songs("a waltz", "a tango", "a fado")
    manifest = land(iter([[one, two], iter([three, one]), None]))
    assert_whole(store, manifest)
    assert [song["prompt"] for song in manifest["songs"]] == ["a waltz", "a tango", "a fado"]
    assert manifest["failed"][0]["error"] == "The task before returned no song."


def test_two_songs_of_one_title(make_songs: Make, land: Land, store: Path) -> None:
    songs = [{**song, "title": "Con"} for song in make_songs("a waltz", "a tango")]
    manifest = land(songs)
    assert_whole(store, manifest)
    assert len({song["audio"]["name"] for song in manifest["songs"]}) == 2


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ("media-cut", [200, 206]),
        ("media-cut=3", [200, 206, 206, 206]),
        ("media-cut][sandbox:media-no-range", [200, 200]),
        ("media-500=2", [500, 500, 200]),
        ("media-cut][sandbox:media-500", [200, 500, 206]),
        ("media-429", [429, 200]),
        ("media-drop", [None, 200]),
        ("media-html", [200, 200]),
        ("media-empty", [200, 200]),
        ("media-wrong-length", [200, 416, 200]),
        ("media-redirect", [302, 200]),
    ],
)
def test_a_broken_download_is_resumed_or_begun_again(
    sandbox: Sandbox,
    make_songs: Make,
    land: Land,
    store: Path,
    fault: str,
    statuses: list[int | None],
    clock: FakeClock,
) -> None:
    (song,) = make_songs(f"a waltz [sandbox:{fault}]")
    whole = land(song, max_concurrent_downloads=1)
    assert_whole(store, whole)
    assert [request.status for request in fetched(sandbox) if "/audio/" in request.path] == statuses
    assert clock.slept[: len(statuses) - 1] == ([] if 302 in statuses else [2.0**n for n in range(len(statuses) - 1)])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("media-cut=9", "it broke off"),
        ("media-html=9", "no audio (Content-Type 'text/html; charset=utf-8')"),
        ("media-empty=9", "the host sent an empty file"),
        ("media-500=9", "was answered 500"),
        ("media-wrong-length=99", "was answered 416"),
        ("media-redirect=99", "more than 5 redirects"),
    ],
)
def test_what_stays_broken_is_refused_and_leaves_nothing(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path, fault: str, said: str
) -> None:
    (song,) = make_songs(f"a waltz [sandbox:{fault}]")
    with pytest.raises(WhisulMediaError) as raised:
        land(song)
    assert said in str(raised.value)
    assert song["job_id"] in str(raised.value)
    assert not isinstance(raised.value, AirflowFailException)
    assert names(store) == set()


def test_one_that_fails_does_not_lose_the_others_and_a_retry_fetches_only_that(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path
) -> None:
    songs = make_songs("a waltz", "a tango [sandbox:media-500=6]", "a fado")
    songs[1]["image_url"] = songs[0]["image_url"]
    with pytest.raises(WhisulMediaError, match=r"1 of 3 songs are not landed, more than max_failures=0: .*500"):
        land(songs)
    assert len(names(store)) == 6
    assert "manifest.json" not in names(store)
    before = len(fetched(sandbox))
    assert_whole(store, land(songs))
    again = fetched(sandbox)[before:]
    assert [request.path.rpartition("/")[2] for request in again] == [
        f"{songs[1]['job_id']}.wav",
        f"{songs[0]['job_id']}.png",
    ]


def test_some_may_fail_where_the_user_says_so(make_songs: Make, land: Land, store: Path) -> None:
    songs = make_songs("a waltz", "a tango [sandbox:media-gone]")
    manifest = land(songs, max_failures=1)
    assert_whole(store, manifest)
    assert manifest["count"] == 1
    (failed,) = manifest["failed"]
    assert (failed["job_id"], failed["prompt"]) == (songs[1]["job_id"], songs[1]["prompt"])
    assert "was answered 410: the URL has expired" in failed["error"]


class TestExpired:
    def test_a_fresh_url_is_asked_for(self, sandbox: Sandbox, make_songs: Make, land: Land, store: Path) -> None:
        (song,) = make_songs("a waltz [sandbox:media-expired]")
        looks = len(sandbox.requests)
        assert_whole(store, land(song))
        requests = [(request.path.partition("/")[2].partition("/")[0], request.status) for request in sandbox.requests]
        assert requests[looks:] == [("media", 403), ("api", 200), ("media", 200), ("media", 200)]

    @pytest.mark.parametrize(
        ("directive", "said"),
        [
            ("media-gone", "Asking the job again brought the same URL"),
            ("media-expired=9", "Asking the job again brought another URL, which does not work either."),
        ],
    )
    def test_where_there_is_none(self, make_songs: Make, land: Land, store: Path, directive: str, said: str) -> None:
        (song,) = make_songs(f"a waltz [sandbox:{directive}]")
        with pytest.raises(WhisulMediaExpiredError) as raised:
            land(song)
        assert said in str(raised.value)
        assert song["job_id"] in str(raised.value)
        # What signs a URL must not be in a log.
        assert "signature" not in str(raised.value)
        assert isinstance(raised.value, AirflowFailException)
        assert names(store) == set()

    def test_where_the_job_is_gone_too(self, sandbox: Sandbox, make_songs: Make, land: Land) -> None:
        (song,) = make_songs("a waltz")
        song |= {"job_id": "long-gone", "song_url": song["song_url"].replace(song["job_id"], "long-gone")}
        with pytest.raises(WhisulMediaExpiredError, match="brought no other: Whisul answered 404"):
            land(song)

    def test_where_there_never_was_one(self, make_songs: Make, land: Land) -> None:
        (song,) = make_songs("a waltz [sandbox:bare-track]")
        with pytest.raises(WhisulMediaExpiredError, match=f"Job {song['job_id']} came without a URL of its audio"):
            land(song)

    def test_where_the_job_is_another_one_that_runs(self, sandbox: Sandbox, make_songs: Make, land: Land) -> None:
        (song,) = make_songs("a waltz [sandbox:media-gone]")
        song["job_id"] = WhisulHook().generate("[sandbox:forever]")
        with pytest.raises(WhisulMediaExpiredError, match="brought no other: it is running now"):
            land(song)

    def test_where_whisul_cannot_say_now_a_retry_asks_again(
        self, make_songs: Make, land: Land, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (song,) = make_songs("a waltz [sandbox:media-expired]")
        away = {"conn_type": "whisul", "host": "http://127.0.0.1:1", "password": "a-key"}
        with monkeypatch.context() as patched:
            patched.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(away))
            with pytest.raises(WhisulConnectionError) as raised:
                land(song)
        assert not isinstance(raised.value, AirflowFailException)
        assert land(song)["count"] == 1

    def test_where_there_is_no_connection_to_whisul(
        self, make_songs: Make, land: Land, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (song,) = make_songs("a waltz [sandbox:media-expired]")
        with pytest.raises(WhisulMediaExpiredError, match="brought no other: The conn_id `nobody` isn't defined"):
            land(song, whisul_conn_id="nobody")

    def test_where_the_key_is_not_accepted(self, sandbox: Sandbox, make_songs: Make, land: Land) -> None:
        (song,) = make_songs("a waltz [sandbox:media-gone]")
        sandbox.revoke_key()
        with pytest.raises(WhisulMediaExpiredError, match="brought no other: Whisul answered 401"):
            land(song)

    def test_where_only_one_of_two_urls_is_another_now(self, host: Host, make_songs: Make, land: Land) -> None:
        (song,) = make_songs("a waltz [sandbox:media-gone]")
        host.answers["/cover"] = answer(200, PNG)
        # The job names another cover than this, and the same audio.
        with pytest.raises(WhisulMediaExpiredError, match="Asking the job again brought the same URL"):
            land({**song, "image_url": f"{host.url}/cover"})

    def test_where_the_job_has_none_any_more(self, host: Host, make_songs: Make, land: Land) -> None:
        (song,) = make_songs("a waltz [sandbox:bare-track]")
        host.answers |= {"/song": answer(200, WAV), "/gone": answer(404)}
        urls = {"song_url": f"{host.url}/song", "image_url": f"{host.url}/gone"}
        (landed,) = land({**song, **urls})["songs"]
        assert landed["cover"] is None
        assert f"{host.url}/gone, the cover of job {song['job_id']}, was answered 404" in landed["cover_error"]
        assert "Asking the job again brought none." in landed["cover_error"]
        with pytest.raises(WhisulMediaExpiredError, match="/gone, the audio .* Asking the job again brought none"):
            land({**song, "title": "Another", "song_url": urls["image_url"]})

    def test_where_whisul_is_away_it_is_not_asked_for_song_after_song(
        self, host: Host, land: Land, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away = {"conn_type": "whisul", "host": host.url, "password": "a-key"}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(away))
        host.answers = defaultdict(lambda: answer(500), {"/gone": answer(403), "/song": answer(200, WAV)})
        expired = [host.song(f"job-{index}", song_url=f"{host.url}/gone") for index in range(5)]
        with pytest.raises(WhisulServerError, match="5 of 6 songs are not landed") as raised:
            land([*expired, host.song("fine")])
        assert not isinstance(raised.value, AirflowFailException)
        assert len({path for path, _ in host.requests} - {"/gone", "/song"}) == 1
        for song in expired:
            said = f"{host.url}/gone, the audio of job {song['job_id']}, was answered 403: the URL has expired"
            assert said in str(raised.value)
        assert str(raised.value).count("Whisul could not say whether there is another") == 5

    def test_a_song_is_not_given_up_for_its_cover(
        self, sandbox: Sandbox, make_songs: Make, land: Land, store: Path, task_log: Callable[[], list[str]]
    ) -> None:
        (song,) = make_songs("a waltz")
        song["image_url"] = song["image_url"].replace(".png", ".gone")
        # Asking the job would bring one that works.
        song["job_id"] = "another"
        manifest = land(song)
        (landed,) = manifest["songs"]
        assert landed["cover"] is None
        assert ".gone, the cover of job another, was answered 404" in landed["cover_error"]
        assert landed["cover_error"] in task_log()
        assert names(store) == {"manifest.json", landed["metadata"], landed["audio"]["name"]}
        assert [request.status for request in fetched(sandbox)] == [200, 404, 404]


class TestCovers:
    """A song is not given up for its cover."""

    @pytest.mark.parametrize(
        ("body", "content_type", "said"),
        [
            (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", "a file of 41 bytes that is no cover"),
            (b"<!DOCTYPE html>", "text/html", "a file of 15 bytes that is no cover"),
            (b"", "image/png", "an empty file"),
        ],
    )
    def test_that_are_no_picture(
        self, host: Host, land: Land, store: Path, body: bytes, content_type: str, said: str
    ) -> None:
        host.answers["/song"] = answer(200, WAV)
        host.answers["/cover"] = answer(200, body, Content_Type=content_type)
        (landed,) = land(host.song(image_url=f"{host.url}/cover?signature=secret"))["songs"]
        assert landed["cover"] is None
        assert f"the host sent {said} (Content-Type {content_type!r})" in landed["cover_error"]
        assert "secret" not in landed["cover_error"]
        assert names(store) == {"manifest.json", landed["metadata"], landed["audio"]["name"]}
        assert len(host.requests) == 1 + media.MAX_ATTEMPTS

    def test_from_a_host_whose_certificate_cannot_be_verified(self, host: Host, land: Land, self_signed: str) -> None:
        host.answers["/song"] = answer(200, WAV)
        (landed,) = land(host.song(image_url=f"{self_signed}/cover"))["songs"]
        assert landed["cover"] is None
        assert "could not be verified" in landed["cover_error"]

    def test_that_may_come_yet_are_waited_for(self, host: Host, land: Land, store: Path) -> None:
        host.answers |= {"/song": answer(200, WAV), "/cover": answer(500)}
        song = host.song(image_url=f"{host.url}/cover")
        with pytest.raises(WhisulMediaError, match="The cover of job some-job did not come whole"):
            land(song)
        host.answers["/cover"] = answer(200, PNG)
        assert_whole(store, land(song))
        assert [path for path, _ in host.requests].count("/song") == 1


class TestOtherFiles:
    def test_are_not_overwritten(self, sandbox: Sandbox, make_songs: Make, land: Land, store: Path) -> None:
        (song,) = make_songs("a waltz")
        theirs = store / f"{song_name(song)}.wav"
        store.mkdir(parents=True)
        theirs.write_bytes(b"somebody else's")
        with pytest.raises(WhisulFileExistsError, match="is not overwritten"):
            land(song)
        assert theirs.read_bytes() == b"somebody else's"
        assert names(store) == {theirs.name}
        assert_whole(store, land(song, overwrite=True))

    @pytest.mark.parametrize("content", ["{}", "no JSON", "[1]", '{"job_id": "another"}'])
    def test_nor_is_their_metadata(self, make_songs: Make, land: Land, store: Path, content: str) -> None:
        (song,) = make_songs("a waltz")
        store.mkdir(parents=True)
        (store / f"{song_name(song)}.json").write_text(content)
        with pytest.raises(WhisulFileExistsError):
            land(song)
        assert_whole(store, land(song, overwrite=True))

    def test_nor_a_file_of_ours_that_was_changed(self, make_songs: Make, land: Land, store: Path) -> None:
        (song,) = make_songs("a waltz")
        name = land(song)["songs"][0]["audio"]["name"]
        (store / name).write_bytes(b"edited")
        with pytest.raises(WhisulFileExistsError, match=name):
            land(song)
        assert (store / name).read_bytes() == b"edited"

    def test_nor_the_manifest_of_another_run(self, sandbox: Sandbox, make_songs: Make, land: Land, store: Path) -> None:
        songs = make_songs("a waltz", "a tango")
        first = land(songs[0])
        context = TaskContext()
        context.run_id = "another-run"
        before = len(fetched(sandbox))
        with pytest.raises(WhisulFileExistsError, match=r"manifest.json is not of this run.*\{\{ run_id \}\}"):
            land(songs[1], context)
        assert len(fetched(sandbox)) == before
        assert_whole(store, first)
        assert land(songs[1], context, overwrite=True)["run_id"] == "another-run"

    def test_nor_one_that_comes_meanwhile(self, host: Host, land: Land, store: Path) -> None:
        def serve(handler: BaseHTTPRequestHandler) -> None:
            store.mkdir(parents=True)
            (store / "manifest.json").write_text("{}")
            answer(200, WAV)(handler)

        host.answers["/song"] = serve
        with pytest.raises(WhisulFileExistsError, match="is not of this run"):
            land(host.song())
        assert (store / "manifest.json").read_text() == "{}"

    @pytest.mark.parametrize("kind", ["wav", "json"])
    def test_nor_one_of_a_song_s_names_that_comes_meanwhile(
        self, host: Host, land: Land, store: Path, kind: str
    ) -> None:
        theirs = store / f"{song_name(host.song())}.{kind}"

        def serve(handler: BaseHTTPRequestHandler) -> None:
            store.mkdir(parents=True)
            theirs.write_text("somebody else's")
            answer(200, WAV)(handler)

        host.answers["/song"] = serve
        with pytest.raises(WhisulFileExistsError, match=theirs.name):
            land(host.song())
        assert theirs.read_text() == "somebody else's"

    def test_one_that_another_try_of_ours_lands_meanwhile_is_no_other(
        self, host: Host, land: Land, store: Path
    ) -> None:
        def serve(handler: BaseHTTPRequestHandler) -> None:
            host.answers["/song"] = answer(200, WAV)
            land(host.song())
            answer(200, WAV)(handler)

        host.answers["/song"] = serve
        manifest = land(host.song())
        assert names(store) == {
            "manifest.json",
            manifest["songs"][0]["metadata"],
            manifest["songs"][0]["audio"]["name"],
        }

    def test_mapped_tasks_share_a_destination(self, make_songs: Make, land: Land, store: Path) -> None:
        for index, song in enumerate(make_songs("a waltz", "a tango")):
            context = TaskContext()
            context.map_index = index
            assert land(song, context)["manifest"] == f"manifest-{index}.json"
        assert len(names(store)) == 8


def test_a_cleared_task_fetches_nothing_again(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path, clock: FakeClock
) -> None:
    songs = make_songs("a waltz", "a tango")
    first = land(songs)
    clock.now += 60
    second = land(songs)
    assert_whole(store, second)
    assert second["songs"] == first["songs"]
    assert second["landed_at"] > first["landed_at"]
    assert len(fetched(sandbox)) == 4
    (store / first["songs"][0]["cover"]["name"]).unlink()
    assert_whole(store, land(songs))
    assert len(fetched(sandbox)) == 5


def test_what_a_killed_try_left_beside_a_whole_song_is_removed(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path
) -> None:
    (song,) = make_songs("a waltz")
    first = land(song)
    (store / "manifest.json").unlink()
    for left in (".part", ".json.0123abcd.part"):
        (store / f"{song_name(song)}{left}").write_text(json.dumps(first["songs"][0]))
    assert_whole(store, land(song))
    assert len(fetched(sandbox)) == 2


@pytest.mark.parametrize("field", ["title", "tags", "metadata", "cover_error"])
@pytest.mark.parametrize("edit", [{}, {"note": "mine"}, 5])
def test_metadata_that_was_edited_is_not_what_the_task_returns(
    make_songs: Make, land: Land, store: Path, field: str, edit: Any
) -> None:
    (song,) = make_songs("a waltz")
    (first,) = land(song)["songs"]
    edited = {key: value for key, value in first.items() if key != field} | ({field: edit} if edit else {})
    (store / first["metadata"]).write_text(json.dumps(edited))
    assert land(song)["songs"] == [first]


class TestTheEvent:
    def test_carries_what_a_dag_can_start_from(self, make_songs: Make, land: Land, store: Path) -> None:
        from airflow.providers.common.compat.sdk import Asset

        asset = Asset("file://songs/kept")
        events = {asset.uri: Outlet()}
        songs = make_songs("a waltz", "a tango")
        context = TaskContext(outlet_events=ByUri(events))
        land(songs, context, outlets=[asset])
        extra = events[asset.uri].extra
        assert extra == {
            "destination": f"file://{store}",
            "manifest": f"file://{store}/manifest.json",
            "count": 2,
            "failed": 0,
            "titles": [song["title"] for song in songs],
        }


@dataclass
class Outlet:
    extra: dict[str, Any] = field(default_factory=dict)


class ByUri:
    def __init__(self, events: dict[str, Outlet]) -> None:
        self._events = events

    def __getitem__(self, asset: Any) -> Outlet:
        return self._events[asset.uri]


@pytest.mark.parametrize("songs", ["some-job-id", 5, {"no": "song"}, [{"job_id": "../../etc", "song_url": "x"}], b"x"])
def test_what_is_no_song_is_refused(land: Land, store: Path, songs: object) -> None:
    with pytest.raises(WhisulInvalidInputError):
        land(songs)
    assert not store.exists()


@pytest.mark.parametrize("destination", ["", "s3://", "file://relative", "songs", "file:///", None])
def test_what_is_no_folder_is_refused(make_songs: Make, land: Land, destination: object, sandbox: Sandbox) -> None:
    with pytest.raises(WhisulInvalidInputError, match="names no folder"):
        land(make_songs("a waltz"), destination=destination)
    assert fetched(sandbox) == []


def test_a_store_that_no_provider_knows(make_songs: Make, land: Land) -> None:
    with pytest.raises(WhisulStorageError, match="Could not reach nowhere://bucket/songs: No filesystem registered"):
        land(make_songs("a waltz"), destination="nowhere://bucket/songs")


def test_a_path_on_the_worker_is_a_folder(make_songs: Make, land: Land, store: Path) -> None:
    assert_whole(store, land(make_songs("a waltz"), destination=f"{store}/"))


@pytest.mark.parametrize("argument", [{"max_failures": -1}, {"max_concurrent_downloads": 0}])
def test_arguments_that_make_no_sense_are_refused_when_the_dag_is_read(land: Land, argument: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_failures must be 0 or more, max_concurrent_downloads 1 or more"):
        land([], **argument)


# A media host that does what a test says.

Serve = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Host:
    """
    A media host.

    :param url: Its address.
    :param requests: The headers of each request, and its path.
    :param answers: What it does, by path.
    """

    url: str
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answers: dict[str, Serve] = field(default_factory=dict)
    busy: int = 0
    most_busy: int = 0

    def song(self, job_id: str = "some-job", **fields: Any) -> Song:
        return {"job_id": job_id, "title": "Midnight Grid", "song_url": f"{self.url}/song", "image_url": None, **fields}


def answer(status: int, body: bytes = b"", **headers: str) -> Serve:
    def serve(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return serve


def in_turn(*answers: Serve) -> Serve:
    """One after the other; the last one repeats."""
    left = iter(answers)
    return lambda handler: next(left, answers[-1])(handler)


@pytest.fixture
def host() -> Iterator[Host]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                host.requests.append((self.path, dict(self.headers)))
                host.busy += 1
                host.most_busy = max(host.most_busy, host.busy)
            self.close_connection = True
            try:
                host.answers[self.path.partition("?")[0]](self)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with lock:
                    host.busy -= 1

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host = Host(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield host
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "location",
    ["http://media.example/song", "http://169.254.169.254/x", "ftp://127.0.0.1/x", "https://u:p@m.example/x"],
)
def test_a_redirect_that_is_not_to_https_is_not_followed(host: Host, land: Land, store: Path, location: str) -> None:
    host.answers["/song"] = answer(302, Location=location)
    with pytest.raises(WhisulMediaUnsafeError, match=f"The redirect from {host.url}/song of job some-job"):
        land(host.song(song_url=f"{host.url}/song?signature=secret"))
    assert len(host.requests) == 1
    assert names(store) == set()


@pytest.mark.parametrize("url", ["http://media.example/song", "file:///etc/passwd", "https://a:b@media.example/x", "x"])
def test_a_url_that_is_not_https_is_not_fetched(host: Host, land: Land, url: str) -> None:
    with pytest.raises(WhisulMediaUnsafeError, match="of job some-job"):
        land(host.song(song_url=url))


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        # No name of a host may be that long, or have nothing between its dots.
        (f"https://{'a' * 64}.example/x?signature=secret", {}),
        ("/song", {"status": "302", "Location": "https://cdn..example/x?signature=secret"}),
        ("/song", {"Content_Length": "9" * 5000}),
        ("/song", {"Content_Length": "\u00b2"}),
    ],
)
def test_an_odd_answer_does_not_stop_the_other_songs(
    host: Host, land: Land, store: Path, url: str, headers: dict[str, str]
) -> None:
    host.answers["/fine"] = answer(200, WAV)
    host.answers["/song"] = answer(int(headers.pop("status", "200")), WAV, **headers)
    odd = host.song("odd", song_url=url if url.startswith("https") else host.url + url)
    songs = [host.song("one", song_url=f"{host.url}/fine"), odd, host.song("two", song_url=f"{host.url}/fine")]
    manifest = land(songs, max_failures=1, max_concurrent_downloads=1)
    assert [song["job_id"] for song in manifest["songs"]] == ["one", "two"]
    (failed,) = manifest["failed"]
    assert failed["job_id"] == "odd"
    assert "The audio of job odd did not come whole" in failed["error"]
    assert "secret" not in failed["error"]


def test_no_error_and_no_log_line_holds_the_query_of_a_url(
    host: Host, land: Land, task_log: Callable[[], list[str]], clock: FakeClock
) -> None:
    host.answers["/song"] = in_turn(
        answer(500), answer(200, b"RIFF", Content_Length="900"), answer(302, Location="/gone?signature=secret")
    )
    host.answers["/gone"] = answer(404)
    song = host.song(song_url=f"{host.url}/song?signature=secret")
    with pytest.raises(WhisulMediaExpiredError) as raised:
        land(song)
    told: list[str] = list(task_log())
    error: BaseException | None = raised.value
    while error is not None:
        told.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("Going on in" in line for line in told)
    assert not [line for line in told if "secret" in line]


def test_a_host_that_refuses_connections_is_told_without_the_query(host: Host, land: Land) -> None:
    song = host.song(song_url="http://127.0.0.1:1/song?signature=secret")
    with pytest.raises(WhisulMediaError, match=r"no answer from http://127.0.0.1:1/song: Connection refused") as raised:
        land(song)
    error: BaseException | None = raised.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__ or error.__context__


def test_a_file_that_changes_meanwhile_is_begun_again(host: Host, land: Land, store: Path) -> None:
    other = WAV + b"new"
    host.answers["/song"] = in_turn(
        answer(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", ETag='"1"'),
        answer(200, other, Accept_Ranges="bytes", ETag='"2"'),
    )
    (landed,) = land(host.song())["songs"]
    assert (store / landed["audio"]["name"]).read_bytes() == other
    assert host.requests[1][1]["Range"] == "bytes=9000-"
    assert host.requests[1][1]["If-Range"] == '"1"'


@pytest.mark.parametrize(
    "headers", [{"ETag": 'W/"1"', "Accept_Ranges": "bytes"}, {"ETag": '"1"'}, {"ETag": '"1"', "Accept_Ranges": "none"}]
)
def test_nothing_is_resumed_where_the_parts_may_not_fit(host: Host, land: Land, headers: dict[str, str]) -> None:
    host.answers["/song"] = in_turn(
        answer(200, WAV[:9000], Content_Length=str(len(WAV)), **headers), answer(200, WAV, **headers)
    )
    land(host.song())
    assert "Range" not in host.requests[1][1]


@pytest.mark.parametrize(
    "content_range", ["bytes 0-20011/20012", "bytes 9000-20011/30000", "bytes 9000-9999/20012", ""]
)
def test_another_part_than_was_asked_for_is_not_taken(host: Host, land: Land, store: Path, content_range: str) -> None:
    host.answers["/song"] = in_turn(
        answer(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", ETag='"1"'),
        answer(206, WAV[9000:], Content_Range=content_range),
        answer(200, WAV),
    )
    (landed,) = land(host.song())["songs"]
    assert (store / landed["audio"]["name"]).read_bytes() == WAV
    assert len(host.requests) == 3


@pytest.mark.parametrize(
    ("validator", "other"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"ETag": '"1"'}, {"ETag": 'W/"1"'}),
        (
            {"Last_Modified": "Tue, 17 Feb 2026 12:00:00 GMT"},
            {"Last_Modified": "Tue, 17 Feb 2026 12:00:01 GMT"},
        ),
    ],
)
def test_a_part_of_another_version_is_not_taken(
    host: Host, land: Land, store: Path, validator: dict[str, str], other: dict[str, str]
) -> None:
    new = WAV[:12] + b"\x01" * (len(WAV) - 12)
    content_range = f"bytes 9000-{len(WAV) - 1}/{len(WAV)}"
    host.answers["/song"] = in_turn(
        answer(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", **validator),
        answer(206, new[9000:], Content_Range=content_range, **other),
        answer(200, new, **other),
    )
    (landed,) = land(host.song())["songs"]
    assert (store / landed["audio"]["name"]).read_bytes() == new
    assert "Range" not in host.requests[2][1]


@pytest.mark.parametrize("headers", [{}, {"ETag": '"1"'}])
def test_a_part_of_the_same_version_is_taken(host: Host, land: Land, store: Path, headers: dict[str, str]) -> None:
    content_range = f"bytes 9000-{len(WAV) - 1}/{len(WAV)}"
    host.answers["/song"] = in_turn(
        answer(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", ETag='"1"'),
        answer(206, WAV[9000:], Content_Range=content_range, **headers),
    )
    (landed,) = land(host.song())["songs"]
    assert (store / landed["audio"]["name"]).read_bytes() == WAV


def test_more_than_was_said_is_not_taken(host: Host, land: Land, store: Path) -> None:
    host.answers["/song"] = in_turn(
        answer(200, WAV[:9000], Content_Length=str(len(WAV)), Accept_Ranges="bytes", ETag='"1"'),
        answer(206, WAV[9000:] + b"more", Content_Range=f"bytes 9000-{len(WAV) - 1}/{len(WAV)}"),
        answer(416),
        answer(200, WAV),
    )
    (landed,) = land(host.song())["songs"]
    assert (store / landed["audio"]["name"]).read_bytes() == WAV


def test_a_body_of_unknown_length_is_refused(host: Host, land: Land) -> None:
    host.answers["/song"] = answer(200, WAV, Content_Length="")
    with pytest.raises(WhisulMediaError, match="did not say how long the file is"):
        land(host.song())


def test_a_body_that_is_encoded_is_refused(host: Host, land: Land) -> None:
    host.answers["/song"] = answer(200, b"\x1f\x8b\x08 packed", Content_Encoding="gzip", Content_Type="audio/mpeg")
    with pytest.raises(WhisulMediaError, match="came encoded as 'gzip'"):
        land(host.song())
    assert host.requests[0][1]["Accept-Encoding"] == "identity"


def test_no_proxy_is_asked_for_what_is_on_this_machine(
    sandbox: Sandbox, make_songs: Make, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = make_songs("a waltz")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert land(songs)["count"] == 1


def test_songs_come_through_a_proxy(host: Host, land: Land, store: Path, proxy: Proxy) -> None:
    manifest = land(host.song(song_url="https://whisul.test/song.wav?signature=secret"))
    assert (store / manifest["songs"][0]["audio"]["name"]).read_bytes() == A_SONG
    assert [asked for asked, _ in proxy.asked] == ["whisul.test:443"]


def test_a_ca_file_that_is_not_there_is_named(host: Host, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/ca.pem")
    song = host.song(song_url="https://media.example/song?signature=secret")
    with pytest.raises(
        WhisulMediaError, match=r"no answer from https://media.example/song: .*/no/such/ca.pem"
    ) as raised:
        land(song)
    assert "secret" not in str(raised.value)


def test_a_proxy_that_refuses_is_told(host: Host, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", host.url)
    song = host.song(song_url="https://media.example/song?signature=secret")
    with pytest.raises(WhisulMediaError, match=r"no answer from .*: Tunnel connection failed: 501") as raised:
        land(song)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("Could not find a file,\nnamed /x?signature=secret or so"), "Could not find a file, named /x or so"),
        (OSError("no end " * 1000), f"{'no end ' * 28}no e"),
        (OSError(), "OS"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("https://media.example/?signature=secret"), "Timeout"),
    ],
)
def test_why_a_connection_failed_is_told_without_a_query_and_bounded(error: OSError, said: str) -> None:
    assert media._reason(error) == said


@pytest.mark.parametrize("whole", [True, False])
def test_a_chunked_body_is_whole_when_its_end_has_come(host: Host, land: Land, whole: bool) -> None:
    chunk = f"{len(WAV):x}\r\n".encode() + WAV + b"\r\n" + (b"0\r\n\r\n" if whole else b"")
    host.answers["/song"] = answer(200, chunk, Content_Length="", Transfer_Encoding="chunked")
    if whole:
        assert land(host.song())["songs"][0]["audio"]["size"] == len(WAV)
    else:
        with pytest.raises(WhisulMediaError, match="it broke off"):
            land(host.song())


def test_a_host_that_drips_is_given_up(host: Host, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(media, "MAX_ATTEMPTS", 2)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        answer(200, WAV[:100], Content_Length=str(len(WAV)))(handler)
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    host.answers["/song"] = drip
    began = time.monotonic()
    with pytest.raises(WhisulMediaError, match=r"it broke off: only \d+ bytes came in 0 s"):
        land(host.song())
    assert time.monotonic() - began < 1.5


def test_a_host_that_says_nothing_is_given_up(host: Host, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(media, "MAX_ATTEMPTS", 2)
    host.answers["/song"] = lambda handler: time.sleep(0.3)
    with pytest.raises(WhisulMediaError, match=r"no answer from .*: timed out|no answer from .*: Timeout"):
        land(host.song())


def test_no_cookie_is_kept(host: Host, land: Land) -> None:
    host.answers["/song"] = answer(200, WAV, Set_Cookie="who=you; Path=/")
    host.answers["/cover"] = answer(200, PNG)
    land(host.song(image_url=f"{host.url}/cover"))
    assert [path for path, _ in host.requests] == ["/song", "/cover"]
    assert not [headers for _, headers in host.requests if "Cookie" in headers]


def test_a_certificate_that_cannot_be_verified(self_signed: str, host: Host, land: Land) -> None:
    with pytest.raises(Exception, match=r"could not be verified \(self.signed certificate\)") as raised:
        land(host.song(song_url=f"{self_signed}/song?signature=secret"))
    assert type(raised.value).__name__ == "WhisulTLSError"
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("limit", [1, 3])
def test_so_many_downloads_at_once_and_no_more(host: Host, land: Land, limit: int) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.05)
        answer(200, WAV)(handler)

    host.answers["/song"] = slowly
    land([host.song(f"job-{index}") for index in range(8)], max_concurrent_downloads=limit)
    assert host.most_busy == limit


def test_a_task_that_is_ended_ends_its_downloads(
    host: Host, land: Land, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    def endlessly(handler: BaseHTTPRequestHandler) -> None:
        answer(200, WAV, Content_Length=str(1 << 30))(handler)
        ended.set()
        for _ in range(400):
            handler.wfile.write(bytes(1000))
            time.sleep(0.02)

    ended = threading.Event()
    host.answers["/song"] = endlessly

    def end(*args: object, **kwargs: object) -> None:
        ended.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("airflow_provider_whisul.operators.whisul_storage.wait", end)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        land(host.song())
    assert time.monotonic() - began < 5
    assert names(store) == set()


@pytest.mark.parametrize("doing", ["fetching", "waiting"])
def test_on_airflow_3_a_task_is_ended_only_by_on_kill(
    host: Host, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    def endlessly(handler: BaseHTTPRequestHandler) -> None:
        operator.on_kill()
        answer(200, WAV, Content_Length=str(1 << 30))(handler)
        for _ in range(400):
            handler.wfile.write(bytes(1000))
            time.sleep(0.02)

    def busy(handler: BaseHTTPRequestHandler) -> None:
        answer(503, Retry_After="500")(handler)
        threading.Timer(0.2, operator.on_kill).start()

    host.answers["/song"] = endlessly if doing == "fetching" else busy
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    songs = [host.song(f"job-{index}") for index in range(5)]
    # On the system's clock: what is waited out is to be cut short.
    operator = WhisulToObjectStorageOperator(
        task_id="keep", songs=songs, destination=f"file://{store}", max_failures=5, max_concurrent_downloads=2
    )
    began = time.monotonic()
    with pytest.raises(WhisulMediaError, match=r"ended with the task.*no manifest.*fetches only what is missing"):
        TaskContext().run(operator)
    assert time.monotonic() - began < 5
    assert len(host.requests) <= 2
    assert names(store) == set()
    assert not list(tmp_path.glob("whisul-*"))


def test_a_task_that_is_ended_before_it_fetches_does_not_begin(host: Host, store: Path) -> None:
    operator = WhisulToObjectStorageOperator(task_id="keep", songs=host.song(), destination=f"file://{store}")
    operator.on_kill()
    with pytest.raises(WhisulMediaError, match="ended with the task"):
        TaskContext().run(operator)
    assert host.requests == []


# What ends a landing from outside.


Start = Callable[..., "subprocess.Popen[str]"]


def test_killed_midway_nothing_half_looks_whole_and_nothing_is_fetched_twice(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path, start_landing: Start
) -> None:
    done, covered_slowly, slow, slow_cover = make_songs(
        "a waltz", "a tango", "a fado [sandbox:media-slow=60]", "a ska [sandbox:media-slow=60]"
    )
    # Its audio is there when the process dies, its cover is not. Each fault hits covers too.
    covered_slowly["image_url"] = slow_cover["image_url"]
    slow["image_url"] = done["image_url"]
    songs = [done, covered_slowly, slow]
    process = start_landing(songs=songs, destination=f"file://{store}")
    deadline = time.monotonic() + 60
    account = f"{song_name(done)}.json"
    while len(fetched(sandbox)) < 5 or account not in names(store) or f"{song_name(done)}.part" in names(store):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()

    unfinished = {name for name in names(store) if name.endswith(".part")}
    assert unfinished == {f"{song_name(covered_slowly)}.part"}
    whole = {f"{song_name(done)}.{kind}" for kind in ("json", "wav", "png")} | {f"{song_name(covered_slowly)}.wav"}
    assert names(store) - unfinished == whole

    # What a process leaves that is killed while it writes.
    (store / f"{song_name(slow)}.wav.0123abcd.part").write_bytes(b"RIFF half")
    (store / "manifest.json.0123abcd.part").write_bytes(b"{")
    assert_whole(store, land(songs))
    times = Counter(request.path.rpartition("/")[2] for request in fetched(sandbox))
    assert times == {
        f"{done['job_id']}.wav": 1,
        f"{done['job_id']}.png": 2,
        f"{covered_slowly['job_id']}.wav": 1,
        f"{slow_cover['job_id']}.png": 2,
        f"{slow['job_id']}.wav": 2,
    }


def test_a_full_disk_of_the_worker(make_songs: Make, land: Land, store: Path, start_landing: Start) -> None:
    songs = make_songs("a waltz [sandbox:media-size=3MB]")
    outcome = outcome_of(start_landing(songs=songs, destination=f"file://{store}", largest_file=1_000_000))
    assert outcome["error"] == "WhisulStorageError"
    assert "There is no room left. Make room" in outcome["message"]
    assert "on this machine, before it goes to" in outcome["message"]
    assert names(store) == set()
    assert_whole(store, land(songs))


def test_a_full_disk_of_the_store_ends_the_landing(
    sandbox: Sandbox, make_songs: Make, land: Land, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = make_songs(*(f"waltz number {number}" for number in range(20)))
    name = f"{song_name(songs[1])}.wav"
    store.mkdir(parents=True)
    # A file on a disk that is always full.
    (store / f"{name}.ours.part").symlink_to("/dev/full")
    with monkeypatch.context() as patched:
        patched.setattr(storage, "token_hex", lambda _: "ours")
        with pytest.raises(WhisulStorageError) as raised:
            land(songs, max_concurrent_downloads=1)
    assert f"Could not write file://{store}/{name}" in str(raised.value)
    assert "There is no room left. Make room" in str(raised.value)
    # Nothing is fetched that could not be kept.
    assert len(fetched(sandbox)) < len(songs)
    assert {entry for entry in names(store) if entry.startswith(song_name(songs[1]))} == {f"{song_name(songs[1])}.part"}
    assert_whole(store, land(songs))


def test_memory_is_bounded_whatever_the_size(
    make_songs: Make, store: Path, start_landing: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = make_songs("a waltz", f"a symphony [sandbox:media-size={LARGE}]")
    began = time.monotonic()
    outcome = outcome_of(start_landing(songs=songs, destination=f"file://{store}", first=f"file://{store}-first"))
    with capsys.disabled():
        print(f"\nLanding {LARGE}: {outcome['grown'] / 1000:.1f} MB more memory, {time.monotonic() - began:.1f} s")
    assert_whole(store, outcome["manifest"])
    assert outcome["manifest"]["songs"][0]["audio"]["size"] == int(LARGE[:-2]) * 1_000_000
    assert outcome["grown"] < MOST_GROWTH_KB
    (store / outcome["manifest"]["songs"][0]["audio"]["name"]).unlink()

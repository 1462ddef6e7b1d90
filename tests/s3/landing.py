"""
Landing songs in S3: with boto, against moto's server on localhost.

Run by ``make test-s3``; its name keeps it out of a plain ``pytest``, since Amazon's provider asks for other versions of
some packages than Airflow's own are tested with.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_whisul.exceptions import WhisulFileExistsError, WhisulStorageError
from airflow_provider_whisul.landing import song_name
from airflow_provider_whisul.operators.whisul_storage import WhisulToObjectStorageOperator
from airflow_provider_whisul.sandbox import Sandbox
from tests.support import FakeClock, TaskContext, fetched, outcome_of

DESTINATION = "s3://songs_store@songs/night"
LARGE = 500_000_000
#: S3's client holds the pieces of a file that are under way, of 8 MiB each, in several copies.
MOST_GROWTH_KB = 120_000

Make = Callable[..., list[dict[str, Any]]]
Land = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of S3, with an empty bucket."""
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SONGS_STORE", json.dumps(connection))
    credentials = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **credentials)
    client.create_bucket(Bucket="songs")
    yield client
    for key in objects(client):
        client.delete_object(Bucket="songs", Key=key)
    for upload in uploads(client):
        client.abort_multipart_upload(Bucket="songs", Key=upload["Key"], UploadId=upload["UploadId"])
    client.delete_bucket(Bucket="songs")


@pytest.fixture
def land(s3: Any, clock: FakeClock) -> Land:
    def land(songs: object, context: TaskContext | None = None, **kwargs: Any) -> Any:
        operator = WhisulToObjectStorageOperator(
            task_id="keep", **{"songs": songs, "destination": DESTINATION, **kwargs}
        )
        operator.clock = clock.clock
        return (context or TaskContext()).run(operator)

    return land


def objects(s3: Any) -> dict[str, int]:
    return {entry["Key"]: entry["Size"] for entry in s3.list_objects_v2(Bucket="songs").get("Contents", ())}


def uploads(s3: Any) -> list[Any]:
    return list(s3.list_multipart_uploads(Bucket="songs").get("Uploads", ()))


def read(s3: Any, name: str) -> Any:
    return s3.get_object(Bucket="songs", Key=f"night/{name}")


def assert_whole(s3: Any, manifest: Any) -> None:
    """The manifest and what it names are all there, and nothing else is."""
    assert json.loads(read(s3, manifest["manifest"])["Body"].read()) == manifest
    expected = {f"night/{manifest['manifest']}"}
    for song in manifest["songs"]:
        assert json.loads(read(s3, song["metadata"])["Body"].read()) == song
        expected.add(f"night/{song['metadata']}")
        for file in (song["audio"], song["cover"]):
            there = read(s3, file["name"])
            digest = hashlib.sha256()
            for chunk in there["Body"].iter_chunks(1 << 20):
                digest.update(chunk)
            assert (there["ContentLength"], digest.hexdigest()) == (file["size"], file["sha256"])
            expected.add(f"night/{file['name']}")
    assert set(objects(s3)) == expected
    assert uploads(s3) == []


def test_lands_in_a_bucket(sandbox: Sandbox, make_songs: Make, land: Land, s3: Any) -> None:
    manifest = land(make_songs("a waltz", "a tango [sandbox:media-cut]", "a fado [sandbox:media-expired]"))
    assert_whole(s3, manifest)
    assert manifest["destination"] == "s3://songs/night"
    assert manifest["count"] == 3
    # Browsers and players go by it.
    assert read(s3, manifest["songs"][0]["audio"]["name"])["ContentType"] in ("audio/wav", "audio/x-wav")
    assert read(s3, manifest["songs"][0]["cover"]["name"])["ContentType"] == "image/png"
    assert read(s3, "manifest.json")["ContentType"] == "application/json"
    assert not any(request.key_elsewhere for request in sandbox.requests)


def test_takes_the_connection_as_an_argument(make_songs: Make, land: Land, s3: Any) -> None:
    assert_whole(s3, land(make_songs("a waltz"), destination="s3://songs/night/", storage_conn_id="songs_store"))


def test_a_retry_fetches_only_what_is_missing(sandbox: Sandbox, make_songs: Make, land: Land, s3: Any) -> None:
    songs = make_songs("a waltz", "a tango")
    first = land(songs)
    s3.delete_object(Bucket="songs", Key=f"night/{first['songs'][0]['cover']['name']}")
    before = len(fetched(sandbox))
    assert_whole(s3, land(songs))
    assert [request.path.rpartition("/")[2] for request in fetched(sandbox)[before:]] == [f"{songs[0]['job_id']}.png"]


def test_an_object_of_others_is_not_overwritten(make_songs: Make, land: Land, s3: Any) -> None:
    (song,) = make_songs("a waltz")
    key = f"night/{song_name(song)}.wav"
    s3.put_object(Bucket="songs", Key=key, Body=b"somebody else's")
    with pytest.raises(WhisulFileExistsError, match=key):
        land(song)
    assert objects(s3) == {key: 15}
    assert_whole(s3, land(song, overwrite=True))


def test_a_bucket_that_does_not_exist_is_not_made(make_songs: Make, land: Land, s3: Any) -> None:
    with pytest.raises(WhisulStorageError, match="The folder, or the bucket, does not exist"):
        land(make_songs("a waltz"), destination="s3://songs_store@sonsg/night")
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["songs"]


def test_a_store_that_cannot_be_reached(make_songs: Make, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {
        "endpoint_url": "http://127.0.0.1:1",
        "region_name": "us-east-1",
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }
    connection = {"conn_type": "aws", "login": "testing", "password": "hunter22", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", json.dumps(connection))
    with pytest.raises(WhisulStorageError, match="Could not list s3://songs/night") as raised:
        land(make_songs("a waltz"), destination="s3://away@songs/night")
    assert "hunter22" not in str(raised.value)


def test_killed_midway_nothing_half_looks_whole_and_nothing_is_fetched_twice(
    sandbox: Sandbox, make_songs: Make, land: Land, s3: Any, start_landing: Start
) -> None:
    done, large, slow = make_songs("a waltz", "a symphony [sandbox:media-size=200MB]", "a fado [sandbox:media-slow=60]")
    slow["image_url"] = done["image_url"]
    songs = [done, large, slow]
    process = start_landing(songs=songs, destination=DESTINATION)
    deadline = time.monotonic() + 60
    # In the middle of the upload of one, and of the download of another.
    while len(fetched(sandbox)) < 4 or not uploads(s3) or f"night/{song_name(done)}.json" not in objects(s3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    # What notes the files of the song that is whole goes last, here or in the next try.
    left = set(objects(s3)) - {f"night/{song_name(done)}.part"}
    account = f"night/{song_name(large)}.part"
    assert left == {account, *(f"night/{song_name(done)}.{kind}" for kind in ("json", "wav", "png"))}

    # What S3 keeps of an upload that never ended shows to nobody; a rule of the bucket removes it.
    for upload in uploads(s3):
        s3.abort_multipart_upload(Bucket="songs", Key=upload["Key"], UploadId=upload["UploadId"])
    assert_whole(s3, land(songs))
    times = Counter(request.path.rpartition("/")[2] for request in fetched(sandbox))
    assert times == {
        f"{done['job_id']}.wav": 1,
        f"{done['job_id']}.png": 2,
        f"{large['job_id']}.wav": 2,
        f"{large['job_id']}.png": 1,
        f"{slow['job_id']}.wav": 2,
    }


def test_memory_is_bounded_whatever_the_size(
    make_songs: Make, s3: Any, start_landing: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = make_songs("a waltz", f"a symphony [sandbox:media-size={LARGE}]")
    began = time.monotonic()
    outcome = outcome_of(start_landing(songs=songs, destination=DESTINATION, first=f"{DESTINATION}-first"))
    with capsys.disabled():
        print(
            f"\nLanding {LARGE:,} bytes: {outcome['grown'] / 1000:.1f} MB more memory, {time.monotonic() - began:.1f} s"
        )
    assert objects(s3)[f"night/{song_name(songs[1])}.wav"] == LARGE
    assert outcome["grown"] < MOST_GROWTH_KB

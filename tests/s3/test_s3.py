"""
Storing songs in S3: with boto, against moto's server on localhost.

In an environment of its own, since Amazon's provider needs other versions of some packages than Airflow's constraints.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulFileExistsError, WhisulStorageError
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.storage.songs import song_name
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock
from tests.support.s3 import list_objects, list_uploads
from tests.support.servers import fetched, outcome_of

DESTINATION = "s3://songs_store@songs/night"
LARGE = 500_000_000
#: S3's client holds several copies of each chunk of 8 MiB that it sends.
MAX_GROWTH_KB = 120_000

MakeSongs = Callable[..., list[dict[str, Any]]]
Transfer = Callable[..., Any]
StartTransfer = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def transfer(s3: Any, clock: FakeClock) -> Transfer:
    """Run the operator on the test's clock, and return the manifest."""

    def transfer(songs: object, context: TaskContext | None = None, **kwargs: Any) -> Any:
        operator = WhisulToObjectStorageOperator(
            task_id="keep", **{"songs": songs, "destination": DESTINATION, **kwargs}
        )
        operator.clock = clock.clock
        return (context or TaskContext()).run(operator)

    return transfer


def read(s3: Any, name: str) -> Any:
    return s3.get_object(Bucket="songs", Key=f"night/{name}")


def assert_complete(s3: Any, manifest: Any) -> None:
    """Check that the bucket holds the manifest and all files that it names, and nothing else."""
    assert json.loads(read(s3, manifest["manifest"])["Body"].read()) == manifest
    expected = {f"night/{manifest['manifest']}"}
    for song in manifest["songs"]:
        assert json.loads(read(s3, song["metadata"])["Body"].read()) == song
        expected.add(f"night/{song['metadata']}")
        for file in (song["audio"], song["cover"]):
            stored = read(s3, file["name"])
            digest = hashlib.sha256()
            for chunk in stored["Body"].iter_chunks(1 << 20):
                digest.update(chunk)
            assert (stored["ContentLength"], digest.hexdigest()) == (file["size"], file["sha256"])
            expected.add(f"night/{file['name']}")
    assert set(list_objects(s3)) == expected
    assert list_uploads(s3) == []


def test_songs_are_stored_in_a_bucket_with_their_content_types(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, s3: Any
) -> None:
    manifest = transfer(make_songs("a waltz", "a tango [sandbox:media-cut]", "a fado [sandbox:media-expired]"))
    assert_complete(s3, manifest)
    assert manifest["destination"] == "s3://songs/night"
    assert manifest["count"] == 3
    # Browsers and players decide by it.
    assert read(s3, manifest["songs"][0]["audio"]["name"])["ContentType"] in ("audio/wav", "audio/x-wav")
    assert read(s3, manifest["songs"][0]["cover"]["name"])["ContentType"] == "image/png"
    assert read(s3, "manifest.json")["ContentType"] == "application/json"
    assert not any(request.key_elsewhere for request in sandbox.requests)


def test_the_connection_may_be_an_argument(make_songs: MakeSongs, transfer: Transfer, s3: Any) -> None:
    manifest = transfer(make_songs("a waltz"), destination="s3://songs/night/", storage_conn_id="songs_store")
    assert_complete(s3, manifest)


def test_a_retry_downloads_only_the_song_that_is_not_complete(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, s3: Any
) -> None:
    songs = make_songs("a waltz", "a tango")
    first = transfer(songs)
    s3.delete_object(Bucket="songs", Key=f"night/{first['songs'][0]['cover']['name']}")
    before = len(fetched(sandbox))
    assert_complete(s3, transfer(songs))
    assert [request.path.rpartition("/")[2] for request in fetched(sandbox)[before:]] == [
        f"{songs[0]['job_id']}.wav",
        f"{songs[0]['job_id']}.png",
    ]


def test_an_object_with_the_name_of_a_song_s_file_is_replaced(
    make_songs: MakeSongs, transfer: Transfer, s3: Any
) -> None:
    (song,) = make_songs("a waltz")
    s3.put_object(Bucket="songs", Key=f"night/{song_name(song)}.wav", Body=b"half a song")
    assert_complete(s3, transfer(song))


def test_the_manifest_of_another_run_is_not_overwritten(make_songs: MakeSongs, transfer: Transfer, s3: Any) -> None:
    songs = make_songs("a waltz", "a tango")
    first = transfer(songs[0])
    context = TaskContext()
    context.run_id = "another-run"
    with pytest.raises(WhisulFileExistsError, match="s3://songs/night/manifest.json is the manifest of another run"):
        transfer(songs[1], context)
    assert_complete(s3, first)
    assert transfer(songs[1], context, overwrite=True)["run_id"] == "another-run"


def test_two_tries_of_one_task_at_once_both_succeed(make_songs: MakeSongs, transfer: Transfer, s3: Any) -> None:
    songs = make_songs("a waltz", "a tango", "a fado")
    start = threading.Barrier(2)

    def run(number: int) -> Any:
        start.wait(60)
        return transfer(songs)

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(run, range(2))
        assert one == two
        assert_complete(s3, one)
        for key in list_objects(s3):
            s3.delete_object(Bucket="songs", Key=key)


def test_a_bucket_that_does_not_exist_is_an_error_and_is_not_created(
    make_songs: MakeSongs, transfer: Transfer, s3: Any
) -> None:
    with pytest.raises(WhisulStorageError, match="The folder or the bucket does not exist"):
        transfer(make_songs("a waltz"), destination="s3://songs_store@sonsg/night")
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["songs"]


def test_the_error_of_a_store_that_cannot_be_reached_holds_no_password(
    make_songs: MakeSongs, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {
        "endpoint_url": "http://127.0.0.1:1",
        "region_name": "us-east-1",
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }
    connection = {"conn_type": "aws", "login": "testing", "password": "hunter22", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_UNREACHABLE", json.dumps(connection))
    with pytest.raises(WhisulStorageError, match="Could not list s3://songs/night") as raised:
        transfer(make_songs("a waltz"), destination="s3://unreachable@songs/night")
    assert "hunter22" not in str(raised.value)


def test_a_killed_process_leaves_no_incomplete_object_and_a_retry_downloads_only_what_is_not_complete(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, s3: Any, start_transfer: StartTransfer
) -> None:
    done, large, slow = make_songs("a waltz", "a symphony [sandbox:media-size=200MB]", "a fado [sandbox:media-slow=60]")
    slow["image_url"] = done["image_url"]
    songs = [done, large, slow]
    process = start_transfer(songs=songs, destination=DESTINATION)
    deadline = time.monotonic() + 60
    # It is killed during the upload of one song, and the download of another.
    while len(fetched(sandbox)) < 4 or not list_uploads(s3) or f"night/{song_name(done)}.json" not in list_objects(s3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert set(list_objects(s3)) == {f"night/{song_name(done)}.{kind}" for kind in ("json", "wav", "png")}

    # S3 keeps the parts of an incomplete upload, and shows them to nobody. A rule of the bucket removes them.
    for upload in list_uploads(s3):
        s3.abort_multipart_upload(Bucket="songs", Key=upload["Key"], UploadId=upload["UploadId"])
    assert_complete(s3, transfer(songs))
    assert Counter(request.path.rpartition("/")[2] for request in fetched(sandbox)) == {
        f"{done['job_id']}.wav": 1,
        # For the song itself, and as the cover of the slow one.
        f"{done['job_id']}.png": 2,
        f"{large['job_id']}.wav": 2,
        f"{large['job_id']}.png": 1,
        f"{slow['job_id']}.wav": 2,
    }


def test_memory_is_bounded_for_a_file_of_any_size(
    make_songs: MakeSongs, s3: Any, start_transfer: StartTransfer, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = make_songs("a waltz", f"a symphony [sandbox:media-size={LARGE}]")
    began = time.monotonic()
    outcome = outcome_of(start_transfer(songs=songs, destination=DESTINATION, warm_up=f"{DESTINATION}-first"))
    with capsys.disabled():
        print(f"\nStoring {LARGE:,} bytes: {outcome['grown_kb'] / 1000:.1f} MB more, {time.monotonic() - began:.1f} s")
    assert list_objects(s3)[f"night/{song_name(songs[1])}.wav"] == LARGE
    assert outcome["grown_kb"] < MAX_GROWTH_KB

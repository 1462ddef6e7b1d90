"""Media URLs that do not work, or no longer work: the song's job is polled again for others."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import WhisulConnectionError, WhisulMediaExpiredError, WhisulServerError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.storage.helpers import (
    PNG,
    WAV,
    MakeSongs,
    MediaHost,
    Transfer,
    assert_complete,
    file_names,
    respond,
)
from tests.support.clock import FakeClock
from tests.support.servers import fetched


def test_a_new_url_of_the_job_is_used(
    sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer, folder: Path
) -> None:
    (song,) = make_songs("a waltz [sandbox:media-expired]")
    before = len(sandbox.requests)
    assert_complete(folder, transfer(song))
    requests = [(request.path.partition("/")[2].partition("/")[0], request.status) for request in sandbox.requests]
    assert requests[before:] == [("media", 403), ("api", 200), ("media", 200), ("media", 200)]


def test_only_the_file_whose_url_has_expired_is_downloaded_after_the_poll(
    sandbox: Sandbox, host: MediaHost, make_songs: MakeSongs, transfer: Transfer, folder: Path
) -> None:
    (song,) = make_songs("a waltz")
    host.responses |= {"/song": respond(200, WAV), "/gone": respond(403)}
    assert_complete(folder, transfer({**song, "song_url": f"{host.url}/song", "image_url": f"{host.url}/gone"}))
    assert [path for path, _ in host.requests] == ["/song", "/gone"]
    assert [request.path.rpartition("/")[2] for request in fetched(sandbox)] == [f"{song['job_id']}.png"]


class TestTheTaskFailsWithoutRetries:
    @pytest.mark.parametrize(
        ("directive", "message"),
        [
            ("media-gone", "Polling the job again returned the same URL"),
            ("media-expired=9", "Polling the job again returned another URL, which does not work either."),
        ],
    )
    def test_where_the_url_of_the_job_does_not_work(
        self, make_songs: MakeSongs, transfer: Transfer, folder: Path, directive: str, message: str
    ) -> None:
        (song,) = make_songs(f"a waltz [sandbox:{directive}]")
        with pytest.raises(WhisulMediaExpiredError) as raised:
            transfer(song)
        assert message in str(raised.value)
        assert song["job_id"] in str(raised.value)
        # The signature of a URL must not be logged.
        assert "signature" not in str(raised.value)
        assert isinstance(raised.value, AirflowFailException)
        assert file_names(folder) == set()

    def test_where_the_job_does_not_exist(self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer) -> None:
        (song,) = make_songs("a waltz")
        song |= {"job_id": "long-gone", "song_url": song["song_url"].replace(song["job_id"], "long-gone")}
        with pytest.raises(WhisulMediaExpiredError, match="returned no other URL: Whisul has no such job"):
            transfer(song)

    def test_where_the_job_has_no_url(self, make_songs: MakeSongs, transfer: Transfer) -> None:
        (song,) = make_songs("a waltz [sandbox:bare-track]")
        with pytest.raises(WhisulMediaExpiredError, match=f"The song of job {song['job_id']} has no URL of its audio"):
            transfer(song)

    def test_where_the_job_is_running(self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer) -> None:
        (song,) = make_songs("a waltz [sandbox:media-gone]")
        song["job_id"] = WhisulHook().generate("[sandbox:forever]")
        with pytest.raises(WhisulMediaExpiredError, match="returned no other URL: its status is running"):
            transfer(song)

    def test_where_the_connection_to_whisul_does_not_exist(self, make_songs: MakeSongs, transfer: Transfer) -> None:
        (song,) = make_songs("a waltz [sandbox:media-expired]")
        with pytest.raises(
            WhisulMediaExpiredError, match="returned no other URL: There is no Airflow connection 'nobody'"
        ):
            transfer(song, whisul_conn_id="nobody", allow_private_media=True)

    def test_where_the_api_key_is_not_accepted(
        self, sandbox: Sandbox, make_songs: MakeSongs, transfer: Transfer
    ) -> None:
        (song,) = make_songs("a waltz [sandbox:media-gone]")
        sandbox.revoke_key()
        with pytest.raises(WhisulMediaExpiredError, match="returned no other URL: Whisul does not accept the API key"):
            transfer(song)

    def test_where_only_the_cover_has_another_url(
        self, host: MediaHost, make_songs: MakeSongs, transfer: Transfer
    ) -> None:
        (song,) = make_songs("a waltz [sandbox:media-gone]")
        host.responses["/cover"] = respond(200, PNG)
        # The job has another cover than this, and the same audio.
        with pytest.raises(WhisulMediaExpiredError, match="Polling the job again returned the same URL"):
            transfer({**song, "image_url": f"{host.url}/cover"})

    def test_where_the_job_has_no_url_any_more(
        self, host: MediaHost, make_songs: MakeSongs, transfer: Transfer
    ) -> None:
        (song,) = make_songs("a waltz [sandbox:bare-track]")
        host.responses["/gone"] = respond(404)
        with pytest.raises(
            WhisulMediaExpiredError, match="/gone, the audio of .* Polling the job again returned no URL"
        ):
            transfer({**song, "song_url": f"{host.url}/gone"})


class TestDuringAnOutageOfWhisul:
    def test_the_task_fails_and_a_retry_polls_the_job_again(
        self, make_songs: MakeSongs, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (song,) = make_songs("a waltz [sandbox:media-expired]")
        unreachable = {"conn_type": "whisul", "host": "http://127.0.0.1:1", "password": "a-key"}
        with monkeypatch.context() as patched:
            patched.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(unreachable))
            with pytest.raises(WhisulConnectionError) as raised:
                transfer(song, allow_private_media=True)
        assert not isinstance(raised.value, AirflowFailException)
        assert transfer(song)["count"] == 1

    def test_only_one_job_is_polled(self, host: MediaHost, transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
        failing = {"conn_type": "whisul", "host": host.url, "password": "a-key"}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(failing))
        host.responses = defaultdict(lambda: respond(500), {"/gone": respond(403), "/song": respond(200, WAV)})
        expired = [host.song(f"job-{index}", song_url=f"{host.url}/gone") for index in range(5)]
        with pytest.raises(WhisulServerError, match="5 of 6 songs could not be stored") as raised:
            transfer([*expired, host.song("fine")])
        assert not isinstance(raised.value, AirflowFailException)
        assert len({path for path, _ in host.requests} - {"/gone", "/song"}) == 1
        for song in expired:
            message = f"The media host answered 403 to {host.url}/gone, the audio of job {song['job_id']}: the URL has"
            assert message in str(raised.value)
        assert str(raised.value).count("Whisul did not say whether there is another URL") == 5


def test_a_404_about_a_job_is_lived_through_for_a_minute(
    sandbox: Sandbox, host: MediaHost, clock: FakeClock, transfer: Transfer, folder: Path
) -> None:
    job_id = WhisulHook(clock=clock.clock).generate("a waltz [sandbox:get-404=2]")
    clock.now += 100
    host.responses |= {"/gone": respond(403)}
    assert_complete(folder, transfer(host.song(job_id, song_url=f"{host.url}/gone")))
    assert [request.status for request in sandbox.requests if "/jobs/" in request.path] == [404, 404, 200]


def test_a_job_that_is_gone_costs_a_minute_and_the_next_ones_none(
    host: MediaHost, clock: FakeClock, transfer: Transfer, sandbox: Sandbox
) -> None:
    host.responses |= {"/gone": respond(403)}
    began = clock.now
    with pytest.raises(WhisulMediaExpiredError):
        transfer([host.song(f"gone-{number}", song_url=f"{host.url}/gone") for number in range(5)])
    assert 60 <= clock.now - began < 90

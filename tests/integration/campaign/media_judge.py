"""What must hold after each try of storing songs, read from the files on disk, the sandbox's log and how it ended."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

from airflow_provider_whisul.exceptions import WhisulError, WhisulMediaError
from airflow_provider_whisul.sandbox import Sandbox, media
from airflow_provider_whisul.storage.downloader import MAX_ATTEMPTS
from airflow_provider_whisul.storage.object_store import TEMPORARY_SUFFIX
from tests.integration.campaign.media_world import MAX_TRIES, STALL_SECONDS, MediaBatch
from tests.integration.campaign.world import KEY

#: Seconds of the machine within which a stopped try has ended, and that any try may take beside its stalls.
STOP_SECONDS = 10.0
TRY_SECONDS = 30.0

#: What a media host answers where a URL does not work.
REFUSED = {403, 404, 410}

NAME = re.compile(r"[a-z0-9-]+_([0-9a-f-]{36})\.(wav|png|json)")


class MediaJudge:
    """
    What must hold for the last try of a batch.

    :param batch: The batch.
    :param sandbox: The sandbox that it is from.
    """

    def __init__(self, batch: MediaBatch, sandbox: Sandbox) -> None:
        self.batch = batch
        self.this = batch.tries[-1]
        self.sandbox = sandbox
        self.files = batch.content()
        self.described = batch.described

    def judge(self) -> None:
        """Raise an ``AssertionError`` where something does not hold."""
        self._files_are_whole()
        self._descriptions_name_whole_files()
        self._nothing_is_outside_the_destination()
        self._a_try_loses_nothing()
        self._a_failed_song_is_named_and_loses_no_other()
        self._a_manifest_tells_of_every_song()
        self._a_stopped_try_ends_at_once()
        self._a_try_ends_in_time()
        self._requests_are_bounded()
        self._the_key_is_nowhere()
        self._all_that_can_be_stored_is_stored_in_the_end()

    def _right_content(self, job_id: str, kind: str) -> bytes:
        job = self.sandbox.jobs[job_id]
        if kind == "png":
            return media.cover(job_id)
        song = media.song(job_id, job.bpm, job.seconds)
        return song + b"\x80" * (job.directives.media_size - len(song))

    def _files_are_whole(self) -> None:
        for name, content in self.files.items():
            match = NAME.fullmatch(name)
            if match is not None and match[2] != "json":
                assert content == self._right_content(match[1], match[2]), f"{name} is not whole"

    def _descriptions_name_whole_files(self) -> None:
        songs = [json.loads(content) for name, content in self.files.items() if NAME.fullmatch(name) and "json" in name]
        if "manifest.json" in self.files:
            songs += json.loads(self.files["manifest.json"])["songs"]
        for song in songs:
            assert song["audio"] is not None
            for file in (song["audio"], song["cover"]):
                if file is not None:
                    content = self.files[file["name"]]
                    assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])

    def _nothing_is_outside_the_destination(self) -> None:
        folder = self.batch.folder
        assert {path.name for path in self.batch.root.iterdir()} <= {"stored", "tmp"}
        assert {path for path in self.batch.root.joinpath("stored").rglob("*") if not path.is_relative_to(folder)} <= {
            folder
        }
        job_ids = {song["job_id"] for song in self.batch.songs}
        kills = any(this.kind == "killed" for this in self.batch.tries)
        for name in self.files:
            match = NAME.fullmatch(name)
            part = kills and name.endswith(TEMPORARY_SUFFIX)
            assert name == "manifest.json" or part or (match is not None and match[1] in job_ids), name
        # Only a killed process leaves files: in its temporary folder, and where it was replacing one.
        left = [path for path in self.batch.temporary.rglob("whisul-*/*") if path.is_file()]
        assert not left or (kills and not self.batch.unnamed), left
        if self.this.kind == "alone":
            assert not [name for name in self.files if name.endswith(TEMPORARY_SUFFIX)]
        if not kills:
            assert not list(self.batch.temporary.glob("whisul-*"))

    def _a_try_loses_nothing(self) -> None:
        lost = {name for name in self.this.files_before if not name.endswith(TEMPORARY_SUFFIX)} - set(self.files)
        assert not lost, f"{lost} were there before the try"

    def _a_failed_song_is_named_and_loses_no_other(self) -> None:
        error = self.this.error
        if self.this.kind == "killed" or (error is None and self.this.manifest is not None):
            return
        assert isinstance(error, WhisulError), error
        if self._was_stopped():
            return
        assert isinstance(error, WhisulMediaError), error
        for song in self.batch.songs:
            if song["job_id"] not in self.described:
                assert song["job_id"] in str(error), f"{song['prompt']} is missing, and not named: {error}"
        assert self._flawless() <= self.described

    def _a_manifest_tells_of_every_song(self) -> None:
        manifest = self.this.manifest
        if manifest is None:
            return
        failed = [song["job_id"] for song in manifest["failed"]]
        stored = [song["job_id"] for song in manifest["songs"]]
        assert Counter(failed + stored) == Counter(song["job_id"] for song in self.batch.songs)
        assert len(failed) <= self.batch.max_failures
        # A song that was not even tried has not failed.
        assert not [song for song in manifest["failed"] if "stopped" in song["error"]]
        assert self._flawless() <= set(stored) <= self.described
        if self.this.kind != "twice":
            assert json.loads(self.files["manifest.json"]) == manifest

    def _flawless(self) -> set[str]:
        return {job_id for job_id, faults in self.batch.faults.items() if not faults}

    def _was_stopped(self) -> bool:
        return "stopped with the task" in str(self.this.error)

    def _a_stopped_try_ends_at_once(self) -> None:
        if self.this.seconds_to_stop is None:
            return
        assert self.this.seconds_to_stop < STOP_SECONDS
        # Each download may have been about to send one.
        assert self.this.requests_to_stop <= self.batch.max_concurrent_downloads
        if self._was_stopped():
            assert self.files.get("manifest.json") == self.this.files_before.get("manifest.json")

    def _a_try_ends_in_time(self) -> None:
        stalls = sum(request.fault in ("media-stall", "media-drip") for request in self.this.requests)
        assert self.this.seconds < TRY_SECONDS + 2 * stalls * (STALL_SECONDS + 0.1)

    def _requests_are_bounded(self) -> None:
        of_files = [request for request in self.this.requests if request.path.startswith("/media")]
        # A file that has only just been made is waited for, and a redirect is part of an attempt.
        counts = Counter(
            request.path.partition("?")[0] for request in of_files if request.status not in REFUSED | {302}
        )
        # After a refusal the job is polled again, and its new URLs have six attempts of their own.
        refused = {request.job_id for request in of_files if request.status in REFUSED}
        for path, count in counts.items():
            urls = 2 if any(str(job_id) in path for job_id in refused) else 1
            tries = 2 if self.this.kind == "twice" else 1
            assert count <= MAX_ATTEMPTS * urls * tries, f"{path} was requested {count} times"

    def _the_key_is_nowhere(self) -> None:
        for request in self.this.requests:
            assert not request.key_elsewhere, request
            assert request.authorization == ("missing" if self._is_of_a_file(request) else "ok"), request
        for text in [*self.this.texts, *(content.decode("latin-1") for content in self._written())]:
            assert KEY not in text

    def _is_of_a_file(self, request: Any) -> bool:
        # The second one is where a hostile host redirects to.
        return request.path.startswith("/media") or request.path == "/api/jobs/some-job"

    def _written(self) -> list[bytes]:
        return [content for name, content in self.files.items() if name.endswith(".json")]

    def _all_that_can_be_stored_is_stored_in_the_end(self) -> None:
        if len(self.batch.tries) == MAX_TRIES:
            assert self.batch.storable <= self.described

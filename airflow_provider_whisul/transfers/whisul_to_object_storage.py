"""The transfer of songs from Whisul to object storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID
from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulFileExistsError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulStorageError,
)
from airflow_provider_whisul.operators.base import WhisulTaskMixin
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.storage.manifest import (
    Manifest,
    SkippedSong,
    StoredSong,
    event_extra,
    is_of_same_task,
    manifest_name,
)
from airflow_provider_whisul.storage.media_types import Role
from airflow_provider_whisul.storage.songs import URL_FIELDS, merge_songs, read_songs, song_name
from airflow_provider_whisul.text import quote

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.storage.downloader import Downloader
    from airflow_provider_whisul.storage.object_store import ObjectStore
    from airflow_provider_whisul.storage.song_transfer import SongTransfer

#: How many songs an error names. The task's log names all of them.
MAX_NAMED_SONGS = 20

Failure = tuple[Song, WhisulError]


class WhisulToObjectStorageOperator(WhisulTaskMixin, BaseOperator):
    """
    Stores songs in object storage: the audio and cover of each song, its metadata, and last of all a manifest.

    All files that the manifest names are complete. A later try downloads only the songs that are missing. The transfer
    costs no credits, and never sends the API key to the media host.

    :param songs: The songs: what the operator, the sensor or the batch operator return, one or many (templated). Failed
        songs are skipped; the log and the manifest name them.
    :param destination: The folder, as ``ObjectStoragePath`` takes it: ``s3://bucket/songs/{{ run_id }}``,
        ``file:///data/songs/{{ ds }}``, … (templated). Each run needs a folder of its own.
    :param storage_conn_id: The Airflow connection of the store. None for the connection in ``destination``
        (``s3://connection@bucket/…``), or else the worker's environment (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key. It is used where a URL has expired, to poll
        the song's job for another one (templated).
    :param max_failures: How many songs may fail to be stored before the task fails.
    :param max_concurrent_downloads: How many songs are downloaded at once. Each needs space for its files in the
        worker's temporary folder.
    :param overwrite: Whether the manifest of another run in the same folder may be replaced.
    :return: The manifest, as in ``manifest.json``: a dict of ``destination``, ``manifest``, ``dag_id``, ``task_id``,
        ``run_id``, ``map_index``, ``stored_at`` (ISO 8601, UTC), ``count``, ``songs`` and ``failed``. Each of ``songs``
        has the song's metadata, and ``audio`` and ``cover`` (None if it has none) with ``name``, ``size`` (bytes),
        ``sha256`` and ``content_type``. Each of ``failed`` has ``job_id``, ``prompt`` and ``error``.
    :raises ValueError: When the DAG file is read: an argument is out of range.
    :raises WhisulInvalidInputError: ``songs`` holds something else, or ``destination`` does not name a folder.
    :raises WhisulMediaError: More than ``max_failures`` songs could not be downloaded. The others are stored.
    :raises WhisulMediaExpiredError: The same, where no retry helps: the songs' URLs do not work, and polling their jobs
        again returned no others.
    :raises WhisulFileExistsError: The manifest of another run is in the folder.
    :raises WhisulStorageError: The store cannot be read or written; for example, there is no space left.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.

    With ``outlets``, their asset events carry ``destination``, ``manifest`` (its URL), ``count``, ``failed`` and the
    first ``titles``.
    """

    template_fields: Sequence[str] = ("songs", "destination", "storage_conn_id", "whisul_conn_id")
    ui_color = "#dcf2e3"

    def __init__(
        self,
        *,
        songs: object,
        destination: str,
        storage_conn_id: str | None = None,
        whisul_conn_id: str = DEFAULT_CONN_ID,
        max_failures: int = 0,
        max_concurrent_downloads: int = 4,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.songs = songs
        self.destination = destination
        self.storage_conn_id = storage_conn_id
        self.whisul_conn_id = whisul_conn_id
        if max_failures < 0 or max_concurrent_downloads < 1:
            raise ValueError(
                "max_failures must be 0 or more, max_concurrent_downloads 1 or more, not "
                f"{max_failures} and {max_concurrent_downloads}."
            )
        self.max_failures = max_failures
        self.max_concurrent_downloads = max_concurrent_downloads
        self.overwrite = overwrite
        self._downloader: Downloader | None = None
        self._killed = False

    def execute(self, context: Context) -> Manifest:
        """Store the songs that are missing, and write the manifest."""
        from airflow_provider_whisul.storage.downloader import Downloader
        from airflow_provider_whisul.storage.object_store import ObjectStore
        from airflow_provider_whisul.storage.song_transfer import SongTransfer

        songs, skipped = read_songs(self.songs)
        for skipped_song in skipped:
            self.log.warning("Skipped %r: %s", quote(skipped_song["prompt"] or "")[:60], skipped_song["error"])
        store = ObjectStore.from_destination(self.destination, self.storage_conn_id)
        existing_files = store.list_files()
        manifest = self._empty_manifest(context, store)
        self._check_manifest(store, manifest, existing_files)
        self.log.info("Storing %d song%s in %s", len(songs), "" if len(songs) == 1 else "s", store.url)
        with TemporaryDirectory(prefix="whisul-") as workdir, Downloader(clock=self.clock) as downloader:
            self._downloader = downloader
            if self._killed:
                downloader.stop()
            transfer = SongTransfer(store, downloader, Path(workdir), existing_files)
            stored, failures = self._transfer_songs(transfer, songs)
            for song, error in failures:
                self.log.error("Could not store %r: %s", quote(song["title"] or song["job_id"])[:60], error)
            names = {song_name(song) for song in songs} | {
                song["metadata"].partition(".")[0] for song in stored.values()
            }
            transfer.remove_temporary_files({*names, manifest["manifest"]})
            if len(failures) > self.max_failures:
                raise _too_many_failures(failures, len(songs), self.max_failures)
            manifest["songs"] = [stored[song["job_id"]] for song in songs if song["job_id"] in stored]
            manifest["count"] = len(stored)
            manifest["failed"] = skipped + [_skipped_song(*failure) for failure in failures]
            manifest["stored_at"] = datetime.fromtimestamp(self.clock.time(), UTC).isoformat()
            # Another run may have written its manifest meanwhile.
            self._check_manifest(store, manifest, store.list_files())
            self._check_killed()
            store.put_json(cast("dict[str, object]", manifest), manifest["manifest"], Path(workdir))
        self.log.info("Songs in %s: %d stored, %d missing", store.url, len(stored), len(manifest["failed"]))
        self._set_event_extra(context, manifest)
        return manifest

    def on_kill(self) -> None:
        """Stop the downloads, so that ``execute`` raises: Airflow 3 calls only this before it kills the process."""
        self._killed = True
        if self._downloader is not None:
            self._downloader.stop()

    def _check_killed(self) -> None:
        if self._killed:
            raise WhisulMediaError(
                "The transfer was stopped with the task, so there is no manifest. Songs that are stored already are "
                "complete: a retry downloads only the missing ones."
            )

    def _empty_manifest(self, context: Context, store: ObjectStore) -> Manifest:
        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        return {
            "destination": store.url,
            "manifest": manifest_name(map_index),
            "dag_id": ti.dag_id,
            "task_id": ti.task_id,
            "run_id": ti.run_id,
            "map_index": map_index,
            "stored_at": "",
            "count": 0,
            "songs": [],
            "failed": [],
        }

    def _check_manifest(self, store: ObjectStore, manifest: Manifest, existing_files: Mapping[str, int | None]) -> None:
        """Raise where the manifest would replace the one of another run."""
        name = manifest["manifest"]
        if self.overwrite or name not in existing_files:
            return
        existing = store.read_json(name)
        if existing is not None and not is_of_same_task(existing, manifest):
            raise WhisulFileExistsError(
                f"{store.url}/{name} is the manifest of another run, and is not overwritten. Give each run a "
                "destination of its own, such as one that ends in {{ run_id }}; or set overwrite=True, to keep only "
                "the manifest of the latest run."
            )

    def _transfer_songs(
        self, transfer: SongTransfer, songs: Sequence[Song]
    ) -> tuple[dict[str, StoredSong], list[Failure]]:
        """Transfer songs, several at once. A failed song does not stop the others, and an error of the store does."""
        stored: dict[str, StoredSong] = {}
        failures: list[Failure] = []
        polled: set[str] = set()
        outage: WhisulError | None = None
        pool = ThreadPoolExecutor(self.max_concurrent_downloads, "whisul-transfer")
        try:
            pending: dict[Future[StoredSong], Song] = {pool.submit(transfer.transfer, song): song for song in songs}
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                self._check_killed()
                for future in done:
                    song = pending.pop(future)
                    job_id = song["job_id"]
                    try:
                        try:
                            stored[job_id] = future.result()
                        except WhisulMediaExpiredError as expired:
                            if job_id in polled:
                                raise
                            polled.add(job_id)
                            if outage is not None:
                                raise _not_polled(expired, outage) from None
                            try:
                                # In this thread only: the hook and Airflow's connections are not thread-safe.
                                fresh, url_errors = self._poll_again(song, expired)
                            except WhisulError as error:
                                # A poll takes minutes where Whisul does not respond: too long for each song.
                                outage = error
                                raise _not_polled(expired, outage) from error
                            pending[pool.submit(transfer.transfer, fresh, url_errors)] = fresh
                    except WhisulStorageError:
                        raise
                    except WhisulError as error:
                        failures.append((song, error))
        except BaseException:
            transfer.downloader.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return stored, failures

    def _poll_again(self, song: Song, expired: WhisulMediaExpiredError) -> tuple[Song, dict[Role, str]]:
        """
        Poll a song's job for URLs that work.

        :param song: The song.
        :param expired: Which of its URLs does not work.
        :return: The song with the job's URLs, and for each file a sentence for the error if its URL does not work.
        :raises WhisulError: The poll ended in a transient error.
        """
        self.log.warning("%s Polling the job again.", expired)
        try:
            job = self.hook.get_job(song["job_id"])
        except AirflowException as error:
            if isinstance(error, WhisulError) and error.transient:
                raise
            return song, dict.fromkeys(URL_FIELDS, f"Polling the job again returned no other URL: {error}")
        if job.song is None:
            return song, dict.fromkeys(
                URL_FIELDS, f"Polling the job again returned no other URL: its status is {job.status}."
            )
        fresh = merge_songs(song, cast("Mapping[str, object]", job.song))
        url_errors: dict[Role, str] = {}
        for role, url_field in URL_FIELDS.items():
            # Where the job has no URL any more, the error is about the old one.
            fresh[url_field] = job.song[url_field] or song[url_field]
            if not job.song[url_field]:
                url_errors[role] = "Polling the job again returned no URL."
            elif job.song[url_field] == song[url_field]:
                url_errors[role] = (
                    "Polling the job again returned the same URL: only a new submission makes the song anew."
                )
            else:
                url_errors[role] = "Polling the job again returned another URL, which does not work either."
        return fresh, url_errors

    def _set_event_extra(self, context: Context, manifest: Manifest) -> None:
        from airflow.providers.common.compat.sdk import Asset

        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = cast("Any", event_extra(manifest))


def _not_polled(expired: WhisulMediaExpiredError, outage: WhisulError) -> WhisulError:
    """Return the error of a song whose URL has expired during an outage of Whisul: of a class that a retry helps."""
    return type(outage)(
        f"{expired} Whisul did not say whether there is another URL: {outage} A retry polls the job again.",
        job_id=expired.job_id,
        http_status=outage.http_status,
    )


def _skipped_song(song: Song, error: WhisulError) -> SkippedSong:
    return {"job_id": song["job_id"], "prompt": song["prompt"], "error": quote(str(error))}


def _too_many_failures(failures: Sequence[Failure], songs: int, max_failures: int) -> WhisulError:
    """Return the error that the task fails with: of a class that a retry helps, if one of the failures is."""
    errors = [error for _, error in failures]
    if len(errors) == 1 and songs == 1:
        return errors[0]
    first = next((error for error in errors if not isinstance(error, AirflowFailException)), errors[0])
    named = "; ".join(
        f"{quote(song['title'] or song['job_id'])[:60]!r}: {quote(str(error))[:300]}"
        for song, error in failures[:MAX_NAMED_SONGS]
    )
    more = f"; and {len(errors) - MAX_NAMED_SONGS} more, see the log" if len(errors) > MAX_NAMED_SONGS else ""
    return type(first)(
        f"{len(errors)} of {songs} songs could not be stored, more than max_failures={max_failures}: {named}{more}. "
        "The others are in the store, without a manifest; a retry downloads only the missing ones."
    )

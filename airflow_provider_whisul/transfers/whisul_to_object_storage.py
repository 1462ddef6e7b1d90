"""The transfer of songs from Whisul to object storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowException, BaseOperator

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
from airflow_provider_whisul.operators.job_finder import JobFinder
from airflow_provider_whisul.operators.lineage import LineageMixin, lineage_of_stored_songs
from airflow_provider_whisul.retry_policy import set_default_retry_policy
from airflow_provider_whisul.storage.destination import check_before_rendering
from airflow_provider_whisul.storage.manifest import Manifest, StoredSong, is_of_same_task, manifest_name
from airflow_provider_whisul.storage.media_types import Role
from airflow_provider_whisul.storage.songs import URL_FIELDS, merge_songs, read_songs, song_name
from airflow_provider_whisul.storage.urls import MediaAccess
from airflow_provider_whisul.text import count, excerpt
from airflow_provider_whisul.tracks.stored_cards import push_stored_cards
from airflow_provider_whisul.transfers.asset_events import (
    TRANSFER_CHECKS,
    check_outlets,
    read_partition_keys,
    set_asset_events,
)
from airflow_provider_whisul.transfers.failures import (
    Failure,
    failed_song,
    no_song_to_store,
    not_polled,
    too_many_failures,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.storage.downloader import Downloader
    from airflow_provider_whisul.storage.object_store import ObjectStore
    from airflow_provider_whisul.storage.song_transfer import SongTransfer

#: How often a song is transferred at most, where another task replaces its files meanwhile.
MAX_TRANSFERS = 3


class WhisulToObjectStorageOperator(LineageMixin, WhisulTaskMixin, BaseOperator):
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
    :param max_concurrent_downloads: How many songs are downloaded at once. Each may need space for its files in the
        worker's temporary folder.
    :param max_audio_bytes: The largest audio that is stored, in bytes. A cover may have 50 MB.
    :param allow_private_media: Whether songs may be downloaded from this machine, and from addresses that are not
        public. Needed for a media host of your own. The sandbox works without it.
    :param overwrite: Whether the manifest of another run in the same folder may be replaced.
    :param partition_key: The partition of what is stored, one or several of them, for the asset events of ``outlets``
        (templated; Airflow 3.3 and later). None for the partition of the DAG run, if it has one.
    :return: The manifest, as in ``manifest.json``: a dict of ``destination``, ``manifest``, ``dag_id``, ``task_id``,
        ``run_id``, ``map_index``, ``stored_at`` (ISO 8601, UTC), ``count``, ``songs`` and ``failed``. Each of ``songs``
        has the song's metadata, and ``audio`` and ``cover`` (None if it has none) with ``name``, ``size`` (bytes),
        ``sha256`` and ``content_type``. Each of ``failed`` has ``job_id``, ``prompt`` and ``error``.
    :raises ValueError: When the DAG file is read: an argument is out of range, or ``partition_key`` is given to an
        Airflow that has no partitions, or without outlets that can have them.
    :raises AirflowSkipException: ``songs`` is one result of a batch, whose song has failed, and the task's trigger rule
        is none that lets it run after failures.
    :raises WhisulInvalidInputError: All songs have failed, ``songs`` holds something else, a partition key is blank or
        longer than 250 characters, or ``destination`` does not name a folder, or leads out of it. Where ``destination``
        is no template, the latter is raised when the DAG file is read.
    :raises WhisulMediaError: More than ``max_failures`` songs could not be downloaded. The others are stored.
    :raises WhisulMediaExpiredError: The same, where no retry helps: the songs' URLs do not work, and polling their jobs
        again returned no others.
    :raises WhisulFileExistsError: The manifest of another run is in the folder.
    :raises WhisulStorageError: The store cannot be read or written; for example, there is no space left.
    :raises WhisulError: Any other error; see :mod:`airflow_provider_whisul.exceptions`.

    With ``outlets``, their asset events carry ``destination``, ``manifest`` (its URL), ``count``, ``failed`` and the
    first ``titles``. An outlet is an ``Asset``, an ``Asset.ref(…)``, or an ``AssetAlias``, which gets the asset whose
    URI is that of ``destination``.
    """

    argument_checks = TRANSFER_CHECKS
    template_fields: Sequence[str] = ("songs", "destination", "storage_conn_id", "whisul_conn_id", "partition_key")
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
        max_audio_bytes: int = 500_000_000,
        allow_private_media: bool = False,
        overwrite: bool = False,
        partition_key: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.songs = songs
        self.destination = destination
        self.storage_conn_id = storage_conn_id
        self.whisul_conn_id = whisul_conn_id
        if max_failures < 0 or max_concurrent_downloads < 1 or max_audio_bytes < 1:
            raise ValueError(
                "max_failures must be 0 or more, max_concurrent_downloads and max_audio_bytes 1 or more, not "
                f"{max_failures}, {max_concurrent_downloads} and {max_audio_bytes}."
            )
        check_before_rendering(destination)
        self.max_failures = max_failures
        self.max_concurrent_downloads = max_concurrent_downloads
        self.max_audio_bytes = max_audio_bytes
        self.allow_private_media = allow_private_media
        self.overwrite = overwrite
        self.partition_key = self.checked("partition_key", partition_key)
        if partition_key is not None:
            check_outlets(self.outlets)
        self._downloader: Downloader | None = None
        self._killed = False

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take the arguments that all mapped tasks share."""
        if kwargs.get("partition_key") is not None and "outlets" in kwargs:
            check_outlets(kwargs["outlets"])
        return super().partial(**kwargs)

    def execute(self, context: Context) -> Manifest:
        """Store the songs that are missing, and write the manifest."""
        from airflow_provider_whisul.storage.downloader import Downloader
        from airflow_provider_whisul.storage.object_store import ObjectStore
        from airflow_provider_whisul.storage.song_transfer import SongTransfer

        self._job_finder = JobFinder(self.hook)
        partition_keys = read_partition_keys(self.partition_key)
        songs, skipped = read_songs(self.songs)
        for skipped_song in skipped:
            self.log.warning("Skipped %r: %s", excerpt(skipped_song["prompt"] or ""), skipped_song["error"])
        if skipped and not songs:
            raise no_song_to_store(self.songs, self.trigger_rule)
        store = ObjectStore.from_destination(self.destination, self.storage_conn_id)
        existing_files = store.list_files()
        manifest = self._empty_manifest(context, store)
        self._check_manifest(store, manifest)
        if not self.songs and (kept := store.read_json(manifest["manifest"])) and is_of_same_task(kept, manifest):
            # As of a batch that was skipped. What an earlier try has stored is still there.
            self.log.info("There is no song to store. The manifest in %s stays as it is.", store.url)
            return cast("Manifest", kept)
        self.log.info("Storing %s in %s", count(len(songs), "song"), store.url)
        with (
            TemporaryDirectory(prefix="whisul-") as workdir,
            Downloader(
                clock=self.clock, access=self._media_access(), max_audio_bytes=self.max_audio_bytes
            ) as downloader,
        ):
            self._downloader = downloader
            if self._killed:
                downloader.stop()
            transfer = SongTransfer(store, downloader, Path(workdir), existing_files)
            stored, failures = self._transfer_until_unchanged(transfer, songs)
            for song, error in failures:
                self.log.error("Could not store %r: %s", excerpt(song["title"] or song["job_id"]), error)
            errors = {song["job_id"]: error for song, error in failures}
            push_stored_cards(context, songs, stored, errors, store.url)
            names = {song_name(song) for song in songs} | {
                song["metadata"].partition(".")[0] for song in stored.values()
            }
            transfer.remove_temporary_files({*names, manifest["manifest"]})
            if len(failures) > self.max_failures:
                raise too_many_failures(failures, len(songs), self.max_failures)
            manifest["songs"] = [stored[song["job_id"]] for song in songs if song["job_id"] in stored]
            manifest["count"] = len(stored)
            manifest["failed"] = skipped + [failed_song(*failure) for failure in failures]
            manifest["stored_at"] = datetime.fromtimestamp(self.clock.time(), UTC).isoformat()
            # Another run may have written its manifest meanwhile.
            self._check_manifest(store, manifest)
            self._check_killed()
            store.put_json(cast("dict[str, object]", manifest), manifest["manifest"], Path(workdir))
        self.log.info("Songs in %s: %d stored, %d missing", store.url, len(stored), len(manifest["failed"]))
        self._lineage = lineage_of_stored_songs(manifest)
        set_asset_events(context, self.outlets, manifest, partition_keys, self.log)
        return manifest

    def _media_access(self) -> MediaAccess:
        """Return which hosts songs may come from. Without a connection that can be used they are public ones."""
        try:
            api_url = self.hook.settings.base_url
        except AirflowException:
            api_url = None
        return MediaAccess(api_url, self.allow_private_media)

    def on_kill(self) -> None:
        """Stop the downloads, so that ``execute`` raises: Airflow 3 calls only this before it kills the process."""
        self._killed = True
        if self._downloader is not None:
            self._downloader.stop()

    def _check_killed(self) -> None:
        if self._killed:
            raise WhisulMediaError(
                "The transfer was stopped with the task, so there is no manifest. Songs that are stored already are "
                "complete: a later try downloads only the missing ones."
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

    def _check_manifest(self, store: ObjectStore, manifest: Manifest) -> None:
        """Raise where the manifest would replace the one of another run."""
        name = manifest["manifest"]
        existing = None if self.overwrite else store.read_json(name)
        if existing is not None and not is_of_same_task(existing, manifest):
            raise WhisulFileExistsError(
                f"{store.url}/{name} is the manifest of another run, and is not overwritten. Give each run a "
                "destination of its own, such as one that ends in {{ run_id }}; or set overwrite=True, to keep only "
                "the manifest of the latest run."
            )

    def _transfer_until_unchanged(
        self, transfer: SongTransfer, songs: Sequence[Song]
    ) -> tuple[dict[str, StoredSong], list[Failure]]:
        """Transfer songs, and those again whose files another task has replaced with others meanwhile."""
        stored, failures = self._transfer_songs(transfer, songs)
        for transfers in range(1, MAX_TRANSFERS + 1):
            transfer = replace(transfer, existing_files=transfer.store.list_files())
            replaced = transfer.replaced(stored.values())
            if not replaced:
                break
            if transfers == MAX_TRANSFERS:
                raise WhisulStorageError(
                    f"Another task replaces or removes files in {transfer.store.url} again and again, such as "
                    f"{stored[min(replaced)]['audio']['name']}. Songs are transferred {MAX_TRANSFERS} times at most: "
                    "give each task a destination of its own, and clear this one. It costs no credits."
                )
            pause = transfers * (1 + 2 * self.clock.random())
            self.log.warning(
                "Another task has replaced or removed files of %d of the songs. These are transferred again in %.1f s.",
                len(replaced),
                pause,
            )
            # Lets the other task finish: then its songs are complete, and are taken as they are.
            self.clock.sleep(pause)
            # What is stored by now.
            transfer = replace(transfer, existing_files=transfer.store.list_files())
            again, more_failures = self._transfer_songs(
                transfer, [song for song in songs if song["job_id"] in replaced]
            )
            stored = {job_id: song for job_id, song in stored.items() if job_id not in replaced} | again
            failures += more_failures
        return stored, failures

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
                                raise not_polled(expired, outage) from None
                            try:
                                # In this thread only: the hook and Airflow's connections are not thread-safe.
                                fresh, url_errors = self._poll_again(song, expired)
                            except WhisulError as error:
                                # A poll takes minutes where Whisul does not respond: too long for each song.
                                outage = error
                                raise not_polled(expired, outage) from error
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
            job = self._job_finder.get_job(song["job_id"], retry=True)
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

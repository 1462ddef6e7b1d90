"""Transfers one song from the media host into a store."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import (
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulStorageError,
    WhisulTLSError,
)
from airflow_provider_whisul.storage.downloader import Downloader, InvalidCoverError
from airflow_provider_whisul.storage.manifest import (
    StoredFile,
    StoredSong,
    files_of,
    is_complete,
    stored_files,
    stored_song,
)
from airflow_provider_whisul.storage.media_types import Role
from airflow_provider_whisul.storage.object_store import TEMPORARY_SUFFIX, ObjectStore
from airflow_provider_whisul.storage.songs import URL_FIELDS, merge_songs, song_name
from airflow_provider_whisul.text import quote

log = logging.getLogger(__name__)


@dataclass
class SongTransfer:
    """
    Transfers songs. Several threads may use it at once, each for another song.

    A song becomes its audio and its cover, if any, each with the extension of its media type (``NAME.mp3``,
    ``NAME.jpg``), and last ``NAME.json``. It is stored already if its ``NAME.json`` is in the store, and so are the
    files that this names. Every other song is transferred whole. Names hold the job's id, so a file of such a name
    belongs to the song, and is replaced. Of two transfers of one song at once, the later one takes what the other one
    has stored. :meth:`replaced` says of which songs the files are others by now all the same.

    :param store: The store to write to.
    :param downloader: Downloads the files.
    :param workdir: A folder on this machine for files that cannot be written in the store itself.
    :param existing_files: The length in bytes of each file in the store when the transfer began, by name.
    """

    store: ObjectStore
    downloader: Downloader
    workdir: Path
    existing_files: Mapping[str, int | None]
    # What earlier calls for the same songs have stored already, by song name.
    _stored: dict[str, dict[Role, StoredFile]] = field(default_factory=dict, init=False, repr=False)

    def transfer(self, song: Song, url_errors: Mapping[Role, str] | None = None) -> StoredSong:
        """
        Download a song's files and store them, unless the song is stored already.

        :param song: The song.
        :param url_errors: For each file a sentence that ends the error if its URL fails: what polling the song's job
            again returned. None if the job was not polled again.
        :return: The content of the song's ``NAME.json``.
        :raises WhisulMediaExpiredError: A URL does not work. With ``url_errors`` only the audio's URL raises it.
        :raises WhisulMediaError: The audio could not be downloaded, or the cover could not but may be later.
        :raises WhisulTLSError: The certificate of the audio's host could not be verified.
        :raises WhisulStorageError: The store cannot be read or written.
        """
        name = song_name(song)
        existing = self._existing_song(song, name) or self._existing_song_with_title(song, name)
        if existing is not None:
            return existing
        before = self.store.read_json(f"{name}.json") if f"{name}.json" in self.existing_files else None
        stored_meanwhile = partial(self._stored_meanwhile, song, name, before)
        files = self._stored.setdefault(name, {})
        cover_error = None
        for role in URL_FIELDS:
            if role in files:
                continue
            try:
                # Only where there is no other URL: one that has expired is replaced at once.
                finished_at = None if url_errors is None else song["finished_at"]
                meanwhile = self._transfer_file(song, name, role, files, finished_at, stored_meanwhile)
                if meanwhile is not None:
                    return meanwhile
            except WhisulMediaExpiredError as error:
                if url_errors is None:
                    raise
                reason = f"{error} {url_errors[role]}"
                if role == "audio":
                    raise WhisulMediaExpiredError(
                        reason, job_id=song["job_id"], http_status=error.http_status
                    ) from None
                cover_error = reason
            except (WhisulMediaUnsafeError, WhisulTLSError, InvalidCoverError) as error:
                if role == "audio":
                    raise
                cover_error = str(error)
        if cover_error is not None:
            # A song without its cover is worth more than none.
            log.warning("%s", cover_error)
        if (meanwhile := stored_meanwhile()) is not None:
            return meanwhile
        stored = stored_song(song, name, files, cover_error)
        self.store.put_json(cast("Mapping[str, object]", stored), stored["metadata"], self.workdir)
        size = sum(file["size"] for file in files.values())
        log.info("Stored %r as %s (%s bytes)", quote(song["title"] or ""), stored["audio"]["name"], f"{size:,}")
        metrics.stored(size)
        return stored

    def replaced(self, songs: Iterable[StoredSong]) -> set[str]:
        """
        Return the jobs of those songs whose files another transfer has replaced with others, or removed.

        :param songs: Songs that were stored before ``existing_files`` were listed.
        """
        return {song["job_id"] for song in songs if not is_complete(files_of(song), self.existing_files)}

    def remove_temporary_files(self, names: Set[str]) -> None:
        """
        Remove the temporary files that killed tries have left. Never raises: they are not worth the songs.

        :param names: The names of the songs' files up to the first dot, and whole names of other files.
        """
        for entry in self.existing_files:
            written = re.fullmatch(rf"(.+)\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}", entry)
            if written and not names.isdisjoint({written[1], written[1].partition(".")[0]}):
                try:
                    self.store.remove(entry)
                except WhisulStorageError as error:
                    log.warning("%s It is not needed: remove it by hand.", error)

    def _existing_song(self, song: Song, name: str) -> StoredSong | None:
        """Return a song that is in the store already, None unless all of its files are there."""
        metadata = self.store.read_json(f"{name}.json") if f"{name}.json" in self.existing_files else None
        files = stored_files(metadata or {}, name, song["job_id"])
        if metadata is None or not is_complete(files, self.existing_files):
            return None
        if self.store.is_local and any(self.store.sha256(file["name"]) != file["sha256"] for file in files.values()):
            log.warning("A file of %s has changed since it was stored: it is downloaded again.", name)
            return None
        log.info("%s is stored already", name)
        cover_error = metadata.get("cover_error")
        # The file may have been edited: it only adds what the song itself lacks.
        merged = merge_songs(song, metadata)
        return stored_song(merged, name, files, cover_error if isinstance(cover_error, str) else None)

    def _existing_song_with_title(self, song: Song, name: str) -> StoredSong | None:
        """Find a song without a title that an earlier try stored under a title, which it got by polling the job."""
        if song["title"] is not None:
            return None
        ending = f"_{name.rpartition('_')[2]}.json"
        others = (entry for entry in self.existing_files if entry.endswith(ending) and entry != f"{name}.json")
        found = (self._existing_song(song, entry.removesuffix(".json")) for entry in others)
        return next((existing for existing in found if existing is not None), None)

    def _stored_meanwhile(self, song: Song, name: str, before: Mapping[str, object] | None) -> StoredSong | None:
        """Return the song where another transfer has stored it since its ``NAME.json`` was as before."""
        if self.store.read_json(f"{name}.json") in (None, before):
            return None
        return replace(self, existing_files=self.store.list_files())._existing_song(song, name)

    def _transfer_file(
        self,
        song: Song,
        name: str,
        role: Role,
        files: dict[Role, StoredFile],
        finished_at: str | None,
        stored_meanwhile: Callable[[], StoredSong | None],
    ) -> StoredSong | None:
        """
        Download one of a song's files and store it. Not every song has a cover.

        Returns the song, and stores nothing, where another transfer has stored the whole song meanwhile.
        """
        job_id = song["job_id"]
        url = song[URL_FIELDS[role]]
        if not url:
            if role == "cover":
                return None
            raise WhisulMediaExpiredError(f"The song of job {job_id} has no URL of its audio.", job_id=job_id)
        with self.store.new_file(self.workdir, f"{name}.{role}") as new:
            downloaded = self.downloader.download(url, new, role, job_id, log.warning, finished_at)
            if (meanwhile := stored_meanwhile()) is not None:
                return meanwhile
            media_type = downloaded.media_type
            self.store.publish(new, name + media_type.extension)
            files[role] = {
                "name": name + media_type.extension,
                "size": downloaded.size,
                "sha256": downloaded.sha256,
                "content_type": media_type.content_type,
            }
            return None

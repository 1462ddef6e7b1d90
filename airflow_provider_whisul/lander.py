"""Brings one song after the other from the media host into a store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from airflow_provider_whisul.api import Song, quote
from airflow_provider_whisul.exceptions import (
    WhisulFileExistsError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulTLSError,
)
from airflow_provider_whisul.landing import (
    PART,
    URL_FIELDS,
    LandedFile,
    LandedSong,
    Role,
    files_of,
    is_whole,
    landed_again,
    landed_song,
    song_name,
)
from airflow_provider_whisul.media import MediaClient, NoCoverError
from airflow_provider_whisul.storage import Store, telling

log = logging.getLogger(__name__)


@dataclass
class SongLander:
    """
    Lands songs. May be used by several threads at once, for a song each.

    Before a file of a song appears in the store, ``NAME.part`` says what it will be; after the last of them
    ``NAME.json`` replaces that. So a later try knows which files are whole and its own, wherever this one has ended.

    :param store: Where to.
    :param media: What fetches.
    :param workdir: A folder on this machine, for a song's files until they are in the store.
    :param there: What is in the store, and how long it is; kept up to date.
    :param overwrite: Whether files that no landing of the same job has left may be replaced.
    """

    store: Store
    media: MediaClient
    workdir: Path
    there: dict[str, int | None]
    overwrite: bool = False

    def land(self, song: Song, asked_again: Mapping[Role, str] | None = None) -> LandedSong:
        """
        Fetch what of a song is not in the store yet, and put it there.

        :param song: The song.
        :param asked_again: What asking its job for other URLs has brought for each file, as a sentence; None if that
            was not done.
        :return: The song as it is in the store now.
        :raises WhisulMediaExpiredError: A URL does not work, and the job was not asked again yet; or the audio's does
            not although it was.
        :raises WhisulMediaError: The audio could not be fetched, or the cover could not but may be the next time.
        :raises WhisulTLSError: The certificate of the audio's host could not be verified.
        :raises WhisulFileExistsError: The name is that of another file.
        :raises WhisulStorageError: The store cannot be read or written.
        """
        name, job_id = song_name(song), song["job_id"]
        metadata = f"{name}.json"
        earlier = self._account(metadata, job_id)
        files = files_of(earlier, job_id) or {}
        landed = self._landed_already(song, name, earlier) or self._landed_under_its_title(song, name)
        if landed is not None:
            return landed
        files |= files_of(self._account(name + PART, job_id), job_id) or {}
        cover_error = None
        for role in URL_FIELDS:
            if is_whole(files.get(role), self.there):
                continue
            files.pop(role, None)
            try:
                self._bring(song, name, role, files)
            except WhisulMediaExpiredError as error:
                if asked_again is None:
                    raise
                reason = f"{error} {asked_again[role]}"
                if role == "audio":
                    raise WhisulMediaExpiredError(reason, job_id=job_id, http_status=error.http_status) from None
                cover_error = reason
            except (WhisulMediaUnsafeError, WhisulTLSError, NoCoverError) as error:
                if role == "audio":
                    raise
                cover_error = str(error)
        if cover_error is not None:
            # A song is not given up for its cover.
            log.warning("%s", cover_error)
        landed = landed_song(song, name, files, cover_error)
        if not earlier:
            self._look_again(metadata, name, job_id)
            self._refuse(metadata, job_id)
        self.store.put_json(cast(Mapping[str, object], landed), metadata, self.workdir)
        self.remove_parts(name)
        size = sum(file["size"] for file in files.values())
        log.info("Landed %r as %s (%s bytes)", quote(song["title"] or ""), landed["audio"]["name"], f"{size:,}")
        return landed

    def _landed_already(self, song: Song, name: str, earlier: object) -> LandedSong | None:
        """Return a song that its ``NAME.json`` accounts for, None where anything of it is missing."""
        files = files_of(earlier, song["job_id"]) or {}
        if not files.get("audio") or not all(is_whole(file, self.there) for file in files.values()):
            return None
        log.info("%s is in the store already", name)
        self.remove_parts(name)
        return landed_again(song, name, files, cast(Mapping[str, object], earlier))

    def _landed_under_its_title(self, song: Song, name: str) -> LandedSong | None:
        """Return a song that came without its title, if an earlier try has asked the job for it and landed the song."""
        if song["title"] is not None:
            return None
        of_job = f"_{name.rpartition('_')[2]}.json"
        for entry in list(self.there):
            if entry.endswith(of_job) and entry != f"{name}.json":
                landed = self._landed_already(song, entry.removesuffix(".json"), self.store.read_json(entry))
                if landed is not None:
                    return landed
        return None

    def _account(self, name: str, job_id: str) -> dict[str, object]:
        """Return what a JSON file in the store says of a job, nothing if there is no such file."""
        if name not in self.there:
            return {}
        content = self.store.read_json(name)
        if files_of(content, job_id) is None:
            if not name.endswith(PART):
                self._refuse(name, job_id)
            return {}
        return cast("dict[str, object]", content)

    def _bring(self, song: Song, name: str, role: Role, files: dict[Role, LandedFile]) -> None:
        """Fetch one of a song's files and put it into the store, if the song has one."""
        job_id = song["job_id"]
        url = song[URL_FIELDS[role]]
        if not url:
            if role == "cover":
                return
            raise WhisulMediaExpiredError(f"Job {job_id} came without a URL of its audio.", job_id=job_id)
        local = self.workdir / f"{name}.{role}"
        try:
            with telling(f"write {local}, on this machine, before it goes to {self.store.url}", OSError):
                fetched = self.media.fetch(url, local, role, job_id, log.warning)
                file_name = name + fetched.kind.extension
                # Clients guess the type that the store keeps with a file from its name.
                local = local.replace(self.workdir / file_name)
            self._look_again(file_name, name, job_id)
            self._refuse(file_name, job_id)
            files[role] = {
                "name": file_name,
                "size": fetched.size,
                "sha256": fetched.sha256,
                "content_type": fetched.kind.content_type,
            }
            account = {"job_id": job_id, **cast("dict[str, LandedFile]", files)}
            self.store.put_json(account, name + PART, self.workdir)
            self.there[name + PART] = None
            self.store.put(local, file_name)
            self.there[file_name] = fetched.size
        finally:
            local.unlink(missing_ok=True)

    def _look_again(self, file_name: str, name: str, job_id: str) -> None:
        """Note a file that has come since the store was listed, unless another try lands the same song meanwhile."""
        if file_name in self.there or not self.store.exists(file_name):
            return
        for account in (f"{name}.json", name + PART):
            if self.store.exists(account):
                files = files_of(self.store.read_json(account), job_id)
                if files is not None and file_name in (account, *(file["name"] for file in files.values())):
                    return
        self.there[file_name] = None

    def _refuse(self, name: str, job_id: str) -> None:
        if name in self.there and not self.overwrite:
            raise WhisulFileExistsError(
                f"{self.store.url}/{name} exists, and is not what a landing of job {job_id} has left there. It is not "
                "overwritten: move it away, choose another destination, or set overwrite=True.",
                job_id=job_id,
            )

    def remove_parts(self, name: str) -> None:
        """
        Remove what landings have left unfinished.

        :param name: What the names of the files that it was to become begin with.
        :raises WhisulStorageError: It could not be removed.
        """
        # A copy, made at once: other threads add to it.
        for entry in list(self.there):
            if entry.startswith(f"{name}.") and entry.endswith(PART):
                self.store.remove(entry)

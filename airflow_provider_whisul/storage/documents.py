"""
Small files in a folder of any store that Airflow's ``ObjectStoragePath`` supports: read, written and created whole.

What must outlive a task is kept in such files. A file can be created exclusively: of two tasks that create the same
file at once one is told that it exists. On a local filesystem, in S3, in Google's and in Azure's store that holds
without exception. In any other store, and where the client of one of these is too old, the check and the write are two
steps.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from airflow_provider_whisul.exceptions import WhisulStateError
from airflow_provider_whisul.storage.destination import parse_destination
from airflow_provider_whisul.storage.object_documents import (
    OBJECT_STORES,
    TEMPORARY_SUFFIX,
    ObjectDocuments,
    exclusive_option,
    state_errors,
)
from airflow_provider_whisul.version_compat import filesystem

log = logging.getLogger(__name__)

#: What filesystems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DocumentFolder(Protocol):
    """
    A folder of small files. A name may hold slashes: folders in it are made as they are needed.

    Every method raises a :class:`WhisulStateError` where the store cannot be used.
    """

    @property
    def url(self) -> str:
        """The URL of the folder, for messages."""

    def read(self, name: str) -> bytes | None:
        """
        Return the content of a file, None where there is no such file.

        :param name: The name.
        """

    def write(self, name: str, data: bytes) -> None:
        """
        Write a file whole, and replace the one of that name.

        :param name: The name.
        :param data: The content.
        """

    def create(self, name: str, data: bytes) -> bool:
        """
        Write a file whole, unless there is one of that name.

        :param name: The name.
        :param data: The content.
        :return: Whether it was written.
        """

    def delete(self, name: str) -> None:
        """
        Remove a file, if it exists.

        :param name: The name.
        """

    def names(self, folder: str) -> list[str]:
        """
        Return the names of the files and folders in a folder, without its own; none where it does not exist.

        :param folder: The folder's name.
        """

    def delete_older(self, folder: str, before: float) -> int:
        """
        Remove the files in a folder that were last written before a time, also those that were never finished.

        :param folder: The folder's name.
        :param before: The time, in Unix seconds.
        :return: How many files that were.
        """

    def remove_folder(self, folder: str) -> None:
        """
        Remove a folder with all that is in it, if it exists.

        :param folder: The folder's name.
        """


def open_folder(url: object) -> DocumentFolder:
    """
    Return the folder that a URL names.

    :param url: As ``ObjectStoragePath`` takes it (``s3://bucket/folder``, ``gs://connection@bucket/folder``,
        ``file:///folder``), or the absolute path of a folder on this machine.
    :raises WhisulInvalidInputError: The URL names no folder.
    :raises WhisulStateError: The store's client cannot be made.
    """
    protocol, conn_id, location = parse_destination(url)
    if protocol in ("file", "local"):
        return LocalDocuments(Path(location.partition("://")[2]))
    with state_errors(f"reach {location}"):
        fs = filesystem(protocol, conn_id)
        is_object_store = protocol in OBJECT_STORES
        option = exclusive_option(protocol, fs) if is_object_store else None
        if is_object_store and option is None:
            log.warning(
                "The client of %s cannot create a file only where there is none: of two tries of a task that run at "
                "once, both may submit and pay. Install newer packages: docs/state.md has the versions.",
                location,
            )
        return ObjectDocuments(location, fs, fs._strip_protocol(location), is_object_store, option)


@dataclass(frozen=True)
class LocalDocuments:
    """
    A folder of this machine, or one that is mounted there; see :class:`DocumentFolder`.

    :param path: The folder.
    """

    path: Path

    @cached_property
    def url(self) -> str:
        return f"file://{self.path}"

    def read(self, name: str) -> bytes | None:
        with state_errors(f"read {self.url}/{name}"):
            path = self.path / name
            try:
                return path.read_bytes()
            except FileNotFoundError:
                if path.is_symlink():
                    # Somebody has moved the file: it was there.
                    raise
                return None

    def write(self, name: str, data: bytes) -> None:
        with state_errors(f"write {self.url}/{name}"), self._temporary(name, data) as temporary:
            os.replace(temporary, self.path / name)
            _sync_folder(temporary.parent)

    def create(self, name: str, data: bytes) -> bool:
        with state_errors(f"write {self.url}/{name}"), self._temporary(name, data) as temporary:
            try:
                os.link(temporary, self.path / name)
            except FileExistsError:
                # NFS repeats a request whose response was lost, and is then told of the link that it made itself.
                if temporary.stat().st_nlink < 2:
                    return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if not self._create_without_links(self.path / name, data):
                    return False
            _sync_folder(temporary.parent)
            return True

    def delete(self, name: str) -> None:
        with state_errors(f"remove {self.url}/{name}"):
            (self.path / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        with state_errors(f"list {self.url}/{folder}"):
            try:
                return [name for name in os.listdir(self.path / folder) if not name.endswith(TEMPORARY_SUFFIX)]
            except FileNotFoundError:
                return []

    def delete_older(self, folder: str, before: float) -> int:
        removed = 0
        with state_errors(f"remove old files of {self.url}/{folder}"):
            try:
                entries = list(os.scandir(self.path / folder))
            except FileNotFoundError:
                return 0
            for entry in entries:
                # A task of another process may remove the file at the same time.
                with suppress(FileNotFoundError):
                    is_old = entry.stat(follow_symlinks=False).st_mtime < before
                    if is_old and not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                        removed += 1
        return removed

    def remove_folder(self, folder: str) -> None:
        path = self.path / folder
        # Errors are those of another process that removes the same folder, or else the folder stays.
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise WhisulStateError(f"Could not remove {self.url}/{folder}. Check its permissions.")

    @contextmanager
    def _temporary(self, name: str, data: bytes) -> Iterator[Path]:
        """Yield a file with the content, on its disk, which is removed unless it was moved."""
        target = self.path / name
        temporary = target.with_name(f"{target.name[:200]}.{token_hex(4)}{TEMPORARY_SUFFIX}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The record of a paid job must outlive a machine that stops the moment after.
                os.fsync(file.fileno())
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    @staticmethod
    def _create_without_links(path: Path, data: bytes) -> bool:
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True


def _sync_folder(path: Path) -> None:
    """Have the names in a folder outlive a machine that stops the moment after, where the filesystem can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["DocumentFolder", "LocalDocuments", "ObjectDocuments", "open_folder"]

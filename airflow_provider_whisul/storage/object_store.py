"""A folder in any store that Airflow's ``ObjectStoragePath`` supports. A file appears in it whole, or not at all."""

from __future__ import annotations

import errno
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from airflow_provider_whisul.exceptions import WhisulError, WhisulInvalidInputError, WhisulStorageError
from airflow_provider_whisul.storage.manifest import to_json
from airflow_provider_whisul.text import quote
from airflow_provider_whisul.version_compat import filesystem

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: The end of the name of a file that is still being written.
TEMPORARY_SUFFIX = ".part"

# In these stores an object appears with its last byte. In all others a file is written under a temporary name, and
# then moved.
_ATOMIC_WRITES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl", "oss"})

# Bytes that are sent, and held in memory, at once, where the store's client has an option for that.
_CHUNK_BYTES = 8 << 20

# How often a file is written where its temporary file vanishes. Each other try removes at most one of them.
_MAX_WRITES = 5

# How often the length of a written file is read where it is not as it should be.
_MAX_CHECKS = 3

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def wrap_storage_errors(action: str, error_type: type[Exception] = Exception) -> Iterator[None]:
    """
    Turn the errors of a store's client into a :class:`WhisulStorageError` that says what failed and what to do.

    :param action: What is done, as the continuation of "Could not".
    :param error_type: Which errors are turned into one. All others pass.
    :raises WhisulStorageError: The client raised an error.
    """
    try:
        yield
    except WhisulError:
        raise
    except error_type as error:
        detail = quote(str(error)) or type(error).__name__
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            hint = "There is no space left. Free some, and clear the task."
        elif isinstance(error, PermissionError):
            hint = "A permission is missing: docs/storage.md lists the permissions that are needed."
        elif isinstance(error, FileNotFoundError):
            hint = "The folder or the bucket does not exist."
        else:
            hint = "Check the destination and its connection."
        raise WhisulStorageError(
            f"Could not {action}: {detail} ({type(error).__name__}). {hint} Songs that are stored already are "
            "complete, and are not downloaded again."
        ) from error


@dataclass(frozen=True)
class ObjectStore:
    """
    A folder in a store. Several threads may use it at once.

    :param url: The URL of the folder, without a connection's id and without a slash at its end.
    :param fs: The store's client.
    :param path: The folder's path in that client.
    :param atomic_writes: Whether a file appears only when its last byte was written.
    """

    url: str
    fs: AbstractFileSystem
    path: str
    atomic_writes: bool

    @classmethod
    def from_destination(cls, destination: object, conn_id: str | None) -> ObjectStore:
        """
        Return the folder that a user has named.

        :param destination: The folder as ``ObjectStoragePath`` takes it (``s3://bucket/folder``, ``file:///folder``,
            ``gs://connection@bucket/folder``), or the absolute path of a folder on the worker.
        :param conn_id: The Airflow connection of the store, None for the connection in the destination, if any.
        :raises WhisulInvalidInputError: The destination does not name a folder.
        :raises WhisulStorageError: The store cannot be reached.
        """
        text = destination if isinstance(destination, str) else str(destination or "")
        if text.startswith("/"):
            text = f"file://{text}"
        match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(?:([^/@]*)@)?([^\x00-\x1f]+)", text)
        location = match[3].rstrip("/") if match else ""
        if match is None or not location or (match[1] in ("file", "local") and not location.startswith("/")):
            raise WhisulInvalidInputError(
                f"The destination {quote(text)!r} does not name a folder, so nothing was downloaded. Name one such as "
                "s3://bucket/songs/{{ run_id }} or file:///data/songs/{{ run_id }}. Where it is a template, look at "
                "the task's rendered fields."
            )
        protocol, url = match[1], f"{match[1]}://{location}"
        with wrap_storage_errors(f"reach {url}"):
            fs = filesystem(protocol, conn_id or match[2] or None)
            return cls(url, fs, fs._strip_protocol(url), protocol in _ATOMIC_WRITES)

    def list_files(self) -> dict[str, int | None]:
        """
        Return the length in bytes of each file in the folder, by name; None for a folder in it.

        :raises WhisulStorageError: The folder cannot be listed. A folder that does not exist is empty.
        """
        with wrap_storage_errors(f"list {self.url}"):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
            return {
                entry["name"].rstrip("/").rpartition("/")[2]: None if entry["type"] == "directory" else entry["size"]
                for entry in entries
            }

    def read_json(self, name: str) -> dict[str, object] | None:
        """
        Return the object in a JSON file: empty where the file holds anything else, None where there is no such file.

        :param name: The name of the file.
        :raises WhisulStorageError: The file cannot be read.
        """
        with wrap_storage_errors(f"read {self.url}/{name}"):
            try:
                data = self.fs.cat_file(f"{self.path}/{name}")
            except FileNotFoundError:
                return None
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def put(self, file: Path, name: str) -> None:
        """
        Write a file into the folder, and replace a file of that name. It appears there whole, or not at all.

        :param file: The local file.
        :param name: The name of the file in the folder.
        :raises WhisulStorageError: The file could not be written, or has another length there.
        """
        path = f"{self.path}/{name}"
        size = file.stat().st_size
        with wrap_storage_errors(f"write {self.url}/{name} ({size:,} bytes)"):
            if self.atomic_writes:
                self.fs.put_file(str(file), path, **self._put_options())
                self._check_size(path, size)
            else:
                self.fs.makedirs(self.path, exist_ok=True)
                for write in range(1, _MAX_WRITES + 1):
                    try:
                        self._write_and_move(file, path, size)
                        break
                    except FileNotFoundError:
                        # Another try that ended meanwhile took the temporary file for one that a killed try had left.
                        if write == _MAX_WRITES:
                            raise

    def put_json(self, content: Mapping[str, object], name: str, workdir: Path) -> None:
        """
        Write a JSON file into the folder, as :meth:`put` does.

        :param content: The content of the file.
        :param name: The name of the file in the folder.
        :param workdir: A folder on this machine for the file until it is in the store.
        :raises WhisulStorageError: As :meth:`put`, or the file could not be written on this machine.
        """
        file = workdir / name
        with wrap_storage_errors(f"write {file}"):
            file.write_bytes(to_json(content))
        self.put(file, name)
        file.unlink()

    def remove(self, name: str) -> None:
        """
        Remove a file, if it exists.

        :param name: The name of the file.
        :raises WhisulStorageError: The file could not be removed.
        """
        with wrap_storage_errors(f"remove {self.url}/{name}"), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def _write_and_move(self, file: Path, path: str, size: int) -> None:
        # Another try may be writing the same file.
        temporary = f"{path}.{token_hex(4)}{TEMPORARY_SUFFIX}"
        try:
            self.fs.put_file(str(file), temporary, **self._put_options())
            self._check_size(temporary, size)
            self.fs.mv(temporary, path)
            self._check_size(path, size)
        except BaseException:
            # What is missing most often is space.
            with suppress(Exception):
                self.fs.rm_file(temporary)
            raise

    def _check_size(self, path: str, size: int) -> None:
        stored: int | None = None
        for _ in range(_MAX_CHECKS):
            # A transfer in another thread may have cached a listing from before the write.
            self.fs.invalidate_cache(self.fs._parent(path))
            with suppress(FileNotFoundError):
                stored = self.fs.info(path)["size"]
            if stored == size:
                return
        if stored is None:
            raise FileNotFoundError(path)
        raise WhisulStorageError(
            f"{path} should have {size:,} bytes and has {stored:,}: the store lost some, or another task writes the "
            "same file."
        )

    def _put_options(self) -> dict[str, int]:
        """Return the options of those clients that otherwise hold much in memory, or refuse to replace a file."""
        parameters = inspect.signature(getattr(self.fs, "_put_file", self.fs.put_file)).parameters
        options = {"chunksize": _CHUNK_BYTES, "max_concurrency": 1, "overwrite": True}
        return {name: value for name, value in options.items() if name in parameters}

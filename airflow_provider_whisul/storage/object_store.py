"""A folder in any store that Airflow's ``ObjectStoragePath`` supports. A file appears in it whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from airflow_provider_whisul.exceptions import WhisulError, WhisulStorageError
from airflow_provider_whisul.storage.destination import parse_destination
from airflow_provider_whisul.storage.manifest import to_json
from airflow_provider_whisul.storage.new_file import NewFile, create_named, create_unnamed, write_all
from airflow_provider_whisul.text import quote
from airflow_provider_whisul.version_compat import MissingPackageError, filesystem

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: The end of the name of a file that is still being written.
TEMPORARY_SUFFIX = ".part"

# In these stores an object appears with its last byte. In all others a file is written under a temporary name, and
# then moved.
_ATOMIC_WRITES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl", "oss"})

# Bytes that are sent, and held in memory, at once, where the store's client has an option for that.
_CHUNK_BYTES = 8 << 20

# How often a file is written where another try removes its temporary file, or replaces the file before its length is
# read. Each other try removes at most one of the temporary files.
_MAX_WRITES = 5

# How often a folder is listed where a file of it vanishes meanwhile, which some clients report as a missing folder.
_MAX_LISTINGS = 5

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
        if isinstance(error, MissingPackageError):
            raise WhisulStorageError(f"Could not {action}: {error}") from None
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


class _OtherLengthError(Exception):
    """A file has another length than the one that was written."""


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

        :param destination: The folder, as :func:`~airflow_provider_whisul.storage.destination.parse_destination` takes
            it.
        :param conn_id: The Airflow connection of the store, None for the connection in the destination, if any.
        :raises WhisulInvalidInputError: The destination does not name a folder.
        :raises WhisulStorageError: The store cannot be reached.
        """
        protocol, named_conn_id, url = parse_destination(destination)
        with wrap_storage_errors(f"reach {url}"):
            fs = filesystem(protocol, conn_id or named_conn_id)
            return cls(url, fs, fs._strip_protocol(url), protocol in _ATOMIC_WRITES)

    def list_files(self) -> dict[str, int | None]:
        """
        Return the length in bytes of each file in the folder, by name; None for a folder in it.

        :raises WhisulStorageError: The folder cannot be listed. A folder that does not exist is empty.
        """
        with wrap_storage_errors(f"list {self.url}"):
            for listing in range(1, _MAX_LISTINGS + 1):
                self.fs.invalidate_cache()
                try:
                    entries = self.fs.ls(self.path, detail=True)
                    break
                except FileNotFoundError:
                    if not self.fs.isdir(self.path):
                        return {}
                    if listing == _MAX_LISTINGS:
                        raise
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

    @property
    def is_local(self) -> bool:
        """Whether reading a file costs no request: the folder is on the worker, or mounted there."""
        return self.url.startswith(("file://", "local://"))

    def sha256(self, name: str) -> str | None:
        """
        Return the SHA-256 digest of a file in hexadecimal digits, None where there is no such file.

        :param name: The name of the file.
        :raises WhisulStorageError: The file cannot be read.
        """
        with wrap_storage_errors(f"read {self.url}/{name}"):
            try:
                with self.fs.open(f"{self.path}/{name}", "rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                return None

    @contextmanager
    def new_file(self, workdir: Path, name: str) -> Iterator[NewFile]:
        """
        Create a file for :meth:`publish`. Without that nothing is left of it when the context ends.

        In a local folder it is an unnamed file of that folder, so that its bytes are written once, and a process that
        is killed leaves nothing. Elsewhere, and where the system has no unnamed files, it is in the work folder.

        :param workdir: A folder on this machine.
        :param name: The file's name in the work folder.
        :raises WhisulStorageError: The file cannot be created.
        """
        with create_unnamed(self.path, self.url) if self.is_local else nullcontext() as unnamed:
            if unnamed is not None:
                yield unnamed
                return
        with ExitStack() as stack:
            with wrap_storage_errors(f"write {workdir}/{name}, on this machine, before it goes to {self.url}", OSError):
                named = stack.enter_context(create_named(workdir, name))
            yield named

    def publish(self, new: NewFile, name: str) -> None:
        """
        Give a file of :meth:`new_file` its place in the folder, and replace a file of that name, as :meth:`put` does.

        :param new: The file, written whole.
        :param name: The name of the file in the folder.
        :raises WhisulStorageError: As :meth:`put`.
        """
        if new.is_unnamed:
            try:
                new.link(f"{self.path}/{name}")
            except OSError:
                # Most often because there is a file of that name, which only a move can replace.
                self.put(new.path, name)
            return
        # Stores guess a file's Content-Type from its local name.
        named = new.path.with_name(name)
        new.path.replace(named)
        try:
            self.put(named, name)
        finally:
            named.unlink(missing_ok=True)

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
            if not self.atomic_writes:
                self.fs.makedirs(self.path, exist_ok=True)
            # In the other stores a missing file means a missing bucket, which no further write helps.
            repeated = _OtherLengthError if self.atomic_writes else (_OtherLengthError, FileNotFoundError)
            for write in range(1, _MAX_WRITES + 1):
                try:
                    self._write(file, path, size)
                    break
                except repeated as error:
                    if write == _MAX_WRITES:
                        raise (
                            WhisulStorageError(str(error)) if isinstance(error, _OtherLengthError) else error
                        ) from None

    def put_json(self, content: Mapping[str, object], name: str, workdir: Path) -> None:
        """
        Write a JSON file into the folder, as :meth:`put` does.

        :param content: The content of the file.
        :param name: The name of the file in the folder.
        :param workdir: As :meth:`new_file` takes it.
        :raises WhisulStorageError: As :meth:`put`, or the file could not be written on this machine.
        """
        with self.new_file(workdir, name) as new:
            with wrap_storage_errors(f"write {self.url}/{name} ({new.place})"):
                write_all(new.file, to_json(content))
            self.publish(new, name)

    def remove(self, name: str) -> None:
        """
        Remove a file, if it exists.

        :param name: The name of the file.
        :raises WhisulStorageError: The file could not be removed.
        """
        with wrap_storage_errors(f"remove {self.url}/{name}"), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def _write(self, file: Path, path: str, size: int) -> None:
        if self.atomic_writes:
            self.fs.put_file(str(file), path, **self._put_options())
            self._check_size(path, size)
            return
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
        raise _OtherLengthError(
            f"{path} should have {size:,} bytes and has {stored:,}: the store lost some, or another task writes the "
            "same file."
        )

    def _put_options(self) -> dict[str, int]:
        """Return the options of those clients that otherwise hold much in memory, or refuse to replace a file."""
        parameters = inspect.signature(getattr(self.fs, "_put_file", self.fs.put_file)).parameters
        options = {"chunksize": _CHUNK_BYTES, "max_concurrency": 1, "overwrite": True}
        return {name: value for name, value in options.items() if name in parameters}

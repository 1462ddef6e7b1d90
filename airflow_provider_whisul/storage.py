"""A folder of any store that Airflow's ``ObjectStoragePath`` reaches, written so that nothing half looks whole."""

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

from airflow_provider_whisul.api import quote
from airflow_provider_whisul.exceptions import WhisulError, WhisulInvalidInputError, WhisulStorageError
from airflow_provider_whisul.landing import PART, as_json
from airflow_provider_whisul.version_compat import filesystem

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: Stores without folders, where a file appears at once when the last of its bytes has come. Everywhere else it is
#: written under another name and moved.
_APPEAR_WHOLE = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl", "oss"})

#: Bytes of a file that are sent, and held in memory, at once, where the store's client lets that be said.
_CHUNK_BYTES = 8 << 20

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def telling(what: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """
    Turn whatever a store's client raises into an error that says what was being done.

    :param what: As the continuation of "Could not".
    :param kind: What is turned into one; everything else goes on as it is.
    :raises WhisulStorageError: Something was raised.
    """
    try:
        yield
    except WhisulError:
        raise
    except kind as error:
        said = quote(str(error)) or type(error).__name__
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            mend = "There is no room left. Make room, and have the task tried again."
        elif isinstance(error, PermissionError):
            mend = "The permission is missing: see docs/storage.md for those that are needed."
        elif isinstance(error, FileNotFoundError):
            mend = "The folder, or the bucket, does not exist."
        else:
            mend = "Check the destination and its connection."
        raise WhisulStorageError(
            f"Could not {what}: {said} ({type(error).__name__}). {mend} What is in the store already is whole and is "
            "not fetched again."
        ) from error


@dataclass(frozen=True)
class Store:
    """
    A folder in a store. May be used by several threads at once.

    :param url: The folder as people name it: without a connection's id, and without a slash at its end.
    :param fs: The store's client.
    :param path: The folder, as that client names it.
    :param appears_whole: Whether a file appears at once when the last of its bytes has come.
    """

    url: str
    fs: AbstractFileSystem
    path: str
    appears_whole: bool

    @classmethod
    def at(cls, destination: object, conn_id: str | None) -> Store:
        """
        Return the folder that a user has named.

        :param destination: As ``ObjectStoragePath`` takes it: ``s3://bucket/folder``, ``file:///folder``,
            ``gs://connection@bucket/folder``, or the absolute path of a folder on the worker.
        :param conn_id: The Airflow connection to reach it with, None for that of the destination, if any.
        :raises WhisulInvalidInputError: It names no folder.
        :raises WhisulStorageError: The store cannot be reached.
        """
        text = destination if isinstance(destination, str) else str(destination or "")
        if text.startswith("/"):
            text = f"file://{text}"
        match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(?:([^/@]*)@)?([^\x00-\x1f]+)", text)
        where = match[3].rstrip("/") if match else ""
        if match is None or not where or (match[1] in ("file", "local") and not where.startswith("/")):
            raise WhisulInvalidInputError(
                f"The destination {quote(text)!r} names no folder, so nothing was fetched. Name one such as "
                "s3://bucket/songs/{{ run_id }} or file:///data/songs/{{ run_id }}. Where it is a template, look at "
                "the task's rendered fields."
            )
        protocol, url = match[1], f"{match[1]}://{where}"
        with telling(f"reach {url}"):
            fs = filesystem(protocol, conn_id or match[2] or None)
            return cls(url, fs, fs._strip_protocol(url), protocol in _APPEAR_WHOLE)

    def sizes(self) -> dict[str, int | None]:
        """
        Return the names of all that is in the folder, and how long each file is; None for what is no file.

        :raises WhisulStorageError: It cannot be listed.
        """
        with telling(f"list {self.url}"):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
            return {
                entry["name"].rstrip("/").rpartition("/")[2]: None if entry["type"] == "directory" else entry["size"]
                for entry in entries
            }

    def exists(self, name: str) -> bool:
        """
        Return whether a file is there now, however long ago the folder was listed.

        :param name: Its name.
        :raises WhisulStorageError: The store does not say.
        """
        path = f"{self.path}/{name}"
        with telling(f"look for {self.url}/{name}"):
            self.fs.invalidate_cache(self.fs._parent(path))
            return bool(self.fs.exists(path))

    def read_json(self, name: str) -> object:
        """
        Return what a JSON file holds, None if it is none.

        :param name: Its name.
        :raises WhisulStorageError: It cannot be read.
        """
        with telling(f"read {self.url}/{name}"):
            content = self.fs.cat_file(f"{self.path}/{name}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return None

    def put(self, file: Path, name: str) -> None:
        """
        Put a file into the folder, replacing one of that name. It appears there whole or not at all.

        :param file: The file.
        :param name: Its name there.
        :raises WhisulStorageError: It could not be put there, or is not there as long as it should be.
        """
        to = f"{self.path}/{name}"
        size = file.stat().st_size
        with telling(f"write {self.url}/{name} ({size:,} bytes)"):
            if self.appears_whole:
                self.fs.put_file(str(file), to, **self._options())
            else:
                self.fs.makedirs(self.path, exist_ok=True)
                # Nobody else's: an earlier try may still be running, and write the same file.
                part = f"{to}.{token_hex(4)}{PART}"
                try:
                    self.fs.put_file(str(file), part, **self._options())
                    self._check(part, size)
                    self.fs.mv(part, to)
                except BaseException:
                    # Room is what is missing most often.
                    with suppress(Exception):
                        self.fs.rm_file(part)
                    raise
            self._check(to, size)

    def put_json(self, content: Mapping[str, object], name: str, workdir: Path) -> None:
        """
        Put a JSON file into the folder, as :meth:`put`.

        :param content: What it holds.
        :param name: Its name there.
        :param workdir: A folder on this machine to write it in first.
        """
        file = workdir / name.removesuffix(PART)
        with telling(f"write {file}"):
            file.write_bytes(as_json(content))
        self.put(file, name)
        file.unlink()

    def remove(self, name: str) -> None:
        """
        Remove a file.

        :param name: Its name.
        :raises WhisulStorageError: It could not be removed.
        """
        with telling(f"remove {self.url}/{name}"), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def _check(self, path: str, size: int) -> None:
        self.fs.invalidate_cache(self.fs._parent(path))
        there = self.fs.info(path)["size"]
        if there != size:
            raise WhisulStorageError(
                f"{path} should have {size:,} bytes and has {there:,}: the store lost some, or another task writes the "
                "same file."
            )

    def _options(self) -> dict[str, int]:
        """Return what has a client send a file piece by piece, and replace what is there, where it has to be told."""
        takes = inspect.signature(getattr(self.fs, "_put_file", self.fs.put_file)).parameters
        wanted = {"chunksize": _CHUNK_BYTES, "max_concurrency": 1, "overwrite": True}
        return {name: value for name, value in wanted.items() if name in takes}

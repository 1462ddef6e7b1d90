"""Small files in a store that is not a local filesystem: see ``storage/documents.py``."""

from __future__ import annotations

import importlib.metadata
import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING

from packaging.version import Version

from airflow_provider_whisul.exceptions import WhisulError, WhisulStateError
from airflow_provider_whisul.text import quote
from airflow_provider_whisul.version_compat import MissingPackageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: The end of the name of a file that is still being written.
TEMPORARY_SUFFIX = ".part"

_S3 = frozenset({"s3", "s3a", "s3n"})
_GOOGLE = frozenset({"gs", "gcs"})
_AZURE = frozenset({"abfs", "abfss", "adl", "az"})

#: Why a task ends whose folder cannot be used, at the end of the error's message.
CONSEQUENCE = (
    " The folder holds what this task and others have submitted, and without that a song could be paid for twice."
)

#: The stores in which an object appears with its last byte.
OBJECT_STORES = _S3 | _GOOGLE | _AZURE

#: The first botocore that sends the condition "unless it exists". An older one leaves it out without a word.
_LEAST_BOTOCORE = Version("1.35.21")

#: How often a file is created where S3 answers that another request for it is under way.
_MAX_CREATES = 5

#: Under which of these names a client tells when a file was last written.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


def exclusive_option(protocol: str, fs: AbstractFileSystem) -> tuple[str, object] | None:
    """
    Return the argument with which an object store's client writes a file unless it exists.

    :param protocol: The store's protocol, such as ``s3``.
    :param fs: The store's client.
    :return: The argument and its value; None where the client is too old, and would replace the file.
    """
    if protocol in _AZURE:
        return ("overwrite", False)
    if "mode" not in inspect.signature(fs._pipe_file).parameters or (protocol in _S3 and not _has_conditional_put()):
        return None
    return ("mode", "create")


def _has_conditional_put() -> bool:
    try:
        return Version(importlib.metadata.version("botocore")) >= _LEAST_BOTOCORE
    except importlib.metadata.PackageNotFoundError:
        return False


@dataclass(frozen=True)
class ObjectDocuments:
    """
    A folder in a store that is not a local filesystem; see
    :class:`~airflow_provider_whisul.storage.documents.DocumentFolder`.

    :param url: The URL of the folder, without a connection's id and without a slash at its end.
    :param fs: The store's client.
    :param path: The folder's path in that client.
    :param is_object_store: Whether a file appears with its last byte.
    :param exclusive: The argument with which an object store's client writes a file unless it exists; None where it
        has none, and the check and the write are two steps, as in all that is no object store.
    """

    url: str
    fs: AbstractFileSystem
    path: str
    is_object_store: bool
    exclusive: tuple[str, object] | None = ("mode", "create")

    def read(self, name: str) -> bytes | None:
        with state_errors(f"read {self.url}/{name}"):
            try:
                return bytes(self.fs.cat_file(f"{self.path}/{name}", **self._read_options))
            except FileNotFoundError as error:
                if "NoSuchBucket" in _codes(error):
                    raise
                return None

    def write(self, name: str, data: bytes) -> None:
        path = f"{self.path}/{name}"
        with state_errors(f"write {self.url}/{name}"):
            if self.is_object_store:
                self.fs.pipe_file(path, data)
            else:
                self._move_into_place(path, data)

    def create(self, name: str, data: bytes) -> bool:
        path = f"{self.path}/{name}"
        with state_errors(f"write {self.url}/{name}"):
            if self.is_object_store and self.exclusive is not None:
                return self._create_exclusively(path, data, dict([self.exclusive]))
            self.fs.invalidate_cache()
            if self.fs.exists(path):
                return False
            if self.is_object_store:
                self.fs.pipe_file(path, data)
            else:
                self._move_into_place(path, data)
            return True

    def delete(self, name: str) -> None:
        with state_errors(f"remove {self.url}/{name}"), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def names(self, folder: str) -> list[str]:
        with state_errors(f"list {self.url}/{folder}"):
            names = (str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in self._entries(folder))
            return [name for name in names if not name.endswith(TEMPORARY_SUFFIX)]

    def delete_older(self, folder: str, before: float) -> int:
        with state_errors(f"remove old files of {self.url}/{folder}"):
            old = [
                str(entry["name"])
                for entry in self._entries(folder)
                if entry["type"] != "directory" and (_last_written(entry) or before) < before
            ]
            if self.is_object_store and old:
                # A thousand of them in one request, where the store can do that.
                with suppress(FileNotFoundError):
                    self.fs.rm(old)
                return len(old)
            for path in old:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(path)
            return len(old)

    def remove_folder(self, folder: str) -> None:
        with state_errors(f"remove {self.url}/{folder}"), suppress(FileNotFoundError):
            self.fs.invalidate_cache()
            self.fs.rm(f"{self.path}/{folder}", recursive=True)

    @cached_property
    def _read_options(self) -> dict[str, object]:
        # Without it S3's client looks the file up in an earlier listing first, and misses what is newer.
        reader = getattr(self.fs, "_cat_file", self.fs.cat_file)
        return {"max_concurrency": 1} if "max_concurrency" in inspect.signature(reader).parameters else {}

    def _entries(self, folder: str) -> list[dict[str, object]]:
        self.fs.invalidate_cache()
        try:
            return list(self.fs.ls(f"{self.path}/{folder}", detail=True))
        except FileNotFoundError:
            return []

    def _create_exclusively(self, path: str, data: bytes, option: dict[str, object]) -> bool:
        for attempt in range(1, _MAX_CREATES + 1):
            try:
                self.fs.pipe_file(path, data, **option)
                return True
            except Exception as error:
                codes = _codes(error)
                if isinstance(error, FileExistsError) or codes & {"PreconditionFailed", "412", "ResourceExistsError"}:
                    return False
                if "ConditionalRequestConflict" not in codes or attempt == _MAX_CREATES:
                    raise
            time.sleep(0.1 * attempt)
        return False

    def _move_into_place(self, path: str, data: bytes) -> None:
        self.fs.makedirs(self.fs._parent(path), exist_ok=True)
        temporary = f"{path}.{token_hex(4)}{TEMPORARY_SUFFIX}"
        try:
            self.fs.pipe_file(temporary, data)
            self.fs.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                self.fs.rm_file(temporary)
            raise


def _codes(error: BaseException) -> set[str]:
    """Return S3's codes for an error and what has caused it, and the names of their classes."""
    codes: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        codes.add(type(cause).__name__)
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code")))
        cause = cause.__cause__
    return codes


def _last_written(entry: Mapping[str, object]) -> float | None:
    """Return when a listed file was last written, in Unix seconds; None where the client does not say."""
    for key in _TIMES:
        match entry.get(key):
            case datetime() as written:
                return written.timestamp()
            case int() | float() as seconds:
                return float(seconds)
            case str() as text:
                with suppress(ValueError):
                    return datetime.fromisoformat(text).timestamp()
    return None


@contextmanager
def state_errors(action: str) -> Iterator[None]:
    """
    Turn whatever a store's client raises into a :class:`WhisulStateError`.

    :param action: What is done, as the continuation of "Could not".
    """
    try:
        yield
    except WhisulError:
        raise
    except MissingPackageError as error:
        raise WhisulStateError(f"Could not {action}: {error}{CONSEQUENCE}") from None
    except Exception as error:
        detail = quote(str(error)) or type(error).__name__
        raise WhisulStateError(
            f"Could not {action}: {detail} ({type(error).__name__}). Check the folder, its permissions and its "
            f"connection ([whisul] state_path in Airflow's configuration).{CONSEQUENCE}"
        ) from error

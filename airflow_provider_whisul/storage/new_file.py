"""A file that is being written: on this machine, or without a name in a local folder of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

#: Where the system shows the open files of this process, those without a name too.
_OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class NewFile:
    """
    A file that is being written.

    :param file: The open file, without a buffer, so that a full disk is noticed by the write itself.
    :param path: A path that leads to it for as long as it is open.
    :param place: The folder that it is in, for messages.
    :param is_unnamed: Whether it is in the store's folder already, and only lacks a name.
    """

    file: BinaryIO
    path: Path
    place: str
    is_unnamed: bool

    def link(self, path: str) -> None:
        """
        Give an unnamed file its name.

        :param path: The new name, in the file's folder.
        :raises OSError: There is a file of that name, or the file system knows no such links.
        """
        # Only with a descriptor does Python call the function that follows the system's link to the file.
        os.link(self.path, path, src_dir_fd=self.file.fileno(), follow_symlinks=True)


@contextmanager
def create_named(folder: Path, name: str) -> Iterator[NewFile]:
    """
    Create a file for as long as the context lasts.

    :param folder: An existing folder of this machine.
    :param name: The file's name.
    :raises OSError: The file cannot be created.
    """
    path = folder / name
    try:
        with path.open("w+b", buffering=0) as file:
            yield NewFile(file, path, f"{folder}, on this machine", is_unnamed=False)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def create_unnamed(folder: str, place: str) -> Iterator[NewFile | None]:
    """
    Create a file that no other process sees, and that vanishes with the context, or with this process, unless it is
    given a name meanwhile.

    :param folder: The path of the folder. It is created if it does not exist.
    :param place: The folder, for messages.
    :return: The file, None where the system, the file system or the folder's permissions allow none.
    """
    descriptor = _open_unnamed(folder)
    if descriptor is None:
        yield None
        return
    with os.fdopen(descriptor, "w+b", buffering=0) as file:
        yield NewFile(file, _OPEN_FILES / str(descriptor), place, is_unnamed=True)


def write_all(file: BinaryIO, content: bytes) -> None:
    """
    Write bytes to a file without a buffer, whose own ``write`` may write fewer.

    :param file: The file.
    :param content: The bytes.
    :raises OSError: The file cannot be written.
    """
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _open_unnamed(folder: str) -> int | None:
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not _shows_open_files():
        return None
    with suppress(OSError):
        # Some file systems, such as NFS, have no unnamed files. Any other cause will be met, and told, by the write.
        try:
            return os.open(folder, os.O_RDWR | flag, 0o666)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            return os.open(folder, os.O_RDWR | flag, 0o666)
    return None


@cache
def _shows_open_files() -> bool:
    return _OPEN_FILES.is_dir()

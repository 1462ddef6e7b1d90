"""Which destinations are refused. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.text import quote

_ADVICE = (
    "Name one such as s3://bucket/songs/{{ run_id }} or file:///data/songs/{{ run_id }}. Where it is a template, look "
    "at the task's rendered fields."
)


class Destination(NamedTuple):
    """
    A folder in a store.

    :param protocol: The store's protocol, such as ``s3``.
    :param conn_id: The Airflow connection that the destination names, None if it names none.
    :param url: The URL of the folder, without the connection and without a slash at its end.
    """

    protocol: str
    conn_id: str | None
    url: str


def parse_destination(destination: object) -> Destination:
    """
    Return the folder that a user has named.

    :param destination: The folder as ``ObjectStoragePath`` takes it (``s3://bucket/folder``, ``file:///folder``,
        ``gs://connection@bucket/folder``), or the absolute path of a folder on the worker.
    :raises WhisulInvalidInputError: The destination does not name a folder, or leads out of the one that it names: it
        has a query, a fragment, a password, ``..``, or a part without a name, as a template leaves that renders to
        nothing.
    """
    text = destination if isinstance(destination, str) else str(destination or "")
    if text.startswith("/"):
        text = f"file://{text}"
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(?:([^/@]*)@)?([^\x00-\x1f\x7f]+)", text)
    if match is None:
        raise _refusal(text, "does not name a folder")
    protocol, conn_id, location = match[1], match[2], match[3].removesuffix("/")
    host, *folders = location.split("/")
    is_local = protocol in ("file", "local")
    if (conn_id is not None and not re.fullmatch(r"[^:\s]+", conn_id)) or "@" in host:
        # Not quoted: it may hold a password.
        raise _refusal(f"{protocol}://…", "has a user name or a password where only the id of a connection may be")
    if "?" in location or "#" in location:
        raise _refusal(f"{protocol}://{location}", "has a query or a fragment, which names no folder")
    if bool(host) == is_local or (is_local and not any(folders)):
        raise _refusal(text, "does not name a folder")
    parts = folders if is_local else [host, *folders]
    if any(not part.strip() or part in (".", "..") for part in parts):
        raise _refusal(text, "has a part that is empty, . or ..")
    return Destination(protocol, conn_id, f"{protocol}://{location}")


def check_before_rendering(destination: object) -> None:
    """
    Refuse a destination while the DAG file is read, unless only the task knows it: a template, or a task's output.

    :param destination: The destination as the DAG file says it.
    :raises WhisulInvalidInputError: As of :func:`parse_destination`.
    """
    if isinstance(destination, str) and "{" not in destination:
        parse_destination(destination)


def _refusal(shown: str, problem: str) -> WhisulInvalidInputError:
    return WhisulInvalidInputError(f"The destination {quote(shown)!r} {problem}, so nothing was downloaded. {_ADVICE}")

"""The folder in which the provider keeps what must outlive a task: ``[whisul] state_path``, or one of this machine."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

from airflow.providers.common.compat.sdk import conf

from airflow_provider_whisul.exceptions import WhisulConfigurationError, WhisulInvalidInputError, WhisulStateError
from airflow_provider_whisul.storage.documents import DocumentFolder, LocalDocuments, open_folder

log = logging.getLogger(__name__)

#: The folder under AIRFLOW_HOME where no path is configured. It serves whoever runs all tasks on one machine.
DEFAULT_FOLDER = "whisul_state"


def configured_path() -> str | None:
    """Return ``[whisul] state_path`` of Airflow's configuration, None where it is not set."""
    return (conf.get("whisul", "state_path", fallback="") or "").strip() or None


def state_folder() -> DocumentFolder | None:
    """
    Return the folder; None where none is configured and this machine's own cannot be made.

    :raises WhisulConfigurationError: The configured path names no folder.
    :raises WhisulStateError: The configured folder does not exist on this machine, its store's client cannot be made,
        or this machine's own folder may not be read and written.
    """
    path = configured_path()
    # A store's client must not be used in a process that was forked from the one that made it.
    return machine_folder() if path is None else _open(path, os.getpid())


def machine_folder() -> DocumentFolder | None:
    """
    Return the folder of this machine, None where it cannot be made.

    :raises WhisulStateError: It is there, and may not be read and written.
    """
    return _folder_under(os.environ.get("AIRFLOW_HOME", "~/airflow"))


@cache
def _open(path: str, process: int) -> DocumentFolder:
    try:
        folder = open_folder(path)
    except WhisulInvalidInputError as error:
        problem = str(error).removeprefix("The destination ").partition(", so nothing was downloaded.")[0]
        raise WhisulConfigurationError(
            f"[whisul] state_path cannot be used: {problem}. Nothing was sent. Name a folder such as "
            "s3://bucket/whisul or /shared/whisul in Airflow's configuration."
        ) from None
    if isinstance(folder, LocalDocuments) and not folder.path.is_dir():
        # Not made here: where a shared disk is not mounted, an empty folder in its place would know of no song.
        problem, remedy = "does not exist on this machine", "Create it, or mount the disk that it is on."
        if folder.path.exists():
            problem, remedy = "is a file", "Name a folder."
        raise WhisulStateError(
            f"The folder {folder.url} of [whisul] state_path in Airflow's configuration {problem}. Nothing was sent. "
            f"{remedy}"
        )
    return folder


@cache
def _folder_under(airflow_home: str) -> DocumentFolder | None:
    path = Path(os.path.expandvars(airflow_home)).expanduser().absolute() / DEFAULT_FOLDER
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    else:
        if os.access(path, os.R_OK | os.W_OK | os.X_OK):
            return LocalDocuments(path)
        # It may hold what an earlier try has paid for.
        raise WhisulStateError(
            f"The folder {path} is there, and this task's user may not read and write it. It says what tasks have "
            "submitted, and without it a song could be paid for twice. Nothing was sent. Correct its permissions, or "
            "set [whisul] state_path in Airflow's configuration to a folder that all users of the tasks may write."
        )
    log.warning(
        "%s cannot be made: %s. So nothing there says what the tasks have submitted: there is no ledger, and where "
        "Airflow has no task state store (before 3.3) a retry submits, and pays, again. Set [whisul] state_path in "
        "Airflow's configuration.",
        path,
        problem,
    )
    return None

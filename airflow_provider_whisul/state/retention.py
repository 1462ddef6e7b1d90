"""How long what tasks have submitted is kept in a folder, and the removal of what is older."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

from airflow_provider_whisul.exceptions import WhisulStateError
from airflow_provider_whisul.storage.documents import DocumentFolder
from airflow_provider_whisul.storage.object_documents import CONSEQUENCE
from airflow_provider_whisul.text import count

log = logging.getLogger(__name__)

#: The folders in the folder: records of task instances, and days of the ledger by account.
RECORDS = "records"
LEDGER = "ledger"

#: Days after its last write that a record is kept, and days that the ledger's entries are.
RECORD_DAYS = 30
LEDGER_DAYS = 400

#: Holds a file for each of the last days on which old files were removed.
_SWEPT = "swept"
_SWEPT_DAYS = 7

#: On which day, of which folder, this process need not ask again.
_asked: set[tuple[str, date]] = set()


def sweep_daily(folder: DocumentFolder, now: float) -> None:
    """
    Remove what is older than it is kept, unless somebody who shares the folder has done so on this day (UTC).

    Errors are only logged: what is too old does no harm.

    :param folder: The folder.
    :param now: The time, in Unix seconds.
    """
    today = datetime.fromtimestamp(now, UTC).date()
    if (folder.url, today) in _asked:
        return
    _asked.add((folder.url, today))
    marker = f"{_SWEPT}/{today}"
    try:
        if folder.read(marker) is not None or not folder.create(marker, b""):
            return
        if folder.create(marker, b""):
            log.warning(
                "%s has replaced a file that was to be created only where there is none: of two tries of a task that "
                "run at once, both may submit and pay. docs/state.md says which stores refuse that.",
                folder.url,
            )
        _sweep(folder, now, today)
    except WhisulStateError as error:
        # What the error says of a song that is paid for twice is not so here.
        reason = str(error).removesuffix(CONSEQUENCE)
        log.warning("Old records could not be removed, which does no harm today. %s", reason)


def _sweep(folder: DocumentFolder, now: float, today: date) -> None:
    day = timedelta(days=1).total_seconds()
    records = folder.delete_older(RECORDS, now - RECORD_DAYS * day)
    days = 0
    for account in folder.names(LEDGER):
        for name in folder.names(f"{LEDGER}/{account}"):
            if _is_before(name, today - timedelta(days=LEDGER_DAYS)):
                folder.remove_folder(f"{LEDGER}/{account}/{name}")
                days += 1
    folder.delete_older(_SWEPT, now - _SWEPT_DAYS * day)
    if records or days:
        log.info(
            "Removed %s not written for %s days and %s older than %s days of the ledger from %s.",
            count(records, "file"),
            RECORD_DAYS,
            count(days, "day"),
            LEDGER_DAYS,
            folder.url,
        )


def _is_before(name: str, limit: date) -> bool:
    with suppress(ValueError):
        return date.fromisoformat(name) < limit
    return False

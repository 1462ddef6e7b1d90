"""
The ledger of one account: what was submitted with its key, over all DAGs and all machines that share the folder.

In ``<state folder>/ledger/<account>/<day, UTC>/`` each submission has a small file, and so has each job's end.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.exceptions import WhisulStateError
from airflow_provider_whisul.ledger.entries import (
    Entry,
    Outcome,
    outcome_file,
    outcome_to_bytes,
)
from airflow_provider_whisul.state.retention import LEDGER
from airflow_provider_whisul.state.state_path import state_folder
from airflow_provider_whisul.storage.documents import DocumentFolder

log = logging.getLogger(__name__)

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def account_of(settings: ConnectionSettings) -> str:
    """
    Return what names an account in the ledger: a digest of base URL and key.

    :param settings: The connection's settings.
    """
    return settings.fingerprint[:16]


def day_of(seconds: float) -> str:
    """
    Return the day of a time, as ``2026-11-26``, in UTC.

    :param seconds: The time in Unix seconds.
    """
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def end_of_day(seconds: float) -> float:
    """
    Return when the day of a time ends in UTC, in Unix seconds.

    :param seconds: The time in Unix seconds.
    """
    midnight = datetime.fromtimestamp(seconds, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight + timedelta(days=1)).timestamp()


@dataclass(frozen=True)
class AccountLedger:
    """
    The files of one account. Its methods raise :class:`WhisulStateError` where the folder cannot be used.

    :param folder: The state folder.
    :param account: The account, as :func:`account_of` names it.
    """

    folder: DocumentFolder
    account: str

    @classmethod
    def open(cls, settings: ConnectionSettings) -> AccountLedger | None:
        """
        Return the ledger of a connection's account; None where this machine has no usable folder.

        :param settings: The connection's settings.
        :raises WhisulConfigurationError: The configured ``state_path`` names no folder.
        """
        folder = state_folder()
        return None if folder is None else cls(folder, account_of(settings))

    @property
    def url(self) -> str:
        """The URL of the account's folder."""
        return f"{self.folder.url}/{self.path}"

    @property
    def path(self) -> str:
        """The account's folder, in the state folder."""
        return f"{LEDGER}/{self.account}"

    def read(self, day: str, file: str) -> Entry | None:
        """
        Return an entry, None where there is none.

        :param day: The day.
        :param file: The file's name.
        :raises WhisulStateUnreadableError: It is there and cannot be read.
        """
        name = f"{self.path}/{day}/{file}"
        data = self.folder.read(name)
        return None if data is None else Entry.from_bytes(data, f"{self.folder.url}/{name}")

    def create(self, day: str, file: str, entry: Entry) -> bool:
        """
        Write an entry, unless there is one of that name.

        :param day: The day.
        :param file: The file's name.
        :param entry: The entry.
        :return: Whether it was written.
        """
        return self.folder.create(f"{self.path}/{day}/{file}", entry.to_bytes())

    def write(self, day: str, file: str, entry: Entry) -> None:
        """
        Replace an entry.

        :param day: The day.
        :param file: The file's name.
        :param entry: The entry.
        """
        self.folder.write(f"{self.path}/{day}/{file}", entry.to_bytes())

    def delete(self, day: str, file: str) -> None:
        """
        Remove an entry.

        :param day: The day.
        :param file: The file's name.
        """
        self.folder.delete(f"{self.path}/{day}/{file}")

    def holds(self, day: str, file: str, entry: Entry) -> bool:
        """
        Return whether a file holds the entry of one call of the hook, and not that of another try.

        :param day: The day.
        :param file: The file's name.
        :param entry: The entry, as it is or as it was before.
        """
        found = self.read(day, file)
        return found is not None and found.attempt == entry.attempt

    def withdraw(self, day: str, file: str, entry: Entry) -> bool:
        """
        Remove the entry of a submission that certainly made no job. Where that fails twice, a warning says so.

        :param day: The day.
        :param file: The file's name.
        :param entry: The entry.
        :return: Whether it was removed.
        """
        try:
            try:
                self.delete(day, file)
            except WhisulStateError:
                # Perhaps only the response was lost, and another try has an entry there by now.
                if self.holds(day, file, entry):
                    self.delete(day, file)
        except WhisulStateError as error:
            log.warning(
                "The ledger counts one submission too many, which made no job. A later try takes it for one whose "
                "response was lost. %s",
                error,
            )
            return False
        return True

    def record_outcome(self, job_id: str, outcome: Outcome, now: float) -> None:
        """
        Record how a job ended, in the folder of today.

        :param job_id: The job's id.
        :param outcome: How it ended.
        :param now: The time, in Unix seconds.
        """
        name = f"{self.path}/{day_of(now)}/{outcome_file(job_id, outcome)}"
        self.folder.create(name, outcome_to_bytes(job_id, outcome, now))

    def days(self) -> list[str]:
        """Return the days of which there is anything, the last one first."""
        return sorted(filter(_DAY.fullmatch, self.folder.names(self.path)), reverse=True)

    def files(self, day: str) -> list[str]:
        """
        Return the names of a day's files.

        :param day: The day.
        """
        return self.folder.names(f"{self.path}/{day}")

"""Reads the ledgers of some accounts: the files of some days, several at a time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from airflow_provider_whisul.exceptions import WhisulStateUnreadableError
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.entries import Entry, Outcome, dag_of_submission, outcome_of
from airflow_provider_whisul.state.retention import LEDGER
from airflow_provider_whisul.storage.documents import DocumentFolder

_ACCOUNT = re.compile(r"[0-9a-f]{16}")

#: Files that are read at a time: each takes an object store tens of milliseconds.
_READERS = 16


@dataclass
class LedgerContent:
    """
    What the files say.

    :param entries: The submissions.
    :param outcomes: How jobs ended, by job id.
    :param unreadable: Why a file could not be read, one sentence for each.
    """

    entries: list[Entry] = field(default_factory=list)
    outcomes: dict[str, set[Outcome]] = field(default_factory=lambda: defaultdict(set))
    unreadable: list[str] = field(default_factory=list)


def all_ledgers(folder: DocumentFolder) -> list[AccountLedger]:
    """
    Return the ledgers of all accounts in a state folder.

    :param folder: The state folder.
    :raises WhisulStateError: It cannot be read.
    """
    return [AccountLedger(folder, account) for account in sorted(filter(_ACCOUNT.fullmatch, folder.names(LEDGER)))]


def read_ledgers(ledgers: Sequence[AccountLedger], since: str, until: str) -> LedgerContent:
    """
    Read what was submitted in some days, and how its jobs ended, also where that was later.

    :param ledgers: The ledgers.
    :param since: The first day, in UTC.
    :param until: The last day.
    :raises WhisulStateError: The folder cannot be read.
    """
    content = LedgerContent()
    submissions: list[tuple[AccountLedger, str, str]] = []
    for ledger in ledgers:
        for day in ledger.days():
            if day < since:
                continue
            for file in ledger.files(day):
                outcome = outcome_of(file)
                if outcome is not None:
                    content.outcomes[outcome[0]].add(outcome[1])
                elif day <= until and dag_of_submission(file) is not None:
                    submissions.append((ledger, day, file))
    with ThreadPoolExecutor(_READERS) as pool:
        for read in pool.map(_read, submissions):
            if isinstance(read, Entry):
                content.entries.append(read)
            elif read is not None:
                content.unreadable.append(read)
    return content


def _read(place: tuple[AccountLedger, str, str]) -> Entry | str | None:
    """Return an entry; why it cannot be read; or None where a refusal has removed it meanwhile."""
    ledger, day, file = place
    try:
        return ledger.read(day, file)
    except WhisulStateUnreadableError as error:
        return str(error)

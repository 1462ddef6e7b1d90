"""The most submissions that an account may make in a day: the connection's ``max_submissions_per_day``."""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import WhisulBudgetExceededError, WhisulStateError
from airflow_provider_whisul.ledger.account_ledger import AccountLedger, day_of, end_of_day
from airflow_provider_whisul.ledger.entries import Entry, dag_of_submission
from airflow_provider_whisul.rate_limit.limiter_store import DayIsFullError, LimiterStore
from airflow_provider_whisul.storage.documents import LocalDocuments
from airflow_provider_whisul.text import count, quote

#: DAGs that the error names at most.
MAX_DAGS = 5

#: Seconds to wait for the lock, which others hold for milliseconds; and between two tries.
LOCK_TIMEOUT = 10.0
_LOCK_RETRY_DELAY = 0.005


class DayCeiling:
    """
    The ceiling of a day for one submission: its entry in the ledger, and its place in the count over all machines.

    The ledger is shared by those that share a folder. Where the account's rate limiter is in Redis, the submissions are
    counted there too, for machines that share none. While Redis is away the ledger alone counts.
    """

    def __init__(self) -> None:
        # Where the submission is counted beside the ledger, and the day that it is counted for.
        self._counted: tuple[LimiterStore, str] | None = None

    def create(
        self,
        ledger: AccountLedger,
        file: str,
        entry: Entry,
        ceiling: int | None,
        store: LimiterStore | None,
        now: float,
    ) -> bool:
        """
        Write the entry of a submission, unless there is one of that name or the day has no room for it.

        It is written first and counted then, so that the ceiling is never passed, on whatever store. On a local folder
        the two are one step for all processes: of those that come at once as many as have room go. In an object store
        some of them may refuse each other.

        :param ledger: The account's ledger.
        :param file: The name of the entry's file.
        :param entry: The entry.
        :param ceiling: The most submissions of a day; None for as many as come.
        :param store: Where the account's rate limiter is kept; None to count in the ledger alone.
        :param now: The time, in Unix seconds. Its day counts in the ledger.
        :return: Whether it was written; False where there is an entry of that name.
        :raises WhisulBudgetExceededError: The day has no room.
        """
        day = day_of(now)
        with _locked(ledger) if ceiling is not None else nullcontext():
            try:
                # A store's client that has lost a response writes again, and then meets its own file.
                if not ledger.create(day, file, entry) and not ledger.holds(day, file, entry):
                    return False
                if ceiling is None:
                    return True
                others = (dag_of_submission(name) for name in ledger.files(day) if name != file)
                dags = [dag for dag in others if dag is not None]
                # The ledger first: what it refuses takes no place from the other machines.
                if len(dags) < ceiling and self._count(store, ceiling):
                    return True
            except BaseException:
                # It may have been written, also where the response of a store to that was lost.
                with suppress(WhisulStateError):
                    if ledger.holds(day, file, entry):
                        ledger.withdraw(day, file, entry)
                self.withdraw()
                raise
            ledger.withdraw(day, file, entry)
        raise WhisulBudgetExceededError(_message(entry.conn_id, dags, ceiling, now))

    def withdraw(self) -> None:
        """Take the submission back from the count over all machines: certainly nothing was submitted."""
        if self._counted is not None:
            store, day = self._counted
            self._counted = None
            store.uncount_submission(day)

    def _count(self, store: LimiterStore | None, ceiling: int) -> bool:
        try:
            day = None if store is None else store.count_submission(ceiling)
        except DayIsFullError:
            return False
        if store is not None and day is not None:
            self._counted = store, day
        return True


def _message(conn_id: str, dags: list[str], ceiling: int, now: float) -> str:
    by_dag = sorted(Counter(dags).items(), key=lambda item: (-item[1], item[0]))
    named = [f"{number:,} by {quote(dag) or 'code outside of a DAG'}" for dag, number in by_dag[:MAX_DAGS]]
    if len(by_dag) > MAX_DAGS:
        named.append(f"and {len(by_dag) - MAX_DAGS:,} more DAGs" if len(by_dag) - MAX_DAGS > 1 else "and 1 more DAG")
    made = f"{len(dags):,} of {ceiling:,} made"
    if len(dags) < ceiling:
        made = f"{ceiling:,} of {ceiling:,} made over all machines, of which the ledger of this one has {len(dags):,}"
    if named:
        made = f"{made}: {', '.join(named)}"
    return (
        f"The ceiling of {count(ceiling, 'submission')} a day is reached, which the extra max_submissions_per_day of "
        f"the Airflow connection {conn_id!r} sets. Today, {day_of(now)} (UTC): {made}. Nothing was sent. The day ends "
        f"at {utc(end_of_day(now))}: clear the task after that, or raise the ceiling and clear it now."
    )


@contextmanager
def _locked(ledger: AccountLedger) -> Iterator[None]:
    """Hold the account's lock where the folder is local. Without it the ceiling is kept too, but less exactly."""
    if not isinstance(ledger.folder, LocalDocuments):
        yield
        return
    lock = None
    path = ledger.folder.path / ledger.path
    # A filesystem without locks raises.
    with suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        give_up_at = time.monotonic() + LOCK_TIMEOUT
        while not _try_to_lock(lock) and time.monotonic() < give_up_at:
            time.sleep(_LOCK_RETRY_DELAY)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _try_to_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

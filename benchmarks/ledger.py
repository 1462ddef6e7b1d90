"""Measures what the ledger costs a submission, on a folder of this machine: ``python -m benchmarks.ledger``."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.ledger.submitting import Submitting
from benchmarks.tables import table

SUBMISSIONS = 500


def _submit(settings: ConnectionSettings, run: str, number: int) -> None:
    """Do what one submission does beside its request."""
    submission = SubmissionId("songs", "make", run, number, 0)
    entry = Submitting("a song", submission, "whisul_default", SYSTEM_CLOCK)
    entry.open(settings)
    entry.accept(f"job-{number}")


def _record_outcome(settings: ConnectionSettings, number: int) -> None:
    ledger = AccountLedger.open(settings)
    if ledger is not None:
        ledger.record_outcome(f"job-{number}", "delivered", time.time())


def _median_ms(action: Callable[[int], None]) -> float:
    times = []
    for number in range(SUBMISSIONS):
        begun = time.perf_counter()
        action(number)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1_000


def main() -> int:
    """Measure, and print a table."""
    plain = ConnectionSettings("http://127.0.0.1/api", "some-key")
    limited = ConnectionSettings("http://127.0.0.1/api", "some-key", max_submissions_per_day=1_000_000)
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="whisul-bench-") as folder:
        os.environ["AIRFLOW__WHISUL__STATE_PATH"] = folder
        for name, action in (
            ("a submission, without a ceiling", lambda number: _submit(plain, "one", number)),
            ("a submission, with one, 500 to 1,000 in the day", lambda number: _submit(limited, "two", number)),
            ("a job's end", lambda number: _record_outcome(plain, number)),
        ):
            rows.append((name, f"{_median_ms(action):.2f}"))
    table("What the ledger costs, on a folder of this machine", ("what", "ms, median of 500"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

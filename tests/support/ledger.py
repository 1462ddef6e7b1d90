"""Readers of the ledger for tests."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path


def ledger_files(folder: Path | None = None) -> list[str]:
    """
    Return the names of all files in the ledger.

    :param folder: The folder of ``[whisul] state_path``, None for the machine's own.
    """
    root = folder or Path(os.environ["AIRFLOW_HOME"]) / "whisul_state"
    return sorted(path.name for path in (root / "ledger").rglob("*.json"))


def outcomes(folder: Path | None = None) -> Counter[str]:
    """
    Return how often each outcome is in the ledger.

    :param folder: As of :func:`ledger_files`.
    """
    root = folder or Path(os.environ["AIRFLOW_HOME"]) / "whisul_state"
    entries = (json.loads(path.read_text()) for path in (root / "ledger").rglob("*.json"))
    return Counter(entry["outcome"] for entry in entries if "outcome" in entry)

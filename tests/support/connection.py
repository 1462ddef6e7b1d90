"""The Airflow connection ``whisul_default`` of a test."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


def change_connection(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Change fields of ``whisul_default``."""
    connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps({**connection, **fields}))


def api_key() -> str:
    """Return the API key of ``whisul_default``."""
    return str(json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])["password"])


def set_extra(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    """Add to the extra of ``whisul_default``."""
    connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
    change_connection(monkeypatch, extra={**(connection.get("extra") or {}), **extra})

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE_DAGS = Path(__file__).resolve().parents[3] / "example_dags"


@pytest.fixture
def example() -> Callable[[str], dict[str, Any]]:
    """Run the file of an example DAG, and return what it defines."""

    def run(name: str) -> dict[str, Any]:
        return runpy.run_path(str(EXAMPLE_DAGS / f"{name}.py"))

    return run

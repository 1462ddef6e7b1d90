from __future__ import annotations

from tests.integration.operators.conftest import home, simulate, simulate_at_home

__all__ = ["home", "simulate", "simulate_at_home"]

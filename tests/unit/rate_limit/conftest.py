"""The stores of a process whose store may be away."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_whisul.rate_limit.fallback_store import FallbackStore
from airflow_provider_whisul.rate_limit.limiter_store import MemoryStore
from tests.support.clock import FakeClock
from tests.unit.rate_limit.unsteady_store import Logged, UnsteadyStore


@pytest.fixture
def primary(clock: FakeClock) -> UnsteadyStore:
    # Its time has nothing to do with ours, as that of a Redis.
    return UnsteadyStore(clock, ahead=12_345.0)


@pytest.fixture
def backup(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock.clock)


@pytest.fixture
def store(primary: UnsteadyStore, backup: MemoryStore, clock: FakeClock) -> FallbackStore:
    return FallbackStore(primary, backup, clock.clock)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    caplog.set_level(logging.INFO, "airflow_provider_whisul")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]

"""Crashes, with the tasks' records in a folder, as every supported Airflow can have them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.crash.cases import CrashTests
from tests.e2e.crash.stage import Stage, crashes

# The first test also waits for Airflow and for all the songs.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    env = {"AIRFLOW__WHISUL__STATE_PATH": str(tmp_path_factory.mktemp("state"))}
    with crashes(env) as stage:
        yield stage


class TestWithAFolder(CrashTests):
    pass

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.integration.campaign.seeds import seeds_to_play
from tests.integration.campaign.world import Log


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(seeds_to_play(getattr(metafunc.module, "SEEDS", 1))))


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    log = Log(capsys)
    # Airflow 2's loggers do not propagate to the root.
    loggers = [logging.getLogger(name) for name in ("", "airflow.task")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(log)
        logger.setLevel(logging.INFO)
    yield log
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(log)
        logger.setLevel(level)

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.integration.campaign.world import Log

#: How many seeds of each world are played. More find more: WHISUL_CAMPAIGN_SEEDS=100 plays a hundred.
SEEDS_VARIABLE = "WHISUL_CAMPAIGN_SEEDS"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        seeds = int(os.environ.get(SEEDS_VARIABLE) or getattr(metafunc.module, "SEEDS", 1))
        metafunc.parametrize("seed", range(seeds))


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

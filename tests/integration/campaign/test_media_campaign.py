"""
A seeded campaign of storing songs: from a media host with faults into a folder, over real HTTP.

Tries are killed at any moment, stopped, or run twice at once. What must hold is read from the files on disk, which must
be those of the sandbox to the last byte, from the sandbox's request log and from the errors.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_whisul.sandbox.options import MEDIA_FAULTS
from tests.integration.campaign.media_judge import MediaJudge
from tests.integration.campaign.media_world import MediaWorld
from tests.integration.campaign.seeds import needs_seeds
from tests.integration.campaign.world import Log

#: More, or fewer, with the environment variable that seeds.py names.
SEEDS = 4

#: How often each of these must happen in all seeds together, so that the rules are put to the test.
MINIMUM_FIGURES = {
    "tries": 40,
    "media requests": 300,
    "tried: twice": 2,
    "tried: stopped": 2,
    "ended: killed": 4,
    "left in the destination": 1,
    "ended: stored": 8,
    "ended: WhisulMediaError": 2,
}

_ALL: Counter[str] = Counter()

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def test_every_try_of_storing_songs_keeps_the_rules(
    seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    world = MediaWorld(seed, log, monkeypatch, tmp_path, lambda batch, sandbox: MediaJudge(batch, sandbox).judge())
    world.play()

    figures = world.figures
    figures["seeds"] = 1
    record_property("figures", dict(figures))
    _ALL.update(figures)


@needs_seeds(SEEDS)
@pytest.mark.parametrize("figure", MINIMUM_FIGURES)
def test_the_rules_were_put_to_the_test(figure: str) -> None:
    if _ALL["seeds"] < SEEDS:
        pytest.skip("not all seeds were played")
    assert _ALL[figure] >= MINIMUM_FIGURES[figure]


@needs_seeds(SEEDS)
def test_all_faults_occurred() -> None:
    if _ALL["seeds"] < SEEDS:
        pytest.skip("not all seeds were played")
    assert not {f"fault: {fault}" for fault in MEDIA_FAULTS} - set(_ALL)
    assert len([figure for figure in _ALL if figure.startswith("killed: ")]) >= 4

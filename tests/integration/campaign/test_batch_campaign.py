"""
A seeded campaign of batches: songs through the sandbox's faults, over real HTTP, on virtual time.

As in the campaign of single songs, what must hold is read from the sandbox's request log. Here the prompts may be
others each time that Airflow renders them, and a try defers as often as its trigger reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from airflow_provider_whisul.sandbox.options import GET_FAULTS, POST_FAULTS
from tests.integration.campaign.batch_judge import BatchJudge
from tests.integration.campaign.batch_world import BatchWorld
from tests.integration.campaign.seeds import needs_seeds
from tests.integration.campaign.world import Log

# A seed takes some seconds, and on a busy machine minutes.
pytestmark = pytest.mark.timeout(600)

#: More, or fewer, with the environment variable that seeds.py names.
SEEDS = 6

#: How often each of these must happen in all seeds together, so that the rules are put to the test. Usually they happen
#: at least twice as often: threads decide some of it.
MINIMUM_FIGURES = {
    "tries": 200,
    "POSTs": 1000,
    "polls": 1500,
    "deferrals": 200,
    "waits on the worker": 60,
    "killed while waiting on the worker": 1,
    "429": 200,
    "delivered": 5,
    "re-attached": 25,
    "submitted again": 25,
    "stopped after lost responses": 20,
    "cleared": 5,
    "triggerer restarts": 2,
}

_ALL: Counter[str] = Counter()
_FAULTS: set[str] = set()


def test_every_try_of_a_batch_keeps_the_rules(
    seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    world = BatchWorld(seed, log, monkeypatch, lambda *this: BatchJudge(*this).judge())
    with world.runner:
        world.play()

    figures = world.figures
    figures["seeds"] = 1
    record_property("figures", dict(figures))
    _ALL.update(figures)
    _FAULTS.update(world.faults)


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
    assert not {*GET_FAULTS, *POST_FAULTS} - _FAULTS

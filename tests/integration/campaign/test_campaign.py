"""
A seeded campaign: hundreds of songs through every fault of the sandbox, over real HTTP, on virtual time.

The test plays Airflow: tries and retries, the task state store, workers and triggerers that are killed, users who clear
tasks. What must hold is read from the sandbox's request log and from how each try ended, not from the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import BaseSensorOperator

from airflow_provider_whisul.sandbox.options import GET_FAULTS, POST_FAULTS
from tests.integration.campaign.judge import Judge
from tests.integration.campaign.world import SANDBOXES, SONGS_PER_SANDBOX, Log, World

# A seed takes some seconds, and on a busy machine minutes.
pytestmark = pytest.mark.timeout(600)

#: More, or fewer, with the environment variable that seeds.py names.
SEEDS = 8

#: How often each of these must happen in each seed's world, so that the rules are put to the test.
MINIMUM_FIGURES = {
    "tries": 120,
    "POSTs": 80,
    "polls": 120,
    "429": 10,
    "delivered": 8,
    "not delivered": 10,
    "ambiguous submissions": 15,
    "re-attached": 3,
    "cleared": 3,
}


def test_every_try_keeps_the_rules(
    seed: int, log: Log, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    world = World(seed, log, monkeypatch, lambda *this: Judge(*this).judge())
    with world.runner:
        # The modes poke and reschedule are Airflow's own loop, with a clock of its own.
        in_poke_mode = SimpleNamespace(sleep=world.time.sleep, monotonic=world.time.time)
        monkeypatch.setattr(sys.modules[BaseSensorOperator.__module__], "time", in_poke_mode)
        in_reschedule_mode = SimpleNamespace(utcnow=lambda: datetime.fromtimestamp(world.time.now, UTC))
        monkeypatch.setattr(sys.modules[BaseSensorOperator.__module__], "timezone", in_reschedule_mode)
        monkeypatch.setattr("airflow_provider_whisul.retry_policy.SYSTEM_CLOCK", world.clock)
        world.play()

    figures = world.figures
    record_property("figures", dict(figures))
    # A rule that nothing was judged by proves nothing: of each kind there must have been some.
    assert len({*GET_FAULTS, *POST_FAULTS} - world.faults) <= 2
    assert figures["songs"] == SANDBOXES * SONGS_PER_SANDBOX
    for kind, least in MINIMUM_FIGURES.items():
        assert figures[kind] >= least, f"{kind}: {figures[kind]} of at least {least}"
    assert len([figure for figure in figures if figure.startswith("killed: ")]) >= 4
    assert len([figure for figure in figures if figure.startswith("ended: Whisul")]) >= 6

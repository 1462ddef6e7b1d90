"""How many seeds of each world are played."""

from __future__ import annotations

import os

import pytest

#: More seeds find more: WHISUL_CAMPAIGN_SEEDS=100 plays a hundred of each world.
SEEDS_VARIABLE = "WHISUL_CAMPAIGN_SEEDS"


def seeds_to_play(default: int) -> int:
    """Return how many seeds a module plays, whose own number is ``default``."""
    return int(os.environ.get(SEEDS_VARIABLE) or default)


def needs_seeds(number: int) -> pytest.MarkDecorator:
    """Return the mark of a test about all seeds together. It is deselected where fewer are played."""
    return pytest.mark.skipif(seeds_to_play(number) < number, reason=f"fewer than {number} seeds are played")

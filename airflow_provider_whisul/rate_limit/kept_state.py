"""Whether what a store holds is the state of a rate limiter, as this version of the provider writes it. No I/O."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE
from airflow_provider_whisul.rate_limit.block import MAX_COOLDOWN

#: Version of what a store holds. A store with another one is taken for empty.
STATE_VERSION = 6

#: Requests per second. A smaller number is that of a damaged store, and cannot be divided by.
MIN_KEPT_RATE = 1e-9


def is_state(found: object, known: dict[str, object]) -> TypeGuard[dict[str, Any]]:
    """
    Return whether JSON that was read is a state that makes sense.

    :param found: What was read.
    :param known: The state of a new rate limiter.
    """
    return isinstance(found, dict) and _same_shape(found, known) and _makes_sense(found)


def _same_shape(found: object, known: object) -> bool:
    """Return whether JSON that was read has the keys and types of what is written."""
    if isinstance(known, dict):
        return (
            isinstance(found, dict)
            and found.keys() == known.keys()
            and all(_same_shape(found[name], value) for name, value in known.items())
        )
    return type(found) is type(known) and found == found


def _makes_sense(state: dict[str, Any]) -> bool:
    """Return whether numbers that were read are such as are written."""
    throttle, block = state["throttle"], state["block"]
    return (
        state["version"] == STATE_VERSION
        and MIN_KEPT_RATE < throttle["rate"] < math.inf
        and throttle["ceiling"] > 0
        and throttle["ceiling_doubles_after"] > 0
        and 0 <= throttle["ceiling_age"] < math.inf
        and state["last_request"] >= block["last_request_before"] >= 0
        and 0 <= block["step"] < len(BACKOFF_SCHEDULE)
        and 0 <= block["cooldown"] <= MAX_COOLDOWN
        and all(type(number) is int and number >= 0 for name in ("durations", "jobs") for number in state[name])
        and all(_is_place(place) for place in state["line"])
    )


def _is_place(place: object) -> bool:
    """Return whether it is a place of a submission that waits: the client's number, and until when it is kept."""
    match place:
        case [int(), float(until)]:
            return math.isfinite(until)
    return False

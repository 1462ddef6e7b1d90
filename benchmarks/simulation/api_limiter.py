"""The limit that the API puts on a key. Whisul does not document it, so there are two kinds."""

from __future__ import annotations

from enum import Enum

from airflow_provider_whisul.sandbox.state import RateLimit

#: The seconds in which requests are counted.
WINDOW = 1.0

#: Seconds of a block that ends when no request has come for so long.
IDLE_SECONDS = 10.0

#: Seconds of a block that each request prolongs by as much again.
PENALTY_SECONDS = 6.0


class Block(Enum):
    """How a request that is made during a block prolongs it."""

    UNTIL_IDLE = f"until {IDLE_SECONDS:g} s without a request"
    PENALTY = f"{PENALTY_SECONDS:g} s more per request"


class _PenaltyRateLimit(RateLimit):
    def allows(self, now: float) -> bool:
        until = self._blocked_until
        if until is not None and now < until:
            self._blocked_until = until + PENALTY_SECONDS
            return False
        return super().allows(now)


class ApiLimiter:
    """
    The limit of one key, as the sandbox has it or of the other kind, and a count of its 429s.

    :param limit: Requests that are allowed in any second; None for no limit.
    :param block: The kind of block.
    """

    def __init__(self, limit: int | None, block: Block) -> None:
        self.throttled = 0
        self._limit: RateLimit | None = None
        if limit is not None and block is Block.UNTIL_IDLE:
            self._limit = RateLimit(limit, WINDOW, IDLE_SECONDS)
        elif limit is not None:
            self._limit = _PenaltyRateLimit(limit, WINDOW, PENALTY_SECONDS)

    def allows(self, now: float) -> bool:
        """
        Count a request and return whether it is served; else the response is a 429.

        :param now: When it is made, in seconds.
        """
        if self._limit is None or self._limit.allows(now):
            return True
        self.throttled += 1
        return False

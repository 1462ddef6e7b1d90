"""The limit that an API puts on a key. Whisul does not document its own, so there are the usual kinds."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

#: Seconds of a block that ends when no request has come for so long.
IDLE_SECONDS = 10.0

#: Seconds of a block that each request prolongs by as much again.
PENALTY_SECONDS = 6.0

#: Seconds of a block that no request prolongs.
FIXED_SECONDS = 10.0


class Shape(Enum):
    """How requests are counted, and what a request does that is one too many."""

    PROLONGING = f"sliding window; a block, {PENALTY_SECONDS:g} s more per request"
    UNTIL_IDLE = f"sliding window; a block until {IDLE_SECONDS:g} s without a request"
    ADDITIVE = f"sliding window; a block of {FIXED_SECONDS:g} s"
    SLIDING = "sliding window"
    FIXED_WINDOW = "fixed window"
    BUCKET = "token bucket"


_BLOCK_SECONDS = {Shape.PROLONGING: PENALTY_SECONDS, Shape.UNTIL_IDLE: IDLE_SECONDS, Shape.ADDITIVE: FIXED_SECONDS}


@dataclass(frozen=True)
class Limit:
    """
    The limit of a key.

    :param requests: How many requests are allowed.
    :param window: In how many seconds.
    :param shape: How they are counted. The bucket holds twice as many tokens as a window of a second allows, and as
        many as a longer one allows.
    :param changes: From when on, in seconds, only which share of the limit is there: it has changed, or another program
        uses the rest.
    """

    requests: int
    window: float = 1.0
    shape: Shape = Shape.PROLONGING
    changes: tuple[tuple[float, float], ...] = ()

    def at(self, now: float) -> tuple[int, float]:
        """Return how many requests are allowed, and in how many seconds: whole requests, so less takes longer."""
        share = next((share for since, share in reversed(self.changes) if now >= since), 1.0)
        return (round(self.requests * share), self.window) if share > 1 else (self.requests, self.window / share)


class ApiLimiter:
    """
    Counts the requests of one key, and its 429s.

    :param limit: The limit.
    """

    def __init__(self, limit: Limit) -> None:
        self.throttled = 0
        self._limit = limit
        self._recent: deque[float] = deque()
        self._blocked_until = -math.inf
        self._burst = float(2 * limit.requests if limit.window <= 1 else limit.requests)
        self._tokens, self._filled_at = self._burst, 0.0
        self._window_ends_at, self._in_window = 0.0, 0

    def allows(self, now: float) -> bool:
        """
        Count a request and return whether it is served; else the response is a 429.

        :param now: When it is made, in seconds.
        """
        shape = self._limit.shape
        if self._blocked_until > now or self.allowed_at(now) > now:
            self.throttled += 1
            if shape is Shape.PROLONGING:
                self._blocked_until = max(self._blocked_until, now) + PENALTY_SECONDS
            elif shape is Shape.UNTIL_IDLE or (shape is Shape.ADDITIVE and self._blocked_until <= now):
                self._blocked_until = now + _BLOCK_SECONDS[shape]
            if self._blocked_until > now:
                self._recent.clear()
            return False
        self._count(now)
        return True

    def allowed_at(self, now: float) -> float:
        """Return when the next request is served, now or later."""
        limit = self._limit
        requests, window = limit.at(now)
        if limit.shape is Shape.BUCKET:
            self._tokens = min(self._tokens + (now - self._filled_at) * requests / window, self._burst)
            self._filled_at = now
            # The sum of many small shares is not exact.
            return now + max(1 - 1e-9 - self._tokens, 0.0) * window / requests
        if limit.shape is Shape.FIXED_WINDOW:
            if now >= self._window_ends_at:
                self._window_ends_at, self._in_window = (now // window + 1) * window, 0
            return max(now, self._window_ends_at) if self._in_window >= requests else now
        while self._recent and self._recent[0] + window <= now:
            self._recent.popleft()
        at = self._recent[0] + window if len(self._recent) >= requests else now
        return max(at, self._blocked_until)

    def interval(self, now: float) -> float:
        """Return the seconds between two requests that are sent evenly, at the limit."""
        requests, window = self._limit.at(now)
        return window / requests

    def _count(self, now: float) -> None:
        if self._limit.shape is Shape.BUCKET:
            self._tokens -= 1
        elif self._limit.shape is Shape.FIXED_WINDOW:
            self._in_window += 1
        else:
            self._recent.append(now)

"""
Other laws in the place of the provider's own, to compare it with.

Each of them has the provider's spacing, leases, probes and cool-downs. Those that are not told the limit begin as the
provider does. They differ in what follows the first 429.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.throttle import MIN_RATE, OVERDUE_AFTER, Throttle
from benchmarks.simulation.world import Law, World

#: The textbook's: requests per second that are added in each second, and what a block leaves of the rate. Of 0.003,
#: 0.01, 0.02, 0.05 and 0.1 this step is the best one in these cases.
ADDITIVE_INCREASE, MULTIPLICATIVE_DECREASE = 0.01, 0.5

#: Those of botocore's adaptive retry mode: the scale of the cubic function, and what a block leaves of the rate.
CUBIC_SCALE, CUBIC_DECREASE = 0.4, 0.7

#: The share of the limit that a client which is told it sends evenly. With more, requests that are under way for
#: different times exceed a limit per second.
TOLD_SHARE = 0.85


class Told(Throttle):
    """Sends at one rate, that of the limit."""

    def increase(self, now: float, overdue: float, count: int = 1) -> None:
        """Change nothing."""

    def decrease(self) -> None:
        """Change nothing."""


class Aimd(Throttle):
    """Adds the same in each second, and halves at a block."""

    def increase(self, now: float, overdue: float, count: int = 1) -> None:
        """Add for requests that are overdue."""
        if self.ceiling == math.inf:
            super().increase(now, overdue, count)
        elif overdue > OVERDUE_AFTER:
            self.rate += ADDITIVE_INCREASE * (now - self.last_request_at + (count - 1) / self.rate)

    def decrease(self) -> None:
        """Halve the rate. That a ceiling is set ends the slow start."""
        self.ceiling, self.rate = self.rate, max(MULTIPLICATIVE_DECREASE * self.rate, MIN_RATE)


class Cubic(Throttle):
    """Comes back to the rate of the last block quickly, stays there for a while, and goes beyond it quickly."""

    def increase(self, now: float, overdue: float, count: int = 1) -> None:
        """Follow the cubic function of the time since the block."""
        if self.ceiling == math.inf:
            super().increase(now, overdue, count)
        else:
            self.ceiling_age += now - self.last_request_at + (count - 1) / self.rate
            zero = math.cbrt(self.ceiling * (1 - CUBIC_DECREASE) / CUBIC_SCALE)
            self.rate = max(CUBIC_SCALE * (self.ceiling_age - zero) ** 3 + self.ceiling, MIN_RATE)

    def decrease(self) -> None:
        """Begin the function anew, at the rate that was too much."""
        self.ceiling, self.ceiling_age = self.rate, 0.0
        self.rate = max(CUBIC_DECREASE * self.rate, MIN_RATE)


_THROTTLES: dict[Law, type[Throttle]] = {Law.OWN: Throttle, Law.TOLD: Told, Law.AIMD: Aimd, Law.CUBIC: Cubic}


def rate_limiter(world: World) -> tuple[RateLimiter, list[tuple[float, Callable[[], None]]]]:
    """Return a rate limiter with a world's law, and what it is told of a limit that changes: when, and how."""
    limiter = RateLimiter()
    throttle = limiter.throttle = _THROTTLES[world.law](limiter.throttle.rate, limiter.throttle.max_rate)
    if world.law is not Law.TOLD:
        return limiter, []
    told = throttle.rate = TOLD_SHARE * world.limit.requests / world.limit.window

    def tell(share: float) -> Callable[[], None]:
        return lambda: setattr(throttle, "rate", told * share)

    return limiter, [(at, tell(share)) for at, share in world.limit.changes]

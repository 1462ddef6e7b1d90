"""How many requests per second are sent: slow start, then a ceiling that falls at a block and rises. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

# What a night costs without each constant: ``python -m benchmarks.pacing --constants``, and docs/benchmarks.md.

#: Requests per second to begin with: what the least usual limit allows.
INITIAL_RATE = 1.0

#: The share by which the rate grows in each second in which requests are overdue, up to the ceiling. It doubles in ten
#: seconds. The faster it grows, the further beyond the limit it is when the first 429 comes.
INCREASE = 0.07

#: Seconds that a request may be late before it counts as overdue. For less the limit is not worth finding.
OVERDUE_AFTER = 0.5

#: How many even intervals may be between two requests for the rate limiter to count as what delays them. A client that
#: needs longer than that for a request has no use for a higher rate, and would meet a later limit with it.
DELAYED = 1.25

#: Requests per second that are never exceeded where the user has not set a limit: more than any of our clients sends.
MAX_RATE = 1_000.0

#: The rate after the first block, as a share of the one that caused it. That one has gone beyond the limit for a moment
#: before the 429 came, and requests that are sent evenly arrive unevenly.
FIRST_DECREASE = 0.75

#: The same after a block that began soon after another one: the limit is lower than was thought. It has fallen, or it
#: is one per minute, which is used up after some seconds however much it is exceeded.
SOON_DECREASE = 0.7

#: Seconds of requests after which a block is no longer soon: a limit per minute has been kept for a minute.
SOON = 60.0

#: The same after any other block. The rate had risen slowly above an earlier ceiling, so it is known how high the limit
#: is.
DECREASE = 0.9

#: Seconds after a block in which the ceiling doubles. It rises with the cube of the time: 4 % in the first third, where
#: it would only find the same limit again. The time doubles, up to the most, each time that the limit is found again.
CEILING_DOUBLES_AFTER = 300.0
MAX_CEILING_DOUBLES_AFTER = 1200.0

#: Requests per second that are sent even on the slowest account: one poll every 10 s, as documented for a single job.
MIN_RATE = 0.1


@dataclass
class Throttle:
    """
    How many requests per second are sent.

    :param rate: Requests per second.
    :param max_rate: The rate that is never exceeded: the account's limit, where the user knows it.
    :param ceiling: The rate to stay below since the latest block.
    :param ceiling_age: Seconds since the first request after it.
    :param ceiling_doubles_after: Seconds after which the ceiling has doubled.
    :param last_request_at: When the latest request is sent, at most a lease ahead.
    """

    rate: float
    max_rate: float
    ceiling: float = math.inf
    ceiling_age: float = 0.0
    ceiling_doubles_after: float = field(default_factory=lambda: CEILING_DOUBLES_AFTER)
    last_request_at: float = -math.inf

    def increase(self, now: float, overdue: float, count: int = 1) -> None:
        """Raise the rate for requests that are overdue, up to the ceiling."""
        interval = 1 / self.rate
        # Where a store has lost the time of the latest request, nothing is known of the time since then.
        since_last = now - self.last_request_at if math.isfinite(self.last_request_at) else 0.0
        seconds = since_last + (count - 1) * interval
        ceiling = self.ceiling
        if ceiling < math.inf:
            self.ceiling_age += seconds
            ceiling *= 1 + (self.ceiling_age / self.ceiling_doubles_after) ** 3
        if overdue > OVERDUE_AFTER and seconds < DELAYED * count * interval:
            self.rate += INCREASE * self.rate * seconds
        elif overdue > OVERDUE_AFTER and ceiling == math.inf:
            # A client that sends without a break needs no rate as high as this, which would be a risk.
            self.rate = max(self.rate - INCREASE, min(self.rate, INITIAL_RATE))
        self.rate = min(self.rate, max(ceiling, MIN_RATE), self.max_rate)

    def decrease(self) -> None:
        """Lower the rate after a block, and make it the ceiling."""
        share = DECREASE
        if self.ceiling == math.inf:
            share = FIRST_DECREASE
        elif self.ceiling_age < SOON:
            share = SOON_DECREASE
        else:
            self.ceiling_doubles_after = min(2 * self.ceiling_doubles_after, MAX_CEILING_DOUBLES_AFTER)
        self.rate = self.ceiling = min(max(share * self.rate, MIN_RATE), self.max_rate)
        self.ceiling_age = 0.0

    def without_times(self) -> Throttle:
        """Return a throttle that has learnt the same, for a store with another clock."""
        return replace(self, last_request_at=-math.inf, max_rate=math.inf)

"""How many requests per second are sent: slow start, additive increase, multiplicative decrease. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# What a night costs without each constant: ``python -m benchmarks.pacing --constants``, and docs/rate_limits.md.

#: Requests per second to begin with: what the least usual limit allows.
INITIAL_RATE = 1.0

#: The share by which the rate grows in each second in which requests are overdue, until the first 429. It doubles in
#: ten seconds. The faster it grows, the further beyond the limit it is when the 429 comes.
STARTUP_INCREASE = 0.07

#: After the first 429: by which share of the ceiling the rate grows per second.
INCREASE_BELOW_CEILING = 0.02

#: Seconds that a request may be late before it counts as overdue. For less the limit is not worth finding.
OVERDUE_AFTER = 0.5

#: How many even intervals may be between two requests for the rate limiter to count as what delays them. A client that
#: needs longer than that for a request has no use for a higher rate, and would meet a later limit with it.
DELAYED = 1.25

#: Requests per second that are never exceeded where the user has not set a limit: more than any of our clients sends.
MAX_RATE = 1_000.0

#: After a block: the new rate, as a share of the one that caused it.
MULTIPLICATIVE_DECREASE = 0.7

#: The ceiling, as a share of the rate that caused the block. That rate has gone beyond the limit for a moment before
#: the 429 came, and requests that are sent evenly arrive unevenly.
CEILING = 0.75

#: The same where the rate had hardly risen above an earlier ceiling: then it is known how high the limit is.
CEILING_AGAIN = 0.9

#: Up to how many times the earlier ceiling counts as hardly.
SAME_LIMIT = 1.6

#: Seconds after a block in which the ceiling doubles. It rises with the cube of the time: 4 % in the first third, where
#: it would only find the same limit again. The time doubles, up to the most, each time the same limit is found again.
CEILING_DOUBLES_AFTER = 300.0
MAX_CEILING_DOUBLES_AFTER = 1200.0

#: A block that took so many steps of the backoff schedule is a sign of a limit per minute.
LONG_BLOCK_STEP = 2

#: The least ceiling after a block, as a share of the rate that caused it.
LEAST_CEILING = 0.5

#: Requests per second that are sent even on the slowest account: one poll every 10 s, as documented for a single job.
MIN_RATE = 0.1

_MINUTE = 60.0


@dataclass
class Throttle:
    """
    How many requests per second are sent.

    :param rate: Requests per second.
    :param max_rate: The rate that is never exceeded: the account's limit, where the user knows it.
    :param ceiling: The rate to stay below since the latest block.
    :param ceiling_age: Seconds since then.
    :param ceiling_doubles_after: Seconds after which the ceiling has doubled.
    :param last_request_at: When the latest request is sent, at most a lease ahead.
    :param minute_at: When the minute began in which requests are counted.
    :param in_minute: How many requests have been permitted in it.
    :param in_last_minute: How many were in the minute before.
    """

    rate: float
    max_rate: float
    ceiling: float = math.inf
    ceiling_age: float = 0.0
    ceiling_doubles_after: float = CEILING_DOUBLES_AFTER
    last_request_at: float = -math.inf
    minute_at: float = -math.inf
    in_minute: int = 0
    in_last_minute: int = 0

    def increase(self, now: float, overdue: float, count: int = 1) -> None:
        """Raise the rate for requests that are overdue, up to the ceiling."""
        self._count(now, count)
        interval = 1 / self.rate
        since_last, more = now - self.last_request_at, (count - 1) * interval
        ceiling = math.inf
        if self.ceiling < math.inf:
            self.ceiling_age += since_last + more
            ceiling = self.ceiling * (1 + (self.ceiling_age / self.ceiling_doubles_after) ** 3)
        if overdue > OVERDUE_AFTER and since_last + more < DELAYED * count * interval:
            step = STARTUP_INCREASE * self.rate if ceiling == math.inf else INCREASE_BELOW_CEILING * ceiling
            self.rate += step * (since_last + more)
        elif overdue > OVERDUE_AFTER and ceiling == math.inf:
            # A client that sends without a break needs no rate as high as this, which would be a risk.
            self.rate = max(self.rate - STARTUP_INCREASE, min(self.rate, INITIAL_RATE))
        self.rate = min(self.rate, max(ceiling, MIN_RATE), self.max_rate)

    def decrease(self, now: float, step: int) -> None:
        """Lower the rate after a block, and set the ceiling. The step is that of the latest block."""
        again = self.rate < SAME_LIMIT * self.ceiling < math.inf
        too_high = self.rate < 1.01 * self.ceiling < math.inf
        ceiling = (CEILING_AGAIN if again else CEILING) * self.rate
        if too_high and step >= LONG_BLOCK_STEP:
            # Below the ceiling, and blocks are long: a limit per minute. The mean of the last one is what it allows.
            ceiling = max(min(ceiling, CEILING_AGAIN * self._mean(now)), LEAST_CEILING * self.rate)
        longer = min(2 * self.ceiling_doubles_after, MAX_CEILING_DOUBLES_AFTER)
        self.ceiling_doubles_after = longer if again and not too_high else CEILING_DOUBLES_AFTER
        self.ceiling, self.ceiling_age = ceiling, 0.0
        self.rate = min(max(min(MULTIPLICATIVE_DECREASE * self.rate, ceiling), MIN_RATE), self.max_rate)

    def without_times(self) -> Throttle:
        """Return a throttle that has learnt the same, for a store with another clock."""
        return replace(
            self, last_request_at=-math.inf, minute_at=-math.inf, in_minute=0, in_last_minute=0, max_rate=math.inf
        )

    def _mean(self, now: float) -> float:
        """Return how many requests per second were permitted in the last minute."""
        self._count(now, 0)
        return (self.in_minute + self.in_last_minute * (1 - (now - self.minute_at) / _MINUTE)) / _MINUTE

    def _count(self, now: float, count: int) -> None:
        since = now - self.minute_at
        if not 0 <= since < _MINUTE:
            goes_on = 0 <= since < 2 * _MINUTE
            self.in_last_minute = self.in_minute if goes_on else 0
            self.in_minute, self.minute_at = 0, self.minute_at + _MINUTE if goes_on else now
        self.in_minute += count

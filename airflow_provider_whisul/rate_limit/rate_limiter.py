"""
Computes when the next request with one API key may be sent. No I/O, and the time is passed in.

Whisul limits each key, does not document the limit, and prolongs the block at each request made during it. So the rate
is found by additive increase and multiplicative decrease (:class:`Throttle`), and after a 429 nothing is sent but one
half-open probe at a time (:class:`Block`). Several rate limiters that share a key without seeing each other converge to
a share each.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, field

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.exceptions import WhisulRateLimitError
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE, backoff_delay

#: Requests per second to begin with. Low, since several triggerers and workers may begin together on one key.
INITIAL_RATE = 2.0

#: Requests per second by which the rate grows in each second in which requests are overdue.
ADDITIVE_INCREASE = 0.5

#: The same as a share of the ceiling, once there is one: about 20 s after a block the rate is at the ceiling.
INCREASE_BELOW_CEILING = 0.02

#: Seconds that a request may be late before it counts as overdue. For less the limit is not worth finding.
OVERDUE_AFTER = 3.0

#: After a block: the new rate, as a share of the one that caused it.
MULTIPLICATIVE_DECREASE = 0.5

#: The ceiling, as a share of the rate that caused the block. Requests that are sent evenly arrive unevenly: at 0.9
#: chance alone brings the next 429.
CEILING = 0.8

#: Seconds after a block in which the ceiling doubles. It rises with the cube of the time: 4 % in the first third, where
#: it would only find the same limit again, and 200-fold in an hour, so that a bad night is forgotten.
CEILING_DOUBLES_AFTER = 600.0

#: From this many seconds of delay on the ceiling rises faster, in proportion to the delay, up to MAX_PRESSING times. A
#: rate that was too much while other clients used the key may not be so once they are done. Only a try can tell, and
#: the later the requests are, the more a try is worth a block.
PRESSING_AFTER = 60.0
MAX_PRESSING = 3.0

#: Requests per second that are sent even on the slowest account: one poll every 10 s, as documented for a single job.
MIN_RATE = 0.1

#: By what share of its schedule step a cool-down is prolonged at most, so that several probes do not come together.
JITTER = 0.1

#: Seconds after which a probe without a response is followed by another: the process that sent it may have been killed.
PROBE_TIMEOUT = 60.0


@dataclass
class Throttle:
    """
    How many requests per second are sent.

    :param rate: Requests per second.
    :param max_rate: The rate that is never exceeded: the account's limit, where the user knows it.
    :param ceiling: The rate to stay below since the latest block.
    :param ceiling_age: Seconds since then, as :data:`PRESSING_AFTER` counts them.
    :param last_request_at: When the latest request was sent.
    """

    rate: float
    max_rate: float
    ceiling: float = math.inf
    ceiling_age: float = 0.0
    last_request_at: float = -math.inf

    def increase(self, now: float, overdue: float) -> None:
        """Raise the rate for a request that is overdue, up to the ceiling."""
        since_last = max(now - self.last_request_at, 0.0)
        if self.ceiling < math.inf:
            self.ceiling_age += since_last * min(max(overdue / PRESSING_AFTER, 1.0), MAX_PRESSING)
        ceiling = self.ceiling * (1 + (self.ceiling_age / CEILING_DOUBLES_AFTER) ** 3)
        if overdue > OVERDUE_AFTER:
            # Idle time is no overdue time: at most one even interval counts.
            self.rate += min(ADDITIVE_INCREASE, INCREASE_BELOW_CEILING * ceiling) * min(since_last, 1 / self.rate)
        self.rate = min(self.rate, max(ceiling, MIN_RATE), self.max_rate)

    def decrease(self) -> None:
        """Lower the rate after a block, and set the ceiling."""
        self.ceiling, self.ceiling_age = CEILING * self.rate, 0.0
        self.rate = min(max(MULTIPLICATIVE_DECREASE * self.rate, MIN_RATE), self.max_rate)


@dataclass
class Block:
    """
    The time after a 429.

    :param active: Whether a 429 has come and no probe has found the block to be over.
    :param probing: Whether a probe has been sent and has no response yet.
    :param began: When the cool-down began. It may outlast the block.
    :param cooldown: Seconds that the cool-down takes.
    :param step: The step of the backoff schedule.
    :param first_step: The step that the next block begins with.
    :param last_request_before: The number of the latest request that was sent before the block.
    """

    active: bool = False
    probing: bool = False
    began: float = -math.inf
    cooldown: float = 0.0
    step: int = 0
    first_step: int = 0
    last_request_before: int = 0

    def start(self, last_request: int) -> None:
        """Begin a block."""
        self.active = True
        self.last_request_before = last_request
        self.step = self.first_step

    def cool_down(self, now: float, retry_after: float | None, jitter: float) -> None:
        """Send nothing for as long as the backoff schedule says, or ``Retry-After`` where that is longer."""
        delay = backoff_delay(self.step)
        wait = max(delay, retry_after or 0.0) + JITTER * delay * jitter
        # A cool-down that Retry-After made long is not cut short by a later response without one.
        remaining = self.cooldown - (now - self.began) if now >= self.began else 0.0
        self.began, self.cooldown = now, max(wait, remaining)

    def send_probe(self) -> None:
        """Record that a probe is sent."""
        self.probing = True
        # A late response may still ask for a cool-down, which then holds even if the probe ends the block.
        self.cooldown = 0.0

    def end(self) -> None:
        """End the block. The next one begins with this one's step, or one less if the first probe ended it."""
        self.active = False
        self.first_step = self.step if self.step > self.first_step else max(self.first_step - 1, 0)


@dataclass
class RateLimiter:
    """
    When the next request of one account may be sent.

    Before each request ask :meth:`next_allowed_at`, then call :meth:`on_request`, and in the end always
    :meth:`on_response`. Times are seconds of any one clock. No request is permitted sooner than one even interval after
    the one before it, however long the account has been idle.

    :param max_requests_per_second: The account's limit, where the user knows it: the initial rate, and never exceeded.
    :raises ValueError: The limit is not above 0.
    """

    max_requests_per_second: float | None = None
    throttle: Throttle = field(init=False)
    block: Block = field(init=False, default_factory=Block)
    #: The number of the latest request.
    last_request: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        limit = self.max_requests_per_second
        if limit is not None and not limit > 0:
            raise ValueError(f"max_requests_per_second is {limit:g}; it must be above 0.")
        self.throttle = Throttle(rate=float(limit or INITIAL_RATE), max_rate=float(limit or math.inf))

    def as_dict(self) -> dict[str, float]:
        """Return what was learnt, as numbers; :meth:`from_dict` reads it."""
        state = {**asdict(self.throttle), **asdict(self.block), "last_request": self.last_request}
        del state["max_rate"]
        return state

    @classmethod
    def from_dict(cls, state: object, max_requests_per_second: float | None = None) -> RateLimiter:
        """
        Return a rate limiter that continues where another one was.

        :param state: What :meth:`as_dict` returned. Where it makes no sense the rate limiter is a new one.
        :param max_requests_per_second: As in the constructor.
        """
        limiter = cls(max_requests_per_second)
        known = limiter.as_dict()
        if (
            not isinstance(state, dict)
            or state.keys() != known.keys()
            or not all(type(state[name]) is type(value) for name, value in known.items())
            or not state["rate"] > 0
            or not all(0 <= state[name] < len(BACKOFF_SCHEDULE) for name in ("step", "first_step"))
        ):
            return limiter
        throttle, initial_rate = limiter.throttle, limiter.throttle.rate
        for target in (throttle, limiter.block):
            vars(target).update({name: value for name, value in state.items() if name in vars(target)})
        limiter.last_request = state["last_request"]
        # A rate that the user configures is the one to begin with, unless it has been too much.
        if max_requests_per_second is not None and throttle.ceiling == math.inf:
            throttle.rate = initial_rate
        throttle.rate = min(throttle.rate, throttle.max_rate)
        return limiter

    def next_allowed_at(self, now: float) -> float:
        """
        Return the earliest time for the next request, which may be past.

        :param now: The time.
        """
        interval = PROBE_TIMEOUT if self.block.probing else 1 / self.throttle.rate
        # The minima let a clock that was put back delay nothing by more than what is due anyway.
        after_last = min(self.throttle.last_request_at, now) + interval
        return max(after_last, min(self.block.began, now) + self.block.cooldown)

    def on_request(self, now: float, overdue: float = 0.0) -> int:
        """
        Record that a request is sent, and return its number, for :meth:`on_response`.

        :param now: The time, not before :meth:`next_allowed_at`.
        :param overdue: Seconds that requests have been overdue: the delay of this one or, on a worker, the time for
            which it has sent requests without a break.
        """
        if self.block.active:
            self.block.send_probe()
        else:
            self.throttle.increase(now, overdue)
        self.throttle.last_request_at = now
        self.last_request += 1
        return self.last_request

    def is_permitted(self, request: int) -> bool:
        """
        Return whether a request that was permitted may still be sent: no block has begun since.

        :param request: The request's number.
        """
        return not self.block.active or request > self.block.last_request_before

    def on_response(
        self, now: float, request: int, throttled: bool | None, retry_after: float | None = None, jitter: float = 0.0
    ) -> bool:
        """
        Learn from how a request ended. Return True if this began, prolonged or ended a block.

        :param now: The time.
        :param request: The request's number.
        :param throttled: Whether the response was a 429; None where there was no response.
        :param retry_after: The seconds that the 429 asked to wait, if it did.
        :param jitter: From 0 up to 1: how much of :data:`JITTER` to wait.
        """
        block = self.block
        if request <= block.last_request_before:
            # It was sent before the block began: its 429 is no new event, its success no end of the block.
            if block.active and throttled:
                block.cool_down(now, retry_after, jitter)
            return False
        if not block.active:
            if throttled:
                block.start(self.last_request)
                self.throttle.decrease()
                block.cool_down(now, retry_after, jitter)
            return bool(throttled)
        block.probing = False
        if throttled is False:
            block.end()
        else:
            if throttled:
                block.step = min(block.step + 1, len(BACKOFF_SCHEDULE) - 1)
            block.cool_down(now, retry_after, jitter)
        return True

    def log_block(self, log: logging.Logger, not_before: float) -> None:
        """
        Log what :meth:`on_response` has learnt where it returned True.

        :param log: The logger.
        :param not_before: When the next request may be sent, in Unix seconds.
        """
        if self.block.active:
            log.warning(
                "Whisul throttles this API key. No request is sent before %s, so that the block can end.",
                utc(not_before),
            )
        else:
            rate = self.throttle.rate
            log.info("Whisul's block of this API key is over. Continuing with %.1f requests per second.", rate)


def refusal(not_before: float, now: float) -> WhisulRateLimitError:
    """
    Return the error for a request that the rate limiter does not permit in time.

    :param not_before: When the next request may be sent, in Unix seconds.
    :param now: The time, in Unix seconds.
    """
    return WhisulRateLimitError(
        f"Whisul limits the requests of this API key. The next one may be sent at {utc(not_before)}, which is later "
        "than this one may wait. Nothing was sent.",
        cooldown=max(not_before - now, 0.0),
    )

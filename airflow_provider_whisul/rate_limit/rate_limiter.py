"""
Decides when the requests with one API key may be sent. No I/O, and the time is passed in.

Whisul limits each key, does not document the limit, and prolongs the block at each request made during it. So the rate
is found by additive increase and multiplicative decrease (:class:`Throttle`), and after a 429 nothing is sent but one
half-open probe at a time (:class:`Block`). All processes that share a store (:mod:`.limiter_store`) share one of these.
Several that share a key without seeing each other converge to a share each.
"""

from __future__ import annotations

import logging
import math
import secrets
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT, Block
from airflow_provider_whisul.rate_limit.durations import Durations
from airflow_provider_whisul.rate_limit.kept_state import STATE_VERSION, is_state
from airflow_provider_whisul.rate_limit.submission_line import SubmissionLine
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE, MAX_RATE, MIN_RATE, Throttle

#: What is sent: a submission, or a poll. Submissions go first.
Kind = Literal["submission", "poll"]

#: Seconds of requests that one lease permits, at most that of a process whose store is slow. A block that another
#: process meets is noticed after that time.
LEASE_SECONDS = 0.2
MAX_LEASE_SECONDS = 1.0

#: Seconds by which the first request of a lease may be ahead. A process that would have to wait longer asks again. A
#: poll whose turn has come while submissions are waiting may be one interval further ahead.
MAX_AHEAD = 1.0

#: Seconds after a submission asked for which polls leave the larger share to submissions.
SUBMISSIONS_PRESS_FOR = 2.0

#: Seconds for which that is not prolonged. Else each of a hundred processes that wait would write at each question.
PRESSING_NOTED_FOR = 0.5

#: The share of the rate that polls have while submissions are waiting: usually, and where a job has waited too long.
#: What submissions leave they have beside that.
POLL_SHARE = 0.05
URGENT_POLL_SHARE = 0.2

#: Seconds after which a poll asks again at the earliest, so that a hundred processes that wait leave the store alone.
#: While submissions are waiting a lease permits polls for so long: the next submission waits no longer.
LEAST_WAIT = 0.05

#: Seconds after which a submission that waits for the response to a probe asks again: it may come at any moment.
PROBE_CHECK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Permit:
    """
    The permission to send one request.

    :param number: The request's number, for ``on_response`` and ``is_permitted``.
    :param probe: Whether it is the half-open probe of a block. How a probe ended must be reported; of any other
        request only a 429.
    """

    number: int
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """
    The permission to send some requests, evenly spaced. One that is not used runs out by itself.

    :param first: The number of the first request. The others follow it.
    :param count: How many requests.
    :param delay: Seconds until the first may be sent.
    :param interval: Seconds between two of them.
    :param probe: Whether it is the half-open probe of a block. Its count is 1.
    """

    first: int
    count: int
    delay: float
    interval: float
    probe: bool = False

    def permit(self, index: int) -> Permit:
        """Return the permit of one request, by its place from 0 on."""
        return Permit(self.first + index, self.probe)


@dataclass
class RateLimiter:
    """
    When the next requests of one account may be sent.

    Before requests ask :meth:`acquire`, and after a 429 or a probe call :meth:`on_response`. Times are seconds of the
    store's clock. No request is permitted sooner than one even interval after the one before it, however long the
    account has been idle.

    :param max_requests_per_second: The account's limit, where the user knows it: the initial rate, and never exceeded.
    :raises ValueError: The limit is not above 0.
    """

    max_requests_per_second: float | None = None
    throttle: Throttle = field(init=False)
    block: Block = field(init=False, default_factory=Block)
    durations: Durations = field(init=False, default_factory=Durations)
    line: SubmissionLine = field(init=False, default_factory=SubmissionLine)
    #: A random number that tells the store which keeps this from all others.
    store_id: int = field(init=False, default_factory=lambda: secrets.randbits(32), compare=False)
    #: The number of the latest request.
    last_request: int = field(init=False, default=0)
    #: The number up to which requests may be of another store, whose numbers tell nothing of the blocks here. Not kept.
    last_foreign_request: int = field(init=False, default=0)
    #: When the latest permitted poll is sent.
    last_poll_at: float = field(init=False, default=-math.inf)
    #: Until when polls leave the larger share to submissions.
    submissions_until: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        limit = self.max_requests_per_second
        if limit is not None and not limit > 0:
            raise ValueError(f"max_requests_per_second is {limit:g}; it must be above 0.")
        self.throttle = Throttle(rate=float(limit or INITIAL_RATE), max_rate=float(limit or MAX_RATE))

    def as_dict(self) -> dict[str, object]:
        """Return what was learnt, as JSON: numbers only. :meth:`from_dict` reads it."""
        throttle = asdict(self.throttle)
        del throttle["max_rate"]
        own = {name: getattr(self, name) for name in _OWN_NUMBERS}
        return {
            "version": STATE_VERSION,
            "throttle": throttle,
            "block": asdict(self.block),
            "durations": self.durations.seconds,
            "jobs": self.durations.jobs,
            "line": self.line.places,
            **own,
        }

    @classmethod
    def from_dict(cls, state: object, max_requests_per_second: float | None = None) -> RateLimiter:
        """
        Return a rate limiter that continues where another one was.

        :param state: What :meth:`as_dict` returned. Where it makes no sense the rate limiter is a new one.
        :param max_requests_per_second: As in the constructor.
        """
        limiter = cls(max_requests_per_second)
        if not is_state(state, limiter.as_dict()):
            return limiter
        vars(limiter.throttle).update(state["throttle"])
        vars(limiter.block).update(state["block"])
        limiter.durations.add(state["durations"])
        limiter.durations.jobs = state["jobs"]
        limiter.line.places = [list(place) for place in state["line"]]
        vars(limiter).update({name: state[name] for name in _OWN_NUMBERS})
        if max_requests_per_second is not None:
            limiter.configure(max_requests_per_second)
        return limiter

    def configure(self, max_requests_per_second: float | None) -> None:
        """
        Set the account's limit. What was learnt of it stays.

        :param max_requests_per_second: As in the constructor.
        """
        self.max_requests_per_second = max_requests_per_second
        self.throttle.max_rate = float(max_requests_per_second or MAX_RATE)
        # A rate that the user configures is the one to begin with, unless it has been too much.
        if max_requests_per_second is not None and self.throttle.ceiling == math.inf:
            self.throttle.rate = float(max_requests_per_second)
        # A rate that was configured before, or that a damaged store holds, must not stay for ever.
        self.throttle.rate = min(max(self.throttle.rate, MIN_RATE), self.throttle.max_rate)

    def next_allowed_at(self, now: float) -> float:
        """
        Return the earliest time for the next request, which may be past.

        :param now: The time.
        """
        self._notice_reset_clock(now)
        interval = PROBE_TIMEOUT if self.block.probing else 1 / self.throttle.rate
        return max(self.throttle.last_request_at + interval, self.block.began + self.block.cooldown)

    @property
    def submissions_press_until(self) -> float:
        """Until when polls leave the larger share to submissions."""
        return max(self.submissions_until, self.line.waits_until)

    def _notice_reset_clock(self, now: float) -> None:
        """Count times that lie too far ahead as now, for good: a clock that was put back delays nothing again."""
        latest = now + MAX_AHEAD + max(MAX_LEASE_SECONDS, 1 / self.throttle.rate)
        if self.throttle.last_request_at > latest:
            self.throttle.last_request_at = now
        self.last_poll_at = min(self.last_poll_at, self.throttle.last_request_at)
        self.submissions_until = min(self.submissions_until, now + SUBMISSIONS_PRESS_FOR)
        self.line.notice_reset_clock(now)
        self.block.notice_reset_clock(now)

    def acquire(
        self,
        now: float,
        kind: Kind,
        *,
        count: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        overdue: float = 0.0,
        urgent: bool = False,
        max_ahead: float = MAX_AHEAD,
        client: int | None = None,
    ) -> Lease | float:
        """
        Permit some requests, or return the seconds after which to ask again.

        :param now: The time.
        :param kind: What is to be sent.
        :param count: How many requests are wanted at most.
        :param lease_seconds: Seconds of requests that are wanted at most, up to :data:`MAX_LEASE_SECONDS`.
        :param overdue: Seconds that requests have been overdue: the delay of the oldest one or, on a worker, the time
            for which it has sent requests without a break.
        :param urgent: Whether a job has waited too long for its poll.
        :param max_ahead: Seconds by which the first request may be ahead, at most :data:`MAX_AHEAD`.
        :param client: The number of a client that waits with its submission until it is permitted. It gets a place in
            the line, and asks again when its turn is likely. None for one that has no place.
        """
        self._notice_reset_clock(now)
        if kind == "submission" and self.submissions_until - now < SUBMISSIONS_PRESS_FOR - PRESSING_NOTED_FOR:
            self.submissions_until = now + SUBMISSIONS_PRESS_FOR
        starts_at = max(self.next_allowed_at(now), now)
        ahead, lease_seconds = min(max_ahead, MAX_AHEAD), min(lease_seconds, MAX_LEASE_SECONDS)
        if kind == "poll" and now < self.submissions_press_until:
            # Late polls would drive the rate into a block, in which no song is submitted.
            overdue, lease_seconds = -math.inf, LEAST_WAIT
            if starts_at > now:
                share = URGENT_POLL_SHARE if urgent else POLL_SHARE
                until_turn = self.last_poll_at + 1 / (share * self.throttle.rate) - starts_at
                if until_turn > 0:
                    return max(min(until_turn, starts_at - now), LEAST_WAIT)
                # Submissions take all that is not further ahead than they may be.
                ahead, lease_seconds = ahead + 1 / self.throttle.rate, 0.0
        turn = 0.0
        if client is not None:
            # Whoever comes later may take a permit less far ahead. One that would be lost everybody may take.
            turn = self.line.place(now, client) / self.throttle.rate
            ahead = max(ahead - turn, 0.0)
        if self.block.active:
            ahead = 0.0
        if starts_at - now > ahead + 1e-3:
            wait = starts_at - now - ahead
            if kind == "poll":
                return max(wait, LEAST_WAIT)
            if client is None:
                return wait
            if self.block.probing:
                starts_at, wait = now, PROBE_CHECK_INTERVAL
            return self.line.wait(now, client, wait, starts_at - now, turn)
        if client is not None:
            self.line.leave(client)
        probe = self.block.active
        if probe:
            count = 1
            self.block.send_probe()
        else:
            count = max(min(count, int(lease_seconds * self.throttle.rate)), 1)
            self.throttle.increase(starts_at, overdue + starts_at - now, count)
        interval = 1 / self.throttle.rate
        lease = Lease(self.last_request + 1, count, starts_at - now, interval, probe)
        self.throttle.last_request_at = starts_at + (count - 1) * interval
        if kind == "poll":
            self.last_poll_at = self.throttle.last_request_at
        self.last_request += count
        return lease

    def give_back(self, now: float, lease: Lease, used: int) -> None:
        """
        Take back the permits of a lease that are not used, where no later ones have been given.

        :param now: The time.
        :param lease: The lease.
        :param used: How many of its requests were sent.
        """
        if self.last_request != lease.first + lease.count - 1:
            return
        if lease.probe:
            self.block.probing = False
        else:
            self.throttle.last_request_at = max(
                self.throttle.last_request_at - (lease.count - used) * lease.interval, now - lease.interval
            )

    def pause(self, now: float, seconds: float) -> None:
        """
        Send nothing for a while: another process, which does not share the store, has met a 429.

        :param now: The time.
        :param seconds: Seconds from now on. The later of two cool-downs counts.
        """
        if self.block.active:
            self.block.wait(now, seconds)
        else:
            self.block.start(now, self.last_request)
            self.throttle.decrease()
            self.block.wait(now, seconds)

    def forget(self) -> None:
        """
        Forget all that was learnt. Requests are numbered on, and the time of the latest 429 stays, so that no process
        takes this for a lost state.
        """
        kept = {"store_id": self.store_id, "last_request": self.last_request}
        block = Block(throttled_at=self.block.throttled_at)
        vars(self).update(vars(RateLimiter(self.max_requests_per_second)), **kept, block=block)

    def recover(self, throttle: Throttle, durations: Durations) -> None:
        """
        Go on with what a process has seen last, where the store has lost it.

        :param throttle: The throttle, by another clock.
        :param durations: The durations.
        """
        # Another process may have gone on before this one.
        self.throttle = replace(throttle.without_times(), last_request_at=self.throttle.last_request_at)
        # Not the same object: a decision that is made anew must find it as it was.
        self.durations = Durations(durations.seconds, durations.jobs)

    def is_permitted(self, request: int) -> bool:
        """
        Return whether a request that was permitted may still be sent: no block has begun since.

        :param request: The request's number.
        """
        return not self.block.active or request > max(self.block.last_request_before, self.last_foreign_request)

    def on_response(
        self, now: float, request: int, throttled: bool | None, retry_after: float | None = None, jitter: float = 0.0
    ) -> bool:
        """
        Learn from how a request ended. Return True if this began, prolonged or ended a block.

        :param now: The time.
        :param request: The request's number.
        :param throttled: Whether the response was a 429; None where there was no response.
        :param retry_after: The seconds that the response asked the account to wait, if it did: a 429, or another one
            that says that the limit is used up. Nothing is sent before, and a response that is no 429 begins no block.
        :param jitter: From 0 up to 1: how much of :data:`JITTER` to wait.
        """
        self._notice_reset_clock(now)
        block = self.block
        if throttled is False and retry_after:
            block.wait(now, retry_after)
        is_foreign = request <= self.last_foreign_request
        if is_foreign or request <= block.last_request_before:
            # It was sent before the block began: its 429 is no new event, its success no end of the block.
            if block.active and throttled:
                block.cool_down(now, retry_after, jitter)
            if block.active or not is_foreign:
                return False
        if not block.active:
            if throttled:
                block.start(now, self.last_request)
                self.throttle.decrease()
                block.cool_down(now, retry_after, jitter)
            return bool(throttled)
        block.probing = False
        if throttled is False:
            block.end(now)
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


#: The numbers that are the rate limiter's own, and are kept.
_OWN_NUMBERS = ("store_id", "last_request", "last_poll_at", "submissions_until")

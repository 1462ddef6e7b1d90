"""
How fast one account may be asked: its limit as learnt from the answers, without I/O and without a clock.

Whisul limits each key, does not say how, and a request made while a key is blocked prolongs the block. So the rate
grows slowly while work waits. After a 429 nobody asks until one probe finds the block over, and from then on the rate
stays below the one that was too much. Those who share a key without seeing each other come to share its limit.
"""

from __future__ import annotations

import math

from airflow_provider_whisul.pace import RATE_LIMIT_LADDER

#: Requests per second to begin with. Low, since several triggerers and workers may begin together on one key.
START_RATE = 2.0

#: Requests per second by which the rate grows in each second in which work is overdue.
GROWTH = 0.5

#: The same once there is a ceiling, as a part of it: from half to full in about 20 s, however low the limit is.
REGROWTH = 0.02

#: Seconds that work may be late before it counts as overdue. A smaller delay is not worth finding the limit for.
OVERDUE_AFTER = 3.0

#: What part of a rate that was too much to go on with.
RESUMED = 0.5

#: What part of it is the ceiling. What is sent evenly arrives unevenly: at 0.9, chance alone brings the next 429.
CEILING = 0.8

#: Seconds after a block in which the ceiling doubles. Its rise goes with the cube of the time: 4 % in the first third,
#: where it would only find the same limit again, and 200-fold in an hour, so that a bad night is forgotten.
CEILING_DOUBLES_AFTER = 600.0

#: Seconds that work may be late before that time passes faster, in proportion, and how much faster at the most. What
#: was too much while others asked with the same key is not so once they are done. Nothing but a try can tell, and the
#: later the work is, the more a try is worth a block.
PRESSING_AFTER = 60.0
MOST_PRESSING = 3.0

#: Requests per second that are tried even on the most reluctant account: the documented pace of polling a single job.
LEAST_RATE = 0.1

#: What a wait of the ladder is prolonged by at the most, as a part of it, so that several probes do not come together.
JITTER = 0.1

#: Seconds after which a probe that has come to nothing is followed by another: who made it may have been killed.
PROBE_LOST_AFTER = 60.0


class AccountPace:
    """
    When the next request of one account may go, and what an answer teaches.

    Whoever makes requests asks :meth:`next_at`, tells :meth:`sent`, and in the end always tells :meth:`answered`. Times
    are seconds of any one clock. No request goes sooner than one even interval after the one before it, however long
    the account has been idle.

    :param max_requests_per_second: The account's limit, where the user knows it: to begin with, and never exceeded.
    :raises ValueError: It is not above 0.
    """

    def __init__(self, max_requests_per_second: float | None = None) -> None:
        if max_requests_per_second is not None and not max_requests_per_second > 0:
            raise ValueError(f"max_requests_per_second is {max_requests_per_second:g}; it must be above 0.")
        self._most = float(max_requests_per_second or math.inf)
        self._rate = float(max_requests_per_second or START_RATE)
        self._last_sent = -math.inf
        self._tickets = 0
        # Of the latest block: the last request before it, the ceiling it left, and that ceiling's age.
        self._last_before_block = 0
        self._ceiling = math.inf
        self._ceiling_age = 0.0
        # Of the block that is on; the quiet time may outlast it.
        self._blocked = False
        self._probing = False
        self._quiet_from = -math.inf
        self._quiet_for = 0.0
        self._rung = 0
        self._first_rung = 0

    def as_dict(self) -> dict[str, float]:
        """Return what it has learnt, as numbers; :meth:`learnt` takes it up."""
        return {name: value for name, value in vars(self).items() if name != "_most"}

    @classmethod
    def learnt(cls, state: object, max_requests_per_second: float | None = None) -> AccountPace:
        """
        Return a pace that goes on where another one was.

        :param state: What :meth:`as_dict` returned. Where it makes no sense the pace is a new one.
        :param max_requests_per_second: As in the constructor.
        """
        pace = cls(max_requests_per_second)
        known = pace.as_dict()
        if (
            isinstance(state, dict)
            and state.keys() == known.keys()
            and all(type(state[name]) is type(value) for name, value in known.items())
            and state["_rate"] > 0
            and all(0 <= state[name] < len(RATE_LIMIT_LADDER) for name in ("_rung", "_first_rung"))
        ):
            # A rate that the user tells is to begin with, unless it has been too much.
            is_told = max_requests_per_second is not None and state["_ceiling"] == math.inf
            rate = pace._rate if is_told else state["_rate"]
            vars(pace).update(state)
            pace._rate = min(rate, pace._most)
        return pace

    @property
    def rate(self) -> float:
        """How many requests go per second, where no block is on."""
        return self._rate

    @property
    def blocked(self) -> bool:
        """Whether a 429 has come and no probe has yet found the block to be over."""
        return self._blocked

    @property
    def probing(self) -> bool:
        """Whether a probe is under way, whose answer may end the block at any moment."""
        return self._probing

    def next_at(self, now: float) -> float:
        """
        Return the earliest time for the next request, which may be past. While a probe is under way it is far off.

        :param now: The time.
        """
        pause = PROBE_LOST_AFTER if self._probing else 1 / self._rate
        # The minima let a clock that was put back delay nothing by more than what is due anyway.
        return max(min(self._last_sent, now) + pause, min(self._quiet_from, now) + self._quiet_for)

    def sent(self, now: float, overdue: float = 0.0) -> int:
        """
        Note that a request goes, and return its ticket, for :meth:`answered`.

        :param now: The time, not before :meth:`next_at`.
        :param overdue: How many seconds ago it should have gone, were there no pace.
        """
        if self._blocked:
            self._probing = True
            # What is asked for from now on is kept even if the probe ends the block: a late answer may bring it.
            self._quiet_for = 0.0
        else:
            since_last = max(now - self._last_sent, 0.0)
            if self._ceiling < math.inf:
                self._ceiling_age += since_last * min(max(overdue / PRESSING_AFTER, 1.0), MOST_PRESSING)
            ceiling = self._ceiling * (1 + (self._ceiling_age / CEILING_DOUBLES_AFTER) ** 3)
            if overdue > OVERDUE_AFTER:
                # Idle time is no overdue time: at most one even interval counts.
                self._rate += min(GROWTH, REGROWTH * ceiling) * min(since_last, 1 / self._rate)
            self._rate = min(self._rate, max(ceiling, LEAST_RATE), self._most)
        self._last_sent = now
        self._tickets += 1
        return self._tickets

    def answered(
        self, now: float, ticket: int, limited: bool | None, retry_after: float | None = None, chance: float = 0.0
    ) -> bool:
        """
        Learn from how a request ended. Return whether that is news: a block has begun, is still on, or is over.

        :param now: The time.
        :param ticket: The request's ticket.
        :param limited: Whether the answer was a 429; None where no answer came, or nobody waited for it.
        :param retry_after: The seconds that the 429 asked to wait, if it did.
        :param chance: From 0 up to 1: how much to wait beyond what must be.
        """
        if ticket <= self._last_before_block:
            # It was under way when the block began: its 429 is no further event, its success no end of the block.
            if self._blocked and limited:
                self._be_quiet(now, retry_after, chance)
            return False
        if not self._blocked:
            if limited:
                self._block()
                self._be_quiet(now, retry_after, chance)
            return bool(limited)
        self._probing = False
        if limited is False:
            self._blocked = False
            # Blocks last about so long here: the next one is probed no sooner, or a little sooner if the first probe
            # ended this one.
            self._first_rung = self._rung if self._rung > self._first_rung else max(self._first_rung - 1, 0)
        else:
            if limited:
                self._rung = min(self._rung + 1, len(RATE_LIMIT_LADDER) - 1)
            self._be_quiet(now, retry_after, chance)
        return True

    def _block(self) -> None:
        self._blocked = True
        self._last_before_block = self._tickets
        self._rung = self._first_rung
        self._ceiling, self._ceiling_age = CEILING * self._rate, 0.0
        self._rate = min(max(RESUMED * self._rate, LEAST_RATE), self._most)

    def _be_quiet(self, now: float, retry_after: float | None, chance: float) -> None:
        rung = RATE_LIMIT_LADDER[self._rung]
        wait = max(rung, retry_after or 0.0) + JITTER * rung * chance
        # A quiet time that Retry-After has made long is not cut short by a later answer without one.
        remaining = self._quiet_for - (now - self._quiet_from) if now >= self._quiet_from else 0.0
        self._quiet_from, self._quiet_for = now, max(wait, remaining)

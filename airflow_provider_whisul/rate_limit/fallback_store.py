"""A store that may be away, with another one in its place until it is back."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from threading import Lock

from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.durations import Durations
from airflow_provider_whisul.rate_limit.limiter_store import Decide, LimiterStore, StoreUnavailableError, T
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.rate_limit.throttle import Throttle

log = logging.getLogger(__name__)

#: Seconds until a store that is away is tried again, at first and at most. Each time it is twice as long.
RETRY_AFTER = 10.0
MAX_RETRY_AFTER = 60.0


class FallbackStore:
    """
    Uses a store, and another one while the first is unavailable. Its methods raise nothing.

    What one store knows of a block the other one is told when it takes over: a request during a block prolongs it. Not
    where a probe there has found meanwhile that the block is over: each of a hundred processes would begin it again.
    The other store is told of a 429 too whose request this one has permitted. A store that has lost its data, as a
    Redis without a disk, is told what this process has seen there last.

    :param primary: The store.
    :param backup: The one in its place, which raises nothing.
    :param clock: Its monotonic time says when to try again.
    """

    def __init__(self, primary: LimiterStore, backup: LimiterStore, clock: Clock = SYSTEM_CLOCK) -> None:
        self._primary = primary
        self._backup = backup
        self._clock = clock
        self._lock = Lock()
        self._retry_at = -math.inf
        self._retry_after = RETRY_AFTER
        self._away = False
        # The store that made the latest decision, and what it knew: the number of the latest request, and on our clock
        # the end of the cool-down of its block.
        self._latest: LimiterStore | None = None
        self._last_request = 0
        # The number of the latest request before the store that made it took over.
        self._last_foreign_request = 0
        self._blocked_until: float | None = None
        # When it was made, on our clock.
        self._decided_at = -math.inf
        # What the first store knew after the latest decision that it has made for this process.
        self._known_request = 0
        self._throttle: Throttle | None = None
        self._durations = Durations()

    @property
    def where(self) -> str:
        """Where the rate limiter is kept now."""
        return (self._backup if self._away else self._primary).where

    def update(self, decide: Decide[T]) -> T:
        """Make a decision, as :class:`LimiterStore` says."""
        with self._lock:
            if self._may_use_primary():
                try:
                    result = self._update(self._primary, decide)
                except StoreUnavailableError as error:
                    self._leave(error)
                else:
                    self._return()
                    return result
            return self._update(self._backup, decide)

    def reset(self) -> None:
        """Forget all that is known of the account, in both stores."""
        with self._lock:
            self._blocked_until = None
            self._backup.reset()
            try:
                self._primary.reset()
            except StoreUnavailableError as error:
                self._leave(error)

    def count_submission(self, ceiling: int) -> str | None:
        """
        Count a submission of today, as :class:`LimiterStore` says. Where the store is away nothing is counted.

        Each submission tries it: one too many costs money, and the store may be back, or may only have been busy.

        :raises DayIsFullError: The day has as many submissions already.
        """
        with self._lock:
            try:
                return self._primary.count_submission(ceiling)
            except StoreUnavailableError as error:
                if not self._away:
                    self._leave(error)
            return self._backup.count_submission(ceiling)

    def uncount_submission(self, day: str) -> None:
        """Take back a submission that certainly made no job. Where that fails, a warning says so."""
        try:
            self._primary.uncount_submission(day)
        except StoreUnavailableError as error:
            log.warning("A submission that made no job counts as one of today in %s: %s", self._primary.where, error)

    def _may_use_primary(self) -> bool:
        return not self._away or self._clock.monotonic() >= self._retry_at

    def _cooldown_left(self) -> float | None:
        """Return the seconds until a probe may be sent, as far as this process knows; None unless a block may hold."""
        if self._blocked_until is None:
            return None
        left = self._blocked_until - self._clock.monotonic()
        # By then the cool-down is over, and so is the wait for its probe: another process may have ended the block.
        return None if left < -PROBE_TIMEOUT else max(left, 0.0)

    def _update(self, store: LimiterStore, decide: Decide[T]) -> T:
        def decide_knowingly(limiter: RateLimiter, now: float) -> tuple[T, RateLimiter, int, float | None]:
            has_lost = store is self._primary and limiter.last_request < self._known_request
            if has_lost and self._throttle is not None:
                limiter.recover(self._throttle, self._durations)
            if has_lost or store is not self._latest:
                # The numbers of its requests must be later ones: a 429 of an earlier request is no new event.
                limiter.last_request = max(limiter.last_request, self._last_request)
                # An end that lies ahead is by a clock that was put back, and tells nothing.
                is_over = now >= limiter.block.ended_at >= now - (self._clock.monotonic() - self._decided_at)
                if not is_over and (cooldown := self._cooldown_left()) is not None:
                    limiter.pause(now, cooldown)
            foreign = self._last_foreign_request
            if store is not self._latest and self._latest is not None:
                foreign = limiter.last_request
            limiter.last_foreign_request = max(limiter.last_foreign_request, foreign)
            result = decide(limiter, now)
            block = limiter.block
            cooldown = max(block.began + block.cooldown - now, 0.0)
            return result, limiter, foreign, self._clock.monotonic() + cooldown if block.active else None

        result, limiter, self._last_foreign_request, self._blocked_until = store.update(decide_knowingly)
        self._last_request = limiter.last_request
        if store is self._primary:
            self._known_request = limiter.last_request
            self._throttle, self._durations = replace(limiter.throttle), limiter.durations
        self._latest, self._decided_at = store, self._clock.monotonic()
        return result

    def _leave(self, error: StoreUnavailableError) -> None:
        if not self._away:
            log.warning(
                "The rate limiter cannot be kept in %s: %s Until it can, the requests of this API key are limited by "
                "%s alone.",
                self._primary.where,
                error,
                self._backup.where,
            )
        self._away = True
        self._retry_at = self._clock.monotonic() + self._retry_after
        self._retry_after = min(2 * self._retry_after, MAX_RETRY_AFTER)

    def _return(self) -> None:
        if self._away:
            log.info("The rate limiter is kept in %s again.", self._primary.where)
        self._away = False
        self._retry_after = RETRY_AFTER

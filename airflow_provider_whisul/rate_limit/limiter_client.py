"""What the rate limiters of workers and triggerers have in common: the protocol, and its decisions in the store."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import replace
from statistics import median

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock, utc
from airflow_provider_whisul.exceptions import WhisulError, WhisulRateLimitError
from airflow_provider_whisul.rate_limit.backoff import NotBefore, throttled_until
from airflow_provider_whisul.rate_limit.block import Block
from airflow_provider_whisul.rate_limit.durations import Durations
from airflow_provider_whisul.rate_limit.limiter_store import Decide, LimiterStore, T
from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, MAX_AHEAD, Kind, Lease, Permit, RateLimiter

log = logging.getLogger(__name__)

#: Seconds after which a waiting request asks again: another process may have found that the block is over.
CHECK_INTERVAL = 1.0

#: Seconds of waiting for a permit, beside those that an answer of the store usually takes, from which on the permit is
#: checked again before its request is sent.
UNCHECKED_WAIT = 0.05

#: Of how many answers the usual time is the median, at least and at most: those during which the process was stopped
#: do not count.
_MIN_TIMED_ANSWERS = 3
_MAX_TIMED_ANSWERS = 5


class LimiterClient:
    """
    A process that sends requests of one account, in step with all others that share the store.

    The protocol, which :class:`WorkerRateLimiter` offers to code that blocks and :class:`AsyncRateLimiter` to
    coroutines:

    - ``acquire`` waits until a request may be sent, and returns its :class:`Permit`.
    - ``is_permitted`` says whether a permit still holds, for a submission, which is not sent at once.
    - ``on_response`` is called for each permit whose request was sent, however that ended. It costs no store operation
      unless there was a 429, the request was a probe, or the response asks to wait. It returns the seconds until the
      next request may be sent after a 429, else None.
    - ``give_back`` is called for a permit whose request was not sent.

    :param store: Keeps the account's rate limiter.
    :param settings: The connection's settings. A later ``max_requests_per_second`` is taken up with the next decision
        where this attribute is replaced.
    :param clock: The time, sleep and jitter.
    """

    def __init__(self, store: LimiterStore, settings: ConnectionSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self.settings = settings
        #: The durations of the account's jobs, as the store had them at the latest decision.
        self.durations = Durations()
        self.store = store
        self._clock = clock
        # Of the store that made the latest decision: its id, and when the latest 429 came that it knew of then.
        self._store_id: int | None = None
        self._throttled_at: float | None = None
        self._new_durations: list[tuple[str, float]] = []
        # How many seconds each of the latest answers took until it was there, also where that was the process's doing.
        self._took: deque[float] = deque(maxlen=_MAX_TIMED_ANSWERS)

    def add_job(self, job: WhisulJob) -> None:
        """
        Learn how long a job took, if it has ended. It is kept with the next decision, and costs none of its own.

        :param job: The job as a poll has found it.
        """
        # A completed job is polled again until it has the URL of its song, and counts once.
        if (job.has_song_url or job.failed) and job.time_taken is not None:
            self._new_durations.append((job.job_id, job.time_taken.total_seconds()))

    def give_back(self, permit: Permit) -> None:
        """
        Take back a permit whose request was certainly not sent. Another probe may then be sent at once.

        :param permit: The request's permit.
        """
        if permit.probe:
            self._give_back(Lease(permit.number, 1, 0.0, 0.0, probe=True))

    def throttled_until(self, error: WhisulError) -> NotBefore | None:
        """
        Return when the next request may be sent after an error, for a process that may have another store; None unless
        the key is blocked.

        :param error: The error of the latest request.
        """
        return throttled_until(error, self._clock.time(), self._store_id, self._throttled_at)

    def _update(self, decide: Decide[T]) -> T:
        """Make a decision in the store, with the limit that the user has set."""
        durations = self._new_durations[:]

        def decide_with_settings(limiter: RateLimiter, now: float) -> T:
            limiter.configure(self.settings.max_requests_per_second)
            for job_id, seconds in durations:
                limiter.durations.add_job(job_id, seconds)
            decision = decide(limiter, now)
            throttled_at = limiter.block.throttled_at
            self.durations, self._store_id = limiter.durations, limiter.store_id
            # Where there was none it is no number that each database can keep as JSON.
            self._throttled_at = throttled_at if math.isfinite(throttled_at) else None
            return decision

        decision = self.store.update(decide_with_settings)
        del self._new_durations[: len(durations)]
        return decision

    def _ask(
        self,
        kind: Kind,
        count: int,
        overdue: float,
        urgent: bool = False,
        max_ahead: float = MAX_AHEAD,
        client: int | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> tuple[Lease | float, Block, float]:
        """
        Return a lease, or after how many seconds to ask again.

        And the block as it is then, and after how many seconds anybody may be permitted a request.
        """

        def decide(limiter: RateLimiter, now: float) -> tuple[Lease | float, Block, float]:
            answer = limiter.acquire(
                now,
                kind,
                count=count,
                lease_seconds=lease_seconds,
                overdue=overdue,
                urgent=urgent,
                max_ahead=max_ahead,
                client=client,
            )
            return answer, replace(limiter.block), max(limiter.next_allowed_at(now) - now, 0.0)

        return self._update(decide)

    @property
    def _is_timed(self) -> bool:
        """Whether it is known how long an answer of the store usually takes."""
        return len(self._took) >= _MIN_TIMED_ANSWERS

    def _time_answer(self, seconds: float) -> float | None:
        """Note how long an answer took, and return how much of that is usual; None where that is not known."""
        usual = min(median(self._took), seconds) if self._is_timed else None
        self._took.append(seconds)
        return usual

    def _still_permits(self, request: int) -> bool:
        return self._update(lambda limiter, now: limiter.is_permitted(request))

    def _give_back(self, lease: Lease) -> None:
        """Take back a lease of which nothing was used."""
        self._update(lambda limiter, now: limiter.give_back(now, lease, 0))

    def _pause(self, seconds: float, not_before: NotBefore) -> None:
        """Pause for a 429 that another process has met, unless the store knows of it already."""

        def decide(limiter: RateLimiter, now: float) -> None:
            # By the clocks of two machines the block would become longer with each task that is told of it.
            if not is_known(not_before, limiter.store_id, limiter.block.throttled_at):
                limiter.pause(now, seconds)

        self._update(decide)

    def _report(self, request: int, throttled: bool | None, retry_after: float | None) -> float | None:
        """Learn from how a request ended, and return the cool-down after a 429."""
        jitter = self._clock.random()

        def decide(limiter: RateLimiter, now: float) -> tuple[bool, float, RateLimiter]:
            block_changed = limiter.on_response(now, request, throttled, retry_after, jitter)
            return block_changed, max(limiter.next_allowed_at(now) - now, 0.0), limiter

        block_changed, cooldown, limiter = self._update(decide)
        if block_changed:
            limiter.log_block(log, self._clock.time() + cooldown)
        return cooldown if throttled else None

    def _needs_report(self, permit: Permit, throttled: bool | None, asked_wait: float | None) -> bool:
        return bool(throttled) or permit.probe or asked_wait is not None


def must_check(waited: float, usual: float | None) -> bool:
    """
    Return whether a permit is checked again before its request is sent: a block may have begun meanwhile.

    The answer of a slow store is old when it comes. A second one would be as old, and take as long again.

    :param waited: Seconds from the question to the request.
    :param usual: How many of them the answer took, up to what is usual; None where that is not known.
    """
    return waited > UNCHECKED_WAIT + (usual or 0.0)


def is_known(not_before: NotBefore, store_id: int | None, throttled_at: float | None) -> bool:
    """
    Return whether a store knows of the 429 that another process has met.

    :param not_before: What that process tells of it.
    :param store_id: The store's id; None where it is not known yet.
    :param throttled_at: When the latest 429 came that the store knows of, by its clock; None for none.
    """
    if store_id is None or store_id != not_before.store_id:
        return False
    # A Redis that was restarted empty is given what a process has seen there last. The id is the same then, but a 429
    # that came later is lost.
    return not_before.throttled_at is None or (throttled_at is not None and throttled_at >= not_before.throttled_at)


def refusal(not_before: float, now: float, block: Block) -> WhisulRateLimitError:
    """
    Return the error for a request that the rate limiter does not permit in time.

    :param not_before: When the next request may be sent, in Unix seconds.
    :param now: The time, in Unix seconds.
    :param block: The block as it is. Where it is the reason, and not the rate alone, the error has a cool-down.
    """
    # While a probe is out nobody knows when the block ends: that is no cool-down for others.
    blocked = block.active and not block.probing
    return WhisulRateLimitError(
        f"Whisul limits the requests of this API key. The next one may be sent at {utc(not_before)}, which is later "
        "than this one may wait. Nothing was sent.",
        cooldown=max(not_before - now, 0.0) if blocked else None,
    )

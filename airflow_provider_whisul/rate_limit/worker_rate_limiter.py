"""The rate limiter of one account for code that blocks, as on workers."""

from __future__ import annotations

import math
import os
import secrets
from threading import get_ident

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.limiter_client import CHECK_INTERVAL, LimiterClient, must_check, refusal
from airflow_provider_whisul.rate_limit.limiter_store import LimiterStore
from airflow_provider_whisul.rate_limit.poll_queue import WaitingPoll
from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, Kind, Lease, Permit

#: Seconds without a request after which a worker counts as idle.
_IDLE_SECONDS = 3.0

#: Seconds of a wait that is over by the time it has begun.
_NO_WAIT = 1e-3


class WorkerRateLimiter(LimiterClient):
    """
    Permits the requests of one account, one at a time, and blocks while it waits.

    See :class:`LimiterClient` for the protocol and the parameters.
    """

    def __init__(self, store: LimiterStore, settings: ConnectionSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(store, settings, clock)
        # The time since which the worker has sent requests without a break, and the end of the last one.
        self._busy_since = self._busy_until = -math.inf
        self._number = secrets.randbits(32)

    def acquire(self, kind: Kind, max_wait: float) -> Permit:
        """
        Wait until the next request may be sent.

        :param kind: What is to be sent. Submissions go first.
        :param max_wait: Seconds to wait at most.
        :raises WhisulRateLimitError: The request is not permitted in that time. Nothing was sent.
        """
        asked_at = now = self._clock.monotonic()
        if asked_at - self._busy_until > _IDLE_SECONDS:
            self._busy_since = asked_at
        has_waited = False
        while True:
            left = max(max_wait - (now - asked_at), 0.0)
            urgent = kind == "poll" and WaitingPoll(asked_at).urgent_at <= now
            client = self._client if kind == "submission" else None
            answer, block, free_in = self._ask(kind, 1, now - self._busy_since, urgent, left, client)
            answered_at = self._clock.monotonic()
            usual = self._time_answer(answered_at - now)
            if isinstance(answer, Lease):
                wait = answer.delay
            else:
                if kind == "poll":
                    free_in, answer = answer, min(answer, CHECK_INTERVAL)
                # The response to a probe may permit the next request at any moment.
                if free_in > left and not (block.probing and left):
                    wall = self._clock.time()
                    raise refusal(wall + free_in, wall, block)
                wait = min(answer, left)
            if wait > _NO_WAIT:
                has_waited = True
                self._clock.sleep(wait)
            if isinstance(answer, Lease):
                if self._holds(answer, now, answered_at, usual):
                    break
                self._give_back(answer)
            now = self._clock.monotonic()
        self._busy_until = self._clock.monotonic()
        if has_waited:
            metrics.rate_limit_wait(self._busy_until - asked_at)
        return answer.permit(0)

    def add_job(self, job: WhisulJob) -> None:
        """
        Learn how long a job took, if it has ended, and keep it at once: the task may make no other decision.

        :param job: The job as a poll has found it.
        """
        super().add_job(job)
        if self._new_durations:
            self._update(lambda limiter, now: None)

    def is_permitted(self, permit: Permit) -> bool:
        """
        Return whether a request that was permitted may still be sent: no block has begun since.

        :param permit: The request's permit.
        """
        return self._still_permits(permit.number)

    def on_response(self, permit: Permit, throttled: bool | None, retry_after: float | None = None) -> float | None:
        """
        Learn from how a request ended.

        :param permit: The request's permit.
        :param throttled: Whether the response was a 429; None where there was no response.
        :param retry_after: The seconds that the response asked all requests of the account to wait, if it did.
        :return: The seconds until the next request may be sent, None unless the response was a 429.
        """
        if throttled is not None:
            self._busy_until = self._clock.monotonic()
        return (
            self._report(permit.number, throttled, retry_after)
            if self._needs_report(permit, throttled, retry_after)
            else None
        )

    @property
    def _client(self) -> int:
        """What tells it apart from all others that wait to submit: its threads, and it in a process that was forked."""
        return hash((self._number, os.getpid(), get_ident())) & 0xFFFFFFFF

    def _holds(self, lease: Lease, asked_at: float, given_at: float, usual: float | None) -> bool:
        """Return whether a lease still holds whose start has been waited for."""
        now = self._clock.monotonic()
        # The process may have been stopped meanwhile. Then the permit has run out.
        if now - given_at > lease.delay + LEASE_SECONDS:
            return False
        return not must_check(now - asked_at, usual) or self._still_permits(lease.first)

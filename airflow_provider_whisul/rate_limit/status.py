"""What is known of an account's rate limit, in words. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from airflow_provider_whisul.text import count


@dataclass(frozen=True)
class LimiterStatus:
    """
    What is known of an account's rate limit. Times are in Unix seconds, None where there is none.

    :param where: Where the rate limiter is kept.
    :param requests_per_second: How many requests are sent per second at most.
    :param ceiling: The rate that the latest block has set to stay below; None where no block is known.
    :param max_requests_per_second: The account's limit, as the connection has it.
    :param blocked: Whether the key is blocked.
    :param block_began: When the latest 429 came, while the key is blocked.
    :param not_before: When the next request may be sent, as far as a block is concerned, or a response that has asked
        to wait.
    :param probing: Whether a probe has been sent and has no response yet.
    :param permitted_until: When the latest request is sent that has been permitted.
    :param submissions_until: Until when polls leave the larger share to submissions that wait.
    :param durations: How many durations of jobs are known.
    :param first_poll_age: Seconds before which a job is not polled; 0 where too few durations are known.
    :param max_submissions_per_day: The ceiling of a day, as the connection has it.
    :param submissions_today: How many submissions were counted today over all machines; None where that is not counted.
    """

    where: str
    requests_per_second: float
    ceiling: float | None
    max_requests_per_second: float | None
    blocked: bool
    block_began: float | None
    not_before: float | None
    probing: bool
    permitted_until: float | None
    submissions_until: float | None
    durations: int
    first_poll_age: float
    max_submissions_per_day: int | None
    submissions_today: int | None

    @classmethod
    def of(
        cls,
        limiter: RateLimiter,
        now: float,
        *,
        where: str,
        settings: ConnectionSettings,
        submissions_today: int | None,
        wall: float,
    ) -> LimiterStatus:
        """
        Return what a rate limiter knows.

        :param limiter: The rate limiter.
        :param now: The store's time in seconds.
        :param where: Where the rate limiter is kept.
        :param settings: The connection's settings.
        :param submissions_today: As the attribute.
        :param wall: The time in Unix seconds.
        """

        def unix(time: float) -> float | None:
            return round(wall + time - now, 3) if math.isfinite(time) else None

        block, throttle, press_until = limiter.block, limiter.throttle, limiter.submissions_press_until
        not_before = block.began + block.cooldown
        return cls(
            where=where,
            requests_per_second=throttle.rate,
            ceiling=throttle.ceiling if math.isfinite(throttle.ceiling) else None,
            max_requests_per_second=settings.max_requests_per_second,
            blocked=block.active,
            block_began=unix(block.began) if block.active else None,
            not_before=unix(not_before) if block.active or not_before > now else None,
            probing=block.active and block.probing,
            permitted_until=unix(throttle.last_request_at),
            submissions_until=unix(press_until) if press_until > now else None,
            durations=len(limiter.durations.seconds),
            first_poll_age=limiter.durations.first_poll_age(),
            max_submissions_per_day=settings.max_submissions_per_day,
            submissions_today=submissions_today,
        )

    def lines(self, conn_id: str) -> Iterator[str]:
        """
        Return the status as sentences.

        :param conn_id: The id of the Airflow connection.
        """
        yield f"The rate limiter of the Airflow connection {conn_id!r} is kept in {self.where}."
        limit = self.max_requests_per_second
        known = "" if limit is None else f" The connection sets max_requests_per_second to {limit:g}."
        yield f"Rate: {self.requests_per_second:.3g} requests per second.{known}"
        if self.ceiling is None:
            yield "Ceiling: none, as no 429 is known."
        else:
            yield f"Ceiling: the latest block has set it to {self.ceiling:.3g} requests per second. It rises with time."
        yield from self._block()
        if self.permitted_until is None:
            yield "Requests: none has been permitted."
        else:
            yield f"Requests: permitted up to {utc(self.permitted_until)}."
        if self.submissions_until is None:
            yield "Submissions: none waits."
        else:
            yield f"Submissions: some wait. Polls have the smaller share until {utc(self.submissions_until)} at least."
        age = f"the first poll of a job comes at an age of {self.first_poll_age:.0f} s" if self.first_poll_age else ""
        yield f"Durations: {count(self.durations, 'job')} known; {age or 'too few to delay a first poll'}."
        if self.submissions_today is not None:
            of = "" if self.max_submissions_per_day is None else f" of {self.max_submissions_per_day:,}"
            yield f"Today: {self.submissions_today:,}{of} submissions counted over all machines."

    def _block(self) -> Iterator[str]:
        if not self.blocked and self.not_before is None:
            yield "Block: none."
        elif not self.blocked:
            until = utc(self.not_before or 0.0)
            yield f"Block: none. Nothing is sent before {until}, since a response has asked to wait."
        elif self.probing:
            yield f"Block: since {utc(self.block_began or 0.0)}. A probe has been sent, and has no response yet."
        else:
            yield (
                f"Block: since {utc(self.block_began or 0.0)}. Nothing is sent before {utc(self.not_before or 0.0)}, "
                "then one probe."
            )

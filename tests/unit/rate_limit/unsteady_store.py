"""A store that a test makes unavailable, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from airflow_provider_whisul.rate_limit.limiter_store import (
    DayIsFullError,
    Decide,
    MemoryStore,
    StoreUnavailableError,
    T,
)
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter
from tests.support.clock import FakeClock


@dataclass
class UnsteadyStore(MemoryStore):
    """A store in memory with a clock of its own, which a test makes unavailable."""

    clock: FakeClock
    ahead: float = 0.0
    away: bool = False
    asked: int = 0
    counted: list[int] = field(default_factory=list)
    where: str = "the unsteady store"

    def __post_init__(self) -> None:
        super().__init__()

    def _check(self) -> None:
        self.asked += 1
        if self.away:
            raise StoreUnavailableError("It is away.")

    def update(self, decide: Decide[T]) -> T:
        if self.away:
            # As a store does that fails after the decision.
            decide(RateLimiter(), 0.0)
        self._check()
        return decide(self.limiter, self.clock.now + self.ahead)

    def reset(self) -> None:
        self._check()
        super().reset()

    def count_submission(self, ceiling: int) -> str:  # type: ignore[override]
        self._check()
        if len(self.counted) >= ceiling:
            raise DayIsFullError
        self.counted.append(1)
        return "today"

    def uncount_submission(self, day: str) -> None:
        self._check()
        assert day == "today"
        self.counted.pop()


Logged = Callable[[], list[tuple[str, str]]]


def take_number(limiter: RateLimiter, now: float) -> int:
    limiter.last_request += 1
    return limiter.last_request


def block(limiter: RateLimiter, now: float) -> None:
    limiter.on_response(now, take_number(limiter, now), throttled=True)


def is_blocked(limiter: RateLimiter, now: float) -> bool:
    return limiter.block.active

"""Where the rate limiter of an account is kept: one protocol, and the store in memory."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Protocol, TypeVar

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.rate_limit.kept_state import STATE_VERSION
from airflow_provider_whisul.rate_limit.rate_limiter import RateLimiter

T = TypeVar("T")

#: A decision: is given the account's rate limiter and the store's time in seconds, and may change the rate limiter. It
#: may be called more than once, and only the last call counts, so it must do nothing else.
Decide = Callable[[RateLimiter, float], T]


class LimiterStore(Protocol):
    """
    Keeps the rate limiter of one account. All methods block, and may be called by several threads. The account's limit,
    where the user knows it, is not kept: the processes set it in each decision.

    A store whose I/O may fail raises :class:`StoreUnavailableError`, and is used behind a
    :class:`~airflow_provider_whisul.rate_limit.fallback_store.FallbackStore`, which raises nothing.
    """

    @property
    def where(self) -> str:
        """Where the rate limiter is kept, as messages say it. No secret is in it."""
        ...

    def update(self, decide: Decide[T]) -> T:
        """
        Make a decision, and keep what it changes. No other process decides in between.

        :param decide: The decision.
        :return: What the decision returns.
        """
        ...

    def reset(self) -> None:
        """Forget all that is known of the account. A process that has seen the old state does not bring it back."""
        ...

    def count_submission(self, ceiling: int) -> str | None:
        """
        Count a submission of today (UTC) for all machines that share the store, where it is shared by several.

        :param ceiling: The most submissions of a day.
        :return: The day, for :meth:`uncount_submission`; None where nothing is counted here.
        :raises DayIsFullError: The day has as many submissions already. Nothing was counted.
        """
        ...

    def uncount_submission(self, day: str) -> None:
        """
        Take back a submission that certainly made no job.

        :param day: What :meth:`count_submission` returned.
        """
        ...


class StoreUnavailableError(Exception):
    """A store is away, too slow or full. The message has no secret in it, and ends with a full stop."""


class DayIsFullError(Exception):
    """The account has no submission left today, over all machines that share the store."""


def state_name(settings: ConnectionSettings) -> str:
    """
    Return what names an account's state in a store. Versions of the state do not meet: each would take the other's for
    empty, and forget a block.

    :param settings: The connection's settings.
    """
    return f"v{STATE_VERSION}:{settings.fingerprint[:32]}"


class MemoryStore:
    """
    Keeps the rate limiter in this process alone.

    :param clock: Its monotonic time is the store's time.
    """

    where = "this process"

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.limiter = RateLimiter()
        self._clock = clock
        self._lock = Lock()

    def update(self, decide: Decide[T]) -> T:
        """Make a decision, as :class:`LimiterStore` says."""
        with self._lock:
            return decide(self.limiter, self._clock.monotonic())

    def reset(self) -> None:
        """Forget all that is known of the account."""
        self.update(lambda limiter, _: limiter.forget())

    def count_submission(self, ceiling: int) -> None:
        """Count nothing: the ledger does."""

    def uncount_submission(self, day: str) -> None:
        """Do nothing, as nothing is counted."""

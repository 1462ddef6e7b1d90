"""The permits of a lease as an event loop uses them. No I/O, and the time is passed in."""

from __future__ import annotations

from airflow_provider_whisul.rate_limit.rate_limiter import LEASE_SECONDS, Lease, Permit


class LeasedPermits:
    """
    The permits of a lease that has begun.

    They are used evenly spaced, until the lease runs out: also after the latest one of the lease before, which may have
    been used late, when the store counted it as used.

    All times are in seconds of the event loop's clock.

    :param lease: The lease.
    :param due: When the store takes its first permit for used.
    :param latest_use: When the latest permit of the lease before was used; ``-inf`` for none.
    """

    def __init__(self, lease: Lease, due: float, latest_use: float) -> None:
        self._lease = lease
        # Half an interval at a low rate: a permit that is thrown away is missed there, as others may have the next one.
        self._ends_at = due + (lease.count - 1) * lease.interval + max(LEASE_SECONDS, lease.interval / 2)
        self._used = 0
        self.latest_use = self._use_before = latest_use

    @property
    def probe(self) -> bool:
        """Whether it is the half-open probe of a block."""
        return self._lease.probe

    @property
    def next_at(self) -> float:
        """When the next permit may be used."""
        return self.latest_use + self._lease.interval

    def is_over(self, now: float) -> bool:
        """
        Return whether all permits are used, or have run out.

        :param now: The time.
        """
        return self._used == self._lease.count or self.have_run_out(max(now, self.next_at))

    def have_run_out(self, now: float) -> bool:
        """
        Return whether it is too late to use the permits that are left.

        :param now: The time.
        """
        return now > self._ends_at

    def use(self, now: float) -> Permit:
        """
        Return the next permit.

        :param now: The time.
        """
        self._use_before, self.latest_use = self.latest_use, now
        self._used += 1
        return self._lease.permit(self._used - 1)

    def put_back(self, permit: Permit) -> None:
        """
        Take back the latest permit, whose request is not sent.

        :param permit: The permit. Another one is not taken back.
        """
        if self._used and permit.number == self._lease.first + self._used - 1:
            self._used -= 1
            self.latest_use = self._use_before

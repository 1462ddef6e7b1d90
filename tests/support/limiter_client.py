"""A client of the pure rate limiter: time is a number, and nothing is sent."""

from __future__ import annotations

from airflow_provider_whisul.rate_limit.rate_limiter import Kind, Lease, RateLimiter

NOW = 1_771_342_774.0


class Client:
    """A client that sends each request at the earliest permitted time."""

    def __init__(self, limit: float | None = None) -> None:
        self.limiter = RateLimiter(limit)
        self.now = NOW

    def take(
        self,
        kind: Kind = "submission",
        count: int = 1,
        overdue: float = 0.0,
        urgent: bool = False,
        client: int | None = None,
    ) -> Lease:
        """Ask until there is a lease."""
        while not isinstance(
            lease := self.limiter.acquire(self.now, kind, count=count, overdue=overdue, urgent=urgent, client=client),
            Lease,
        ):
            self.now += lease
        return lease

    def send(self, overdue: float = 0.0) -> int:
        """Wait until a request is allowed, and return its number."""
        lease = self.take(overdue=overdue)
        self.now += lease.delay
        return lease.first

    def respond(
        self,
        request: int,
        throttled: bool | None,
        retry_after: float | None = None,
        jitter: float = 0.0,
        after: float = 0,
    ) -> bool:
        self.now += after
        return self.limiter.on_response(self.now, request, throttled, retry_after, jitter)

    def work(self, seconds: float, overdue: float = 60.0) -> None:
        """Send requests for so many seconds, each of them successful."""
        until = self.now + seconds
        while self.now < until:
            self.respond(self.send(overdue), False)

    def trip(self, failed_probes: int = 0) -> None:
        """Meet a block, and end it after so many probes that fail."""
        for _ in range(failed_probes + 1):
            self.respond(self.send(), True)
        self.respond(self.send(), False)

    @property
    def rate(self) -> float:
        return self.limiter.throttle.rate

    @property
    def blocked(self) -> bool:
        return self.limiter.block.active

    @property
    def cooldown(self) -> float:
        """Seconds until the next request is allowed."""
        return self.limiter.next_allowed_at(self.now) - self.now


def throttled_client(limit: float | None = None, seconds_of_work: float = 0.0) -> Client:
    client = Client(limit)
    client.work(seconds_of_work)
    client.respond(client.send(), True)
    return client

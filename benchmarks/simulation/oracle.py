"""A client that knows the limit, and sends a request only when the API is going to serve it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

from airflow_provider_whisul.rate_limit.durations import MAX_DURATIONS, Durations
from airflow_provider_whisul.rate_limit.poll_queue import PollQueue, WaitingPoll
from benchmarks.simulation.api_limiter import ApiLimiter
from benchmarks.simulation.events import Events
from benchmarks.simulation.world import JOB_SECONDS

_Request = Callable[[int, bool, Callable[[bool], None]], None]


class Oracle:
    """
    All processes in one: submissions first, then the job that is most probably over. It knows how long jobs take.

    A request is under way while it waits: it arrives in the moment in which the API serves it.

    :param request: Sends a request, which arrives at once.
    :param polled: Called with a job when it was polled.
    :param even: Whether it sends evenly. Where it does not, it may use a long window up in its first seconds.
    """

    def __init__(
        self, events: Events, limiter: ApiLimiter, request: _Request, polled: Callable[[int], None], even: bool
    ) -> None:
        self._events, self._limiter, self._request, self._polled = events, limiter, request, polled
        self._even = even
        self._last_at = -math.inf
        self.durations = Durations()
        some = random.Random(0)
        self.durations.add([some.uniform(*JOB_SECONDS) for _ in range(MAX_DURATIONS)])
        self._submissions: deque[tuple[int, Callable[[int, bool], None]]] = deque()
        self._queue = PollQueue()
        self._jobs: dict[WaitingPoll, int] = {}
        self._wakes_at = math.inf

    def submit(self, job: int, ended: Callable[[int, bool], None]) -> None:
        """Submit a song as soon as the API serves that."""
        self._arrives(lambda: self._submissions.append((job, ended)))

    def due(self, job: int, poll: WaitingPoll) -> None:
        """Poll a job as soon as the API serves that."""
        self._jobs[poll] = job
        self._arrives(lambda: self._queue.add(poll))

    def _arrives(self, add: Callable[[], None]) -> None:
        def arrived() -> None:
            add()
            self._serve()

        self._events.after(self._events.one_way(), arrived)

    def _woken(self) -> None:
        if self._events.now >= self._wakes_at:
            self._wakes_at = math.inf
            self._serve()

    def _serve(self) -> None:
        now = self._events.now
        while self._submissions or len(self._queue):
            at = self._limiter.allowed_at(now)
            if self._even:
                at = max(at, self._last_at + self._limiter.interval(now))
            if at > now:
                if at < self._wakes_at:
                    self._wakes_at = at
                    self._events.after(at - now, self._woken)
                return
            if self._submissions:
                job, ended = self._submissions.popleft()
                self._send(job, True, ended)
            else:
                self._send(self._jobs.pop(self._queue.pop(now, self.durations)), False, None)

    def _send(self, job: int, submits: bool, ended: Callable[[int, bool], None] | None) -> None:
        def respond(throttled: bool) -> None:
            assert not throttled, "The oracle knows the limit."
            if ended:
                ended(job, True)
            else:
                self._polled(job)

        self._last_at = self._events.now
        self._request(job, submits, respond)

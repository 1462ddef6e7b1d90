"""The time of a simulation: events in the order of their times."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from benchmarks.simulation.world import ROUND_TRIP


class Events:
    """
    What is going to happen.

    :param seed: The seed of all random times.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen some seconds from now."""
        heapq.heappush(self._waiting, (self.now + seconds, next(self._order), happen))

    def one_way(self) -> float:
        """Return the seconds that a request or a response is under way."""
        least, most = ROUND_TRIP
        return self.random.uniform(least / 2, most / 2)

    def run(self, horizon: float, is_over: Callable[[], bool]) -> None:
        """Let happen what is going to happen until nothing is left, or all is over."""
        while self._waiting and self._waiting[0][0] <= horizon and not is_over():
            self.now, _, happen = heapq.heappop(self._waiting)
            happen()

"""Which of the polls that wait for the rate limiter's permission is sent first. No I/O, and the time is passed in."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from airflow_provider_whisul.rate_limit.durations import Durations

#: A poll becomes urgent once it has waited for half of the time that no job shall go unpolled: ten of its intervals, or
#: this many seconds where that is less.
MAX_UNPOLLED_INTERVALS = 10
MAX_UNPOLLED = 120.0

#: Seconds by which a poll is late from which on the rate limit counts as pressing.
PRESSING_AFTER = 3.0

#: Seconds for which an order of the waiting polls is followed, so that a thousand are not put into order for each one.
ORDER_SECONDS = 2.0

#: How probable it is that a job is over of which nobody knows when it was submitted.
UNKNOWN_PROBABILITY = 0.5


@dataclass(eq=False)
class WaitingPoll:
    """
    A poll that waits for the rate limiter's permission.

    :param due: When the poll was due, in seconds of the caller's clock.
    :param dag_id: The DAG that waits for the job. DAGs share the rate evenly. Blank where no DAG is known: the poll is
        then as one of a DAG of its own.
    :param submitted: When the job was submitted, on the same clock; None where nobody knows.
    :param last_poll: When a poll found the job running last, on the same clock; None where none did yet.
    :param poll_interval: Seconds between two polls of the job.
    :param crowd_max_wait: Seconds that the poll waits longer than it usually may, where other polls are why.
    """

    due: float
    dag_id: str = ""
    submitted: float | None = None
    last_poll: float | None = None
    poll_interval: float = 10.0
    crowd_max_wait: float = 0.0

    @property
    def urgent_at(self) -> float:
        """When the poll becomes urgent."""
        return self.due + min(MAX_UNPOLLED_INTERVALS * self.poll_interval, MAX_UNPOLLED) / 2

    @property
    def dag(self) -> Hashable:
        """What polls of the same DAG have in common."""
        return self.dag_id or self

    def probability_over(self, now: float, durations: Durations) -> float:
        """
        Return how probable it is that the job is over.

        :param now: The time, on the same clock.
        :param durations: How long jobs of the account take.
        """
        if self.submitted is None:
            return UNKNOWN_PROBABILITY
        polled_at = 0.0 if self.last_poll is None else self.last_poll - self.submitted
        return durations.probability_over(now - self.submitted, polled_at)


class PollQueue:
    """
    The polls of one account that wait in one event loop.

    Urgent polls go first, the oldest before the others, except that every second turn is for DAGs that have none: a
    DAG of three songs need not wait until it is as late as one of a thousand. Other polls go by turns between DAGs.
    Within a DAG the one that was due first goes first or, where the rate limit presses and durations are known, the
    one whose job is most probably over.
    """

    def __init__(self) -> None:
        self._waiting: dict[WaitingPoll, None] = {}
        # The order in which they are sent, last one first. It may name polls that no longer wait.
        self._order: list[WaitingPoll] = []
        self._ordered_at = -math.inf
        self._turns = 0
        self._last_turn: dict[Hashable, int] = {}
        self._last_was_urgent = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, poll: WaitingPoll) -> None:
        """Add a poll that is due."""
        self._waiting[poll] = None

    def discard(self, poll: WaitingPoll) -> None:
        """Remove a poll that waits no longer, if it is there."""
        self._waiting.pop(poll, None)

    def pop(self, now: float, durations: Durations) -> WaitingPoll:
        """
        Remove and return the poll that is sent next. There must be one.

        :param now: The time, on the clock of the polls.
        :param durations: How long jobs of the account take.
        """
        if now - self._ordered_at >= ORDER_SECONDS:
            self._order = []
        while True:
            if not self._order:
                self._order, self._ordered_at = self._in_order(now, durations)[::-1], now
            poll = self._order.pop()
            if poll in self._waiting:
                break
        del self._waiting[poll]
        self._turns += 1
        self._last_turn[poll.dag] = self._turns
        self._last_was_urgent = poll.urgent_at <= now
        return poll

    def overdue(self, now: float) -> float:
        """Return for how many seconds the oldest poll has been overdue, 0 where none waits."""
        return max((now - poll.due for poll in self._waiting), default=0.0)

    def urgent(self, now: float) -> bool:
        """Return whether a job has waited so long for its poll that submissions must give way."""
        return any(poll.urgent_at <= now for poll in self._waiting)

    def _in_order(self, now: float, durations: Durations) -> list[WaitingPoll]:
        urgent = sorted((poll for poll in self._waiting if poll.urgent_at <= now), key=lambda poll: poll.due)
        late = {poll.dag for poll in urgent}
        by_dag: dict[Hashable, list[WaitingPoll]] = {}
        for poll in self._waiting:
            if poll.urgent_at > now:
                by_dag.setdefault(poll.dag, []).append(poll)
        pressing = durations.known and self.overdue(now) > PRESSING_AFTER
        for polls in by_dag.values():
            if pressing:
                ranks = {poll: (-poll.probability_over(now, durations), poll.due) for poll in polls}
                polls.sort(key=ranks.__getitem__)
            else:
                polls.sort(key=lambda poll: poll.due)
        # A DAG of which no poll waits has no turn to remember.
        self._last_turn = {dag: turn for dag, turn in self._last_turn.items() if dag in by_dag or dag in late}
        between = self._in_turns({dag: polls for dag, polls in by_dag.items() if dag not in late})[: len(urgent)]
        pairs = zip_longest(between, urgent) if self._last_was_urgent else zip_longest(urgent, between)
        first = dict.fromkeys(poll for poll in chain.from_iterable(pairs) if poll is not None)
        return [*first, *(poll for poll in self._in_turns(by_dag) if poll not in first)]

    def _in_turns(self, by_dag: Mapping[Hashable, Sequence[WaitingPoll]]) -> list[WaitingPoll]:
        """Return one poll of each DAG, then another one of each, and so on: first that whose turn was longest ago."""
        dags = sorted(by_dag, key=lambda dag: self._last_turn.get(dag, 0))
        turns = [(place, number, poll) for number, dag in enumerate(dags) for place, poll in enumerate(by_dag[dag])]
        return [poll for _, _, poll in sorted(turns, key=lambda turn: turn[:2])]

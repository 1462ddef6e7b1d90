"""How long the jobs of an account take, as learnt from those that have ended. No I/O."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

#: How many of the latest durations are kept: those of a large batch. The jobs of one that are over last are its longest
#: ones, and fewer would tell of these alone.
MAX_DURATIONS = 1_000

#: How many of the latest durations count by themselves too: where songs take less time than they did, five of them are
#: enough to show it.
RECENT_DURATIONS = 100

#: Of how many of the latest jobs it is known that they have counted: one is polled again by a later try, or by another
#: task that waits for it too.
LATEST_JOBS = 200

#: How many durations must be known before anything is concluded from them.
MIN_DURATIONS = 20

#: The first poll comes at the age at which this share of the jobs was over.
FIRST_POLL_SHARE = 0.05

#: Seconds. The first poll is never put off beyond this age.
MAX_FIRST_POLL_AGE = 600.0

#: Seconds. A longer duration is not kept: most songs take minutes, and a server that gets its time zone wrong between
#: start and end of a job is wrong by half an hour at least.
MAX_DURATION = 1_800.0


@dataclass
class Durations:
    """
    The durations of the latest jobs that have ended: one that fails is over, too.

    :param seconds: The durations in whole seconds, oldest first.
    :param jobs: A checksum of the id of each of the latest jobs that have counted, oldest first.
    """

    seconds: list[int] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    # What follows from them, and the list that it follows from.
    _ordered: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    _first_poll_age: float = field(default=0.0, init=False, repr=False, compare=False)
    _ordered_from: list[int] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def known(self) -> bool:
        """Whether enough durations are known to conclude anything from them."""
        return len(self.seconds) >= MIN_DURATIONS

    def add(self, durations: Sequence[float]) -> None:
        """
        Add the durations of jobs that have ended.

        One that no clock can have measured rightly, below 0 or above :data:`MAX_DURATION`, is left out.

        :param durations: Seconds between ``started_at`` and ``finished_at``.
        """
        # Rounded down: a poll that is a little early costs a request, one that is late costs time.
        added = [int(seconds) for seconds in durations if 0 <= seconds <= MAX_DURATION]
        self.seconds = [*self.seconds, *added][-MAX_DURATIONS:]

    def add_job(self, job_id: str, seconds: float) -> None:
        """
        Add the duration of a job that has ended, unless it has been added already.

        :param job_id: The job.
        :param seconds: As in :meth:`add`.
        """
        checksum = zlib.crc32(job_id.encode("utf-8", "surrogatepass"))
        if checksum not in self.jobs:
            self.jobs = [*self.jobs, checksum][-LATEST_JOBS:]
            self.add([seconds])

    def first_poll_age(self) -> float:
        """
        Return the seconds before which a job need not be polled: one in twenty was over by then. 0 for unknown.

        One in twenty of all that are known, or of the latest ones where that is sooner.
        """
        if not self.known:
            return 0.0
        self._in_order()
        return self._first_poll_age

    def probability_over(self, age: float, polled_at: float = 0.0) -> float:
        """
        Return how probable it is that a job is over, given that it was not at its latest poll.

        :param age: The job's age in seconds.
        :param polled_at: Its age at that poll, 0 where it was not polled.
        :return: From 0 to 1.
        """
        polled_at = max(polled_at, 0.0)
        if age <= polled_at:
            return 0.0
        ordered = self._in_order()
        over_before = bisect_right(ordered, polled_at) if polled_at else 0
        # Beside the known ones there is one of any length, so that a job that takes longer than all of them counts
        # neither as certainly over nor as never over: the longer it has run, the longer it will.
        of_any_length = 1 - polled_at / age
        return (bisect_right(ordered, age) - over_before + of_any_length) / (len(ordered) - over_before + 1)

    def _in_order(self) -> list[int]:
        seconds = self.seconds
        if self._ordered_from is not seconds:
            self._ordered, latest = sorted(seconds), sorted(seconds[-RECENT_DURATIONS:])
            ages = (
                ordered[max(round(FIRST_POLL_SHARE * len(ordered)), 1) - 1]
                for ordered in (self._ordered, latest)
                if ordered
            )
            self._first_poll_age = min(float(min(ages, default=0)), MAX_FIRST_POLL_AGE)
            self._ordered_from = seconds
        return self._ordered

"""What is simulated, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from benchmarks.simulation.api_limiter import Limit

#: Seconds between two polls of a job.
POLL_INTERVAL = 10.0

#: Seconds that a job takes, least and most.
JOB_SECONDS = (60.0, 180.0)

#: Seconds to the API and back, least and most.
ROUND_TRIP = (0.05, 0.3)

#: Seconds that a task process takes to start, least and most.
TASK_START = (2.0, 4.0)

#: How many task processes a machine runs at a time.
TASK_SLOTS = 8

#: Seconds before Airflow's next try of a task, and how many retries a task has.
RETRY_DELAY = 300.0
RETRIES = 3

#: Seconds after which a simulation ends, whatever is left.
HORIZON = 14_400.0


class Sharing(Enum):
    """Which processes share a rate limiter."""

    ORACLE = "an oracle that knows the limit, and sends as soon as it allows that"
    EVEN_ORACLE = "an oracle that knows the limit, and sends evenly"
    NOTHING = "the workers of a machine; each triggerer has its own"
    MACHINE = "all processes of a machine"
    ALL = "all processes"


class Law(Enum):
    """What decides how many requests per second are sent."""

    OWN = "the provider's law"
    TOLD = "told the limit"
    AIMD = "AIMD"
    CUBIC = "cubic"


@dataclass(frozen=True)
class World:
    """
    What is simulated.

    :param limit: The limit of the key.
    :param sharing: Which processes share a rate limiter.
    :param songs: How many songs are made.
    :param mapped: Whether each song is submitted by a task process of its own, and polled by a trigger of its own; else
        one process submits all of them, and one trigger polls them from then on.
    :param machines: How many machines there are.
    :param triggerers: How many triggerers there are, evenly on the machines.
    :param seed: The seed of all random times.
    :param law: What decides how many requests per second are sent.
    """

    limit: Limit
    sharing: Sharing = Sharing.ALL
    songs: int = 60
    mapped: bool = True
    machines: int = 1
    triggerers: int = 1
    seed: int = 0
    law: Law = Law.OWN


@dataclass(frozen=True)
class Result:
    """
    What is measured.

    :param seconds: From the start until the completion of each song was seen; infinite where that was never so.
    :param throttled: How many 429s there were.
    :param polls: How many polls there were for each song.
    :param submitted: From the start until the last song was submitted.
    :param decisions: How many decisions the rate limiters made for each request.
    """

    seconds: float
    throttled: int
    polls: float
    submitted: float
    decisions: float

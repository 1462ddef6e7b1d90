"""What is simulated, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.simulation.api_limiter import Block

#: Seconds between two polls of a job.
POLL_INTERVAL = 10.0

#: Seconds that a job takes, least and most.
JOB_SECONDS = (60.0, 180.0)

#: Seconds to the API and back, least and most.
ROUND_TRIP = (0.05, 0.3)

#: Seconds that a task process takes to start, least and most.
TASK_START = (2.0, 4.0)

#: Seconds before Airflow's next try of a task, and how many retries a task has.
RETRY_DELAY = 300.0
RETRIES = 3

#: The targets. Seconds from the end of the last job to its response, number of 429s, and seconds from the end of a job
#: to its response, 95th percentile.
LAST_DELAY_TARGET, THROTTLED_TARGET, P95_TARGET = 10.0, 10, 30.0


@dataclass(frozen=True)
class World:
    """
    What is simulated.

    :param limit: Requests that the API allows in any second; None for no limit.
    :param block: How long the API blocks a key that exceeds it.
    :param triggerers: Among how many processes, which do not see each other, the polling of the jobs is split.
    :param jobs: How many jobs there are.
    :param seed: The seed of all random times.
    :param task_slots: How many task processes run at a time, of which each submits one job. 0 where all jobs are
        submitted at the start.
    :param separate_tasks: Whether each task process has a rate limiter of its own, instead of one for the machine.
    """

    limit: int | None
    block: Block = Block.UNTIL_IDLE
    triggerers: int = 1
    jobs: int = 500
    seed: int = 0
    task_slots: int = 0
    separate_tasks: bool = False


@dataclass(frozen=True)
class Result:
    """
    What is measured. All times are seconds, and infinite where a job's completion was never seen.

    :param last_delay: From the end of the last job to the response that shows the last completion.
    :param throttled: How many 429s there were.
    :param polls: How many polls there were, the throttled ones included.
    :param p50: From the end of a job to the response that shows it, median.
    :param p95: The same, 95th percentile.
    :param duration: From the start until the completion of every job was seen, or its task had failed.
    :param failed: How many tasks failed in all their tries.
    """

    last_delay: float
    throttled: int
    polls: int
    p50: float
    p95: float
    duration: float
    failed: int

    @property
    def missed(self) -> set[str]:
        """The names of the targets that are missed: ``last``, ``429s`` and ``p95``."""
        met = {
            # A poll interval and a round trip lie between two polls of the last job, so this is what "10 s" can be.
            "last": self.last_delay <= LAST_DELAY_TARGET + ROUND_TRIP[1],
            "429s": self.throttled <= THROTTLED_TARGET,
            "p95": self.p95 <= P95_TARGET,
        }
        return {name for name, is_met in met.items() if not is_met}

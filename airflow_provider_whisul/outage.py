"""How failed polls are logged."""

from __future__ import annotations

import logging

from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.text import count

log = logging.getLogger(__name__)


class Outage:
    """
    Logs transient failures of polls: one warning when they begin, one line when they are over.

    The jobs of a batch share one, so that an outage of the API is logged once and not for each of them.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._jobs: set[str] = set()
        self._polls = 0
        self._began = 0.0

    def failed(self, job: str, job_id: str, error: WhisulError, now: float, delay: float) -> None:
        """
        Log a poll that failed.

        :param job: The job, as a log line names it.
        :param job_id: The job's id.
        :param error: The error.
        :param now: When it came, in Unix seconds.
        :param delay: Seconds until the job is polled again.
        """
        if not self._failing:
            self._jobs, self._polls, self._began = set(), 0, now
        level = logging.DEBUG if self._failing else logging.WARNING
        self._failing.add(job_id)
        self._jobs.add(job_id)
        self._polls += 1
        log.log(level, "%s Polling %s again in %.0f s.", error, job, delay)

    def ended(self, job_id: str, now: float, *, recovered: bool) -> None:
        """
        Log that the outage is over, once no job is left whose latest poll failed.

        :param job_id: The job.
        :param now: The time, in Unix seconds.
        :param recovered: Whether a poll of the job has succeeded. If not, the job is no longer waited for.
        """
        if job_id not in self._failing:
            return
        self._failing.discard(job_id)
        if recovered and not self._failing:
            log.info(
                "Whisul answers again, after %s of %s had failed in %.0f s.",
                count(self._polls, "poll"),
                count(len(self._jobs), "job"),
                now - self._began,
            )

"""How a task polls a job that may not exist, or not yet be found, on its worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_whisul.exceptions import WhisulJobNotFoundError
from airflow_provider_whisul.polling import DEFAULT_POLL_INTERVAL, NotFoundGrace

if TYPE_CHECKING:
    from airflow_provider_whisul.api.models import WhisulJob
    from airflow_provider_whisul.hooks.whisul import WhisulHook


class JobFinder:
    """
    Polls jobs on a worker: each once, but while Whisul does not find it again for a minute.

    After a job that is gone the next ones are polled once: a minute is too long for each of many.

    :param hook: The client.
    """

    def __init__(self, hook: WhisulHook) -> None:
        self.hook = hook
        self._job_is_gone = False

    def get_job(self, job_id: str, *, max_wait: float | None = None, retry: bool = False) -> WhisulJob:
        """
        Return a job.

        :param job_id: The job's id.
        :param max_wait: Seconds that each poll waits for the rate limiter at most.
        :param retry: Whether to retry transient errors too.
        :raises WhisulError: As :meth:`~airflow_provider_whisul.hooks.whisul.WhisulHook.get_job`.
        """
        clock, grace = self.hook.clock, NotFoundGrace()
        while True:
            try:
                return self.hook.get_job(job_id, retry=retry, max_wait=max_wait)
            except WhisulJobNotFoundError as error:
                delay = grace.next_delay(clock.time(), DEFAULT_POLL_INTERVAL)
                if delay is None or self._job_is_gone:
                    self._job_is_gone = True
                    raise
                self.hook.log.warning("%s Polling it again in %.0f s.", error, delay)
                clock.sleep(delay)

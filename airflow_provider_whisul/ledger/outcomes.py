"""How jobs ended, written into the ledger by the workers that know it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.messages import job_request
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.entries import Outcome
from airflow_provider_whisul.text import quote

log = logging.getLogger(__name__)


def outcome_of_job(job: WhisulJob) -> Outcome | None:
    """
    Return how a job ended; None where it runs, or where its song has no URL yet.

    :param job: The job.
    """
    if job.failed:
        return "failed"
    return "delivered" if job.completed and job.has_song_url else None


class OutcomeRecorder:
    """
    Writes down each outcome once. A store that is away ends no task: the song is there.

    :param clock: The time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recorded: set[tuple[str, Outcome]] = set()

    def record(self, settings: Callable[[], ConnectionSettings], job_id: str, outcome: Outcome) -> None:
        """
        Write down how a job ended. Where that fails, a warning says so.

        :param settings: Returns the settings of the job's connection.
        :param job_id: The job's id.
        :param outcome: How it ended.
        """
        if (job_id, outcome) in self._recorded:
            return
        self._recorded.add((job_id, outcome))
        try:
            # Refuses an id that cannot be one, before a file's name repeats it.
            job_request(job_id)
            ledger = AccountLedger.open(settings())
            if ledger is not None:
                ledger.record_outcome(job_id, outcome, self._clock.time())
        except Exception as error:
            # Another error's own text may hold a secret, as of the backend that has the connection.
            reason = str(error) if isinstance(error, WhisulError) else type(error).__name__
            log.warning("The ledger does not say how job %s has ended. %s", quote(str(job_id)), reason)

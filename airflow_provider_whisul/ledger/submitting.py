"""
One submission in the ledger, from just before its POST to what is known of it after.

The entry is there only while a request is on its way, and from its response on. A certain refusal removes it, also one
after which the request is sent again: a try that waits minutes for the rate limiter holds nothing, and of two tries
that make the same submission the second finds what the first has got. The task's own record of its intent, which
``before_send`` makes and ``on_refused`` discards, is there for as long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import TypeVar

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.messages import Response
from airflow_provider_whisul.api.outcomes import submission_error
from airflow_provider_whisul.clock import Clock, utc
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulError,
    WhisulRateLimitError,
    WhisulStateError,
)
from airflow_provider_whisul.ledger.account_ledger import AccountLedger, day_of
from airflow_provider_whisul.ledger.ceiling import DayCeiling
from airflow_provider_whisul.ledger.entries import Entry, submission_file
from airflow_provider_whisul.ledger.reader import all_ledgers
from airflow_provider_whisul.ledger.submission_id import SubmissionId, current_task
from airflow_provider_whisul.rate_limit.limiter_store import LimiterStore
from airflow_provider_whisul.rate_limit.rate_limiter import Permit
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from airflow_provider_whisul.state.retention import sweep_daily

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after a request's timeout until its response counts as lost.
RESPONSE_MARGIN = 5.0

#: Seconds between two readings of an entry whose response may still come.
CHECK_INTERVAL = 1.0

#: Seconds by which the clocks of two machines may differ: the times of an entry are those of the machine that wrote it.
MAX_CLOCK_DIFFERENCE = 3_600.0

#: Seconds that a submission waits for the rate limiter at most before it calls ``before_wait``.
SHORT_WAIT = 0.1

_DAY_SECONDS = 86_400.0


class AlreadySubmitted(Exception):
    """
    The ledger has a job of this submission, so that nothing is sent.

    :param job_id: The job's id.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


class Submitting:
    """
    The submission of one prompt by one call of the hook.

    :param prompt: The prompt.
    :param submission: What the submission is called; None for one of its own.
    :param conn_id: The Airflow connection.
    :param clock: The time and sleep.
    :param before_send: Called when the entry is there, before anything is sent; again after each ``on_refused``.
    :param before_wait: Called before each wait of more than :data:`SHORT_WAIT`.
    :param on_refused: Called where what ``before_send`` was called for has certainly made no job.
    """

    def __init__(
        self,
        prompt: str,
        submission: SubmissionId | None,
        conn_id: str,
        clock: Clock,
        before_send: Callable[[], None] | None = None,
        before_wait: Callable[[], None] | None = None,
        on_refused: Callable[[], None] | None = None,
    ) -> None:
        self._prompt = prompt
        self._submission = submission or current_task()
        self._is_unique = submission is None
        self._conn_id = conn_id
        self._clock = clock
        self._before_send = before_send
        self._before_wait = before_wait
        self._on_refused = on_refused
        self._is_intended = False
        self._attempt = token_hex(8)
        key = self._attempt * 2 if submission is None else submission.key(prompt)
        self._file = submission_file(key, self._submission.dag_id)
        # Where the entry of this call is, while there is one.
        self._open: tuple[AccountLedger, str, Entry] | None = None
        self._ceiling = DayCeiling()

    def acquire(self, rate_limiter: WorkerRateLimiter, settings: ConnectionSettings, give_up_at: float) -> Permit:
        """
        Wait until the request may be sent, write the entry, and return the request's permit.

        :param rate_limiter: The account's rate limiter.
        :param settings: The settings of the connection that the request is sent with.
        :param give_up_at: When to wait no longer for the rate limiter, on the monotonic clock.
        :raises WhisulRateLimitError: The rate limiter does not permit the request in time.
        :raises AlreadySubmitted: As :meth:`open`, and so are the other errors.
        """
        self._sweep(settings)
        while True:
            permit = self._permit(rate_limiter, give_up_at)
            try:
                opened = self.open(settings, rate_limiter.store)
                if opened and rate_limiter.is_permitted(permit):
                    return permit
                # A block has begun meanwhile, and a request during it would prolong it.
                self.withdraw()
            except BaseException:
                try:
                    self.withdraw()
                finally:
                    rate_limiter.give_back(permit)
                raise
            rate_limiter.give_back(permit)
            if not opened:
                if self._before_wait is not None:
                    self._before_wait()
                self.wait_for_other(settings)

    def open(self, settings: ConnectionSettings, store: LimiterStore | None = None) -> bool:
        """
        Write the entry, and call ``before_send`` where that has not been called yet.

        :param settings: The settings of the connection that the request is sent with.
        :param store: Where the account's rate limiter is kept. It may count the day's submissions too.
        :return: Whether the request may be sent; False where another try is in the middle of the same submission.
        :raises AlreadySubmitted: The ledger has the submission's job.
        :raises WhisulAmbiguousSubmitError: It has the submission, and nobody knows the job.
        :raises WhisulBudgetExceededError: The account's ceiling of the day is reached.
        :raises WhisulStateError: The ledger cannot be used. Nothing was sent.
        """
        try:
            ledger = AccountLedger.open(settings)
            opened = ledger is None or self._create(ledger, settings, store)
        except WhisulStateError as error:
            raise error.before_sending() from error.__cause__
        if ledger is None and settings.max_submissions_per_day is not None:
            raise WhisulConfigurationError(
                f"The Airflow connection {self._conn_id!r} sets max_submissions_per_day, and this machine has no "
                "folder to count in. Set [whisul] state_path in Airflow's configuration, or make AIRFLOW_HOME "
                "writable. Nothing was sent."
            )
        if opened:
            self._call_before_send()
            self._refresh(settings)
        return opened

    def wait_for_other(self, settings: ConnectionSettings) -> None:
        """
        Wait until the other try that makes the same submission has a response.

        Returns where that try was certainly refused, so that this one may submit.

        :param settings: The connection's settings.
        :raises AlreadySubmitted: It has got a job.
        :raises WhisulAmbiguousSubmitError: Its response was lost.
        :raises WhisulStateError: The ledger cannot be read.
        """
        ledger = AccountLedger.open(settings)
        if ledger is None:
            return
        log.info("Another try of this task has begun to submit the same prompt. Waiting for its response.")
        now = self._clock.time()
        entry = self._await(ledger, [day_of(now), *_days_beside(now)], settings.timeout)
        if entry is not None:
            self._end_at(entry)

    def finish(self, read: Callable[[Response], T], response: Response) -> T:
        """
        Return what is read of the response, which accepts the job, or write down that none is known.

        :param read: Reads the response.
        :param response: The response.
        :raises WhisulError: The response is no job's.
        """
        try:
            return read(response)
        except WhisulError as error:
            self.end(error)
            raise

    def accept(self, job_id: str) -> None:
        """
        Write down the job. Where that fails the log names it.

        :param job_id: The job's id.
        """
        if self._open is None:
            return
        ledger, day, entry = self._open
        try:
            ledger.write(day, self._file, entry.accepted(job_id))
        except WhisulStateError as error:
            log.error("The prompt became job %s, which could not be written into the ledger. %s", job_id, error)
        except BaseException:
            # The task is just being ended, and nothing else knows of the job.
            log.error("The task was ended when it had submitted job %s, which is paid for.", job_id)
            with suppress(WhisulStateError):
                ledger.write(day, self._file, entry.accepted(job_id))
            raise

    def end(self, error: BaseException) -> None:
        """
        Write down that no job is known: the entry goes if there certainly is none, or else says that there may be one.

        :param error: How the request ended.
        """
        is_certain = isinstance(error, WhisulError) and not isinstance(
            submission_error(error), WhisulAmbiguousSubmitError
        )
        if is_certain or not getattr(error, "request_sent", True):
            # Also where there is no ledger: the task has its record.
            self.withdraw()
            return
        if self._open is None:
            return
        ledger, day, entry = self._open
        try:
            ledger.write(day, self._file, replace(entry, state="ambiguous"))
        except WhisulStateError as failure:
            # Without it the entry is read the same from its `response_due` on.
            log.warning("%s", failure)

    def withdraw(self) -> None:
        """Remove the entry, and have the intent discarded: certainly nothing was submitted."""
        # First: another try that waits for this entry begins to submit once it is gone, and records that.
        try:
            self._discard_intent()
        finally:
            if self._open is not None:
                ledger, day, entry = self._open
                if ledger.withdraw(day, self._file, entry):
                    self._forget_entry()

    def _forget_entry(self) -> None:
        self._open = None
        self._ceiling.withdraw()

    def find(self, settings: ConnectionSettings, since: float) -> Entry | None:
        """
        Return the entry that an earlier try has made of this submission, with whichever key, once its response is there
        or is lost.

        :param settings: The connection's settings.
        :param since: When it was about to be made, in Unix seconds.
        :raises WhisulStateError: The ledger cannot be read.
        """
        ledger = AccountLedger.open(settings)
        if ledger is None:
            return None
        # The entry is made before the record that says when, perhaps at the end of the day before.
        first, entry = day_of(since - _DAY_SECONDS), None
        for each in sorted(all_ledgers(ledger.folder), key=lambda other: other.account != ledger.account):
            entry = entry or self._await(each, [day for day in each.days() if day >= first], settings.timeout)
        return entry

    def _permit(self, rate_limiter: WorkerRateLimiter, give_up_at: float) -> Permit:
        """Wait for a permit."""
        max_wait = max(give_up_at - self._clock.monotonic(), 0.0)
        if self._before_wait is not None and max_wait > SHORT_WAIT:
            try:
                return rate_limiter.acquire("submission", SHORT_WAIT)
            except WhisulRateLimitError:
                self._before_wait()
                max_wait = max(give_up_at - self._clock.monotonic(), 0.0)
        return rate_limiter.acquire("submission", max_wait)

    def _sweep(self, settings: ConnectionSettings) -> None:
        """Remove what is too old, while nothing is submitted yet."""
        try:
            ledger = AccountLedger.open(settings)
        except WhisulStateError as error:
            raise error.before_sending() from error.__cause__
        if ledger is not None:
            sweep_daily(ledger.folder, self._clock.time())

    def _create(self, ledger: AccountLedger, settings: ConnectionSettings, store: LimiterStore | None) -> bool:
        """Write the entry; return False where another try's is there, whose response may still come."""
        while True:
            now = self._clock.time()
            entry = self._entry(settings, now)
            if self._open is not None:
                # It could not be removed after a refusal, or only the response to that was lost.
                opened, day, before = self._open
                if opened.path == ledger.path and ledger.holds(day, self._file, before):
                    ledger.write(day, self._file, entry)
                    self._open = ledger, day, entry
                    return True
                # Another try has one there by now, or the key was replaced and this account has another ledger.
                self._forget_entry()
            today = day_of(now)
            days = () if self._is_unique else _days_beside(now)
            other = next((found for day in days if (found := ledger.read(day, self._file)) is not None), None)
            if other is None:
                if self._ceiling.create(ledger, self._file, entry, settings.max_submissions_per_day, store, now):
                    self._open = ledger, today, entry
                    return True
                other = ledger.read(today, self._file)
            if other is not None:
                if other.is_in_progress(now - MAX_CLOCK_DIFFERENCE):
                    return False
                self._end_at(other)

    def _refresh(self, settings: ConnectionSettings) -> None:
        """Write the entry's time anew where ``before_send`` took long: another try must not take this one for lost."""
        now = self._clock.time()
        if self._open is not None and now - self._open[2].at > CHECK_INTERVAL:
            ledger, day, _ = self._open
            self._open = ledger, day, self._entry(settings, now)
            ledger.write(day, self._file, self._open[2])

    def _entry(self, settings: ConnectionSettings, now: float) -> Entry:
        entry = Entry.of(
            self._submission, self._prompt, conn_id=self._conn_id, attempt=self._attempt, api_key=settings.api_key
        )
        return replace(entry, at=now, response_due=now + settings.timeout + RESPONSE_MARGIN)

    def _end_at(self, other: Entry) -> None:
        """Raise what the entry of another try means that is over."""
        if other.job_id is not None:
            log.info(
                "This prompt was submitted at %s already, as job %s. Nothing is sent.", utc(other.at), other.job_id
            )
            raise AlreadySubmitted(other.job_id)
        # So that the record of the task says that it was submitted, and a later try does not find the same entry.
        self._call_before_send()
        self._is_intended = False
        raise submission_error(
            WhisulConnectionError(
                f"Another try of this task has begun to submit it at {utc(other.at)}, and it is not known which job "
                "it got. This try has sent nothing."
            )
        )

    def _call_before_send(self) -> None:
        if self._before_send is not None and not self._is_intended:
            # Also where it fails: it may have come so far.
            self._is_intended = True
            self._before_send()

    def _discard_intent(self) -> None:
        if self._on_refused is None or not self._is_intended:
            return
        self._is_intended = False
        try:
            self._on_refused()
        except Exception as error:
            # The caller has an error of its own, or is about to send the request again.
            reason = str(error) if isinstance(error, WhisulError) else f"on_refused raised {type(error).__name__}."
            log.warning(
                "%s So the record of this task says that it may have submitted a song, which it has not.", reason
            )
        except BaseException:
            # The task is just being ended.
            with suppress(Exception):
                self._on_refused()
            raise

    def _await(self, ledger: AccountLedger, days: list[str], timeout: float) -> Entry | None:
        """Return the entry, once its response is there or is lost; None where there is none, or no longer."""
        # Our clock tells nothing of how long that is, if the machine that wrote it has another time.
        give_up_at = self._clock.monotonic() + timeout + RESPONSE_MARGIN
        while True:
            entry = None
            for day in days:
                entry = ledger.read(day, self._file)
                if entry is not None:
                    days = [day]
                    break
            in_progress = entry is not None and entry.is_in_progress(self._clock.time() - MAX_CLOCK_DIFFERENCE)
            if not in_progress or self._clock.monotonic() >= give_up_at:
                return entry
            self._clock.sleep(CHECK_INTERVAL)


def _days_beside(now: float) -> list[str]:
    """The day before, and the next one where it may have begun on another machine."""
    return [day_of(now - _DAY_SECONDS), *{day_of(now + MAX_CLOCK_DIFFERENCE)} - {day_of(now)}]

"""
The worker's client in a thread, for code that runs in an event loop.

A submission is made there as :class:`~airflow_provider_whisul.hooks.whisul.WhisulHook` makes it, so that each rule
about money has one home. It also needs what blocks: the ledger's files, and their lock.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from threading import Event
from weakref import WeakMethod

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.clock import Clock
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.entries import Outcome
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.text import excerpt

#: Seconds of a sleep after which the thread looks whether the submission is still wanted.
CHECK_INTERVAL = 1.0


class _NotWantedError(Exception):
    """Nobody awaits the submission any longer, and nothing of it is on its way."""


class SubmissionThread:
    """
    Makes the submissions of one hook, one after the other, in a thread that ends with this object.

    A submission whose coroutine is cancelled is not begun any more. A request that is on its way is not cut off, since
    it may be paid for: its response is awaited, and the job is written into the ledger and the log.

    :param conn_id: The Airflow connection.
    :param settings: Its settings.
    :param clock: Time, sleep and jitter.
    """

    def __init__(self, conn_id: str, settings: ConnectionSettings, clock: Clock) -> None:
        self._thread = ThreadPoolExecutor(1, "whisul-submissions")
        self._sleep_once = clock.sleep
        # That of the submission which the thread is making.
        self._cancelled = Event()
        self._hook = WhisulHook(conn_id, clock=replace(clock, sleep=self._sleep))
        self._hook.settings = settings
        finish = WeakMethod(self._finish)
        # Airflow ends a task's process without waiting for its threads, but runs what is registered here.
        atexit.register(lambda: (method := finish()) and method())

    async def generate(
        self, prompt: str, before_send: Callable[[], None] | None, submission: SubmissionId | None
    ) -> str:
        """Submit a prompt, and return the job's id, as :meth:`WhisulHook.generate` does with the same arguments."""
        cancelled = Event()
        # With the caller's context: the ledger names the task, and Airflow sends what is logged to the task's log.
        run = copy_context().run
        call = partial(run, self._generate, cancelled, prompt, before_send, submission)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            # However the wait ended; where it was by the result, this is not read any more.
            cancelled.set()

    def submitted_at(self, job_id: str) -> float | None:
        """
        Return when this hook submitted a job, in Unix seconds; None where it did not.

        :param job_id: The job.
        """
        return self._hook.submitted_at.get(job_id)

    async def record_outcome(self, job_id: str, outcome: Outcome) -> None:
        """
        Record in the ledger how a job ended. Where that fails, a warning says so.

        :param job_id: The job.
        :param outcome: How it ended.
        """
        # Not in the thread of the submissions, which may have to wait for minutes.
        await asyncio.to_thread(self._hook.record_outcome, job_id, outcome)

    def _generate(
        self,
        cancelled: Event,
        prompt: str,
        before_send: Callable[[], None] | None,
        submission: SubmissionId | None,
    ) -> str:
        self._cancelled = cancelled
        log = self._hook.log

        def check_and_call() -> None:
            nonlocal before_send
            self._check()
            if before_send is not None:
                before_send()
                before_send = None

        try:
            # Checked before each request, also where one is sent again without a wait, as with a new key.
            job_id = self._hook.generate(
                prompt, before_send=check_and_call, on_refused=lambda: None, submission=submission
            )
        except _NotWantedError:
            log.info("The submission of %r was cancelled before it was sent. No job was made.", excerpt(prompt))
            raise
        except WhisulError as error:
            if cancelled.is_set():
                log.warning("The submission of %r was cancelled, and ended so: %s", excerpt(prompt), error)
            raise
        if cancelled.is_set():
            log.warning(
                "The submission of %r was cancelled while its request was on its way. It is job %s, which is paid for, "
                "and in the ledger. A WhisulJobSensor with this job id finds the song.",
                excerpt(prompt),
                job_id,
            )
        return job_id

    def _finish(self) -> None:
        """Await the response of a request that is on its way, and begin nothing more."""
        self._cancelled.set()
        self._thread.shutdown(cancel_futures=True)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise _NotWantedError

    def _sleep(self, seconds: float) -> None:
        while seconds > 0:
            self._sleep_once(min(seconds, CHECK_INTERVAL))
            self._check()
            seconds -= CHECK_INTERVAL

"""Making songs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_whisul.api import Song
from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.pace import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    FRAMEWORK_TIMEOUT_MARGIN,
    check_poll_interval,
    check_timeout,
)
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger, deferral_error, song_from_event
from airflow_provider_whisul.version_compat import DEFERRAL_ERRORS, is_of_earlier_try

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.hooks.whisul import WhisulHook

#: The XCom that holds the job's id from the moment the job exists.
XCOM_JOB_ID = "job_id"


class WhisulGenerateOperator(BaseOperator):
    """
    Submits a prompt to Whisul and, if asked to, waits for the song.

    Each submission costs credits. Pushes the XCom ``job_id`` the moment the job exists.

    :param prompt: What the song should be, in plain language (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key (templated).
    :param wait_for_completion: Whether the task is done when the song is, and not already when the job is accepted.
    :param deferrable: Whether to wait in the triggerer, holding no worker, or else in the worker.
    :param poll_interval: Seconds (or a ``timedelta``) between two looks at the job, at least 5.
    :param timeout: Seconds (or a ``timedelta``) to wait for the song, from its submission on.
    :return: Without waiting the job's id; waiting, the song: a dict of ``job_id, prompt, title, bpm,
        duration_seconds, song_url, image_url, tags`` (list)``, started_at, finished_at`` (ISO 8601, UTC).
    :raises ValueError: When the DAG file is read: the interval is under 5 s, or the timeout not positive.
    :raises WhisulInvalidInputError: The prompt is empty or refused; ends the task without a retry.
    :raises WhisulUnauthorizedError: The key is not accepted; likewise.
    :raises WhisulJobFailedError: The job failed; a retry of the task makes a new song.
    :raises WhisulJobTimeoutError: The job was not over in time; it may still be running.
    :raises WhisulError: Anything else; see :mod:`airflow_provider_whisul.exceptions`.
    """

    template_fields: Sequence[str] = ("prompt", "whisul_conn_id")
    ui_color = "#e9dcf7"

    #: Time and chance; replaced by tests.
    clock: Clock = SYSTEM_CLOCK

    def __init__(
        self,
        *,
        prompt: str,
        whisul_conn_id: str = "whisul_default",
        wait_for_completion: bool = False,
        deferrable: bool = True,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.whisul_conn_id = whisul_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = check_poll_interval(poll_interval, "poll_interval")
        self.timeout = check_timeout(timeout)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take what all mapped tasks share, refusing already here what ``__init__`` would refuse at run time only."""
        if "poll_interval" in kwargs:
            check_poll_interval(kwargs["poll_interval"], "poll_interval")
        return super().partial(**kwargs)

    @cached_property
    def hook(self) -> WhisulHook:
        """The client. Loaded when the task runs, so that reading a DAG file loads none."""
        from airflow_provider_whisul.hooks.whisul import WhisulHook

        return WhisulHook(self.whisul_conn_id, clock=self.clock)

    def execute(self, context: Context) -> str | Song:
        job_id = self.hook.generate(self.prompt)
        context["ti"].xcom_push(key=XCOM_JOB_ID, value=job_id)
        self.log.info("Whisul accepted the prompt as job %s", job_id)
        if not self.wait_for_completion:
            return job_id
        if not self.deferrable:
            return self.hook.wait_for_job(job_id, self.poll_interval, self.timeout).song()
        return self.defer(
            trigger=WhisulJobTrigger(
                job_id=job_id,
                whisul_conn_id=self.whisul_conn_id,
                poll_interval=self.poll_interval,
                deadline=self.clock.time() + self.timeout,
            ),
            method_name="execute_complete",
            kwargs={"job_id": job_id, "try_number": context["ti"].try_number},
            timeout=timedelta(seconds=self.timeout + FRAMEWORK_TIMEOUT_MARGIN),
        )

    def execute_complete(
        self, context: Context, event: object, job_id: str = "(unknown)", try_number: int | None = None
    ) -> Song:
        """
        Go on after the trigger has waited.

        :param event: What it reports.
        :param job_id: The job it waited for.
        :param try_number: The try that deferred.
        :return: The song, as :meth:`execute` returns it.
        """
        song = song_from_event(event, job_id)
        self.log.info("Whisul job %s is completed: %r", job_id, song["title"])
        return song

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral, naming the job where Airflow ended it by itself."""
        if is_of_earlier_try(next_kwargs, context):
            return self.execute(context)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except DEFERRAL_ERRORS as error:
            ti = context["ti"]
            job_id = ti.xcom_pull(task_ids=ti.task_id, key=XCOM_JOB_ID, map_indexes=ti.map_index)
            raise deferral_error(error, str(job_id)) from error

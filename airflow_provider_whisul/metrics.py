"""
What is counted and timed, through Airflow's own metrics: to StatsD or OpenTelemetry, as Airflow is set up.

The names have their home here; docs/metrics.md lists them. Nothing is added that tells one key, prompt or job from
another.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_whisul.api import Request, WhisulJob


def submitted() -> None:
    """Whisul has accepted a prompt."""
    Stats.incr("whisul.submitted")


def answered(request: Request, status: int) -> None:
    """An answer has come."""
    if request.method == "GET":
        Stats.incr("whisul.polls")
    if status == 429:
        Stats.incr("whisul.rate_limited")


def waited(seconds: float) -> None:
    """A request has waited so many seconds for the account's pace."""
    Stats.timing("whisul.pace_wait", timedelta(seconds=seconds))


def seen(job: WhisulJob) -> None:
    """A look has found a job so."""
    if job.failed:
        Stats.incr("whisul.failed")
    elif job.completed:
        Stats.incr("whisul.delivered")
        if job.started_at and job.finished_at:
            Stats.timing("whisul.song_time", job.finished_at - job.started_at)

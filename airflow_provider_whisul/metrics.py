"""
Counters and timers, through Airflow's own metrics: to StatsD or OpenTelemetry, as Airflow is configured.

The names have their home here; docs/metrics.md lists them. No name or tag identifies a key, a prompt or a job.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_whisul.api.messages import Request, Response
from airflow_provider_whisul.api.models import WhisulJob


def submitted() -> None:
    """Count a prompt that Whisul has accepted."""
    Stats.incr("whisul.submitted")


def response(request: Request, response: Response) -> None:
    """Count a response."""
    if request.method == "GET":
        Stats.incr("whisul.polls")
    if response.throttled:
        Stats.incr("whisul.rate_limited")


def rate_limit_wait(seconds: float) -> None:
    """Time how long a request has waited for the rate limiter."""
    Stats.timing("whisul.rate_limit_wait", timedelta(seconds=seconds))


def polled(job: WhisulJob) -> None:
    """Count a job that a poll has found ended, and time how long a song took."""
    if job.failed:
        Stats.incr("whisul.failed")
    elif job.completed:
        Stats.incr("whisul.delivered")
        if job.time_taken is not None:
            Stats.timing("whisul.song_time", job.time_taken)

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


def response(request: Request, response: Response, seconds: float) -> None:
    """Count a response, and time how long a poll took from its first byte to its last."""
    if request.method == "GET":
        Stats.incr("whisul.polls")
        Stats.timing("whisul.poll_time", timedelta(seconds=seconds))
    if response.throttled:
        Stats.incr("whisul.rate_limited")


def rate_limit_wait(seconds: float) -> None:
    """Time how long a request has waited for the rate limiter."""
    Stats.timing("whisul.rate_limit_wait", timedelta(seconds=seconds))


def polled(job: WhisulJob, now: float) -> None:
    """Count a job that a poll has found ended, and time how long a song took, or how old a job is that still runs."""
    if job.failed:
        Stats.incr("whisul.failed")
    elif job.completed:
        Stats.incr("whisul.delivered")
        if job.time_taken is not None:
            Stats.timing("whisul.song_time", job.time_taken)
    elif job.started_at is not None:
        # The clocks of this machine and of Whisul differ.
        Stats.timing("whisul.job_age", timedelta(seconds=max(now - job.started_at.timestamp(), 0.0)))


def stored(size: int) -> None:
    """Count a song that was stored, and its bytes."""
    Stats.incr("whisul.stored")
    Stats.incr("whisul.stored_bytes", size)

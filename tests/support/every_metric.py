"""Sends each metric of the provider once, by whatever counts and times for Airflow at the moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.messages import Request, Response
from airflow_provider_whisul.api.models import WhisulJob


def send_every_metric() -> None:
    """Send each metric at least once."""
    start = datetime(2026, 2, 17, tzinfo=UTC)
    metrics.submitted()
    metrics.response(Request("GET", "/jobs/some-job"), Response(429), 0.2)
    metrics.rate_limit_wait(1.5)
    metrics.polled(WhisulJob("some-job", "running", started_at=start), start.timestamp() + 60)
    metrics.polled(
        WhisulJob("some-job", "completed", started_at=start, finished_at=start + timedelta(seconds=144)), 0.0
    )
    metrics.polled(WhisulJob("some-job", "failed", started_at=start), 0.0)
    metrics.stored(3_000_000)

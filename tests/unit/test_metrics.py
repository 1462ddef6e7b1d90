"""The metrics: what each event counts and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.messages import Request, Response
from airflow_provider_whisul.api.models import WhisulJob

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
START = datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC)


class Recorder:
    """Records what is sent to Airflow's metrics."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, timedelta | None]] = []

    def incr(self, stat: str) -> None:
        self.recorded.append((stat, None))

    def timing(self, stat: str, dt: timedelta) -> None:
        self.recorded.append((stat, dt))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(metrics, "Stats", recorder)
    return recorder


def job(status: str, seconds: float | None = None) -> WhisulJob:
    finished = None if seconds is None else START + timedelta(seconds=seconds)
    return WhisulJob("some-job", status, started_at=START, finished_at=finished)


@pytest.mark.parametrize(
    ("polled", "recorded"),
    [
        (job("running"), []),
        (job("composing"), []),
        (job("failed", 3), [("whisul.failed", None)]),
        (job("completed"), [("whisul.delivered", None)]),
        (job("completed", 144), [("whisul.delivered", None), ("whisul.song_time", timedelta(seconds=144))]),
    ],
)
def test_a_polled_job_counts_when_it_has_ended(
    recorder: Recorder, polled: WhisulJob, recorded: list[tuple[str, timedelta | None]]
) -> None:
    metrics.polled(polled)
    assert recorder.recorded == recorded


@pytest.mark.parametrize(
    ("method", "status", "recorded"),
    [
        ("GET", 200, ["whisul.polls"]),
        ("GET", 429, ["whisul.polls", "whisul.rate_limited"]),
        ("POST", 202, []),
        ("POST", 429, ["whisul.rate_limited"]),
    ],
)
def test_a_response_counts_by_its_method_and_status(
    recorder: Recorder, method: str, status: int, recorded: list[str]
) -> None:
    metrics.response(Request(method, "/somewhere"), Response(status))  # type: ignore[arg-type]
    assert [name for name, _ in recorder.recorded] == recorded


def test_every_metric_is_documented_with_its_kind(recorder: Recorder) -> None:
    metrics.submitted()
    metrics.response(Request("GET", "/jobs/some-job"), Response(429))
    metrics.rate_limit_wait(1.5)
    metrics.polled(job("completed", 144))
    metrics.polled(job("failed", 3))
    kinds = {name: "counter" if duration is None else "timer" for name, duration in recorder.recorded}
    documented = re.findall(r"^\| `(\S+)` \| (\w+) \|", DOCUMENTATION.read_text(), re.MULTILINE)
    assert dict(documented) == kinds

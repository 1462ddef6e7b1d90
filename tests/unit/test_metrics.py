"""The names that are counted and timed."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api import Request, WhisulJob

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
START = datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC)


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, timedelta | None]] = []

    def incr(self, stat: str) -> None:
        self.told.append((stat, None))

    def timing(self, stat: str, dt: timedelta) -> None:
        self.told.append((stat, dt))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(metrics, "Stats", recorder)
    return recorder


def job(status: str, seconds: float | None = None) -> WhisulJob:
    finished = None if seconds is None else START + timedelta(seconds=seconds)
    return WhisulJob("some-job", status, started_at=START, finished_at=finished)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (job("running"), []),
        (job("composing"), []),
        (job("failed", 3), [("whisul.failed", None)]),
        (job("completed"), [("whisul.delivered", None)]),
        (job("completed", 144), [("whisul.delivered", None), ("whisul.song_time", timedelta(seconds=144))]),
    ],
)
def test_a_job_counts_when_it_is_over(
    recorder: Recorder, seen: WhisulJob, told: list[tuple[str, timedelta | None]]
) -> None:
    metrics.seen(seen)
    assert recorder.told == told


@pytest.mark.parametrize(
    ("method", "status", "told"),
    [
        ("GET", 200, ["whisul.polls"]),
        ("GET", 429, ["whisul.polls", "whisul.rate_limited"]),
        ("POST", 202, []),
        ("POST", 429, ["whisul.rate_limited"]),
    ],
)
def test_an_answer_counts_by_what_was_asked(recorder: Recorder, method: str, status: int, told: list[str]) -> None:
    metrics.answered(Request(method, "/somewhere"), status)  # type: ignore[arg-type]
    assert [name for name, _ in recorder.told] == told


def test_every_metric_is_documented_as_what_it_is(recorder: Recorder) -> None:
    metrics.submitted()
    metrics.answered(Request("GET", "/jobs/some-job"), 429)
    metrics.waited(1.5)
    metrics.seen(job("completed", 144))
    metrics.seen(job("failed", 3))
    told = {name: "counter" if lasting is None else "timer" for name, lasting in recorder.told}
    documented = re.findall(r"^\| `(\S+)` \| (\w+) \|", DOCUMENTATION.read_text(), re.MULTILINE)
    assert dict(documented) == told

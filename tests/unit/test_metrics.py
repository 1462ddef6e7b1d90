"""The metrics: what each event counts and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.messages import Request, Response
from airflow_provider_whisul.api.models import WhisulJob
from tests.support.every_metric import send_every_metric

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
START = datetime(2026, 2, 17, 15, 39, 34, tzinfo=UTC)


class Recorder:
    """Records what is sent to Airflow's metrics."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, timedelta | None]] = []
        self.counts: dict[str, int] = {}

    def incr(self, stat: str, count: int = 1) -> None:
        self.recorded.append((stat, None))
        self.counts[stat] = self.counts.get(stat, 0) + count

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
        (job("running"), [("whisul.job_age", timedelta(seconds=60))]),
        (job("composing"), [("whisul.job_age", timedelta(seconds=60))]),
        (WhisulJob("some-job", "running"), []),
        (job("failed", 3), [("whisul.failed", None)]),
        (job("completed"), [("whisul.delivered", None)]),
        (job("completed", 144), [("whisul.delivered", None), ("whisul.song_time", timedelta(seconds=144))]),
    ],
)
def test_a_polled_job_counts_when_it_has_ended_and_has_an_age_until_then(
    recorder: Recorder, polled: WhisulJob, recorded: list[tuple[str, timedelta | None]]
) -> None:
    metrics.polled(polled, START.timestamp() + 60)
    assert recorder.recorded == recorded


def test_a_job_that_begins_later_than_now_has_no_age_below_zero(recorder: Recorder) -> None:
    metrics.polled(job("running"), START.timestamp() - 60)
    assert recorder.recorded == [("whisul.job_age", timedelta(0))]


def test_a_stored_song_counts_with_its_bytes(recorder: Recorder) -> None:
    metrics.stored(1_000)
    metrics.stored(2_000)
    assert recorder.counts == {"whisul.stored": 2, "whisul.stored_bytes": 3_000}


@pytest.mark.parametrize(
    ("method", "status", "recorded"),
    [
        ("GET", 200, ["whisul.polls", "whisul.poll_time"]),
        ("GET", 429, ["whisul.polls", "whisul.poll_time", "whisul.rate_limited"]),
        ("POST", 202, []),
        ("POST", 429, ["whisul.rate_limited"]),
    ],
)
def test_a_response_counts_by_its_method_and_status(
    recorder: Recorder, method: str, status: int, recorded: list[str]
) -> None:
    metrics.response(Request(method, "/somewhere"), Response(status), 0.25)  # type: ignore[arg-type]
    assert [name for name, _ in recorder.recorded] == recorded
    assert {seconds for _, seconds in recorder.recorded} <= {None, timedelta(seconds=0.25)}


def test_every_metric_is_documented_with_its_kind(recorder: Recorder) -> None:
    send_every_metric()
    kinds = {name: "counter" if duration is None else "timer" for name, duration in recorder.recorded}
    documented = re.findall(r"^\| `(\S+)` \| (\w+) \|", DOCUMENTATION.read_text(), re.MULTILINE)
    assert dict(documented) == kinds

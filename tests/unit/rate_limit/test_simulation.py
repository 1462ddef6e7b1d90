"""The rate limiter in a simulation of 500 jobs on one key: it meets its targets wherever the limit allows that."""

from __future__ import annotations

import math

import pytest

from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE
from benchmarks import pacing
from benchmarks.simulation.api_limiter import ApiLimiter, Block
from benchmarks.simulation.run import NoRateLimiter, over_seeds, simulate, with_known_limit
from benchmarks.simulation.world import P95_TARGET, THROTTLED_TARGET, World

SEEDS = range(4)


@pytest.mark.parametrize(
    ("limit", "block", "triggerers"),
    [
        (20, Block.UNTIL_IDLE, 1),
        (20, Block.UNTIL_IDLE, 2),
        (50, Block.UNTIL_IDLE, 1),
        (50, Block.PENALTY, 1),
        (50, Block.UNTIL_IDLE, 2),
        (None, Block.UNTIL_IDLE, 1),
        (None, Block.UNTIL_IDLE, 4),
    ],
)
def test_all_targets_are_met_where_the_limit_allows_them(limit: int | None, block: Block, triggerers: int) -> None:
    _, worst = over_seeds(World(limit, block, triggerers), SEEDS)
    assert worst.missed == set()


@pytest.mark.parametrize("limit", [3, 5, 8])
@pytest.mark.parametrize("block", Block)
def test_an_unknown_low_limit_is_used_nearly_as_well_as_a_known_one(limit: int, block: Block) -> None:
    median, worst = over_seeds(World(limit, block), SEEDS)
    best, _ = over_seeds(World(None), SEEDS, with_known_limit(limit))
    assert "last" in best.missed
    assert median.last_delay <= 1.25 * best.last_delay
    assert median.p95 <= 1.25 * best.p95
    assert worst.throttled <= THROTTLED_TARGET


@pytest.mark.parametrize("limit", [3, 5, 8, 20])
def test_a_known_limit_meets_no_429(limit: int) -> None:
    _, worst = over_seeds(World(limit), SEEDS, with_known_limit(limit))
    assert worst.throttled == 0


def test_four_triggerers_that_do_not_see_each_other_share_a_limit() -> None:
    median, worst = over_seeds(World(20, triggerers=4), SEEDS)
    # Each has to meet a 429 itself, and a probe after 5 s comes too early for a block of 10 s: eight at least.
    assert median.missed <= {"429s"}
    assert worst.throttled <= 16
    assert worst.p95 <= P95_TARGET


def test_jobs_that_each_back_off_by_themselves_starve() -> None:
    result = simulate(World(20), NoRateLimiter, BACKOFF_SCHEDULE)
    assert result.last_delay > 1000
    assert result.throttled > 5000


@pytest.mark.parametrize("slots", [8, 32])
@pytest.mark.parametrize("limit", [8, 20])
@pytest.mark.parametrize("block", Block)
def test_task_processes_with_one_rate_limiter_come_out_of_any_block(limit: int, block: Block, slots: int) -> None:
    _, worst = over_seeds(World(limit, block, jobs=200, task_slots=slots), SEEDS)
    assert worst.failed == 0
    assert worst.throttled <= 12
    assert worst.duration < 400


def test_task_processes_with_a_rate_limiter_each_keep_each_other_blocked() -> None:
    result = simulate(World(8, Block.PENALTY, jobs=200, task_slots=8, separate_tasks=True))
    assert result.failed > 100
    assert result.throttled > 1000


@pytest.mark.parametrize(
    ("block", "requests", "allowed"),
    [
        (Block.UNTIL_IDLE, (0, 0.5, 0.9, 1.0, 10.8), "yynnn"),
        (Block.UNTIL_IDLE, (0, 0.5, 0.9, 10.9, 11.4), "yynyy"),
        (Block.PENALTY, (0, 0.5, 0.9, 1.0, 2.0, 18.8), "yynnnn"),
        (Block.PENALTY, (0, 0.5, 0.9, 1.0, 2.0, 18.9), "yynnny"),
    ],
)
def test_the_simulated_api_blocks_a_key_as_long_as_its_kind_of_block_says(
    block: Block, requests: tuple[float, ...], allowed: str
) -> None:
    limiter = ApiLimiter(2, block)
    assert "".join("y" if limiter.allows(at) else "n" for at in requests) == allowed
    assert limiter.throttled == allowed.count("n")


def test_a_completion_that_is_never_seen_is_infinitely_late() -> None:
    result = simulate(World(1, jobs=50), NoRateLimiter)
    assert result.last_delay == result.p95 == math.inf
    assert result.missed == {"last", "429s", "p95"}


def test_the_command_prints_its_three_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "LIMITS", (20, None))
    monkeypatch.setattr("benchmarks.simulation.run.HORIZON", 400.0)
    pacing.main(["--seeds", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8 + 1 + 12 + 1 + 16
    assert [row.count("|") for row in rows] == [7] * 9 + [10] * 13 + [7] * 17

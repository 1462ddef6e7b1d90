"""500 jobs on one key, simulated: the pace keeps its targets wherever a limit allows them at all."""

from __future__ import annotations

import math

import pytest

from airflow_provider_whisul.pace import RATE_LIMIT_LADDER
from benchmarks.pacing import (
    P95_TARGET,
    REFUSALS_TARGET,
    Block,
    Limiter,
    NoLaw,
    World,
    main,
    over_seeds,
    simulate,
    told,
)

SEEDS = range(4)


@pytest.mark.parametrize(
    ("limit", "block", "triggerers"),
    [
        (20, Block.QUIET, 1),
        (20, Block.QUIET, 2),
        (50, Block.QUIET, 1),
        (50, Block.ADDS, 1),
        (50, Block.QUIET, 2),
        (None, Block.QUIET, 1),
        (None, Block.QUIET, 4),
    ],
)
def test_all_targets_hold_where_the_limit_allows_them(limit: int | None, block: Block, triggerers: int) -> None:
    _, worst = over_seeds(World(limit, block, triggerers), SEEDS)
    assert worst.missed == set()


@pytest.mark.parametrize("limit", [3, 5, 8])
@pytest.mark.parametrize("block", Block)
def test_a_low_limit_is_used_as_well_as_by_who_knows_it(limit: int, block: Block) -> None:
    middle, worst = over_seeds(World(limit, block), SEEDS)
    best, _ = over_seeds(World(None), SEEDS, told(limit))
    assert "late" in best.missed
    assert middle.late <= 1.25 * best.late
    assert middle.p95 <= 1.25 * best.p95
    assert worst.refusals <= REFUSALS_TARGET


@pytest.mark.parametrize("limit", [3, 5, 8, 20])
def test_who_tells_the_limit_meets_no_429(limit: int) -> None:
    _, worst = over_seeds(World(limit), SEEDS, told(limit))
    assert worst.refusals == 0


def test_four_triggerers_that_do_not_see_each_other_share_a_limit() -> None:
    middle, worst = over_seeds(World(20, triggerers=4), SEEDS)
    # Each has to meet a 429 itself, and a probe after 5 s comes too early for a block of 10 s: eight at least.
    assert middle.missed <= {"429s"}
    assert worst.refusals <= 16
    assert worst.p95 <= P95_TARGET


def test_where_each_job_backs_off_alone_they_starve() -> None:
    alone = simulate(World(20), NoLaw, RATE_LIMIT_LADDER)
    assert alone.late > 1000
    assert alone.refusals > 5000


@pytest.mark.parametrize("slots", [8, 32])
@pytest.mark.parametrize("limit", [8, 20])
@pytest.mark.parametrize("block", Block)
def test_task_processes_that_share_a_machine_come_out_of_any_block(limit: int, block: Block, slots: int) -> None:
    _, worst = over_seeds(World(limit, block, jobs=200, slots=slots), SEEDS)
    assert worst.failed == 0
    assert worst.refusals <= 12
    assert worst.took < 400


def test_task_processes_that_each_learn_alone_keep_each_other_blocked() -> None:
    result = simulate(World(8, Block.ADDS, jobs=200, slots=8, alone=True))
    assert result.failed > 100
    assert result.refusals > 1000


@pytest.mark.parametrize(
    ("block", "asked", "allowed"),
    [
        (Block.QUIET, (0, 0.5, 0.9, 1.0, 10.8), "yynnn"),
        (Block.QUIET, (0, 0.5, 0.9, 10.9, 11.4), "yynyy"),
        (Block.ADDS, (0, 0.5, 0.9, 1.0, 2.0, 18.8), "yynnnn"),
        (Block.ADDS, (0, 0.5, 0.9, 1.0, 2.0, 18.9), "yynnny"),
    ],
)
def test_the_limits_that_are_simulated(block: Block, asked: tuple[float, ...], allowed: str) -> None:
    limiter = Limiter(2, block)
    assert "".join("y" if limiter.allows(at) else "n" for at in asked) == allowed


def test_a_job_that_is_never_seen_is_infinitely_late() -> None:
    result = simulate(World(1, jobs=50), NoLaw)
    assert result.late == result.p95 == math.inf
    assert result.missed == {"late", "429s", "p95"}


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pacing", "--seeds", "1"])
    monkeypatch.setattr("benchmarks.pacing.LIMITS", (20, None))
    monkeypatch.setattr("benchmarks.pacing.HORIZON", 400.0)
    main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8 + 1 + 12 + 1 + 16
    assert [row.count("|") for row in rows] == [7] * 9 + [10] * 13 + [7] * 17

"""The processes of one key in a simulation: those that share are nearly as fast as one that knows the limit."""

from __future__ import annotations

import math
from statistics import median

import pytest

from benchmarks import pacing
from benchmarks.simulation.api_limiter import ApiLimiter, Limit, Shape
from benchmarks.simulation.run import compare, simulate
from benchmarks.simulation.world import Sharing, World

SEEDS = range(2)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("rate", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", [Shape.PROLONGING, Shape.FIXED_WINDOW, Shape.BUCKET])
def test_an_unknown_limit_is_used_nearly_as_well_as_a_known_one(rate: int, shape: Shape, mapped: bool) -> None:
    limit = Limit(rate, shape=shape)
    ratios, results = compare(World(limit, Sharing.ALL, 60, mapped, 2, 4), SEEDS)
    assert median(ratios) <= pacing.most_seconds(limit)
    assert max(result.throttled for result in results) <= pacing.MOST_429S


@pytest.mark.parametrize("shape", [Shape.FIXED_WINDOW, Shape.SLIDING])
def test_a_limit_per_minute_is_found(shape: Shape) -> None:
    limit = Limit(60, 60, shape)
    ratios, results = compare(World(limit, Sharing.ALL, 60, False), SEEDS)
    assert median(ratios) <= pacing.MOST_SECONDS
    assert max(result.throttled for result in results) <= pacing.MOST_429S


def test_polls_leave_submissions_what_a_fast_limit_allows() -> None:
    ratios, results = compare(World(Limit(100), Sharing.ALL, 200, True, 2, 4), SEEDS)
    assert median(ratios) <= pacing.MOST_SECONDS_FAST
    assert max(result.throttled for result in results) == 0


def test_triggerers_that_share_nothing_pay_for_it() -> None:
    ratios, results = compare(World(Limit(1), Sharing.NOTHING, 60, True, 2, 4), SEEDS)
    assert min(ratios) > 4
    assert min(result.throttled for result in results) > 60


def test_a_machine_that_shares_its_file_is_nearly_as_good_as_all() -> None:
    ratios, _ = compare(World(Limit(1), Sharing.MACHINE, 60), SEEDS)
    assert median(ratios) <= pacing.MOST_SECONDS


@pytest.mark.parametrize(
    ("shape", "requests", "served"),
    [
        (Shape.UNTIL_IDLE, (0, 0.5, 0.9, 1.0, 10.8), "yynnn"),
        (Shape.UNTIL_IDLE, (0, 0.5, 0.9, 10.9, 11.4), "yynyy"),
        (Shape.PROLONGING, (0, 0.5, 0.9, 1.0, 2.0, 18.8), "yynnnn"),
        (Shape.PROLONGING, (0, 0.5, 0.9, 1.0, 2.0, 18.9), "yynnny"),
        (Shape.ADDITIVE, (0, 0.5, 0.9, 10.8, 10.9), "yynny"),
        (Shape.SLIDING, (0, 0.5, 0.9, 1.0, 1.4, 1.5), "yynyny"),
        (Shape.FIXED_WINDOW, (0.8, 0.9, 0.95, 1.0, 1.1, 1.2), "yynyyn"),
        (Shape.BUCKET, (0, 0, 0, 0, 0, 0.4, 0.6), "yyyynny"),
    ],
)
def test_the_simulated_api_serves_what_its_limit_allows(shape: Shape, requests: tuple[float, ...], served: str) -> None:
    limiter = ApiLimiter(Limit(2, shape=shape))
    assert "".join("y" if limiter.allows(at) else "n" for at in requests) == served
    assert limiter.throttled == served.count("n")


def test_a_limit_changes_when_it_is_said_to() -> None:
    limit = Limit(2, changes=((30, 0.5), (200, 1.0)))
    assert [limit.share(at) for at in (0, 30, 199, 200)] == [1, 0.5, 0.5, 1]


def test_songs_that_are_never_all_known_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulation.run.HORIZON", 30.0)
    assert simulate(World(Limit(8))).seconds == math.inf


def test_the_command_prints_its_tables_and_goals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "RATES", (20,))
    monkeypatch.setattr(pacing, "ABLATIONS", (("CEILING", 1.0),))
    monkeypatch.setattr(pacing, "_all", lambda cases: [pacing.Outcome(1.2, math.inf, 3, 11) for _ in cases])
    pacing.main([])
    printed = capsys.readouterr().out
    assert printed.count("1.20 (never), 3 (11)") > 30
    assert "met     below 8/s: at most 1.3 times" in printed
    assert "MISSED  from 8/s on: at most 1.15 times" in printed
    assert "met     at most 10 429s" in printed
    pacing.main(["--constants"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["as it is", "CEILING"]


def test_a_constant_has_another_value_only_while_a_case_is_simulated() -> None:
    before = pacing.throttle.INITIAL_RATE
    changed = pacing.outcome(pacing.Case(World(Limit(1), songs=20), 1, (("INITIAL_RATE", 8.0),)))
    assert changed != pacing.outcome(pacing.Case(World(Limit(1), songs=20), 1))
    assert before == pacing.throttle.INITIAL_RATE == pacing.rate_limiter.INITIAL_RATE

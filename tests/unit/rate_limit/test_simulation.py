"""The processes of one key in a simulation: those that share are nearly as fast as one that knows the limit."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks import pacing
from benchmarks.simulation.api_limiter import ApiLimiter, Limit, Shape
from benchmarks.simulation.reference import TOLD_SHARE, rate_limiter
from benchmarks.simulation.run import compare, simulate
from benchmarks.simulation.world import HORIZON, Law, Sharing, World
from tests.support.redis_server import BINARY

ROOT = Path(__file__).resolve().parents[3]
SEEDS = range(2)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("rate", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", [Shape.PROLONGING, Shape.FIXED_WINDOW, Shape.BUCKET])
def test_an_unknown_limit_is_used_nearly_as_well_as_a_known_one(rate: int, shape: Shape, mapped: bool) -> None:
    limit = Limit(rate, shape=shape)
    ratios, results = compare(World(limit, Sharing.ALL, 60, mapped, 2, 4), SEEDS)
    assert median(ratios) <= pacing.most_seconds(limit)
    assert max(result.throttled for result in results) <= pacing.MOST_429S


@pytest.mark.parametrize("songs", [60, 500])
@pytest.mark.parametrize("shape", [Shape.FIXED_WINDOW, Shape.SLIDING, Shape.BUCKET, Shape.PROLONGING])
def test_a_limit_per_minute_is_found(shape: Shape, songs: int) -> None:
    ratios, results = compare(World(Limit(60, 60, shape), Sharing.ALL, songs, False), SEEDS)
    assert median(ratios) <= pacing.MOST_SECONDS
    # A fixed window blocks until its minute is over: docs/benchmarks.md.
    most = pacing.MOST_429S + 2 * (shape is Shape.FIXED_WINDOW)
    assert max(result.throttled for result in results) <= most


def test_a_client_that_needs_long_for_a_request_does_not_find_a_rate_that_is_too_much_for_the_polls() -> None:
    limit = Limit(20)
    usual, without = (
        pacing.outcome(pacing.Case(World(limit, Sharing.ALL, 500, False, 1, 4), 1, constants))
        for constants in ((), (("DELAYED", math.inf),))
    )
    assert usual.worst_throttled <= pacing.MOST_429S
    assert without.worst_throttled > 10 * pacing.MOST_429S


@pytest.mark.parametrize("rate", [1, 3])
def test_the_law_is_nearly_as_fast_as_a_client_that_is_told_the_limit_and_meets_fewer_429s_than_others(
    rate: int,
) -> None:
    seconds, throttled = {}, {}
    for law in Law:
        ratios, results = compare(World(Limit(rate), Sharing.ALL, 120, True, 2, 4, law=law), SEEDS)
        seconds[law], throttled[law] = median(ratios), max(result.throttled for result in results)
    assert throttled[Law.TOLD] == 0
    assert seconds[Law.OWN] <= 1.15 * seconds[Law.TOLD]
    assert throttled[Law.OWN] <= throttled[Law.AIMD] < throttled[Law.CUBIC]


def test_a_client_that_is_told_the_limit_is_told_of_its_changes() -> None:
    limiter, changes = rate_limiter(World(Limit(2, changes=((30, 0.5), (200, 1.0))), law=Law.TOLD))
    rates = [limiter.throttle.rate]
    for _, tell in changes:
        tell()
        rates.append(limiter.throttle.rate)
    assert [at for at, _ in changes] == [30, 200]
    assert rates == [2 * TOLD_SHARE, TOLD_SHARE, 2 * TOLD_SHARE]


def test_polls_leave_submissions_what_a_fast_limit_allows() -> None:
    ratios, results = compare(World(Limit(100), Sharing.ALL, 200, True, 2, 4), SEEDS)
    assert median(ratios) <= pacing.MOST_SECONDS_FAST
    assert max(result.throttled for result in results) == 0


def test_triggerers_that_share_nothing_pay_for_it() -> None:
    ratios, results = compare(World(Limit(1), Sharing.NOTHING, 60, True, 2, 4), SEEDS)
    assert min(ratios) > 4
    assert min(result.throttled for result in results) > 60


@pytest.mark.timeout(60)
def test_a_song_that_has_waited_too_long_behind_a_probe_is_given_up() -> None:
    world = World(Limit(1), Sharing.NOTHING, 60, True, 2, 4, seed=2)
    assert simulate(world).seconds < HORIZON


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
    limit = Limit(2, changes=((30, 0.5), (200, 1.0), (300, 3.0)))
    assert [limit.at(now) for now in (0, 30, 199, 200, 300)] == [(2, 1), (2, 2), (2, 2), (2, 1), (6, 1)]


def test_songs_that_are_never_all_known_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulation.run.HORIZON", 30.0)
    assert simulate(World(Limit(8))).seconds == math.inf


def test_the_command_prints_its_tables_and_goals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "RATES", (20,))
    monkeypatch.setattr(pacing, "ABLATIONS", (("DECREASE", 1.0),))
    monkeypatch.setattr(pacing, "_all", lambda cases: [pacing.Outcome(1.2, math.inf, 3, 11) for _ in cases])
    pacing.main([])
    printed = capsys.readouterr().out
    assert printed.count("1.20 (never), 3 (11)") > 30
    assert "met     below 8/s: at most 1.3 times" in printed
    assert "MISSED  from 8/s on: at most 1.15 times" in printed
    assert "met     at most 10 429s" in printed
    pacing.main(["--constants"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["as it is", "DECREASE"]
    pacing.main(["--laws"])
    header = capsys.readouterr().out.splitlines()[3]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [law.value for law in Law]


def test_a_constant_has_another_value_only_while_a_case_is_simulated() -> None:
    before = pacing.throttle.INITIAL_RATE
    changed = pacing.outcome(pacing.Case(World(Limit(1), songs=20), 1, (("INITIAL_RATE", 8.0),)))
    assert changed != pacing.outcome(pacing.Case(World(Limit(1), songs=20), 1))
    assert before == pacing.throttle.INITIAL_RATE == pacing.rate_limiter.INITIAL_RATE


def test_the_command_that_measures_waiting_on_a_real_redis_prints_what_it_costs() -> None:
    if BINARY is None:
        pytest.skip("There is no redis-server on this machine.")
    command = [sys.executable, "-m", "benchmarks.waiting", "--processes", "6", "--rates", "20", "--settle", "0.1"]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    (row,) = [line for line in ended.stdout.splitlines() if line.startswith("| 20/s")]
    # Each asks, and most check their permit. Where the machine is busy, they get in each other's way.
    assert 2 <= float(row.split("|")[2]) < 30

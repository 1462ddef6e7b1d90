"""What a try that ends, or meets an error, around a submission leaves to the next one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulBudgetExceededError,
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulStateError,
)
from airflow_provider_whisul.hooks.bounded_session import _Bounded
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.entries import Entry
from airflow_provider_whisul.rate_limit.worker_rate_limiter import WorkerRateLimiter
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.song_state import SongState
from tests.integration.operators.night import BY, POLICIES, Ended, Night, away, end, set_connection
from tests.integration.operators.song_task import posts
from tests.support.clock import FakeClock
from tests.support.ledger import ledger_files


@pytest.fixture
def night(sandbox: Sandbox, clock: FakeClock) -> Callable[..., Night]:
    return lambda by, prompt="a song", **arguments: Night(by, clock, prompt, deferrable=True, **arguments)


@pytest.fixture
def ceiling(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connection allow one submission a day."""
    set_connection(monkeypatch, max_submissions_per_day=1)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_try_that_is_ended_while_its_job_is_written_down_leaves_the_job_to_the_next_try(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch, by: str, policy: str
) -> None:
    songs, write, ended = night(by, on_ambiguous_submit=policy), AccountLedger.write, []

    def end_once(ledger: AccountLedger, day: str, file: str, entry: Entry) -> None:
        if entry.state == "accepted" and not ended:
            ended.append(entry.job_id)
            raise Ended
        write(ledger, day, file, entry)

    monkeypatch.setattr(AccountLedger, "write", end_once)
    with pytest.raises(Ended):
        songs.attempt()
    assert ended == list(sandbox.jobs)
    songs.attempt()
    assert posts(sandbox) == 1


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_try_that_is_ended_while_a_refused_submission_waits_has_made_no_job(
    sandbox: Sandbox,
    clock: FakeClock,
    night: Callable[..., Night],
    task_log: Callable[[], list[str]],
    by: str,
    policy: str,
) -> None:
    songs = night(by, "a song [sandbox:post-429=1]", on_ambiguous_submit=policy)

    def end_in_the_block(seconds: float) -> None:
        if sandbox.requests and seconds > 1:
            raise Ended

    clock.on_sleep = end_in_the_block
    with pytest.raises(Ended):
        songs.attempt()
    clock.on_sleep = lambda _: None
    songs.attempt()
    assert [request.status for request in sandbox.requests if request.method == "POST"] == [429, 202]
    assert not [line for line in task_log() if "may already have been paid for" in line]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "moment",
    [(WorkerRateLimiter, "is_permitted"), (_Bounded, "_new_conn")],
    ids=["it asks the rate limiter again", "it waits for a connection"],
)
def test_a_try_that_is_ended_before_it_sends_has_made_no_job(
    sandbox: Sandbox,
    night: Callable[..., Night],
    monkeypatch: pytest.MonkeyPatch,
    task_log: Callable[[], list[str]],
    by: str,
    policy: str,
    moment: tuple[type, str],
) -> None:
    songs = night(by, on_ambiguous_submit=policy)
    with monkeypatch.context() as patched:
        patched.setattr(*moment, end)
        with pytest.raises(Ended):
            songs.attempt()
    assert not ledger_files()
    songs.attempt()
    assert posts(sandbox) == 1
    assert not [line for line in task_log() if "may already have been paid for" in line]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("fault", [away, end], ids=["the ledger cannot be listed", "the task is ended"])
@pytest.mark.usefixtures("ceiling")
def test_a_submission_that_could_not_be_counted_takes_no_place_of_the_day(
    sandbox: Sandbox,
    night: Callable[..., Night],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    fault: Callable[..., None],
) -> None:
    songs = night(by, on_ambiguous_submit="fail")
    with monkeypatch.context() as patched:
        patched.setattr(AccountLedger, "files", fault)
        with pytest.raises((WhisulStateError, Ended)):
            songs.attempt()
    assert not ledger_files()
    songs.attempt()
    assert posts(sandbox) == 1


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("fault", [away, end], ids=["the store loses its response", "the task is ended"])
def test_an_entry_that_was_written_just_before_the_end_of_the_try_is_taken_back(
    sandbox: Sandbox,
    night: Callable[..., Night],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    fault: Callable[..., None],
) -> None:
    songs, create = night(by, on_ambiguous_submit="fail"), AccountLedger.create

    def create_and_fail(ledger: AccountLedger, day: str, file: str, entry: Entry) -> None:
        assert create(ledger, day, file, entry)
        fault()

    with monkeypatch.context() as patched:
        patched.setattr(AccountLedger, "create", create_and_fail)
        with pytest.raises((WhisulStateError, Ended)):
            songs.attempt()
    assert not ledger_files()
    songs.attempt()
    assert posts(sandbox) == 1


@pytest.mark.usefixtures("ceiling")
def test_a_full_day_says_so_also_where_its_entry_cannot_be_removed(
    sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
) -> None:
    WhisulHook(clock=clock.clock).generate("the song of the day")
    monkeypatch.setattr(AccountLedger, "delete", away)
    with pytest.raises(WhisulBudgetExceededError):
        WhisulHook(clock=clock.clock).generate("one song more")
    assert posts(sandbox) == 1
    assert any("The ledger counts one submission too many" in line for line in task_log())


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("fault", ["post-402", "post-429=9"])
def test_a_refused_submission_has_made_no_job_also_where_there_is_no_ledger(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch, by: str, fault: str
) -> None:
    monkeypatch.setattr(AccountLedger, "open", lambda _: None)
    songs = night(by, f"a song [sandbox:{fault}]", on_ambiguous_submit="fail")
    with pytest.raises((WhisulOutOfCreditsError, WhisulRateLimitError)):
        songs.attempt()
    while posts(sandbox) < 9 and "429" in fault:
        with suppress(WhisulRateLimitError):
            songs.attempt()
    songs.attempt()
    assert len(sandbox.jobs) == 1


@pytest.mark.parametrize("by", BY)
def test_a_refusal_is_the_error_of_the_task_also_where_the_records_store_is_away(
    sandbox: Sandbox,
    night: Callable[..., Night],
    monkeypatch: pytest.MonkeyPatch,
    task_log: Callable[[], list[str]],
    by: str,
) -> None:
    songs = night(by, "a song [sandbox:post-402=9]")
    save: dict[type, Callable[..., None]] = {BatchState: BatchState.save, SongState: SongState._save}

    def away_after_the_refusal(state: BatchState | SongState, *arguments: object) -> None:
        if posts(sandbox):
            away()
        save[type(state)](state, *arguments)

    monkeypatch.setattr(BatchState, "save", away_after_the_refusal)
    monkeypatch.setattr(SongState, "_save", away_after_the_refusal)
    store = songs.task.store
    assert store is not None
    delete = store.delete
    monkeypatch.setattr(store, "delete", lambda key: away() if posts(sandbox) else delete(key))
    with pytest.raises(WhisulOutOfCreditsError):
        songs.attempt()
    assert any("The store is away." in line for line in task_log())

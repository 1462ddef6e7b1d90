"""What is taken back of a submission that certainly made no job, whatever fails or ends the task meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulBudgetExceededError,
    WhisulInvalidInputError,
    WhisulOutOfCreditsError,
    WhisulStateError,
)
from airflow_provider_whisul.hooks import whisul
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.song_state import SongState
from tests.integration.operators.night import BY, POLICIES, Ended, Night, away, end, set_connection
from tests.integration.operators.song_task import posts
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock
from tests.support.ledger import ledger_files

SONG = SubmissionId("nightly", "song", "a run", -1)


@pytest.fixture
def night(sandbox: Sandbox, clock: FakeClock) -> Callable[..., Night]:
    return lambda by, prompt="a song", **arguments: Night(
        by, clock, prompt, **{"deferrable": True, "on_ambiguous_submit": "fail", **arguments}
    )


def statuses(sandbox: Sandbox) -> list[int]:
    """Return the statuses of the submissions."""
    return [request.status for request in sandbox.requests if request.method == "POST"]


def use_old_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connection have a key that is not valid."""
    connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps({**connection, "password": "an-old-key-000000"}))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_try_that_is_ended_while_it_reads_the_connection_after_a_401_has_made_no_job(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch, by: str, policy: str
) -> None:
    songs = night(by, on_ambiguous_submit=policy)
    with monkeypatch.context() as patched:
        use_old_key(patched)
        patched.setattr(WhisulHook, "_key_was_replaced", end)
        with pytest.raises(Ended):
            songs.attempt()
    assert not ledger_files()
    songs.attempt()
    assert statuses(sandbox) == [401, 202]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("moment", ["find_proxy", "find_ca", "bounded_session"])
def test_a_try_that_is_ended_while_it_prepares_the_request_has_made_no_job(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch, by: str, moment: str
) -> None:
    songs = night(by)
    with monkeypatch.context() as patched:
        patched.setattr(whisul, moment, end)
        with pytest.raises(Ended):
            songs.attempt()
    assert posts(sandbox) == 0
    assert not ledger_files()
    songs.attempt()
    assert statuses(sandbox) == [202]


@pytest.mark.parametrize("by", BY)
def test_a_try_that_is_ended_while_its_intent_is_discarded_has_made_no_job(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    songs, ended = night(by, "a song [sandbox:post-429=1]"), []
    state = {"operator": SongState, "batch": BatchState}[by]
    discard = state.discard_intent

    def end_once(*arguments: object) -> None:
        if not ended:
            ended.append(True)
            raise Ended
        discard(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "discard_intent", end_once)
    with pytest.raises(Ended):
        songs.attempt()
    assert not ledger_files()
    songs.attempt()
    assert statuses(sandbox) == [429, 202]


def test_a_try_that_is_ended_while_the_store_discards_its_intent_has_made_no_job(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch
) -> None:
    songs, ended = night("operator", "a song [sandbox:post-429=1]"), []
    store = songs.task.store
    assert store is not None
    delete = store.delete

    def end_once(key: str) -> None:
        if sandbox.requests and not ended:
            ended.append(key)
            raise Ended
        delete(key)

    monkeypatch.setattr(store, "delete", end_once)
    with pytest.raises(Ended):
        songs.attempt()
    songs.attempt()
    assert statuses(sandbox) == [429, 202]


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("begins", ["at the intent", "at the refusal"])
def test_xcoms_that_are_away_leave_no_submission_that_never_was(
    sandbox: Sandbox,
    night: Callable[..., Night],
    monkeypatch: pytest.MonkeyPatch,
    durable: bool,
    begins: str,
) -> None:
    """A batch keeps its record there before Airflow 3.3, and everywhere with ``durable=False``."""
    set_connection(monkeypatch, max_submissions_per_day=1)
    songs = night("batch", "a song [sandbox:post-429=1]", durable=durable)
    songs.task.store = None
    push, refused = TaskContext.xcom_push, []

    def refuse(context: TaskContext, key: str, value: object, **kwargs: object) -> None:
        if refused or (sandbox.requests if begins == "at the refusal" else "submitting" in json.dumps(value)):
            refused.append(key)
            raise RuntimeError("The API server is away.")
        push(context, key, value, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(TaskContext, "xcom_push", refuse)
        # Its own, or that of a card, which is an XCom too.
        with pytest.raises((WhisulStateError, RuntimeError)):
            songs.attempt()
    assert refused
    assert not ledger_files()
    songs.attempt()
    assert statuses(sandbox)[-1] == 202
    assert len(sandbox.jobs) == 1


def test_what_on_refused_raises_is_logged_by_its_type_and_the_refusal_stays_the_error(
    sandbox: Sandbox, clock: FakeClock, task_log: Callable[[], list[str]]
) -> None:
    def refuse() -> None:
        raise ValueError("a secret")

    with pytest.raises(WhisulInvalidInputError):
        WhisulHook(clock=clock.clock).generate("a song [sandbox:post-422]", before_send=lambda: None, on_refused=refuse)
    assert not ledger_files()
    assert any("on_refused raised ValueError. So the record" in line for line in task_log())
    assert not any("a secret" in line for line in task_log())


def test_an_entry_whose_removal_lost_its_response_is_not_written_over_that_of_another_try(
    sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, others, delete = "a song [sandbox:post-429=1]", [], AccountLedger.delete

    def delete_and_lose(ledger: AccountLedger, day: str, file: str) -> None:
        delete(ledger, day, file)
        away()

    def submit_in_the_block(seconds: float) -> None:
        if posts(sandbox) == 1 and seconds > 1:
            clock.on_sleep = lambda _: None
            others.append(WhisulHook(clock=clock.clock).generate(prompt, submission=SONG))

    monkeypatch.setattr(AccountLedger, "delete", delete_and_lose)
    # So that it is not noticed at once that the entry is gone.
    monkeypatch.setattr(AccountLedger, "holds", _once_away(AccountLedger.holds))
    clock.on_sleep = submit_in_the_block
    job_id = WhisulHook(clock=clock.clock).generate(prompt, submission=SONG)
    assert [job_id] == others == list(sandbox.jobs)


def test_an_entry_of_another_try_is_not_removed_with_ones_own(
    sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, others, delete = "a song [sandbox:post-402=1]", [], AccountLedger.delete

    def submit_and_lose(ledger: AccountLedger, day: str, file: str) -> None:
        delete(ledger, day, file)
        if not others:
            others.append(WhisulHook(clock=clock.clock).generate(prompt, submission=SONG))
            away()

    monkeypatch.setattr(AccountLedger, "delete", submit_and_lose)
    with pytest.raises(WhisulOutOfCreditsError):
        WhisulHook(clock=clock.clock).generate(prompt, submission=SONG)
    assert [WhisulHook(clock=clock.clock).generate(prompt, submission=SONG)] == others == list(sandbox.jobs)


def test_the_ceiling_of_the_new_account_holds_where_the_entry_of_the_old_one_cannot_be_removed(
    sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_connection(monkeypatch, max_submissions_per_day=1)
    WhisulHook(clock=clock.clock).generate("the song of the day")
    hook = WhisulHook(clock=clock.clock)
    with monkeypatch.context() as patched:
        use_old_key(patched)
        assert hook.settings.api_key.startswith("an-old")
    monkeypatch.setattr(AccountLedger, "delete", away)
    with pytest.raises(WhisulBudgetExceededError):
        hook.generate("one song more")
    assert len(sandbox.jobs) == 1


@pytest.mark.parametrize("by", BY)
def test_a_refusal_whose_entry_can_only_be_removed_at_the_second_time_locks_no_later_try(
    sandbox: Sandbox, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    songs = night(by, "a song [sandbox:post-402=1]")
    monkeypatch.setattr(AccountLedger, "delete", _once_away(AccountLedger.delete))
    with pytest.raises(WhisulOutOfCreditsError):
        songs.attempt()
    assert not ledger_files()
    songs.attempt()
    assert statuses(sandbox) == [402, 202]


def _once_away(function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that fails when it is called for the first time, as a store that is away does."""
    called: list[bool] = []

    def once_away(*arguments: object) -> object:
        if not called:
            called.append(True)
            away()
        return function(*arguments)

    return once_away

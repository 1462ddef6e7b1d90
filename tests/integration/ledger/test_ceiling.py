"""The connection's ``max_submissions_per_day``, through the hook."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulBudgetExceededError,
    WhisulInvalidInputError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger import ceiling
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.reader import LedgerContent
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock

SetExtra = Callable[..., None]


def song(dag_id: str, number: int) -> SubmissionId:
    return SubmissionId(dag_id, "make", "some-run", -1, 0, number=number)


def posts(sandbox: Sandbox) -> int:
    return len([request for request in sandbox.requests if request.method == "POST"])


def test_beyond_the_ceiling_nothing_is_sent_and_the_error_says_by_which_dags_it_was_used_up(
    sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook, read: Callable[[], LedgerContent]
) -> None:
    set_extra(max_submissions_per_day=3)
    for number in range(3):
        hook.generate("a song", submission=song("nightly" if number else "weekly", number))
    with pytest.raises(WhisulBudgetExceededError) as caught:
        hook.generate("a song", submission=song("weekly", 9))
    assert posts(sandbox) == 3
    message = str(caught.value)
    assert "ceiling of 3 submissions a day" in message
    assert "Today, 2026-02-17 (UTC): 3 of 3 made: 2 by nightly, 1 by weekly." in message
    assert "Nothing was sent." in message
    assert "The day ends at 2026-02-18 00:00:00 UTC" in message
    assert "max_submissions_per_day of the Airflow connection 'whisul_default'" in message
    assert isinstance(caught.value, AirflowFailException)
    # What was refused is no submission.
    assert len(read().entries) == 3


def test_at_most_five_dags_are_named(sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook) -> None:
    set_extra(max_submissions_per_day=10)
    for number, dag in enumerate("aaabbcdefg"):
        hook.generate("a song", submission=song(dag, number))
    with pytest.raises(WhisulBudgetExceededError, match="10 of 10 made: 3 by a, 2 by b, 1 by .*, and 2 more DAGs"):
        hook.generate("a song")


def test_a_dag_of_an_odd_name_is_named(sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook) -> None:
    set_extra(max_submissions_per_day=2)
    hook.generate("a song", submission=song("a.b/ü%2F", 1))
    hook.generate("a song", submission=song("x" * 250, 1))
    with pytest.raises(WhisulBudgetExceededError, match=f"1 by a.b/ü%2F, 1 by {'x' * 120}\\."):
        hook.generate("a song")


def test_the_next_day_has_room_again(sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook, clock: FakeClock) -> None:
    set_extra(max_submissions_per_day=1)
    hook.generate("one")
    clock.now += 12 * 3_600 - 1
    with pytest.raises(WhisulBudgetExceededError):
        hook.generate("two")
    clock.now += 1
    hook.generate("two")
    assert posts(sandbox) == 2


def test_a_ceiling_of_zero_lets_nothing_through(sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook) -> None:
    set_extra(max_submissions_per_day=0)
    with pytest.raises(WhisulBudgetExceededError, match=r"0 of 0 made\. Nothing was sent"):
        hook.generate("a song")
    assert posts(sandbox) == 0


def test_a_refused_submission_takes_no_room_and_an_ambiguous_one_does(
    sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook
) -> None:
    set_extra(max_submissions_per_day=1)
    with pytest.raises(WhisulInvalidInputError):
        hook.generate("a song [sandbox:post-422]")
    with pytest.raises(WhisulAmbiguousSubmitError):
        hook.generate("a song [sandbox:post-drop]")
    with pytest.raises(WhisulBudgetExceededError):
        hook.generate("a song")


def test_the_job_of_an_earlier_try_is_returned_though_the_ceiling_is_reached(
    sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook
) -> None:
    set_extra(max_submissions_per_day=1)
    job_id = hook.generate("a song", submission=song("songs", 1))
    assert hook.generate("a song", submission=song("songs", 1)) == job_id


def test_outcomes_take_no_room(sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook, clock: FakeClock) -> None:
    set_extra(max_submissions_per_day=2)
    job_id = hook.generate("one")
    clock.now += 100
    assert hook.get_job(job_id).completed
    hook.generate("two")


def test_it_is_kept_where_the_folder_cannot_be_locked(
    sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(ceiling.fcntl, "flock", no_locks)
    set_extra(max_submissions_per_day=1)
    hook.generate("one")
    with pytest.raises(WhisulBudgetExceededError):
        hook.generate("two")


@pytest.mark.parametrize(("value", "means"), [("", None), (None, None), ("3", 3), (3.0, 3), (0, 0)])
def test_the_extra_is_a_whole_number_or_blank(
    sandbox: Sandbox, set_extra: SetExtra, hook: WhisulHook, value: object, means: int | None
) -> None:
    set_extra(max_submissions_per_day=value)
    assert hook.settings.max_submissions_per_day == means


def test_of_two_that_come_at_once_for_the_last_place_one_submits(
    sandbox: Sandbox, set_extra: SetExtra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each counts while the entry of the other is there, or half a second later where that is not written yet."""
    set_extra(max_submissions_per_day=1)
    both, files = threading.Barrier(2), AccountLedger.files

    def count_late(self: AccountLedger, day: str) -> list[str]:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        found = files(self, day)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return found

    monkeypatch.setattr(AccountLedger, "files", count_late)

    def submit(number: int) -> bool:
        try:
            return bool(WhisulHook().generate("a song", submission=song("songs", number)))
        except WhisulBudgetExceededError:
            return False

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(submit, (1, 2))) == [False, True]
    assert posts(sandbox) == 1

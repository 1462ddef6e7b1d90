"""What the ledger says of a submission, and what a later or another try of the same submission does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConfigurationError,
    WhisulInvalidInputError,
    WhisulRateLimitError,
    WhisulStateError,
    WhisulStateUnreadableError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.entries import Entry, submission_file
from airflow_provider_whisul.ledger.reader import LedgerContent
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import NOON, FakeClock

SONG = SubmissionId("songs", "make", "some-run", 3, 0)

Read = Callable[[], LedgerContent]


def posts(sandbox: Sandbox) -> list[int | None]:
    return [request.status for request in sandbox.requests if request.method == "POST"]


def only(content: LedgerContent) -> Entry:
    (entry,) = content.entries
    assert not content.unreadable
    return entry


def leave(ledger: AccountLedger, clock: FakeClock) -> tuple[str, Entry]:
    """Do as a process that is killed while its request is on its way. Return the entry's name, and the entry."""
    entry = Entry.of(SONG, "a song", conn_id="whisul_default", attempt="another", api_key="key")
    entry = replace(entry, at=clock.now, response_due=clock.now + 35)
    name = submission_file(SONG.key("a song"), "songs")
    assert ledger.create("2026-02-17", name, entry)
    return name, entry


def job_of(entry: Entry | None) -> str | None:
    assert entry is not None
    return entry.job_id


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The state and the time of each entry that replaces another one."""
    found: list[tuple[str, float]] = []
    write = AccountLedger.write

    def spy(self: AccountLedger, day: str, file: str, entry: Entry) -> None:
        found.append((entry.state, entry.at))
        write(self, day, file, entry)

    monkeypatch.setattr(AccountLedger, "write", spy)
    return found


class TestOneSubmission:
    def test_an_entry_says_who_has_submitted_what_and_which_job_it_got(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read
    ) -> None:
        job_id = hook.generate("a song", submission=SONG)
        entry = only(read())
        assert (entry.state, entry.job_id, entry.submission, entry.at) == ("accepted", job_id, SONG, NOON)
        assert (entry.prompt, entry.conn_id) == ("a song", "whisul_default")

    def test_it_is_there_before_anything_is_sent(self, sandbox: Sandbox, hook: WhisulHook, read: Read) -> None:
        seen: list[tuple[str, int]] = []
        hook.generate("a song", before_send=lambda: seen.append((only(read()).state, len(posts(sandbox)))))
        assert seen == [("submitting", 0)]

    def test_its_time_is_that_of_the_request_where_before_send_takes_long(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, written: list[tuple[str, float]]
    ) -> None:
        hook.generate("a song", before_send=lambda: clock.sleep(20))
        assert written == [("submitting", NOON + 20), ("accepted", NOON + 20)]

    def test_it_is_written_twice_in_all(
        self, sandbox: Sandbox, hook: WhisulHook, written: list[tuple[str, float]]
    ) -> None:
        hook.generate("a song", before_send=lambda: None)
        assert written == [("accepted", NOON)]

    def test_it_holds_no_key_though_the_prompt_does(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read, state_path: Path
    ) -> None:
        hook.generate("a song with secret-sandbox-key in it")
        files = [path for path in state_path.rglob("*") if path.is_file()]
        assert files
        assert all("secret-sandbox-key" not in f"{path}{path.read_text()}" for path in files)
        assert only(read()).prompt == "a song with *** in it"

    def test_a_long_prompt_is_cut(self, sandbox: Sandbox, hook: WhisulHook, read: Read) -> None:
        hook.generate("very " * 1_000 + "long")
        assert len(only(read()).prompt) == 2_000

    @pytest.mark.parametrize("fault", ["post-402", "post-422", "post-no-credits", "post-403-html=9"])
    def test_a_certain_refusal_leaves_no_entry(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read, fault: str
    ) -> None:
        with pytest.raises(Exception, match="No job was made"):
            hook.generate(f"a song [sandbox:{fault}]", submission=SONG)
        assert read().entries == []

    def test_a_prompt_that_is_never_sent_leaves_no_entry(self, sandbox: Sandbox, hook: WhisulHook, read: Read) -> None:
        with pytest.raises(WhisulInvalidInputError):
            hook.generate(" ", submission=SONG)
        assert read().entries == []

    @pytest.mark.parametrize("fault", ["post-500", "post-drop", "post-html-202", "post-redirect"])
    def test_a_lost_response_is_told_as_ambiguous(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read, fault: str
    ) -> None:
        with pytest.raises(WhisulAmbiguousSubmitError):
            hook.generate(f"a song [sandbox:{fault}]", submission=SONG)
        entry = only(read())
        assert (entry.state, entry.job_id) == ("ambiguous", None)

    def test_an_error_of_before_send_leaves_no_entry(self, sandbox: Sandbox, hook: WhisulHook, read: Read) -> None:
        def fail() -> None:
            assert len(read().entries) == 1
            raise ConnectionResetError("no state store")

        with pytest.raises(ConnectionResetError):
            hook.generate("a song", before_send=fail, submission=SONG)
        assert (read().entries, posts(sandbox)) == ([], [])

    def test_without_a_name_the_same_prompt_is_submitted_each_time(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read
    ) -> None:
        jobs = {hook.generate("a song"), hook.generate("a song")}
        assert {entry.job_id for entry in read().entries} == jobs == set(sandbox.jobs)
        assert len(jobs) == 2

    def test_the_first_one_of_a_day_removes_what_is_too_old(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, state_path: Path
    ) -> None:
        old = state_path / ledger.path / "2024-12-31"
        old.mkdir(parents=True)
        hook.generate("a song")
        assert not old.exists()

    def test_a_hook_in_a_task_names_the_task(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from types import SimpleNamespace

        ti = SimpleNamespace(dag_id="songs", task_id="python", run_id="some-run", map_index=None)
        monkeypatch.setattr("airflow_provider_whisul.ledger.submission_id.get_current_context", lambda: {"ti": ti})
        hook.generate("a song")
        assert only(read()).submission == SubmissionId("songs", "python", "some-run", -1, 0)

    def test_a_new_key_after_a_401_moves_the_entry_to_the_new_account(
        self,
        sandbox: Sandbox,
        hook: WhisulHook,
        state_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        set_extra: Callable[..., None],
        read: Read,
    ) -> None:
        import os

        good = os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"]
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps({**json.loads(good), "password": "revoked-key"}))
        old = AccountLedger.open(hook.settings)
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", good)
        job_id = hook.generate("a song", submission=SONG)
        new = AccountLedger.open(hook.settings)
        assert old is not None and new is not None and old.account != new.account  # noqa: PT018
        assert posts(sandbox) == [401, 202]
        assert [name for day in old.days() for name in old.files(day)] == []
        assert only(read()).job_id == job_id
        assert len(new.files(new.days()[0])) == 1


class TestTheSameSubmissionAgain:
    def test_its_job_is_returned_and_nothing_is_sent(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, task_log: Callable[[], list[str]]
    ) -> None:
        called: list[str] = []
        job_id = hook.generate("a song", submission=SONG)
        clock.now += 3_600
        again = WhisulHook(clock=clock.clock).generate(
            "a song", submission=SONG, before_send=lambda: called.append("intent")
        )
        assert (again, posts(sandbox), called) == (job_id, [202], [])
        assert any(f"submitted at 2026-02-17 12:00:00 UTC already, as job {job_id}" in line for line in task_log())

    def test_it_is_known_on_the_day_after_too(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        clock.now += 12 * 3_600 - 1
        job_id = hook.generate("a song", submission=SONG)
        clock.now += 2
        assert hook.generate("a song", submission=SONG) == job_id
        assert posts(sandbox) == [202]

    def test_it_takes_the_probe_of_a_block_from_nobody(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = hook.generate("a song", submission=SONG)
        limiter = hook._rate_limiter
        limiter.on_response(limiter.acquire("poll", 60), throttled=True)
        assert hook.generate("a song", submission=SONG) == job_id
        began = clock.now
        assert limiter.acquire("poll", 60).probe
        assert clock.now - began < 1

    @pytest.mark.parametrize(
        "other",
        [
            replace(SONG, number=2),
            replace(SONG, index=1),
            replace(SONG, map_index=4),
            replace(SONG, run_id="another-run"),
            replace(SONG, task_id="another"),
            replace(SONG, dag_id="others"),
            replace(SONG, region="loop/2"),
        ],
    )
    def test_another_name_is_another_submission(self, sandbox: Sandbox, hook: WhisulHook, other: SubmissionId) -> None:
        assert hook.generate("a song", submission=SONG) != hook.generate("a song", submission=other)
        assert posts(sandbox) == [202, 202]

    def test_another_prompt_is_another_submission(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        assert hook.generate("one", submission=SONG) != hook.generate("two", submission=SONG)

    def test_it_is_submitted_after_a_certain_refusal(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        with pytest.raises(WhisulInvalidInputError):
            hook.generate("a song [sandbox:post-422]", submission=SONG)
        hook.generate("a song [sandbox:post-422]", submission=SONG)
        assert posts(sandbox) == [422, 202]

    def test_an_ambiguous_one_stays_ambiguous_once_the_task_has_recorded_that(
        self, sandbox: Sandbox, hook: WhisulHook
    ) -> None:
        with pytest.raises(WhisulAmbiguousSubmitError):
            hook.generate("a song [sandbox:post-drop]", submission=SONG)
        called: list[str] = []
        with pytest.raises(WhisulAmbiguousSubmitError, match="12:00:00 UTC.*This try has sent nothing"):
            hook.generate("a song [sandbox:post-drop]", submission=SONG, before_send=lambda: called.append("intent"))
        assert (len(posts(sandbox)), called) == (1, ["intent"])

    def test_two_threads_send_one_request_and_get_one_job(self, sandbox: Sandbox) -> None:
        both = threading.Barrier(2)

        def submit() -> str:
            hook = WhisulHook()
            hook.settings  # noqa: B018
            both.wait()
            return hook.generate("a song [sandbox:post-slow=0.5]", submission=SONG)

        with ThreadPoolExecutor(2) as pool:
            jobs = [future.result() for future in [pool.submit(submit), pool.submit(submit)]]
        assert posts(sandbox) == [202]
        assert jobs == 2 * list(sandbox.jobs)

    def test_a_try_that_waits_for_the_rate_limiter_takes_the_job_of_another_one(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        other = WhisulHook(clock=clock.clock)
        jobs: list[str] = []

        def meanwhile(_: float) -> None:
            clock.on_sleep = lambda seconds: None
            jobs.append(other.generate("a song [sandbox:post-429]", submission=SONG))

        clock.on_sleep = meanwhile
        jobs.append(hook.generate("a song [sandbox:post-429]", submission=SONG))
        assert posts(sandbox) == [429, 202]
        assert jobs == 2 * list(sandbox.jobs)

    def test_a_try_that_waits_for_the_rate_limiter_holds_no_entry(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, read: Read
    ) -> None:
        waiting: list[int] = []
        clock.on_sleep = lambda _: waiting.append(len(read().entries))
        with pytest.raises(WhisulRateLimitError):
            hook.generate("a song [sandbox:post-429=9]", submission=SONG)
        assert set(waiting) == {0}
        assert read().entries == []

    def test_a_block_that_begins_while_before_send_runs_leaves_no_entry_behind_while_it_lasts(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, read: Read
    ) -> None:
        def begin_block() -> None:
            other = WhisulHook(clock=clock.clock)
            job_id = other.generate("one [sandbox:get-429]")
            with pytest.raises(WhisulRateLimitError):
                other.get_job(job_id, retry=False)

        waiting: list[set[str]] = []
        clock.on_sleep = lambda _: waiting.append({entry.prompt for entry in read().entries})
        hook.generate("a song", before_send=begin_block, submission=SONG)
        assert waiting
        assert all(prompts == {"one [sandbox:get-429]"} for prompts in waiting)
        assert len(read().entries) == 2


class TestAnEntryWithoutAJob:
    def test_is_waited_for_until_its_response_is_lost(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock
    ) -> None:
        leave(ledger, clock)
        clock.now += 10
        with pytest.raises(WhisulAmbiguousSubmitError, match="This try has sent nothing"):
            hook.generate("a song", submission=SONG)
        # As long as a request takes, whatever the time is on the machine that has written it.
        assert (posts(sandbox), clock.now - NOON) == ([], 45)

    def test_is_not_waited_for_once_no_clock_can_be_so_wrong(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock
    ) -> None:
        leave(ledger, clock)
        clock.now += 36 + 3_600
        with pytest.raises(WhisulAmbiguousSubmitError, match="This try has sent nothing"):
            hook.generate("a song", submission=SONG)
        assert (posts(sandbox), clock.now - NOON) == ([], 36 + 3_600)

    def test_is_submitted_anew_where_the_other_try_was_refused(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock
    ) -> None:
        name, _ = leave(ledger, clock)
        clock.on_sleep = lambda _: ledger.delete("2026-02-17", name)
        hook.generate("a song", submission=SONG)
        assert (posts(sandbox), clock.now - NOON) == ([202], 1)

    def test_of_a_machine_whose_clock_is_ahead_is_not_waited_for_longer_than_a_request_takes(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock
    ) -> None:
        clock.now += 3_600
        leave(ledger, clock)
        clock.now -= 3_600
        with pytest.raises(WhisulAmbiguousSubmitError):
            hook.generate("a song", submission=SONG)
        assert clock.now - NOON == 35

    def test_that_is_damaged_stops_the_submission(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock, state_path: Path
    ) -> None:
        leave(ledger, clock)
        (file,) = state_path.rglob("s.*.json")
        for content in ("", "{", "[]", '{"version": 2}', file.read_text().replace('"submitting"', '"accepted"')):
            file.write_text(content)
            with pytest.raises(WhisulStateUnreadableError, match=f"{file.name}.*Nothing was sent"):
                hook.generate("a song", submission=SONG)
        assert posts(sandbox) == []


class TestAnotherClock:
    @pytest.mark.parametrize("ahead", [4.0, 1800.0, -4.0, -1800.0])
    def test_a_job_that_a_machine_submitted_on_its_own_other_day_is_used(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, ahead: float
    ) -> None:
        clock.now = NOON + 43_200 - ahead / 2
        other = WhisulHook(clock=replace(clock.clock, time=lambda: clock.now + ahead))
        job_id = other.generate("a song", submission=SONG)
        assert hook.generate("a song", submission=SONG) == job_id
        assert len(sandbox.jobs) == 1


class TestFindSubmission:
    def test_finds_the_job_of_a_worker_that_was_killed_before_it_recorded_it(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = hook.generate("a song", submission=SONG)
        clock.now += 3 * 86_400
        assert job_of(hook.find_submission(SONG, "a song", since=NOON)) == job_id
        assert hook.find_submission(SONG, "a song", since=NOON + 2 * 86_400) is None
        assert hook.find_submission(SONG, "another song", since=NOON) is None

    def test_finds_a_job_whose_entry_was_made_just_before_midnight(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        clock.now = NOON + 43_200 - 0.01
        recorded: list[float] = []

        def record() -> None:
            clock.now += 0.02
            recorded.append(clock.now)

        job_id = hook.generate("a song", submission=SONG, before_send=record)
        assert job_of(hook.find_submission(SONG, "a song", since=recorded[0])) == job_id

    def test_finds_nothing_beside_a_file_that_is_no_accounts_folder(
        self, sandbox: Sandbox, hook: WhisulHook, state_path: Path
    ) -> None:
        hook.generate("a song")
        (state_path / "ledger" / ".DS_Store").touch()
        assert hook.find_submission(SONG, "a song", since=NOON) is None

    def test_waits_for_the_response_of_a_try_that_is_in_the_middle_of_it(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock
    ) -> None:
        name, entry = leave(ledger, clock)
        clock.on_sleep = lambda _: len(clock.slept) == 4 and ledger.write("2026-02-17", name, entry.accepted("a-job"))
        assert job_of(hook.find_submission(SONG, "a song", since=NOON)) == "a-job"
        assert clock.now - NOON == 4

    def test_knows_no_job_once_the_response_is_lost(
        self, sandbox: Sandbox, hook: WhisulHook, ledger: AccountLedger, clock: FakeClock
    ) -> None:
        leave(ledger, clock)
        assert job_of(hook.find_submission(SONG, "a song", since=NOON)) is None
        assert clock.now - NOON == 35

    def test_finds_nothing_where_nothing_was_submitted_or_the_response_was_lost(
        self, sandbox: Sandbox, hook: WhisulHook
    ) -> None:
        assert hook.find_submission(SONG, "a song", since=NOON) is None
        with pytest.raises(WhisulAmbiguousSubmitError):
            hook.generate("a song [sandbox:post-drop]", submission=SONG)
        assert job_of(hook.find_submission(SONG, "a song [sandbox:post-drop]", since=NOON)) is None


class TestAStoreThatIsAway:
    def test_before_the_request_stops_the_submission(
        self, sandbox: Sandbox, hook: WhisulHook, state_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (state_path / "ledger").write_text("no folder")
        with pytest.raises(WhisulStateError) as not_writable:
            hook.generate("a song", submission=SONG)
        monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(state_path / "not-mounted"))
        with pytest.raises(WhisulStateError) as not_there:
            hook.generate("a song", submission=SONG)
        for caught in (not_writable, not_there):
            assert str(caught.value).count("Nothing was sent.") == 1
        assert posts(sandbox) == []

    @pytest.mark.parametrize(("fault", "status"), [("post-201", 201), ("post-422", 422), ("post-drop", None)])
    def test_after_the_request_changes_nothing_of_what_it_came_to(
        self,
        sandbox: Sandbox,
        hook: WhisulHook,
        state_path: Path,
        task_log: Callable[[], list[str]],
        fault: str,
        status: int | None,
    ) -> None:
        def take_away() -> None:
            (state_path / "ledger").rename(state_path / "elsewhere")
            (state_path / "ledger").write_text("no folder")

        expected = {201: None, 422: WhisulInvalidInputError, None: WhisulAmbiguousSubmitError}[status]
        if expected is None:
            job_id = hook.generate(f"a song [sandbox:{fault}]", before_send=take_away)
            assert list(sandbox.jobs) == [job_id]
            assert any(f"became job {job_id}, which could not be written" in line for line in task_log())
        else:
            with pytest.raises(expected):
                hook.generate(f"a song [sandbox:{fault}]", before_send=take_away)
            assert any("Could not" in line for line in task_log())

    def test_an_entry_that_could_not_be_removed_after_a_429_is_used_again(
        self,
        sandbox: Sandbox,
        hook: WhisulHook,
        read: Read,
        written: list[tuple[str, float]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: object) -> None:
            raise WhisulStateError("The store is away.")

        monkeypatch.setattr(AccountLedger, "delete", fail)
        job_id = hook.generate("a song [sandbox:post-429]", submission=SONG)
        assert only(read()).job_id == job_id
        assert written == [("submitting", NOON + 5), ("accepted", NOON + 5)]

    def test_a_client_that_meets_the_file_that_it_has_written_itself_submits(
        self, sandbox: Sandbox, hook: WhisulHook, read: Read, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As S3's does, which writes again where the response to its first request was lost."""
        create = AccountLedger.create

        def create_twice(self: AccountLedger, day: str, file: str, entry: Entry) -> bool:
            return create(self, day, file, entry) and create(self, day, file, entry)

        monkeypatch.setattr(AccountLedger, "create", create_twice)
        job_id = hook.generate("a song", submission=SONG)
        assert only(read()).job_id == job_id

    def test_a_wrong_path_names_the_option(
        self, sandbox: Sandbox, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "no/absolute/path")
        with pytest.raises(WhisulConfigurationError, match="state_path"):
            hook.generate("a song")
        assert posts(sandbox) == []


class TestNoFolder:
    @pytest.fixture(autouse=True)
    def _no_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("AIRFLOW__WHISUL__STATE_PATH")
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "file" / "airflow"))

    def test_submits_without_a_ledger(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        called: list[str] = []
        job_id = hook.generate("a song", submission=SONG, before_send=lambda: called.append("intent"))
        assert (list(sandbox.jobs), called) == ([job_id], ["intent"])
        assert hook.find_submission(SONG, "a song", since=NOON) is None
        hook.record_outcome(job_id, "delivered")

    def test_a_ceiling_that_cannot_be_counted_stops_the_submission(
        self, sandbox: Sandbox, set_extra: Callable[..., None], hook: WhisulHook
    ) -> None:
        set_extra(max_submissions_per_day=5)
        with pytest.raises(WhisulConfigurationError, match="no folder to count in.*Nothing was sent"):
            hook.generate("a song", submission=SONG)
        assert posts(sandbox) == []

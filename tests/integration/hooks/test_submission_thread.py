"""Submitting and waiting with the asynchronous hook, through real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulBudgetExceededError,
    WhisulError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.ledger.entries import Entry
from airflow_provider_whisul.ledger.reader import all_ledgers, read_ledgers
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.state.state_path import state_folder
from airflow_provider_whisul.version_compat import HAS_ASYNC_TASKS
from tests.support.clock import FakeClock, VirtualLoop, run_virtually, thread_clock
from tests.support.ledger import outcomes
from tests.support.servers import RawServer

SONG = SubmissionId("songs", "make", "some-run", 3, 0)

#: Each end of a submission that the sandbox can make.
FAULTS = [
    *("post-400", "post-401", "post-402", "post-403-html=2", "post-403-html=9", "post-413", "post-422", "post-429=2"),
    *("post-429=9", "post-no-credits", "post-500", "post-502-html", "post-drop", "post-drop-before", "post-truncated"),
    *("post-html-202", "post-no-id", "post-bad-id", "post-redirect", "post-303", "post-201", "post-int-id"),
]

ACCEPTED = json.dumps({"message": "Composition task received.", "job_id": "late-job", "poll_url": "/jobs/late-job"})


def ledger() -> list[Entry]:
    folder = state_folder()
    assert folder is not None
    return read_ledgers(all_ledgers(folder), "2000-01-01", "2999-12-31").entries


def set_extra(monkeypatch: pytest.MonkeyPatch, **extra: object) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
    connection["extra"] = {**connection["extra"], **extra}
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


class SlowServer:
    """A server that answers a submission when the test lets it."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.drops = False
        self.raw = RawServer(self._answer)

    def _answer(self, connection: socket.socket, _: bytes) -> None:
        assert self.may_answer.wait(60)
        if not self.drops:
            head = f"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: {len(ACCEPTED)}\r\n\r\n"
            connection.sendall((head + ACCEPTED).encode())


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowServer]:
    server = SlowServer()
    with server.raw:
        connection = {"conn_type": "whisul", "password": "k", "host": server.raw.base_url}
        connection["extra"] = {"max_requests_per_second": 1e6}  # type: ignore[assignment]
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        yield server
        server.may_answer.set()


class TestGenerate:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_both_hooks_submit_alike_and_leave_the_same_in_the_ledger(
        self, start_sandbox: Callable[..., Sandbox], fault: str
    ) -> None:
        def submit(generate: Callable[[str, list[str]], str], clock: FakeClock) -> tuple[object, ...]:
            sandbox, called, before = start_sandbox(), list[str](), clock.now
            ended: tuple[object, ...]
            try:
                ended = (generate(f"a song [sandbox:{fault}]", called) in sandbox.jobs,)
            except WhisulError as error:
                # Each sandbox has an address and job ids of its own.
                message = re.sub(r'"job_id": "[^"]*', "", str(error).replace(sandbox.base_url, ""))
                ended = type(error), message, error.http_status
            requests = [(request.method, request.status, request.prompt) for request in sandbox.requests]
            entries = [(entry.state, entry.submission, entry.prompt) for entry in ledger()]
            for path in state_folder().path.rglob("s.*.json"):  # type: ignore[union-attr]
                path.unlink()
            return ended, requests, entries, called, round(clock.now - before, 3)

        sync_clock, async_clock = FakeClock(), FakeClock()
        from_sync = submit(
            lambda prompt, called: WhisulHook(clock=sync_clock.clock).generate(
                prompt, before_send=lambda: called.append("before_send"), submission=SONG
            ),
            sync_clock,
        )
        from_async = submit(
            lambda prompt, called: asyncio.run(
                WhisulAsyncHook(clock=async_clock.clock).generate(
                    prompt, before_send=lambda: called.append("before_send"), submission=SONG
                )
            ),
            async_clock,
        )
        assert from_async == from_sync

    def test_a_submission_that_an_earlier_try_has_made_is_not_made_again(
        self, sandbox: Sandbox, clock: FakeClock
    ) -> None:
        job_id = WhisulHook(clock=clock.clock).generate("a song", submission=SONG)
        assert asyncio.run(WhisulAsyncHook(clock=clock.clock).generate("a song", submission=SONG)) == job_id
        assert len(sandbox.requests) == 1

    def test_the_ceiling_of_the_day_holds_for_submissions_that_come_at_once(
        self, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_extra(monkeypatch, max_submissions_per_day=3)

        async def main() -> list[Any]:
            hook = WhisulAsyncHook(clock=clock.clock)
            songs = (hook.generate(f"song {number}") for number in range(5))
            return await asyncio.gather(*songs, return_exceptions=True)

        results = asyncio.run(main())
        assert len(sandbox.jobs) == 3
        # Which three are first is for the threads to say.
        assert Counter(type(result) for result in results) == {str: 3, WhisulBudgetExceededError: 2}

    def test_what_before_send_raises_stops_the_submission(self, sandbox: Sandbox, clock: FakeClock) -> None:
        def refuse() -> None:
            raise RuntimeError("no record can be kept")

        with pytest.raises(RuntimeError, match="no record can be kept"):
            asyncio.run(WhisulAsyncHook(clock=clock.clock).generate("a song", before_send=refuse))
        assert sandbox.requests == []
        assert ledger() == []

    def test_the_event_loop_runs_while_the_response_is_awaited(self, slow_server: SlowServer) -> None:
        async def main() -> str:
            submitting = asyncio.create_task(WhisulAsyncHook().generate("a song"))
            await until(lambda: slow_server.raw.requests)
            slow_server.may_answer.set()
            return await submitting

        assert asyncio.run(main()) == "late-job"

    def test_a_key_that_is_replaced_is_used_at_once(
        self, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])

        async def main() -> str:
            hook = WhisulAsyncHook(clock=clock.clock)
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps({**connection, "password": "an-old-key"}))
            await hook.settings()
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
            return await hook.generate("a song")

        job_id = asyncio.run(main())
        assert list(sandbox.jobs) == [job_id]
        assert [request.status for request in sandbox.requests] == [401, 202]


class TestCancellation:
    def test_a_request_on_its_way_is_not_cut_off_and_its_job_is_in_the_ledger_and_the_log(
        self, slow_server: SlowServer, task_log: Callable[[], list[str]]
    ) -> None:
        async def main() -> None:
            hook = WhisulAsyncHook()
            submitting = asyncio.create_task(hook.generate("a song"))
            await until(lambda: slow_server.raw.requests)
            submitting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submitting
            # A task that is killed now leaves this: to a later try the submission is ambiguous.
            assert [entry.state for entry in ledger()] == ["submitting"]
            slow_server.may_answer.set()
            await until(lambda: [entry.job_id for entry in ledger()] == ["late-job"])
            # The thread has ended the first one by then.
            assert await hook.generate("another song") == "late-job"

        asyncio.run(main())
        told = [line for line in task_log() if "was cancelled while its request was on its way" in line]
        assert len(told) == 1
        assert "It is job late-job, which is paid for" in told[0]

    def test_a_request_on_its_way_whose_response_is_lost_is_ambiguous(
        self, slow_server: SlowServer, task_log: Callable[[], list[str]]
    ) -> None:
        slow_server.drops = True

        async def main() -> None:
            hook = WhisulAsyncHook()
            submitting = asyncio.create_task(hook.generate("a song"))
            await until(lambda: slow_server.raw.requests)
            submitting.cancel()
            slow_server.may_answer.set()
            with pytest.raises(asyncio.CancelledError):
                await submitting
            with pytest.raises(WhisulAmbiguousSubmitError):
                await hook.generate("another song")

        asyncio.run(main())
        assert sorted(entry.state for entry in ledger()) == ["ambiguous", "ambiguous"]
        assert any("was cancelled, and ended so: The prompt may have become a job" in line for line in task_log())

    @pytest.mark.parametrize(("fault", "status"), [("post-429=2", 429), ("post-403-html=2", 403)])
    def test_a_submission_that_waits_to_be_sent_again_is_not_sent_once_it_is_cancelled(
        self, sandbox: Sandbox, clock: FakeClock, task_log: Callable[[], list[str]], fault: str, status: int
    ) -> None:
        async def main() -> None:
            loop, hook = asyncio.get_running_loop(), WhisulAsyncHook(clock=clock.clock)
            submitting = asyncio.create_task(hook.generate(f"a song [sandbox:{fault}]"))
            cancelled = threading.Event()

            def cancel(_: float) -> None:
                if not cancelled.is_set():
                    loop.call_soon_threadsafe(submitting.cancel)
                    assert cancelled.wait(60)

            clock.on_sleep = cancel
            with pytest.raises(asyncio.CancelledError):
                await submitting
            cancelled.set()
            # The thread looks once a second.
            await until(
                lambda: any("was cancelled before it was sent. No job was made." in line for line in task_log())
            )
            assert clock.slept == [1.0]
            await hook.generate("another song")

        asyncio.run(main())
        assert [(request.status, request.prompt) for request in sandbox.requests] == [
            (status, f"a song [sandbox:{fault}]"),
            (202, "another song"),
        ]
        assert [entry.prompt for entry in ledger()] == ["another song"]

    def test_a_submission_that_is_cancelled_before_its_request_is_sent_with_a_new_key_is_not_sent(
        self, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = json.loads(os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"])
        replaced = WhisulHook._key_was_replaced

        async def main() -> None:
            loop, cancelled = asyncio.get_running_loop(), threading.Event()

            def cancel_and_replace(hook: WhisulHook) -> bool:
                loop.call_soon_threadsafe(task.cancel)
                assert cancelled.wait(60)
                return replaced(hook)

            monkeypatch.setattr(WhisulHook, "_key_was_replaced", cancel_and_replace)
            hook = WhisulAsyncHook(clock=clock.clock)
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps({**connection, "password": "an-old-key"}))
            await hook.settings()
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
            task = asyncio.create_task(hook.generate("a song"))
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled.set()
            # In the same thread, so that the first one has ended.
            await hook.generate("the next song")

        asyncio.run(main())
        assert [request.status for request in sandbox.requests] == [401, 202]
        assert [job.prompt for job in sandbox.jobs.values()] == ["the next song"]

    def test_a_submission_that_is_cancelled_before_its_turn_is_never_begun(self, slow_server: SlowServer) -> None:
        async def main() -> None:
            hook = WhisulAsyncHook()
            first = asyncio.create_task(hook.generate("first"))
            await until(lambda: slow_server.raw.requests)
            second = asyncio.create_task(hook.generate("second"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            slow_server.may_answer.set()
            await first
            await hook.generate("third")

        asyncio.run(main())
        assert sorted(entry.prompt for entry in ledger()) == ["first", "third"]

    def test_a_submission_that_is_cancelled_just_before_it_is_sent_leaves_no_entry(
        self, sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hook = WhisulAsyncHook(clock=clock.clock)

        async def main() -> None:
            from airflow_provider_whisul.ledger.submitting import Submitting

            loop, cancelled, call = asyncio.get_running_loop(), threading.Event(), Submitting._call_before_send

            def cancel_and_call(submitting: Submitting) -> None:
                loop.call_soon_threadsafe(task.cancel)
                assert cancelled.wait(60)
                call(submitting)

            monkeypatch.setattr(Submitting, "_call_before_send", cancel_and_call)
            task = asyncio.create_task(hook.generate("a song"))
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(ledger()) == 1
            cancelled.set()
            await until(lambda: not ledger())

        asyncio.run(main())
        assert sandbox.requests == []

    def test_a_request_on_its_way_is_awaited_where_the_process_ends_without_joining_threads(
        self, slow_server: SlowServer
    ) -> None:
        command = [sys.executable, "-m", "tests.integration.hooks.async_task_process"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            asyncio.run(until(lambda: slow_server.raw.requests))
            process.send_signal(signal.SIGALRM)
            assert process.stdout is not None
            # After what Airflow itself prints.
            assert "over time\n" in iter(process.stdout.readline, "")
            slow_server.may_answer.set()
        assert [(entry.prompt, entry.job_id) for entry in ledger()] == [("a song", "late-job")]


class TestWaitForJob:
    @pytest.fixture
    def wait(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """Wait for a job on virtual time, with the sandbox on the same event loop: that time waits for no thread."""

        def wait(prompt: str | None, job_seconds: float = 0.0, **arguments: Any) -> Any:
            async def main(loop: VirtualLoop) -> Any:
                sandbox = Sandbox(SandboxOptions(api_key="k", job_seconds=(job_seconds, job_seconds)), clock=loop.wall)
                async with sandbox.serve():
                    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", sandbox.connection)
                    async with WhisulAsyncHook(clock=thread_clock(loop)) as hook:
                        job_id = "no-such-job" if prompt is None else await hook.generate(prompt)
                        return await hook.wait_for_job(job_id, **arguments)

            return run_virtually(main)

        return wait

    def test_returns_the_completed_job_and_records_that_its_song_is_delivered(self, wait: Callable[..., Any]) -> None:
        job = wait("a trap song")
        assert (job.completed, job.song["prompt"]) == (True, "a trap song")
        assert outcomes() == {"delivered": 1}

    def test_a_failed_job_is_recorded(self, wait: Callable[..., Any]) -> None:
        with pytest.raises(WhisulJobFailedError):
            wait("a song [sandbox:fail]")
        assert outcomes() == {"failed": 1}

    def test_a_job_that_stays_unknown_for_a_minute_is_recorded(self, wait: Callable[..., Any]) -> None:
        with pytest.raises(WhisulJobNotFoundError):
            wait(None)
        assert outcomes() == {"not_found": 1}

    def test_the_timeout_is_an_error_that_names_the_job(self, wait: Callable[..., Any]) -> None:
        with pytest.raises(WhisulJobTimeoutError, match="may still complete: a WhisulJobSensor with this job id"):
            wait("a song", job_seconds=9999.0, timeout=30)
        assert outcomes() == {}

    def test_arguments_that_make_no_sense_are_refused_before_anything_is_polled(self, wait: Callable[..., Any]) -> None:
        for arguments in ({"poll_interval": 4.9}, {"timeout": 0}):
            with pytest.raises(ValueError, match="poll_interval is|timeout is"):
                wait(None, **arguments)


@pytest.mark.skipif(not HAS_ASYNC_TASKS, reason="Airflow has async tasks from 3.2 on.")
def test_an_async_task_of_airflow_makes_two_songs(start_sandbox: Callable[..., Sandbox]) -> None:
    sandbox = start_sandbox(job_seconds=(0.0, 0.0))

    @task
    async def duet() -> list[Any]:
        async def song(prompt: str) -> Any:
            return (await hook.wait_for_job(await hook.generate(prompt))).song

        async with WhisulAsyncHook() as hook:
            return await asyncio.gather(song("first voice"), song("second voice"))

    with DAG("songs", schedule=None, start_date=datetime(2026, 1, 1)):
        songs = duet().operator.execute({})
    assert [song["prompt"] for song in songs] == ["first voice", "second voice"]
    assert len(sandbox.jobs) == 2
    assert outcomes() == {"delivered": 2}


def test_a_process_that_was_forked_submits_and_polls_with_the_hook_of_before_and_with_a_new_one(
    sandbox: Sandbox,
) -> None:
    """None of the threads is there any more: not the hook's, and not the one that Airflow looks connections up in."""
    command = [sys.executable, "-m", "tests.integration.hooks.fork_process"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    users = ["parent", "child", "child's hook", "parent after the fork"]
    assert [line for line in ended.stdout.splitlines() if line.startswith(tuple(users))] == [
        f"{user}: a song of the {user}" for user in users
    ]
    assert len(sandbox.jobs) == len(users)


def test_a_process_that_was_forked_in_the_middle_of_a_decision_does_not_wait_for_its_lock(sandbox: Sandbox) -> None:
    command = [sys.executable, "-m", "tests.integration.hooks.fork_process", "locked"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert "child: submitted" in ended.stdout.splitlines()
    assert len(sandbox.jobs) == 2


def test_a_process_that_was_forked_does_not_send_over_a_connection_of_the_one_before(sandbox: Sandbox) -> None:
    """Else each of the two could be given the response to the other's submission, which is paid for."""
    command = [sys.executable, "-m", "tests.integration.hooks.fork_process", "worker"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("parent", "child"))]
    assert lines == ["parent: 1", "child: 1", "parent after the fork: 0"]
    assert len(sandbox.jobs) == 6

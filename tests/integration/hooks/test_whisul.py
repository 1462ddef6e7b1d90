"""The hook of the workers, through real HTTP against the sandbox, on a clock that only a sleep advances."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from airflow_provider_whisul import metrics
from airflow_provider_whisul.api.messages import MAX_RETRY_AFTER, Request
from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.rate_limit.block import PROBE_TIMEOUT
from airflow_provider_whisul.rate_limit.limiter_client import CHECK_INTERVAL
from airflow_provider_whisul.rate_limit.throttle import INITIAL_RATE
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import NOON, FakeClock
from tests.support.redis_server import free_port
from tests.support.servers import Proxy
from tests.support.soon import wait_until

StartSandbox = Callable[..., Sandbox]


@pytest.fixture
def hook(clock: FakeClock) -> WhisulHook:
    return WhisulHook(clock=clock.clock)


def statuses(sandbox: Sandbox, method: str) -> list[int | None]:
    return [request.status for request in sandbox.requests if request.method == method]


def pauses(sandbox: Sandbox) -> list[float]:
    """Return the seconds between one request and the next."""
    return [after.at - before.at for before, after in pairwise(sandbox.requests)]


def connect(monkeypatch: pytest.MonkeyPatch, host: str, **extra: object) -> None:
    extra = {"max_requests_per_second": 1e6, **extra}
    connection = {"conn_type": "whisul", "password": "secret-sandbox-key", "host": host, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))


def begin_block(hook: WhisulHook) -> str:
    """Return a job whose first poll has just been throttled (429), so that a block has begun."""
    job_id = hook.generate("one [sandbox:get-429]")
    with pytest.raises(WhisulRateLimitError, match="answered 429"):
        hook.get_job(job_id, retry=False)
    return job_id


class TestGenerate:
    def test_submits_one_job(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        job_id = hook.generate("a trap song")
        assert list(sandbox.jobs) == [job_id]
        (request,) = sandbox.requests
        assert (request.method, request.prompt, request.authorization) == ("POST", "a trap song", "ok")
        assert not request.key_elsewhere
        assert request.user_agent.startswith("airflow-provider-whisul/")

    @pytest.mark.parametrize(("pause", "connections"), [(1, 1), (10, 2)])
    def test_a_submission_uses_no_connection_that_was_idle_for_long(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, pause: float, connections: int
    ) -> None:
        hook.generate("one")
        clock.now += pause
        hook.generate("two")
        assert len({request.connection for request in sandbox.requests}) == connections

    @pytest.mark.parametrize(
        ("monotonic", "wall"),
        [pytest.param(1, 3600, id="the machine was suspended"), pytest.param(10, -3600, id="the clock was put back")],
    )
    def test_a_submission_uses_no_connection_that_was_idle_for_long_by_one_clock_only(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, monotonic: float, wall: float
    ) -> None:
        """Linux's monotonic clock stands still while the machine is suspended, and the server's does not."""
        hook.generate("one")
        clock.now += monotonic
        clock.wall_ahead += wall
        hook.generate("two")
        assert statuses(sandbox, "POST") == [202, 202]
        assert len({request.connection for request in sandbox.requests}) == 2

    @pytest.mark.parametrize("prompt", ["", "  \n", None, 7, ["a song"]])
    def test_a_prompt_that_is_empty_or_no_string_is_never_sent(
        self, sandbox: Sandbox, hook: WhisulHook, prompt: object
    ) -> None:
        with pytest.raises(WhisulInvalidInputError, match="Nothing was sent"):
            hook.generate(prompt)  # type: ignore[arg-type]
        assert sandbox.requests == []

    def test_follows_the_backoff_schedule_after_429s(
        self, sandbox: Sandbox, hook: WhisulHook, task_log: Callable[[], list[str]]
    ) -> None:
        hook.generate("a song [sandbox:post-429=5]")
        assert pauses(sandbox) == [5, 10, 20, 40, 60]
        assert statuses(sandbox, "POST") == [429] * 5 + [202]
        assert len(sandbox.jobs) == 1
        lines = task_log()
        retries = [line for line in lines if "Sending the request again when the rate limiter permits it" in line]
        assert len(retries) == 5
        assert all("Whisul answered 429" in line for line in retries)
        # The rate limiter says when, before each wait.
        waits = [line for line in lines if "Whisul throttles this API key" in line]
        assert len(waits) == 5
        assert "No request is sent before 2026-02-17 12:00:05 UTC" in waits[0]

    def test_gives_up_after_six_429s(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        with pytest.raises(WhisulRateLimitError) as raised:
            hook.generate("a song [sandbox:post-429=9]")
        assert len(sandbox.requests) == 6
        assert pauses(sandbox) == [5, 10, 20, 40, 60]
        assert raised.value.http_status == 429
        # The sandbox asked for no wait. The rate limiter's cooldown is what a later try of the task waits.
        assert raised.value.retry_after is None
        assert raised.value.cooldown == 60

    @pytest.mark.parametrize("form", [True, "date"])
    def test_waits_for_retry_after_where_it_is_longer(
        self, start_sandbox: StartSandbox, hook: WhisulHook, clock: FakeClock, form: object
    ) -> None:
        sandbox = start_sandbox(rate_limit=1, block_seconds=33.0, retry_after=form)
        hook.generate("one")
        hook.generate("two")
        assert statuses(sandbox, "POST") == [202, 429, 202]
        # An HTTP date has whole seconds.
        assert pauses(sandbox) == [0, pytest.approx(33, abs=1)]

    def test_fails_at_once_where_retry_after_is_over_ten_minutes(
        self, start_sandbox: StartSandbox, hook: WhisulHook, clock: FakeClock, task_log: Callable[[], list[str]]
    ) -> None:
        sandbox = start_sandbox(rate_limit=1, block_seconds=86_400.0, retry_after=True)
        hook.generate("one")
        with pytest.raises(WhisulRateLimitError, match="answered 429.*asks to wait 900 s") as caught:
            hook.generate("two")
        assert sum(clock.slept) == 0
        assert statuses(sandbox, "POST") == [202, 429]
        assert (caught.value.http_status, caught.value.retry_after) == (429, MAX_RETRY_AFTER)
        assert caught.value.cooldown == MAX_RETRY_AFTER
        assert not any("Sending the request again" in line for line in task_log())

    def test_waits_ten_minutes_at_most_for_all_attempts_together(
        self, start_sandbox: StartSandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        sandbox = start_sandbox(block_seconds=250.0, retry_after=True)
        with pytest.raises(WhisulRateLimitError, match="answered 429.*asks to wait 250 s") as caught:
            hook.generate("a song [sandbox:post-429=9]")
        # A third wait would pass ten minutes.
        assert pauses(sandbox) == pytest.approx([250, 250])
        assert clock.now - NOON == pytest.approx(500)
        assert caught.value.cooldown == pytest.approx(250)

    def test_before_send_is_called_once_when_the_rate_limiter_permits_the_request(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        begin_block(hook)
        called: list[tuple[float, int]] = []
        hook.generate(
            "a song [sandbox:post-429=2]",
            before_send=lambda: called.append((clock.now - NOON, statuses(sandbox, "POST").count(429))),
        )
        # After the wait of 5 s for the block's end, and not again after the 429s.
        assert called == [(5, 0)]
        assert statuses(sandbox, "POST") == [202, 429, 429, 202]

    def test_a_submission_is_held_back_where_a_block_begins_while_before_send_runs(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        hook.generate("a song", before_send=lambda: begin_block(WhisulHook(clock=clock.clock)))
        posts = [request.at - NOON for request in sandbox.requests if request.method == "POST"]
        # The other task's submission, and ours after the cool-down of 5 s that the other task met.
        assert posts == pytest.approx([0, 5])

    def test_an_error_of_before_send_stops_the_submission(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        def fail() -> None:
            raise ConnectionResetError("no state store")

        with pytest.raises(ConnectionResetError, match="no state store"):
            hook.generate("a song", before_send=fail)
        assert sandbox.requests == []

    def test_does_not_send_a_submission_again_after_a_time_out(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, sandbox.base_url, timeout=1)
        with pytest.raises(WhisulAmbiguousSubmitError, match="may have arrived"):
            hook.generate("a song [sandbox:post-slow=60]")
        # A sandbox that is late has not read it yet.
        wait_until(lambda: sandbox.requests)
        assert len(sandbox.requests) == 1
        assert clock.slept == []

    def test_sends_a_submission_again_that_never_left_this_machine(
        self, hook: WhisulHook, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = free_port()
        connect(monkeypatch, f"http://127.0.0.1:{port}/api")
        with Sandbox(port=port, clock=clock.time) as sandbox:
            sandbox.restore_key("secret-sandbox-key")
            sandbox.__exit__(None, None, None)
            clock.on_sleep = lambda _: sandbox.__enter__() if len(clock.slept) == 2 else None  # type: ignore[assignment]
            assert hook.generate("a song") in sandbox.jobs
        assert len(clock.slept) == 2
        assert all(10 <= wait <= 30 for wait in clock.slept)

    def test_the_error_about_a_refused_connection_says_that_nothing_was_sent(
        self, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, f"http://127.0.0.1:{free_port()}/api")
        with pytest.raises(WhisulConnectionError, match="refused. The request was not sent") as caught:
            hook.generate("a song")
        assert not caught.value.request_sent

    def test_the_error_about_an_unresolvable_host_says_that_nothing_was_sent(
        self, hook: WhisulHook, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, "https://whisul.invalid/api")
        with pytest.raises(WhisulConnectionError, match="was not sent") as caught:
            hook.generate("a song")
        assert not caught.value.request_sent
        assert len(clock.slept) == 5

    def test_logs_at_most_500_characters_of_a_400(
        self, sandbox: Sandbox, hook: WhisulHook, task_log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Nothing that our own check lets through is refused by the sandbox, so a malformed body stands in for it.
        malformed = Request("POST", "/generate", {"prompt": "", "other": "x" * 2000})
        monkeypatch.setattr("airflow_provider_whisul.hooks.whisul.generate_request", lambda prompt: malformed)
        with pytest.raises(WhisulInvalidInputError, match="'prompt' field is required"):
            hook.generate("a song")
        (line,) = [line for line in task_log() if "response to the refused request" in line]
        assert "The 'prompt' field is required" in line
        assert len(line) < 800


class TestGetJob:
    def test_running_then_completed(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        job_id = hook.generate("a trap song")
        job = hook.get_job(job_id)
        assert (job.job_id, job.status, job.prompt, job.song) == (job_id, "running", "a trap song", None)
        assert job.started_at == datetime.fromtimestamp(NOON, UTC)
        clock.now += 60
        job = hook.get_job(job_id)
        assert job.completed
        assert job.finished_at == datetime.fromtimestamp(NOON + 60, UTC)
        assert job.song is not None
        assert job.song["job_id"] == job_id
        assert job.song["song_url"] is not None
        assert job.song["duration_seconds"]
        assert isinstance(job.song["tags"], list)

    @pytest.mark.parametrize(
        "fault", ["get-500", "get-502-html", "get-drop", "get-truncated", "get-html-200", "get-redirect"]
    )
    def test_retries_transient_failures(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, fault: str) -> None:
        clock.jitter = 0.5
        job_id = hook.generate(f"a song [sandbox:{fault}=2]")
        assert hook.get_job(job_id).status == "running"
        assert clock.slept == [20, 20]

    def test_gives_up_after_six_transient_failures(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        job_id = hook.generate("a song [sandbox:get-500=9]")
        with pytest.raises(WhisulServerError, match=job_id):
            hook.get_job(job_id)
        assert statuses(sandbox, "GET") == [500] * 6

    def test_without_retry_the_first_transient_failure_is_raised(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = hook.generate("a song [sandbox:get-500]")
        with pytest.raises(WhisulServerError):
            hook.get_job(job_id, retry=False)
        assert clock.slept == []

    def test_a_404_is_not_retried(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        with pytest.raises(WhisulJobNotFoundError, match="no-such-job"):
            hook.get_job("no-such-job")
        assert len(sandbox.requests) == 1

    def test_a_401_is_not_retried_and_says_what_to_do(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        sandbox.revoke_key()
        with pytest.raises(WhisulUnauthorizedError, match="password of the Airflow connection") as caught:
            hook.get_job("some-job")
        assert len(sandbox.requests) == 1
        assert "secret-sandbox-key" not in str(caught.value)

    @pytest.mark.parametrize("job_id", ["../generate", "a/b", "a?b", "a#b", "..", "", "a\nb", "a%2fb", None])
    def test_a_job_id_that_cannot_be_one_is_never_sent(self, sandbox: Sandbox, hook: WhisulHook, job_id: str) -> None:
        with pytest.raises(WhisulInvalidInputError):
            hook.get_job(job_id)
        assert sandbox.requests == []

    def test_the_timeout_holds_for_the_whole_body(self, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each byte arrives within the timeout; the body as a whole does not."""
        server = socket.create_server(("127.0.0.1", 0))
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        connect(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/api", timeout=2)
        try:
            with pytest.raises(WhisulResponseError, match="broke off"):
                hook.get_job("some-job", retry=False)
        finally:
            stop.set()
            thread.join()
            server.close()


def test_the_log_names_the_job_and_how_long_it_is_polled(
    sandbox: Sandbox, hook: WhisulHook, task_log: Callable[[], list[str]]
) -> None:
    job_id = hook.generate("a song")
    hook.wait_for_job(job_id, poll_interval=25, timeout=3600)
    lines = task_log()
    assert any(f"Whisul accepted the prompt 'a song' as job {job_id}" in line for line in lines)
    assert any(f"Polling Whisul job {job_id} every 25 s, until 2026-" in line for line in lines)


def test_an_id_that_cannot_be_a_jobs_is_in_no_log_line_and_not_waited_for(
    sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, task_log: Callable[[], list[str]]
) -> None:
    with pytest.raises(WhisulInvalidInputError):
        hook.wait_for_job("a-job\nforged line", delay=10)
    assert not any("forged line" in line for line in task_log())
    assert clock.slept == []


class TestWaitForJob:
    def test_polls_once_per_interval(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        job_id = hook.generate("a song")
        job = hook.wait_for_job(job_id, poll_interval=25, timeout=3600)
        assert job.completed
        assert clock.slept == [0, 25, 25, 25]

    def test_a_failed_job_is_raised_with_its_reason(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        job_id = hook.generate("a song [sandbox:fail]")
        with pytest.raises(
            WhisulJobFailedError, match=f"The song failed: Generation failed .*a song.*{job_id}"
        ) as caught:
            hook.wait_for_job(job_id)
        assert caught.value.job_id == job_id

    def test_the_timeout_error_says_that_the_job_may_still_be_running(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = hook.generate("a song")
        with pytest.raises(WhisulJobTimeoutError, match="may still be running"):
            hook.wait_for_job(job_id, poll_interval=20, timeout=50)
        assert clock.now == NOON + 50

    def test_the_first_poll_comes_at_the_end_of_the_timeout_at_the_latest(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = hook.generate("a song [sandbox:forever]")
        began = clock.now
        with pytest.raises(WhisulJobTimeoutError):
            hook.wait_for_job(job_id, poll_interval=30, timeout=8, delay=30)
        assert clock.now - began == 8

    def test_tolerates_transient_failures_and_429s(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        job_id = hook.generate("a song [sandbox:get-500=7][sandbox:get-429=1]")
        assert hook.wait_for_job(job_id, poll_interval=5).completed

    def test_waits_for_the_end_of_a_long_retry_after(
        self, start_sandbox: StartSandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        sandbox = start_sandbox(rate_limit=1, block_seconds=900.0, retry_after=True)
        job_id = hook.generate("a song")
        assert hook.wait_for_job(job_id, timeout=3600).completed
        throttled, next_poll = sandbox.requests[1:3]
        assert throttled.status == 429
        assert next_poll.at - throttled.at >= 900

    def test_lives_through_404s_and_a_late_song(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        assert hook.wait_for_job(hook.generate("a song [sandbox:get-404=6][sandbox:song-late=20]")).has_song_url

    def test_refuses_to_poll_too_fast(self, hook: WhisulHook) -> None:
        with pytest.raises(ValueError, match="once every 5 to 10 s"):
            hook.wait_for_job("some-job", poll_interval=4.9)


class TestOneRateLimiterForAllTasks:
    """Two hooks stand for two tasks on one machine."""

    @pytest.fixture
    def other(self, clock: FakeClock) -> WhisulHook:
        return WhisulHook(clock=clock.clock)

    def test_one_task_waits_for_the_end_of_the_block_that_another_has_met(
        self, start_sandbox: StartSandbox, hook: WhisulHook, other: WhisulHook
    ) -> None:
        sandbox = start_sandbox(rate_limit=1, block_seconds=4.0)
        job_id = hook.generate("one")
        with pytest.raises(WhisulRateLimitError, match="answered 429"):
            hook.get_job(job_id, retry=False)
        other.generate("two")
        assert [request.status for request in sandbox.requests] == [202, 429, 202]
        assert pauses(sandbox) == pytest.approx([0, 5])

    def test_a_probe_without_a_response_is_followed_by_another_after_the_same_cooldown(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook
    ) -> None:
        job_id = hook.generate("one [sandbox:get-429][sandbox:get-drop]")
        for error in (WhisulRateLimitError, WhisulConnectionError):
            with pytest.raises(error):
                hook.get_job(job_id, retry=False, max_wait=10.0)
        assert other.get_job(job_id, retry=False, max_wait=10.0).status == "running"
        assert pauses(sandbox) == pytest.approx([0, 5, 5])

    def test_the_wait_of_a_worker_for_a_permit_is_measured(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []
        monkeypatch.setattr(metrics, "rate_limit_wait", waits.append)
        begin_block(hook)
        other.generate("two")
        assert waits == pytest.approx([5])

    def test_a_request_that_is_not_permitted_within_max_wait_is_refused_with_the_cooldown(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = begin_block(hook)
        with pytest.raises(WhisulRateLimitError, match="may be sent at 2026-02-17 12:00:05 UTC") as caught:
            other.get_job(job_id, retry=False, max_wait=4.9)
        assert caught.value.http_status is None
        assert caught.value.retry_after is None
        assert caught.value.cooldown == pytest.approx(5)
        assert len(sandbox.requests) == 2
        assert clock.now == NOON
        assert not other.get_job(job_id, retry=False, max_wait=5.1).completed

    def test_a_waiting_request_is_sent_when_another_tasks_probe_has_ended_the_block(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = begin_block(hook)
        clock.now += 5
        probe = hook._rate_limiter.acquire("poll", max_wait=0)
        clock.on_sleep = lambda _: hook._rate_limiter.on_response(probe, throttled=False) and None
        other.get_job(job_id, retry=False)
        assert pauses(sandbox) == pytest.approx([0, 5 + CHECK_INTERVAL])

    def test_a_probe_whose_task_was_killed_is_sent_again_after_its_timeout(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = begin_block(hook)
        clock.now += 5
        hook._rate_limiter.acquire("poll", max_wait=0)
        other.get_job(job_id)
        assert pauses(sandbox) == pytest.approx([0, 5 + PROBE_TIMEOUT])

    def test_a_refused_request_uses_no_permit(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = begin_block(hook)
        with pytest.raises(WhisulRateLimitError):
            hook.get_job(job_id, retry=False, max_wait=0)
        other.generate("two")
        assert clock.now == NOON + 5
        assert len(sandbox.requests) == 3

    def test_the_rate_increases_with_the_time_that_requests_have_waited(
        self, sandbox: Sandbox, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, sandbox.base_url, max_requests_per_second="")
        for number in range(40):
            hook.generate(f"{number}")
        assert pauses(sandbox)[0] == pytest.approx(1 / INITIAL_RATE)
        assert pauses(sandbox)[-1] < 0.5 / INITIAL_RATE

    def test_two_tasks_share_one_rate(
        self, sandbox: Sandbox, hook: WhisulHook, other: WhisulHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, sandbox.base_url, max_requests_per_second=4)
        for number in range(4):
            hook.generate(f"one {number}")
            other.generate(f"two {number}")
        assert pauses(sandbox) == pytest.approx([0.25] * 7)


class TestConnection:
    @pytest.mark.parametrize("form", ["json", "uri with a quoted url", "uri with host, port and schema"])
    def test_connection_from_an_environment_variable(
        self, sandbox: Sandbox, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        port = sandbox.base_url.split(":")[2].split("/")[0]
        value = {
            "json": sandbox.connection,
            "uri with a quoted url": f"whisul://:secret-sandbox-key@http%3A%2F%2F127.0.0.1%3A{port}%2Fapi",
            "uri with host, port and schema": f"whisul://:secret-sandbox-key@127.0.0.1:{port}/http?timeout=7",
        }[form]
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", value)
        assert hook.generate("a song") in sandbox.jobs
        assert hook.settings.base_url == sandbox.base_url
        assert hook.settings.timeout == (7 if "timeout" in value else 30)

    def test_a_key_with_a_line_break_is_refused(
        self, sandbox: Sandbox, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = {"conn_type": "whisul", "password": "secret-sandbox-key\n", "host": sandbox.base_url}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        with pytest.raises(WhisulConfigurationError, match="line break") as caught:
            hook.generate("a song")
        assert "secret-sandbox-key" not in str(caught.value)

    def test_netrc_does_not_replace_the_api_key(
        self, sandbox: Sandbox, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login someone password else\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        hook.generate("a song")
        # Loopback reads nothing from the environment; for any other host requests reads .netrc.
        hook._session.trust_env = True
        hook.generate("another")
        assert [request.authorization for request in sandbox.requests] == ["ok", "ok"]

    def test_loopback_uses_no_proxy(self, sandbox: Sandbox, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        assert hook.generate("a song") in sandbox.jobs

    def test_a_redirect_is_not_followed(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        with pytest.raises(WhisulAmbiguousSubmitError, match="redirect came back.*It is not followed"):
            hook.generate("a song [sandbox:post-redirect]")
        assert len(sandbox.requests) == 1

    def test_a_certificate_that_cannot_be_verified_is_not_retried(
        self, hook: WhisulHook, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, self_signed: str
    ) -> None:
        connect(monkeypatch, self_signed)
        with pytest.raises(WhisulTLSError, match="could not be verified"):
            hook.get_job("some-job")
        with pytest.raises(WhisulTLSError, match="nothing was sent"):
            hook.generate("a song")
        assert clock.slept == []

    def test_the_connections_ca_file_verifies_the_server(
        self, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch, self_signed: str, ca_file: Path
    ) -> None:
        connect(monkeypatch, self_signed, verify=str(ca_file))
        with pytest.raises(WhisulJobNotFoundError):
            hook.get_job("some-job")

    def test_a_proxy_never_receives_the_api_key(
        self, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
    ) -> None:
        connect(monkeypatch, "https://whisul.test")
        with pytest.raises(WhisulJobNotFoundError):
            hook.get_job("some-job")
        ((asked, headers),) = proxy.asked
        assert asked == "whisul.test:443"
        assert not {"authorization", "proxy-authorization"} & {name.lower() for name in headers}

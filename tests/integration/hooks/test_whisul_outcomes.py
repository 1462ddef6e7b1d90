"""What the hook makes of each end of a submission, and of the test of a connection, through real HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulInvalidInputError,
    WhisulOutOfCreditsError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock
from tests.support.servers import RawServer


@pytest.fixture
def hook(clock: FakeClock) -> WhisulHook:
    return WhisulHook(clock=clock.clock)


class TestSubmission:
    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ("post-500", "answered 500"),
            ("post-502-html", "answered 502"),
            ("post-drop", "No response"),
            ("post-drop-before", "No response"),
            ("post-truncated", "broke off"),
            ("post-html-202", "documented JSON"),
            ("post-no-id", "naming no job"),
            ("post-bad-id", "the job_id '../x\\?y'"),
            ("post-redirect", "redirect"),
            ("post-303", "redirect"),
        ],
    )
    def test_never_sends_a_submission_again_that_may_have_arrived(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, fault: str, reason: str
    ) -> None:
        with pytest.raises(WhisulAmbiguousSubmitError, match=f"may have been paid for: .*{reason}") as caught:
            hook.generate(f"a song [sandbox:{fault}]")
        # The message has the reason; the client's tracebacks say nothing more.
        assert caught.value.__suppress_context__
        assert len(sandbox.requests) == 1
        assert clock.slept == []

    @pytest.mark.parametrize("fault", ["post-201", "post-int-id", "post-poll-url"])
    def test_a_job_that_a_2xx_names_in_another_way_is_not_lost(
        self, sandbox: Sandbox, hook: WhisulHook, fault: str
    ) -> None:
        job_id = hook.generate(f"a song [sandbox:{fault}]")
        assert list(sandbox.jobs) == [job_id]
        assert hook.get_job(job_id).status == "running"

    @pytest.mark.parametrize("fault", ["post-402", "post-no-credits"])
    def test_out_of_credits_is_told_at_once_and_starts_no_cooldown(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, fault: str
    ) -> None:
        with pytest.raises(WhisulOutOfCreditsError, match="out of credits.*Top up the account"):
            hook.generate(f"a song [sandbox:{fault}]")
        hook.generate("another song")
        assert clock.slept == []
        assert len(sandbox.requests) == 2

    def test_a_403_about_credits_is_not_blamed_on_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = b'{"error": "Forbidden", "message": "Insufficient credits."}'
        head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        with RawServer(lambda connection, _: connection.sendall(head + body)) as server:
            connection = {"conn_type": "whisul", "password": "k", "host": server.base_url}
            monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
            hook = WhisulHook(clock=FakeClock().clock)
            with pytest.raises(WhisulOutOfCreditsError, match=r'403 \("Insufficient credits"\) to the submission'):
                hook.generate("a song")
            with pytest.raises(WhisulOutOfCreditsError, match=r'403 \("Insufficient credits"\) about job some-job'):
                hook.get_job("some-job")

    @pytest.mark.parametrize("fault", ["post-413", "post-422"])
    def test_a_prompt_that_is_refused_is_not_sent_again(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock, fault: str
    ) -> None:
        with pytest.raises(WhisulInvalidInputError, match="refused the prompt.*No job was made"):
            hook.generate(f"a song [sandbox:{fault}]")
        assert len(sandbox.requests) == 1
        assert clock.slept == []

    def test_sends_a_submission_again_after_a_cdn_refused_it(
        self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock
    ) -> None:
        job_id = hook.generate("a song [sandbox:post-403-html=2]")
        assert list(sandbox.jobs) == [job_id]
        assert [request.status for request in sandbox.requests] == [403, 403, 202]
        assert all(10 <= wait <= 30 for wait in clock.slept)

    def test_the_error_about_a_revoked_key_names_the_connection_and_the_way_on(
        self, sandbox: Sandbox, hook: WhisulHook
    ) -> None:
        job_id = hook.generate("a song")
        sandbox.revoke_key()
        with pytest.raises(WhisulUnauthorizedError, match="connection 'whisul_default', then clear the task") as caught:
            hook.get_job(job_id)
        assert "It continues with the same job, and nothing is paid twice" in str(caught.value)


class TestTestConnection:
    def test_accepted_key(self, sandbox: Sandbox, hook: WhisulHook) -> None:
        accepted, message = hook.test_connection()
        assert accepted
        # The sandbox answers as Whisul does, and so may any other server.
        assert message.startswith(f"{sandbox.base_url} answered as Whisul does for an unknown job")
        assert [request.method for request in sandbox.requests] == ["GET"]

    def test_refused_key_is_told_at_once(self, sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> None:
        sandbox.revoke_key()
        ok, message = hook.test_connection()
        assert not ok
        assert "401" in message
        assert clock.slept == []

    @pytest.mark.parametrize(
        ("fields", "names"),
        [
            ({"password": "another-key"}, "as the API key"),
            ({"password": None}, "it has no API key"),
            ({"password": "a key"}, "its API key"),
            ({"host": "http://whisul.test:x"}, "its Base URL"),
            ({"host": "https://user@whisul.test"}, "its Base URL"),
            ({"host": "whisul..test"}, "its Base URL"),
            ({"extra": {"timeout": -1}}, "its extra 'timeout'"),
            ({"extra": {"verify": "/no/such/file"}}, "its extra 'verify'"),
        ],
        ids=str,
    )
    def test_a_refusal_names_fields_of_the_form_and_neither_a_task_nor_the_id_under_which_airflow_tests(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], names: str
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_2J83ZWXK", json.dumps({**json.loads(sandbox.connection), **fields}))
        ok, message = WhisulHook("2J83ZWxK").test_connection()
        assert not ok
        assert names in message
        assert "2J83ZW" not in message.upper()
        assert "task" not in message

    def test_the_mask_that_airflow_sends_in_place_of_the_stored_key_is_not_sent_and_not_called_a_wrong_key(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow 3.3.1 does that for a connection without a port."""
        masked = {**json.loads(sandbox.connection), "password": "***"}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(masked))
        ok, message = WhisulHook().test_connection()
        assert not ok
        assert "Airflow has not given the stored API key to this test" in message
        assert "Base URL https://whisul.com/api and the port 443" in message
        assert "WhisulHook().test_connection()" in message
        assert sandbox.requests == []

    def test_a_server_that_knows_no_job_but_is_not_whisul_proves_nothing(
        self, hook: WhisulHook, monkeypatch: pytest.MonkeyPatch, self_signed: str, ca_file: Path
    ) -> None:
        connection = {"conn_type": "whisul", "password": "k", "host": self_signed, "extra": {"verify": str(ca_file)}}
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))
        ok, message = hook.test_connection()
        assert not ok
        assert f"{self_signed} answered 404, which Whisul's API would not" in message
        assert "whether Whisul accepts the key, this cannot tell" in message

    def test_uses_the_connection_that_the_hook_was_given(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_TMP_XYZ", sandbox.connection)
        monkeypatch.delenv("AIRFLOW_CONN_WHISUL_DEFAULT")
        assert WhisulHook(whisul_conn_id="tmp_xyz").test_connection()[0]

    def test_connection_without_a_key(self, monkeypatch: pytest.MonkeyPatch, hook: WhisulHook) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", '{"conn_type": "whisul"}')
        ok, message = hook.test_connection()
        assert not ok
        assert "no API key" in message

"""The hook of the triggerer, through real HTTP against the sandbox."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from airflow_provider_whisul.exceptions import (
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobNotFoundError,
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulTLSError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.hooks import shared_session
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock
from tests.support.servers import Proxy


def connect(monkeypatch: pytest.MonkeyPatch, host: str, **extra: object) -> None:
    connection = {"conn_type": "whisul", "password": "secret-sandbox-key", "host": host, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_WHISUL_DEFAULT", json.dumps(connection))


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


@pytest.fixture
def submit(sandbox: Sandbox, clock: FakeClock) -> Callable[[str], str]:
    return WhisulHook(clock=clock.clock).generate


def gets(sandbox: Sandbox) -> list[Any]:
    return [request for request in sandbox.requests if request.method == "GET"]


def test_polls_a_job(sandbox: Sandbox, submit: Callable[[str], str], clock: FakeClock) -> None:
    job_id = submit("a trap song")
    job = run(WhisulAsyncHook().get_job(job_id))
    assert (job.job_id, job.status, job.prompt) == (job_id, "running", "a trap song")
    clock.now += 60
    # Both clients read the same response as the same job.
    assert run(WhisulAsyncHook().get_job(job_id)) == WhisulHook(clock=clock.clock).get_job(job_id)


def test_a_hook_that_is_used_in_several_event_loops_has_a_rate_limiter_in_each(
    sandbox: Sandbox, submit: Callable[[str], str]
) -> None:
    hook, job_id = WhisulAsyncHook(), submit("a song")
    limiters = []
    for _ in range(2):
        run(hook.get_job(job_id))
        limiters.append(hook._rate_limiter)
    assert len(gets(sandbox)) == 2
    assert limiters[0] is not limiters[1]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("get-500", WhisulServerError),
        ("get-502-html", WhisulServerError),
        ("get-429", WhisulRateLimitError),
        ("get-drop", WhisulConnectionError),
        ("get-truncated", WhisulResponseError),
        ("get-html-200", WhisulResponseError),
        ("get-redirect", WhisulResponseError),
        ("get-404", WhisulJobNotFoundError),
        ("get-410", WhisulJobNotFoundError),
        ("get-401", WhisulUnauthorizedError),
        ("get-402", WhisulOutOfCreditsError),
        ("get-403-html", WhisulResponseError),
    ],
)
def test_both_clients_raise_the_same_error_for_a_response(
    sandbox: Sandbox, submit: Callable[[str], str], clock: FakeClock, fault: str, error: type[WhisulError]
) -> None:
    job_id = submit(f"a song [sandbox:{fault}=2]")
    with pytest.raises(WhisulError) as from_async:
        run(WhisulAsyncHook().get_job(job_id))
    with pytest.raises(WhisulError) as from_sync:
        WhisulHook(clock=clock.clock).get_job(job_id, retry=False)
    assert type(from_async.value) is type(from_sync.value) is error
    assert from_async.value.http_status == from_sync.value.http_status
    assert from_async.value.job_id == from_sync.value.job_id == job_id
    assert len(gets(sandbox)) == 2


def test_a_time_out_is_a_connection_error(
    sandbox: Sandbox, submit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit("a song [sandbox:get-slow=60]")
    connect(monkeypatch, sandbox.base_url, timeout=0.2)
    with pytest.raises(WhisulConnectionError, match="No response to GET"):
        run(WhisulAsyncHook().get_job(job_id))


def test_a_job_id_that_cannot_be_one_is_never_sent(sandbox: Sandbox) -> None:
    with pytest.raises(WhisulInvalidInputError):
        run(WhisulAsyncHook().get_job("../generate"))
    assert sandbox.requests == []


def test_an_unsafe_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://example.invalid")
    with pytest.raises(WhisulConfigurationError, match="plain http"):
        run(WhisulAsyncHook().get_job("some-job"))


class TestSharedSession:
    def test_all_hooks_share_one_session_and_its_connections(
        self, sandbox: Sandbox, submit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = submit("a song")
        made: list[aiohttp.ClientSession] = []
        original = shared_session._new_session
        monkeypatch.setattr(shared_session, "_new_session", lambda *args: made.append(original(*args)) or made[-1])

        async def main() -> None:
            hooks = [WhisulAsyncHook() for _ in range(20)]
            await asyncio.gather(*(hook.__aenter__() for hook in hooks))
            for hook in hooks:
                await hook.get_job(job_id)
            assert not made[0].closed
            for hook in hooks:
                await hook.__aexit__(None, None, None)

        run(main())
        assert len(made) == 1
        assert made[0].closed
        assert len({request.connection for request in gets(sandbox)}) == 1

    def test_polls_that_start_together_load_one_tls_context(
        self, monkeypatch: pytest.MonkeyPatch, self_signed: str, ca_file: Path
    ) -> None:
        connect(monkeypatch, self_signed, verify=str(ca_file), max_requests_per_second=1e6)
        made: list[object] = []
        original = shared_session._tls_context
        monkeypatch.setattr(
            shared_session, "_tls_context", lambda settings: made.append(original(settings)) or made[-1]
        )

        async def main() -> None:
            hooks = [WhisulAsyncHook() for _ in range(20)]
            for hook in hooks:
                # Some versions of Airflow look the connection up in a thread, which may take longer than the loading.
                await hook.settings()
            polls = [asyncio.create_task(hook.get_job("some-job")) for hook in hooks]
            await asyncio.sleep(0)
            polls[0].cancel()
            await asyncio.wait(polls)
            assert all(isinstance(poll.exception(), WhisulJobNotFoundError) for poll in polls[1:])

        run(main())
        assert len(made) == 1

    def test_the_session_is_closed_when_its_last_poll_is_cancelled(
        self, sandbox: Sandbox, submit: Callable[[str], str], recwarn: pytest.WarningsRecorder
    ) -> None:
        job_id = submit("a song [sandbox:get-slow=60]")

        async def main() -> None:
            task = asyncio.create_task(WhisulAsyncHook().get_job(job_id))
            while not gets(sandbox):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not shared_session._SHARED_SESSIONS[asyncio.get_running_loop()]

        run(main())
        gc.collect()
        assert not [warning for warning in recwarn if "Unclosed" in str(warning.message)]

    def test_a_replaced_key_gets_a_session_of_its_own(self, sandbox: Sandbox, submit: Callable[[str], str]) -> None:
        """A key that was replaced in Airflow is used at once, while other triggers still wait with the old one."""
        job_id = submit("a song")

        async def main() -> None:
            async with WhisulAsyncHook() as old:
                sandbox.restore_key("a-new-sandbox-key")
                os.environ["AIRFLOW_CONN_WHISUL_DEFAULT"] = sandbox.connection
                await WhisulAsyncHook().get_job(job_id)
                (session,) = shared_session._SHARED_SESSIONS[asyncio.get_running_loop()]
                # The other hook's session, which is still open.
                assert session.api_key == "secret-sandbox-key"
                assert (await old.get_job(job_id)).status == "running"

        run(main())


class TestSurroundings:
    def test_netrc_does_not_replace_the_api_key(
        self, sandbox: Sandbox, submit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login someone password else\n")
        monkeypatch.setenv("NETRC", str(netrc))
        run(WhisulAsyncHook().get_job(submit("a song")))
        assert gets(sandbox)[0].authorization == "ok"

    def test_loopback_uses_no_proxy(
        self, sandbox: Sandbox, submit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert run(WhisulAsyncHook().get_job(submit("a song"))).status == "running"

    def test_a_certificate_that_cannot_be_verified_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, self_signed: str
    ) -> None:
        connect(monkeypatch, self_signed)
        # Certificates are verified on loopback too.
        with pytest.raises(WhisulTLSError, match="could not be verified"):
            run(WhisulAsyncHook().get_job("some-job"))

    @pytest.mark.parametrize("how", ["connection", "environment", "not at all"])
    def test_a_custom_ca_is_trusted(
        self, monkeypatch: pytest.MonkeyPatch, self_signed: str, ca_file: Path, how: str
    ) -> None:
        extra = {"connection": {"verify": str(ca_file)}, "not at all": {"verify": False}}.get(how, {})
        connect(monkeypatch, self_signed, **extra)
        if how == "environment":
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
        with pytest.raises(WhisulJobNotFoundError):
            run(WhisulAsyncHook().get_job("some-job"))

    def test_a_proxy_never_receives_the_api_key(self, monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
        connect(monkeypatch, "https://whisul.test")
        with pytest.raises(WhisulJobNotFoundError):
            run(WhisulAsyncHook().get_job("some-job"))
        ((asked, headers),) = proxy.asked
        assert asked == "whisul.test:443"
        assert not {"authorization", "proxy-authorization"} & {name.lower() for name in headers}

    def test_the_password_of_a_proxy_is_sent_to_it_and_in_no_error(
        self, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
    ) -> None:
        connect(monkeypatch, "https://whisul.test")
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("://", "://somebody:pass%40word@"))
        with pytest.raises(WhisulJobNotFoundError):
            run(WhisulAsyncHook().get_job("some-job"))
        ((_, headers),) = proxy.asked
        assert {name.lower(): value for name, value in headers.items()}["proxy-authorization"] == (
            "Basic " + base64.b64encode(b"somebody:pass@word").decode()
        )
        proxy.status = 407
        with pytest.raises(WhisulConnectionError, match="407") as raised:
            run(WhisulAsyncHook().get_job("some-job"))
        assert "word" not in str(raised.value)

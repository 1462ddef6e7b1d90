"""Whoever searches docs/troubleshooting.md for the first words of a message finds it, and what to do about it."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

import pytest

from airflow_provider_whisul.api.connection import ConnectionSettings
from airflow_provider_whisul.api.messages import Response, generate_request, job_request
from airflow_provider_whisul.api.models import WhisulJob
from airflow_provider_whisul.api.outcomes import read_job, read_submission
from airflow_provider_whisul.api.transport import Exchange, connection_error
from airflow_provider_whisul.exceptions import WhisulError, all_errors
from airflow_provider_whisul.ledger import ceiling
from airflow_provider_whisul.operators.arguments import check_attempts, checked_prompts
from airflow_provider_whisul.polling import check_poll_interval
from airflow_provider_whisul.rate_limit.block import Block
from airflow_provider_whisul.rate_limit.limiter_client import refusal
from airflow_provider_whisul.state.unreadable import unreadable_record
from airflow_provider_whisul.storage.object_store import wrap_storage_errors
from airflow_provider_whisul.storage.urls import MediaAccess, require_allowed
from airflow_provider_whisul.triggers.events import deferral_error
from dev import troubleshooting
from dev.error_messages import HOLE, MAX_CHARACTERS, beginning, messages, refused_arguments, warnings

PAGE = troubleshooting.PAGE.read_text()
SETTINGS = ConnectionSettings("https://whisul.com/api", "a-key")
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()


def section(heading: str) -> str:
    return PAGE.partition(f"\n### {heading}\n")[2].partition("\n##")[0]


def listed(heading: str) -> list[str]:
    return re.findall(r"^- `(.+)`$", section(heading), re.MULTILINE)


def matches(text: str, message: str) -> bool:
    """Return whether a message begins as a text of the page, in which a hole stands for anything."""
    parts = (re.escape(part) for part in text.removesuffix(HOLE).split(HOLE))
    return re.match(".*?".join(parts), " ".join(message.replace("`", "'").split())) is not None


def raised(call: object, *args: object, **kwargs: object) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value


def submission(status: int, body: bytes = b"") -> Exception:
    return raised(read_submission, Response(status, body, True, api_key="a-key"))


def poll(status: int, body: bytes = b"") -> Exception:
    return raised(read_job, Response(status, body, True, api_key="a-key"), "job-1")


def settings(**fields: object) -> Exception:
    given = {"host": None, "schema": None, "port": None, "password": "a-key", "extra": {}, **fields}
    return raised(ConnectionSettings.from_connection, "whisul_default", **given)


def storage_error() -> Exception:
    def store() -> None:
        with wrap_storage_errors("write song.mp3"):
            raise PermissionError("denied")

    return raised(store)


def unverified() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "self-signed certificate"
    return error


REFUSED_KEY = b'{"error": "invalid key"}'
#: Errors as the code makes them, each by another way.
ERRORS: list[Exception] = [
    *(submission(status) for status in (400, 402, 403, 404, 429, 302, 500, 200, 299, 999)),
    submission(401, REFUSED_KEY),
    *(poll(status) for status in (402, 403, 404, 429, 302, 500, 999)),
    poll(401, REFUSED_KEY),
    poll(200, b'{"status": 1}'),
    settings(password=None),
    settings(password="a key"),
    settings(host="http://example.com"),
    settings(extra={"timeout": -1}),
    settings(extra={"verify": "/no/such/file"}),
    connection_error(Exchange(generate_request("a prompt"), SETTINGS), TimeoutError()),
    connection_error(Exchange(job_request("job-1"), SETTINGS), unverified()),
    raised(generate_request, 1984),
    raised(generate_request, " "),
    raised(job_request, "no id"),
    raised(checked_prompts, "a prompt"),
    refusal(NOW + 60, NOW, Block(active=True)),
    WhisulJob("job-1", "failed", error="too long").failed_error(),
    unreadable_record("records/1.json", "it is not JSON"),
    deferral_error(TimeoutError("Trigger timeout"), "job job-1", "It may still complete."),
    all_errors()["WhisulBudgetExceededError"](ceiling._message("whisul_default", ["nightly"] * 5, 5, NOW)),
    storage_error(),
    raised(require_allowed, "http://example.com/song.mp3", "job-1", MediaAccess(None)),
    raised(require_allowed, "https://10.0.0.1/song.mp3", "job-1", MediaAccess(None)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: re.sub(r"\W+", " ", f"{error}")[:50])
def test_the_first_words_of_an_error_are_in_the_section_of_its_class(error: Exception) -> None:
    texts = listed(type(error).__name__)
    assert any(matches(text, str(error)) for text in texts), f"{error}\n{texts}"


def test_every_class_has_a_section_with_its_messages_and_what_to_do() -> None:
    for name in all_errors():
        assert listed(name), name
        assert "**What to do:** " in section(name), name
        assert "**Airflow's retry:** " in section(name), name


def test_no_message_is_a_line_that_a_search_cannot_find() -> None:
    for text in [text for texts in messages().values() for text in texts] + warnings() + refused_arguments():
        assert len(text) <= MAX_CHARACTERS
        assert sum(map(str.isalpha, text)) >= 8, text
        assert "`" not in text


@pytest.mark.parametrize(
    "error",
    [raised(check_attempts, 0), raised(check_poll_interval, 1, "poll_interval")],
    ids=["attempts", "poll_interval"],
)
def test_the_first_words_of_a_refused_argument_are_on_the_page(error: Exception) -> None:
    assert not isinstance(error, WhisulError)
    assert any(matches(text, str(error)) for text in listed("Arguments that are refused"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("One sentence is enough here. Another one.", "One sentence is enough here."),
        ("Short. Then another one follows. And one more.", "Short. Then another one follows."),
        ("… of …/…, '…' is gone", "… of …, '…' is gone"),
        ("… … …", ""),
        ("a long word " * 20, f"{'a long word ' * 8}a long {HOLE}"),
    ],
)
def test_a_message_is_shown_by_its_beginning(message: str, expected: str) -> None:
    assert beginning(message) == expected

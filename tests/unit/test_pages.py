"""The pages for newcomers keep what they promise. Their code blocks are run in tests/docs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from airflow.models.connection import Connection

from airflow_provider_whisul.api.connection import read_connection
from airflow_provider_whisul.api.price import Price

REPOSITORY = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    return (REPOSITORY / "docs" / f"{name}.md").read_text()


# --- docs/getting_started.md


def test_the_lines_of_the_log_are_what_the_code_says() -> None:
    source = "".join(path.read_text() for path in sorted((REPOSITORY / "airflow_provider_whisul").rglob("*.py")))
    formats = re.findall(r"log\.info\(\s*\"([^\"]+)\"", source)
    patterns = [".+".join(map(re.escape, re.split(r"%[.\d]*[rsdfg]|%,d", text))) for text in formats]
    (log,) = re.findall(r"```text\n(Whisul accepted.*?)```", page("getting_started"), re.DOTALL)
    for line in log.splitlines():
        assert any(re.fullmatch(pattern, line) for pattern in patterns if len(pattern) > 15), line


# --- docs/connection.md


def test_the_fields_of_the_uri_are_read() -> None:
    (line,) = [line for line in page("connection").splitlines() if line.startswith("export") and "timeout=" in line]
    uri = shlex.split(line)[1].partition("=")[2]
    connection = Connection(conn_id="whisul_default", uri=uri)
    settings = read_connection("whisul_default", lambda _: connection)
    assert (settings.api_key, settings.base_url) == ("YOUR_API_KEY", "https://whisul.com/api")
    assert (settings.timeout, settings.max_requests_per_second) == (30, 8)
    assert settings.price_per_song == Price.parse("0.08 USD")


def test_a_base_url_in_a_uri_that_is_not_encoded_loses_its_port() -> None:
    assert "Without the encoding Airflow would split it, and lose its port" in " ".join(page("connection").split())
    connection = Connection(conn_id="x", uri="whisul://http://:sandbox-key@127.0.0.1:8099/api")
    assert read_connection("x", lambda _: connection).base_url == "http://127.0.0.1/api"


def test_the_page_says_under_which_name_a_secrets_backend_looks_the_connection_up() -> None:
    kwargs = [json.loads(found) for found in re.findall(r"^backend_kwargs = (.+)$", page("connection"), re.MULTILINE)]
    assert len(kwargs) == 2
    for arguments in kwargs:
        (prefix,) = [value for key, value in arguments.items() if key.startswith("connections_")]
        assert f"The secret `{prefix}/whisul_default`" in page("connection")


# --- docs/choosing.md


def test_what_each_operator_costs_is_what_was_measured() -> None:
    section = page("benchmarks").partition("## What a song costs Airflow")[2].partition("\n## ")[0]
    measured = set(re.findall(r"\| (\d+\.\d s) \| (\d+) \|$", section, re.MULTILINE))
    shown = re.findall(r"^\|[^|]+\| (\d+) \| (\d+\.\d s) \|", page("choosing"), re.MULTILINE)
    assert len(shown) == 4
    assert {(cpu, processes) for processes, cpu in shown} <= measured


# --- docs/faq.md


def questions() -> list[tuple[str, str]]:
    """Return each question with its answer."""
    parts = re.split(r"^### (.+)$", page("faq"), flags=re.MULTILINE)[1:]
    answers = [re.split(r"^## ", text, flags=re.MULTILINE)[0].strip() for text in parts[1::2]]
    return list(zip(parts[::2], answers, strict=True))


def test_there_are_the_questions_of_the_users_of_other_providers_and_those_of_newcomers() -> None:
    assert len({question for question, _ in questions()}) == len(questions()) >= 32


@pytest.mark.parametrize(("question", "answer"), questions(), ids=[question for question, _ in questions()])
def test_a_question_has_a_short_answer_that_leads_to_a_page(question: str, answer: str) -> None:
    assert question.endswith("?")
    assert len(answer.splitlines()) <= 4
    assert re.search(r"\]\(\w+\.md(#[\w-]+)?\)", answer), answer

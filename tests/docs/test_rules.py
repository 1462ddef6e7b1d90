"""A block that is wrong fails: the rules of the other file can."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.console_blocks import commands, make_targets
from tests.docs.example import Example
from tests.docs.test_code_blocks import LANGUAGES
from tests.support.pages import PAGES, Block, blocks

Check = Callable[[str, str], None]

DAG_FILE = """
from datetime import datetime

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator

with DAG("a_dag", schedule=None, start_date=datetime(2026, 1, 1)):
    WhisulGenerateOperator(task_id="song", prompt={prompt!r}, wait_for_completion=True, retries=2)
"""


@pytest.fixture
def block() -> Block:
    """Any block: these tests bring their own code."""
    return blocks(PAGES[0])[0]


@pytest.fixture
def check(example: Example) -> Check:
    """Check some code as a block of a language."""

    def check(language: str, code: str) -> None:
        block = Block(example.block.page, 1, language, code)
        LANGUAGES[language](Example(block, example.folder, example.sandbox, example.environment))

    return check


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("console", "rm -rf dags\n"),
        ("console", "make coffee\n"),
        ("console", 'pip install "apache-airflow==1.10.1" . --constraint constraints/airflow-1.10.1.txt\n'),
        ("console", "pip install airflow-provider-whistle\n"),
        ("console", ".venv/bin/python -m pytest tests/unit/apis\n"),
        ("console", "echo 'unfinished\n"),
        ("console", "python -c 'import whistle'\n"),
        ("console", 'export AIRFLOW_CONN_WHISUL_DEFAULT=\'{"conn_type": "whisul"}\'\n'),
        ("console", 'export AIRFLOW_CONN_A=\'{"conn_type": "whisul", "password": "K", "extra": {"tempo": 1}}\'\n'),
        ("console", "python -m airflow_provider_whisul.sandbox --tempo 1\n"),
        ("dockerfile", "FROM apache/airflow:1.10.15\n"),
        ("dockerfile", "INSTALL whisul\n"),
        ("ini", "[whisul]\ntempo = 1\n"),
        ("ini", "[whisul]\nstored_songs_url = {no JSON}\n"),
        ("json", '{"conn_type": "whisul", "password": "KEY", "extra": {"timeout": "soon"}}'),
        ("json", "{…}"),
        ("python", "song = WhisulGenerateOperator(task_id='song', promt='a waltz')\n"),
        (
            "python",
            "song = WhisulGenerateOperator(task_id='song', prompt='[sandbox:fail=9]', wait_for_completion=True)\n",
        ),
        ("python", "from airflow_provider_whisul.operators.whisul import WhisulOperator\n"),
        ("python", "@task\ndef song():\n    return WhisulHook().genarate('a waltz')\n"),
        ("python", "song = unknown_name.output\n"),
        ("python", "def test_songs():\n    assert False\n"),
        ("python", '{"job_id": "81fa5ff7-…", "tempo": 140}'),
        ("python", DAG_FILE.format(prompt="a waltz [sandbox:fail=9]")),
        ("python", DAG_FILE.format(prompt="a waltz {{ no.such.name }}")),
        ("python", "from airflow.providers.common.compat.sdk import DAG\n\nDAG\n"),
        ("toml", "a = b"),
        ("yaml", "a: [b"),
    ],
)
def test_a_wrong_block_fails(check: Check, language: str, code: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each in its own way
        check(language, code)
    assert raised.type is not subprocess.TimeoutExpired


@pytest.mark.parametrize(
    ("language", "code"),
    [
        (
            "console",
            'export AIRFLOW_CONN_A=\'{"conn_type": "whisul",\n  "password": "K"}\'  # a key\npython -c "import os"\n',
        ),
        ("console", 'export A=b\npython -c \'import os; assert os.environ["A"] == "b"\'\n'),
        ("console", "$ python -c 'print(1)'\n1\n"),
        ("console", "cat > notes <<END\na ' quotation\nEND\ncat notes\n"),
        ("dockerfile", "FROM apache/airflow:3.3.2\nRUN pip install \\\n    dist/*.whl\n"),
        ("ini", "[whisul]\nstate_path = /songs\n\n[triggerer]\ncapacity = 2000\n"),
        ("python", DAG_FILE.format(prompt="a waltz")),
        ("python", "def test_songs(tmp_path):\n    assert tmp_path.exists()\n"),
        ("python", "@task(retries=2)\ndef song():\n    return WhisulHook().generate('a waltz')\n"),
    ],
)
def test_a_right_block_passes(check: Check, language: str, code: str) -> None:
    check(language, code)


def test_a_whole_dag_makes_its_song_at_the_sandbox(check: Check, example: Example) -> None:
    check("python", DAG_FILE.format(prompt="a waltz"))
    assert [request.prompt for request in example.sandbox.requests if request.method == "POST"] == ["a waltz"]


def test_the_tasks_of_a_fragment_run_after_those_that_it_takes_for_granted(check: Check, example: Example) -> None:
    check("python", "@task(inlets=[KEPT])\ndef tell(inlet_events=None):\n    print(inlet_events[KEPT][-1].extra)\n")
    assert [request.method for request in example.sandbox.requests].count("POST") == 1


def test_a_block_leaves_no_variable_behind(check: Check) -> None:
    check("python", 'monkeypatch.setenv("LEFT_BEHIND", "1")\n')
    probe = "import os\n\nassert 'LEFT_BEHIND' not in os.environ\n"
    check("python", probe)


def test_commands_are_read_without_their_comments_and_with_all_their_lines() -> None:
    code = "make lint   # all of it\n\n# a comment\nexport A='b\n  c'\npip install \\\n  x\n"
    assert list(commands(code)) == ["make lint", "export A='b\n  c'", "pip install    x"]


def test_the_targets_of_single_versions_count() -> None:
    assert {"test", "test-3.1.8", "crash-s3", ".venv/installed"} - set(make_targets()) == {".venv/installed"}


def test_a_page_without_a_language_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1. In a list:\n\n   ```\n   code\n   ```\n\n```python\n# dags/a.py\n```\n")
    assert [(found.line, found.language, found.file_name) for found in blocks(page)] == [
        (3, "", None),
        (7, "python", "dags/a.py"),
    ]

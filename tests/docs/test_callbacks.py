"""What docs/batch.md and docs/testing.md say of Airflow's callbacks: who gets the provider's message."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs.example import Example
from tests.support.pages import PAGES, Block, blocks

BATCH = next(page for page in PAGES if page.name == "batch.md")
TELLS = next(block for block in blocks(BATCH) if "on_failure_callback" in block.code)


@pytest.fixture
def block() -> Block:
    """The DAG of "Be told of a failure"."""
    return TELLS


def run(example: Example, *changes: tuple[str, str]) -> tuple[str, str]:
    """Run the DAG with some of its text replaced; return the run's state, and what the callback was called with."""
    from airflow.dag_processing.dagbag import DagBag

    told = example.folder / "told"
    code = TELLS.code
    for old, new in (("print(", f"open({str(told)!r}, 'a').write('\\n' + "), ("retries=2", "retries=0"), *changes):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    bag = DagBag(example.write("dags/night_that_tells.py", code))
    assert not bag.import_errors
    (dag,) = bag.dags.values()
    result: Any = dag.test()
    return str(result.state), told.read_text() if told.exists() else ""


def test_a_night_with_all_songs_tells_nobody(example: Example) -> None:
    assert run(example) == ("success", "")


def test_the_callback_of_the_batch_gets_the_whole_message(example: Example) -> None:
    state, told = run(example, ("max_failures=1", "max_failures=0"), ("a tango", "a tango [sandbox:fail]"))
    assert state == "failed"
    assert "songs of " in told
    assert "1 of 2 songs failed, more than max_failures=0: 'a tango [sandbox:fail]" in told
    assert "The result of every song is in this task's XCom." in told


def test_a_failure_within_max_failures_is_told_by_the_task_after_the_batch(example: Example) -> None:
    state, told = run(example, ("a tango", "a tango [sandbox:fail]"))
    assert state == "failed"
    assert "no_song_is_missing of " in told
    assert "1 of 2 songs failed: 'a tango [sandbox:fail]" in told
    assert "songs of " not in told.replace("2 songs", "")


def test_a_callback_of_the_dag_does_not_get_the_message(example: Example) -> None:
    state, told = run(
        example,
        ('default_args={"on_failure_callback": tell}', "on_failure_callback=tell"),
        ("max_failures=1", "max_failures=0"),
        ("a tango", "a tango [sandbox:fail]"),
    )
    assert state == "failed"
    assert "has failed: None" in told

"""What Airflow reads of the decorators in a DAG file, and what is refused there."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_whisul.decorators.whisul import whisul_task
from airflow_provider_whisul.decorators.whisul_batch import whisul_batch_task
from airflow_provider_whisul.get_provider_info import get_provider_info
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.retry_policy import WHISUL_RETRY_POLICY

DECORATORS = {"whisul": whisul_task, "whisul_batch": whisul_batch_task}
each = pytest.mark.parametrize("decorator", DECORATORS.values(), ids=DECORATORS)


def song(mood: str = "slow") -> str:
    """Describe a song."""
    return f"a {mood} waltz"


def new_dag() -> DAG:
    return DAG("songs", schedule=None, start_date=datetime(2026, 1, 1))


def test_airflow_finds_them_by_their_names() -> None:
    assert {name: getattr(task, name) for name in DECORATORS} == DECORATORS


def test_the_provider_info_names_them() -> None:
    named = {}
    for entry in get_provider_info()["task-decorators"]:
        module, _, name = entry["class-name"].rpartition(".")
        named[entry["name"]] = getattr(importlib.import_module(module), name)
    assert named == DECORATORS


@each
def test_they_take_no_argument_or_all_of_the_operators(decorator: Any) -> None:
    with new_dag() as dag:
        decorator(song)()
        decorator(task_id="other", timeout=60, durable=False, whisul_conn_id="mine", retries=3)(song)()
    first, other = dag.tasks
    assert (first.task_id, first.timeout, first.doc_md) == ("song", 3600, "Describe a song.")
    assert (other.task_id, other.timeout, other.durable, other.whisul_conn_id, other.retries) == (
        "other",
        60,
        False,
        "mine",
        3,
    )
    assert getattr(first, "retry_policy", None) is WHISUL_RETRY_POLICY


def test_a_song_is_waited_for_unless_told_otherwise() -> None:
    assert whisul_task(song)().operator.wait_for_completion is True
    assert whisul_task(wait_for_completion=False)(song)().operator.wait_for_completion is False
    assert whisul_task(song)().operator.operator_extra_links == (WhisulSongLink(),)


@each
def test_one_decorator_gives_each_function_a_task_of_its_own_name(decorator: Any) -> None:
    def other() -> str:
        return "a tango"

    decorate = decorator(retries=1)
    with new_dag() as dag:
        decorate(song)()
        decorate(other)()
        decorate(song)()
    assert [task.task_id for task in dag.tasks] == ["song", "other", "song__1"]


@each
def test_arguments_of_the_function_are_rendered_and_its_result_is_not(decorator: Any) -> None:
    operator = decorator(song)("{{ ds }}").operator
    assert set(operator.template_fields) == {"op_args", "op_kwargs", "whisul_conn_id"}
    assert tuple(operator.template_ext) == ()


@each
@pytest.mark.parametrize(
    "refuse",
    [
        lambda decorator: decorator(poll_interval=1)(song),
        lambda decorator: decorator(song).override(timeout=-1),
        lambda decorator: decorator(on_ambiguous_submit="ask")(song),
        lambda decorator: decorator(song).override(skip_if_older_than=3),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(decorator: Any, refuse: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="poll_interval|timeout|on_ambiguous_submit|skip_if_older_than"):
        refuse(decorator)


def test_an_argument_of_the_batch_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="max_failures is -1"):
        whisul_batch_task(max_failures=-1)(song)


@each
@pytest.mark.parametrize("arguments", [{"deferable": False}, {"prompt": "x", "prompts": ["x"]}])
def test_an_argument_that_there_is_not_is_refused_also_where_the_task_is_mapped(
    decorator: Any, arguments: dict[str, Any]
) -> None:
    with new_dag():
        for use in (lambda decorated: decorated(), lambda decorated: decorated.expand(mood=["slow", "sad"])):
            with pytest.raises(Exception, match="nvalid arguments|unexpected|multiple values"):
                use(decorator(**arguments)(song))


@each
def test_an_async_function_is_refused(decorator: Any) -> None:
    async def compose() -> str:
        return "a waltz"

    async def improvise() -> Any:
        yield "a waltz"

    for function in (compose, improvise):
        with pytest.raises(TypeError, match=rf"no async function, which {function.__name__} is"):
            decorator(function)


def test_multiple_outputs_is_for_a_song_that_is_waited_for() -> None:
    assert whisul_task(multiple_outputs=True)(song)().operator.multiple_outputs is True
    for refused in (
        lambda: whisul_task(multiple_outputs=True, wait_for_completion=False)(song),
        lambda: whisul_task(multiple_outputs=True)(song).override(wait_for_completion=False),
        lambda: whisul_batch_task(multiple_outputs=True)(song),
    ):
        with pytest.raises(ValueError, match="multiple_outputs=True.*song is no dict"):
            refused()


def test_multiple_outputs_is_not_inferred_from_what_the_function_returns() -> None:
    def confused() -> dict[str, str]:
        return {}

    assert whisul_task(confused)().operator.multiple_outputs is False


def rendered(label: str, prompt: str) -> str:
    names = {"task": SimpleNamespace(prompt=prompt), "ti": SimpleNamespace(map_index=3)}
    return new_dag().get_template_env().from_string(label).render(dag=new_dag(), **names)


def test_mapped_songs_are_labelled_by_their_prompts_unless_the_user_labels_them() -> None:
    with new_dag():
        label = whisul_task(song).expand(mood=["slow"]).operator.partial_kwargs["map_index_template"]
        assert rendered(label, "") == "3"
        assert rendered(label, "a slow waltz") == "a slow waltz"
        mine = whisul_task(map_index_template="mine")(song).expand(mood=["slow"]).operator
        assert mine.partial_kwargs["map_index_template"] == "mine"
        assert whisul_task(song)("slow").operator.map_index_template is None
        assert whisul_batch_task(song).expand(mood=["slow"]).operator.partial_kwargs["map_index_template"] is None


@each
def test_a_mapped_task_takes_what_all_share_by_partial_and_override(decorator: Any) -> None:
    def described(mood: str, place: str) -> str:
        return f"{mood} {place}"

    with new_dag() as dag:
        decorator(described).override(task_id="mapped", timeout=60).partial(place="harbour").expand(
            mood=["slow", "sad"]
        )
    (mapped,) = dag.tasks
    assert (mapped.task_id, mapped.partial_kwargs["timeout"]) == ("mapped", 60)
    assert mapped.partial_kwargs["op_kwargs"] == {"place": "harbour"}


def test_the_example_in_the_documentation_is_a_dag() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "decorators.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@task.whisul" in code]
    names: dict[str, Any] = {}
    exec(code, names)
    with new_dag() as dag:
        song = names["song"].expand(place=["a lighthouse"])
        names["encores"](song)
    assert dag.get_task("encores").upstream_task_ids == {"song"}


def test_another_task_takes_the_song() -> None:
    with new_dag() as dag:

        @task
        def announce(song: dict[str, Any]) -> None: ...

        announce(whisul_task(song)())
    assert dag.get_task("announce").upstream_task_ids == {"song"}

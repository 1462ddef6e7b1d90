"""The labels of mapped tasks, rendered as Airflow renders them: Airflow fails a task whose label is no text."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.tracks.cards import PROMPT_VARIABLE

PROMPTS = [
    *(
        "a waltz",
        "1984",
        "7",
        "True",
        "None",
        "1, 2",
        "[1]",
        "{'a': 1}",
        "'quoted'",
        "\"quoted\" and 'so'",
        "3e5",
        "b'x'",
    ),
    *("lo-fi 🎵 für dich", "two\nlines", "{{ ds }}", "\\n", "\x00\x1b\ud800", "-1", "()"),
]


def label(dag: Any, mapped: Any, **context: Any) -> Any:
    template = dag.get_template_env().from_string(mapped.partial_kwargs["map_index_template"])
    return template.render({"dag": dag, **context})


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS, ids=ascii)
def test_a_label_is_the_prompt_in_every_dag(prompt: str, native: bool) -> None:
    with DAG("songs", render_template_as_native_obj=native, schedule=None) as dag:
        submit = WhisulGenerateOperator.partial(task_id="submit").expand(prompt=PROMPTS)
        wait = WhisulJobSensor.partial(task_id="wait").expand(job_id=["1984"])
    assert label(dag, submit, task=WhisulGenerateOperator(task_id="one", prompt=prompt)) == prompt
    sensor = WhisulJobSensor(task_id="one-more", job_id="1984")
    assert label(dag, wait, task=sensor, **{PROMPT_VARIABLE: prompt}) == prompt
    # Until the song is there.
    assert label(dag, wait, task=sensor) == "1984"


@pytest.mark.parametrize("native", [True, False])
def test_a_long_label_is_cut(native: bool) -> None:
    with DAG("songs", render_template_as_native_obj=native, schedule=None) as dag:
        submit = WhisulGenerateOperator.partial(task_id="submit").expand(prompt=["x"])
    rendered = label(dag, submit, task=WhisulGenerateOperator(task_id="one", prompt="\x00'word" * 100))
    assert isinstance(rendered, str)
    assert len(rendered) <= 60
    assert rendered.endswith("...")


def test_a_label_of_the_user_is_kept() -> None:
    with DAG("songs", schedule=None):
        mapped = WhisulGenerateOperator.partial(task_id="submit", map_index_template="{{ 1 }}").expand(prompt=["x"])
    assert mapped.partial_kwargs["map_index_template"] == "{{ 1 }}"

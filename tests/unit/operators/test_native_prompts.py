"""Prompts that Jinja reads as Python, in a DAG with ``render_template_as_native_obj``, as Airflow renders them."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.api.messages import generate_request
from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.operators.arguments import checked_prompts
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator


def rendered(operator: type, field: str, value: object, native: bool = True, **context: Any) -> Any:
    with DAG("songs", render_template_as_native_obj=native, schedule=None):
        task = operator(task_id="song", **{field: value})
    task.render_template_fields(context)
    return getattr(task, field)


NATIVE = ["1984", "{{ '1984' }}", "{{ year }}", "[1]", "None", "1, 2", "True"]


@pytest.mark.parametrize("prompt", NATIVE)
def test_a_prompt_that_becomes_another_type_is_refused_with_the_setting_and_the_mend(prompt: str) -> None:
    value = rendered(WhisulGenerateOperator, "prompt", prompt, year="1984")
    with pytest.raises(WhisulInvalidInputError) as caught:
        generate_request(value)
    assert f"must be a string, not {type(value).__name__}" in str(caught.value)
    assert "render_template_as_native_obj" in str(caught.value)
    assert """prompt="'1984'\"""" in str(caught.value)
    assert "{{ params.prompt | string | pprint }}" in str(caught.value)
    (value,) = rendered(WhisulGenerateBatchOperator, "prompts", [prompt], year="1984")
    with pytest.raises(WhisulInvalidInputError, match=r"prompts\[0\].*render_template_as_native_obj"):
        checked_prompts([value])


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        # The two ways that the message names.
        ("'1984'", "1984"),
        ("{{ params.prompt | string | pprint }}", "1984"),
        ("\"'quoted'\"", "'quoted'"),
        ("a song about 1984", "a song about 1984"),
    ],
)
def test_the_advice_of_that_message_makes_the_prompt_a_text(template: str, prompt: str) -> None:
    context = {"params": {"prompt": "1984"}}
    assert rendered(WhisulGenerateOperator, "prompt", template, **context) == prompt
    assert rendered(WhisulGenerateBatchOperator, "prompts", [template], **context) == [prompt]


@pytest.mark.parametrize(
    "prompt", [1984, "1984", "None", 'it\'s "1"', "two\nlines", "word " * 100, "lo-fi 🎵 für dich"], ids=ascii
)
def test_with_pprint_a_template_renders_to_any_prompt(prompt: object) -> None:
    context = {"params": {"prompt": prompt}}
    assert rendered(WhisulGenerateOperator, "prompt", "{{ params.prompt | string | pprint }}", **context) == str(prompt)


def test_in_other_dags_the_same_prompt_is_a_text() -> None:
    assert rendered(WhisulGenerateOperator, "prompt", "1984", native=False) == "1984"

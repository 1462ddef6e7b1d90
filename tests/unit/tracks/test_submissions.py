"""What the Tracks tab is told about the songs that a task has submitted."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_whisul.api.price import Price
from airflow_provider_whisul.exceptions import WhisulConfigurationError
from airflow_provider_whisul.tracks.submissions import push_submitted, submitted_key
from tests.support.airflow import TaskContext


def hook_with(price: object) -> Any:
    return SimpleNamespace(settings=SimpleNamespace(price_per_song=Price.parse(price)))


def test_the_key_holds_all_that_the_tab_counts_and_the_value_says_it_in_words() -> None:
    context = TaskContext()
    push_submitted(context, 3, hook_with("0.08 USD"))
    assert context.xcoms == {"whisul_submitted_3_0.08_USD": "3 songs (0.24 USD)"}


@pytest.mark.parametrize(
    ("price", "key"),
    [
        (0.08, "whisul_submitted_2_0.08_"),
        ("0.10 USD", "whisul_submitted_2_0.10_USD"),
        ("1 credit", "whisul_submitted_2_1_credit"),
        ("0.08 €", "whisul_submitted_2_0.08_-E2-82-AC"),
        (1e-07, "whisul_submitted_2_0.0000001_"),
        (1_000_000, "whisul_submitted_2_1000000_"),
    ],
)
def test_a_key_has_only_characters_that_every_airflow_can_put_into_a_url(price: object, key: str) -> None:
    parsed = Price.parse(price)
    assert parsed is not None
    assert submitted_key(2, parsed) == key
    assert re.fullmatch(r"[\w.-]+", key, re.ASCII)


def test_songs_are_counted_where_no_price_is_known_too() -> None:
    context = TaskContext()
    push_submitted(context, 3, hook_with(None))
    assert context.xcoms == {"whisul_submitted_3": "3 songs"}


def test_nothing_is_pushed_where_nothing_was_submitted() -> None:
    context = TaskContext()
    push_submitted(context, 0, hook_with("0.08 USD"))
    assert context.xcoms == {}


class _BrokenXComs(TaskContext):
    def xcom_push(self, key: str, value: Any) -> None:
        raise RuntimeError("the database is away")


class _BrokenHook:
    @property
    def settings(self) -> Any:
        raise WhisulConfigurationError("There is no such connection.")


@pytest.mark.parametrize(
    ("context", "hook"), [(_BrokenXComs(), hook_with("0.08 USD")), (TaskContext(), _BrokenHook())], ids=["xcom", "hook"]
)
def test_a_task_continues_although_its_count_cannot_be_pushed(
    context: TaskContext, hook: Any, task_log: Callable[[], list[str]]
) -> None:
    push_submitted(context, 3, hook)
    assert "The Tracks tab will not count what this task has submitted. The task continues." in task_log()

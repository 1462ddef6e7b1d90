"""Prompts from files beside the DAG, as Airflow finds, reads and renders them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG
from jinja2 import TemplateNotFound

from airflow_provider_whisul.exceptions import WhisulError, WhisulInvalidInputError
from airflow_provider_whisul.operators.prompts_file import parse_prompts
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox
from tests.integration.operators.batch_task import BatchTask, MakeBatch, Simulate
from tests.integration.operators.song_task import SongTask
from tests.support.airflow import Deferral, TaskContext
from tests.support.clock import FakeClock

#: Airflow's context, as far as templates ask for it.
CONTEXT = {"params": {"city": "Oslo", "quoted": 'Oslo"}\n{"prompt": "a second song'}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """Write a file beside the DAG."""
    return lambda name, content: (tmp_path / name).write_bytes(content.encode())


def in_a_dag(folder: Path) -> DAG:
    """Return a DAG whose templates are in a folder."""
    return DAG("songs", schedule=None, start_date=datetime(2026, 1, 1), template_searchpath=[str(folder)])


def rendered(folder: Path, task: Any) -> Any:
    """Do what Airflow does with a task: once when it reads the DAG file, and once when the task runs."""
    dag = task.dag = in_a_dag(folder)
    dag.resolve_template_files()
    task.render_template_fields(CONTEXT, dag.get_template_env())
    return task


def rendered_mapped(folder: Path, mapped: Any, **arguments: Any) -> Any:
    """Do the same with one of the tasks of a mapped one, which Airflow makes only when it runs."""
    dag = in_a_dag(folder)
    mapped.dag = dag
    dag.resolve_template_files()
    task = mapped.unmap(arguments)
    task.render_template_fields(CONTEXT, dag.get_template_env())
    return task


class TestPromptFile:
    def prompt(self, tmp_path: Path, name: str = "night.prompt") -> Any:
        return rendered(tmp_path, WhisulGenerateOperator(task_id="song", prompt=name)).prompt

    def test_the_file_holds_the_prompt_as_a_template(self, tmp_path: Path, write: Callable[[str, str], None]) -> None:
        write("night.prompt", "a nocturne\nfor {{ params.city }}")
        assert self.prompt(tmp_path) == "a nocturne\nfor Oslo"

    def test_the_line_break_at_the_end_of_the_file_is_no_part_of_the_prompt(
        self, tmp_path: Path, write: Callable[[str, str], None]
    ) -> None:
        """An editor that adds one between two tries must not make another song of it."""
        prompts = set()
        for end in ("", "\n", "\r\n"):
            write("night.prompt", f"a nocturne{end}")
            prompts.add(self.prompt(tmp_path))
        assert prompts == {"a nocturne"}

    def test_a_mapped_task_reads_its_file(self, tmp_path: Path, write: Callable[[str, str], None]) -> None:
        write("night.prompt", "a nocturne for {{ params.city }}\n")
        mapped = WhisulGenerateOperator.partial(task_id="song").expand(prompt=["night.prompt"])
        assert rendered_mapped(tmp_path, mapped, prompt="night.prompt").prompt == "a nocturne for Oslo"

    def test_a_file_that_is_not_there_fails_the_task_before_it_runs(self, tmp_path: Path) -> None:
        with pytest.raises(TemplateNotFound, match=r"night\.prompt"):
            self.prompt(tmp_path)

    def test_an_empty_file_is_refused(
        self, tmp_path: Path, write: Callable[[str, str], None], sandbox: Sandbox, clock: FakeClock
    ) -> None:
        write("night.prompt", "\n")
        with pytest.raises(WhisulInvalidInputError, match="The prompt is empty"):
            SongTask(clock, prompt=self.prompt(tmp_path)).attempt()
        assert sandbox.requests == []

    def test_a_prompt_that_merely_speaks_of_such_a_file_is_sent_as_it_is(self, tmp_path: Path) -> None:
        assert self.prompt(tmp_path, "a song about night.prompt files") == "a song about night.prompt files"


@pytest.mark.parametrize(
    ("operator", "argument", "name"),
    [
        (WhisulGenerateOperator, "prompt", "night.prompt"),
        (WhisulGenerateBatchOperator, "prompts", "night.prompts.jsonl"),
    ],
)
class TestANameThatIsNoTextOfTheDag:
    def test_what_another_task_has_returned_to_a_mapped_one_is_no_file(
        self, tmp_path: Path, write: Callable[[str, str], None], operator: Any, argument: str, name: str
    ) -> None:
        write(name, '"a song"\n')
        dag = in_a_dag(tmp_path)
        task = operator(task_id="song", dag=dag, **{argument: "x"})
        assert task.render_template(name, CONTEXT, dag.get_template_env(), {id(name)}) == name

    def test_what_a_template_renders_to_is_no_file(
        self, tmp_path: Path, write: Callable[[str, str], None], operator: Any, argument: str, name: str
    ) -> None:
        write(name, '"a song"\n')
        task = operator(task_id="song", **{argument: f"{{{{ '{name}' }}}}"})
        assert getattr(rendered(tmp_path, task), argument) == name


class TestPromptsFile:
    def prompts(self, tmp_path: Path, name: str = "night.prompts.jsonl") -> Any:
        return rendered(tmp_path, WhisulGenerateBatchOperator(task_id="songs", prompts=name)).prompts

    def test_each_line_is_a_prompt_and_a_template(self, tmp_path: Path, write: Callable[[str, str], None]) -> None:
        write(
            "night.prompts.jsonl",
            '"a nocturne for {{ params.city }}"\r\n\n{"prompt": "a waltz\\nin three parts", "shop": 7}\n  \n',
        )
        assert self.prompts(tmp_path) == ["a nocturne for Oslo", "a waltz\nin three parts"]

    def test_what_a_template_renders_to_makes_no_second_prompt(
        self, tmp_path: Path, write: Callable[[str, str], None]
    ) -> None:
        write("night.prompts.jsonl", '{"prompt": "a song for {{ params.quoted }}"}')
        assert self.prompts(tmp_path) == [f"a song for {CONTEXT['params']['quoted']}"]

    def test_a_mapped_task_reads_its_file(self, tmp_path: Path, write: Callable[[str, str], None]) -> None:
        write("night.prompts.jsonl", '"a song"\n')
        mapped = WhisulGenerateBatchOperator.partial(task_id="songs").expand(prompts=["night.prompts.jsonl"])
        assert rendered_mapped(tmp_path, mapped, prompts="night.prompts.jsonl").prompts == ["a song"]

    def test_prompts_that_are_a_list_or_a_template_are_rendered_as_before(self, tmp_path: Path) -> None:
        task = WhisulGenerateBatchOperator(task_id="songs", prompts=["for {{ params.city }}", "a song"])
        assert rendered(tmp_path, task).prompts == ["for Oslo", "a song"]

    @pytest.mark.parametrize(
        ("line", "shown"),
        [
            ("a trap song", "a trap song"),
            ('"a trap song', '"a trap song'),
            ('{"promt": "a song"}', '{"promt": "a song"}'),
            ('{"prompt": ["a song"]}', '{"prompt": ["a song"]}'),
            ('["a song"]', '["a song"]'),
            ("1984", "1984"),
            ('""', '""'),
            ('{"prompt": " "}', '{"prompt": " "}'),
            ("[" * 100_000, "[" * 59 + "…"),
        ],
    )
    def test_a_line_that_is_no_prompt_is_refused_with_its_number_and_nothing_is_sent(
        self,
        tmp_path: Path,
        write: Callable[[str, str], None],
        sandbox: Sandbox,
        line: str,
        shown: str,
    ) -> None:
        write("night.prompts.jsonl", f'"a song"\n\n{line}\n"another song"\n')
        task = rendered(tmp_path, WhisulGenerateBatchOperator(task_id="songs", prompts="night.prompts.jsonl"))
        with pytest.raises(WhisulInvalidInputError) as refused:
            TaskContext().run(task)
        assert str(refused.value).startswith(f"Line 3 of night.prompts.jsonl is no prompt: {shown} Nothing was sent.")
        assert sandbox.requests == []

    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "there is none of that name"), (b"\xff\xfe\x00", "UnicodeDecodeError")]
    )
    def test_a_file_that_cannot_be_read_fails_the_task_and_nothing_is_sent(
        self, tmp_path: Path, sandbox: Sandbox, content: bytes | None, reason: str
    ) -> None:
        if content is not None:
            (tmp_path / "night.prompts.jsonl").write_bytes(content)
        task = rendered(tmp_path, WhisulGenerateBatchOperator(task_id="songs", prompts="night.prompts.jsonl"))
        with pytest.raises(WhisulError, match=f"prompts.jsonl cannot be read: {reason}. Nothing was sent") as caught:
            TaskContext().run(task)
        assert not isinstance(caught.value, WhisulInvalidInputError)
        assert sandbox.requests == []

    def test_an_empty_file_is_an_empty_list(self, tmp_path: Path, write: Callable[[str, str], None]) -> None:
        write("night.prompts.jsonl", "\n")
        assert self.prompts(tmp_path) == []

    def test_a_separator_of_unicode_in_a_string_ends_no_line(self) -> None:
        assert parse_prompts('\ufeff"one\u2028two\x85"\n"three"', "x") == ["one\u2028two\x85", "three"]

    def test_a_file_that_is_broken_or_removed_while_the_task_waits_costs_nothing(
        self, simulate: Simulate, tmp_path: Path
    ) -> None:
        file = tmp_path / "night.prompts.jsonl"

        def render_from_file(batch: BatchTask) -> None:
            make_operator = batch.operator
            batch.operator = lambda: rendered(tmp_path, make_operator())  # type: ignore[method-assign]

        async def main(make: MakeBatch) -> None:
            for number, spoil in enumerate((lambda: file.write_text("no JSON"), file.unlink), start=1):
                file.write_text('"one"\n"two"\n')
                batch = make("night.prompts.jsonl")  # type: ignore[arg-type]
                render_from_file(batch)
                wait = batch.wait

                async def spoiled(deferral: Deferral, wait: Any = wait, spoil: Any = spoil) -> Any:
                    if file.exists():
                        spoil()
                    return await wait(deferral)

                batch.wait = spoiled  # type: ignore[method-assign]
                results = await asyncio.wait_for(batch.attempt(), 7200)
                assert [result["prompt"] for result in results] == ["one", "two"]
                assert [result["status"] for result in results] == ["completed"] * 2
                assert batch.posts() == {"one": number, "two": number}

        simulate(main)

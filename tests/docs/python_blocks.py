"""How a block of Python is run: as a file of DAGs, as tests, or inside of a DAG. The shape of a result is read."""

from __future__ import annotations

import ast
import builtins
import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.state.batch_song import BatchResult
from airflow_provider_whisul.storage.manifest import Manifest, StoredFile, StoredSong
from tests.docs.example import Example
from tests.support.pages import REPOSITORY

#: The names that a fragment may use without an import or a definition of its own, and what defines them.
IMPORTED = """
from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, Asset, dag, task

from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
"""
DEFINED = {
    "PROMPTS": 'PROMPTS = ["a slow waltz for a rainy harbour", "dark trap with a choir, 140 bpm"]',
    "prompts": 'prompts = ["a slow waltz for a rainy harbour", "dark trap with a choir, 140 bpm"]',
    "submit": 'submit = WhisulGenerateOperator(task_id="before_submit", prompt="a waltz")',
    "song": 'song = WhisulGenerateOperator(task_id="before_song", prompt="a waltz", wait_for_completion=True)',
    "songs": 'songs = WhisulGenerateBatchOperator(task_id="before_songs", prompts=["a waltz", "a polka"])',
    "KEPT": 'KEPT = Asset("whisul://kept-songs")\n'
    'before_kept = WhisulGenerateOperator(task_id="before_kept", prompt="a waltz", wait_for_completion=True)\n'
    'WhisulToObjectStorageOperator(task_id="before_keep", songs=before_kept.output, outlets=[KEPT],\n'
    '                              destination="s3://before/songs/{{ run_id }}")',
    "monkeypatch": "import pytest\nmonkeypatch = pytest.MonkeyPatch()",
}
#: What the ids of the tasks above begin with.
BEFORE = "before_"

#: The results that a page may show: the keys of each, whole. The last one is the `extra` of an asset event.
SHAPES: tuple[frozenset[str], ...] = (
    *(frozenset(shape.__annotations__) for shape in (Song, BatchResult, Manifest, StoredSong, StoredFile)),
    frozenset({"destination", "manifest", "count", "failed", "titles"}),
)

TEST_TIMEOUT = 250

#: Where a fragment finds its prompt files.
EXAMPLE_DAGS = REPOSITORY / "example_dags"


def run_python(example: Example) -> None:
    """Run a block of Python, or read it where it is the shape of a result."""
    code = example.block.code
    if shapes := list(shapes_of(code)):
        for shape in shapes:
            assert shape in SHAPES, f"No result has exactly the keys {sorted(shape)}."
        return
    tree = ast.parse(code)
    if any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree)):
        run_tests(example)
    elif defines_dags(tree):
        run_dags(example.write(example.block.file_name or "dags/example.py", code))
    elif example.block.file_name:
        runpy.run_path(str(example.folder / example.block.file_name))
    else:
        run_fragment(example, tree)


def shapes_of(code: str) -> Iterator[frozenset[str]]:
    """Yield the keys of each outermost dict, where a block is a dict or a list of dicts in which ``…`` is left out."""
    try:
        value = ast.parse(code.replace("…", "..."), mode="eval").body
    except SyntaxError:
        return
    for item in value.elts if isinstance(value, ast.List) else [value]:
        if isinstance(item, ast.Dict):
            yield frozenset(ast.literal_eval(key) for key in item.keys if key is not None)


def defines_dags(tree: ast.Module) -> bool:
    """Return whether some code defines a DAG of its own."""
    return any(
        isinstance(node, ast.Name) and node.id in ("DAG", "dag") and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )


def run_tests(example: Example) -> None:
    """Run a block with tests by pytest, beside the other files of its page."""
    path = example.write(example.block.file_name or "test_example.py", example.block.code)
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.docs.hasty_clock", f"--rootdir={example.folder}"]
    command = [sys.executable, "-m", "pytest", *options, str(path)]
    finished = subprocess.run(
        command,
        cwd=example.folder,
        env=example.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TEST_TIMEOUT,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout


def run_dags(path: Path) -> None:
    """Load the DAGs of a file, and run each of them once, in the order of the file."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(path)
    assert not bag.import_errors, "\n".join(bag.import_errors.values())
    assert bag.dags, "The file defines no DAG."
    for found in bag.dags.values():
        run_dag(found)


def run_dag(found: Any) -> None:
    """Run a DAG once, without retries: an example must not need one."""
    for task in found.tasks:
        if task.is_mapped:
            task.partial_kwargs["retries"] = 0
        else:
            task.retries = 0
    run = found.test()
    states = {f"{ti.task_id}[{ti.map_index}]": ti.state for ti in run.get_task_instances()}
    assert run.state == "success", states


def run_fragment(example: Example, tree: ast.Module) -> None:
    """Run a fragment inside of a DAG, and then the tasks that it has defined."""
    text = example.write("fragment.py", fragment_file(example.block.code, tree))
    before = dict(os.environ)
    working_folder = Path.cwd()
    try:
        os.chdir(example.folder)
        fragment = runpy.run_path(str(text))["fragment"]
        if fragment.tasks:
            text.rename(example.folder / "dags" / "fragment.py")
            run_dags(example.folder / "dags" / "fragment.py")
    finally:
        os.chdir(working_folder)
        os.environ.clear()
        os.environ.update(before)


def fragment_file(code: str, tree: ast.Module) -> str:
    """Return the file that a fragment is run as."""
    unbound = unbound_names(tree)
    defined = [text for name, text in DEFINED.items() if name in unbound]
    calls = [f"{name}()" for name in uncalled_tasks(tree)]
    body = "\n".join([*defined, code, *calls])
    return f"""{IMPORTED}
prompt_files = {os.fspath(EXAMPLE_DAGS)!r}
with DAG("fragment", schedule=None, start_date=datetime(2026, 1, 1), template_searchpath=prompt_files) as fragment:
{textwrap.indent(body, "    ")}
    for later in fragment.tasks:
        for earlier in fragment.tasks:
            if earlier.task_id.startswith({BEFORE!r}) and not later.task_id.startswith({BEFORE!r}):
                earlier >> later
"""


def unbound_names(tree: ast.Module) -> set[str]:
    """Return the names that some code uses, and neither defines nor imports."""
    loaded: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return loaded - bound - set(dir(builtins))


def uncalled_tasks(tree: ast.Module) -> list[str]:
    """Return the functions that are tasks, need no arguments, and are not called by the fragment itself."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.decorator_list
        and node.name not in used
        and len(node.args.args) == len(node.args.defaults)
    ]

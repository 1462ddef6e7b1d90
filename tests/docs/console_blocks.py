"""How a block of commands is run: in a folder of its own against the sandbox, but for commands that a suite runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

from tests.docs.data_blocks import check_connection
from tests.docs.example import Example
from tests.support.pages import REPOSITORY

#: The commands that are run here, against the sandbox.
HERE = (
    r"export ",
    r"python -m airflow_provider_whisul\.(ledger|limiter)\b",
    r"python -c ",
    r"airflow (config|connections|db|info|pools|providers|variables|version)\b",
    r"(cat|cd|echo|ls|mkdir) (?!/)",
)
#: The command that serves until it is stopped.
SANDBOX = r"python -m airflow_provider_whisul\.sandbox\b"
#: The commands that are too large for here, and what runs them: a file or folder of the repository.
ELSEWHERE = {
    r"make ": "Makefile",
    r"\.ci/run( --all)?$": ".ci/run",
    r"pip (install|wheel)( --\S+( dist)?)* (\.|dist/airflow_provider_whisul-\*\.whl)$": "dev/make_venv.sh",
    r"python3 -m venv [\w-]+$": "dev/make_venv.sh",
    r"\. [\w-]+/bin/activate$": "dev/make_venv.sh",
    r"pip install \"apache-airflow==[\d.]+\" \. --constraint constraints/airflow-[\d.]+\.txt$": "dev/make_venv.sh",
    # The DAG is on the same page.
    r"airflow dags test \w+$": "tests/docs/python_blocks.py",
    r"ls /tmp/whisul-songs/\*$": "tests/docs/python_blocks.py",
    r"airflow standalone$": "dev/airflow_runner/local.py",
    r"airflow triggerer( --queues [\w,]+)?$": "dev/airflow_runner/cluster.py",
    r"pip wheel --no-deps --wheel-dir docs/compose/dist \.$": "dev/make_venv.sh",
    r"cp example_dags/whisul_nightly_songs\.py docs/compose/dags/$": "docs/compose/dags",
    r"(printf '%s\\n' WHISUL_API_KEY=|docker compose )": "tests/unit/docs_operations/test_compose.py",
    r"pipx install pre-commit && pre-commit install$": ".pre-commit-config.yaml",
    r"(WHISUL_CAMPAIGN_SEEDS=\d+ )?\.venv/bin/python -m pytest tests/": "tests",
    r"python -m benchmarks\.": "tests/unit/dev/test_benchmark_commands.py",
    r"grep -l '\"task_id\": \"song\"' whisul_state/records/\*\.json$": "tests/unit/state/test_folder_state_store.py",
}

TIMEOUT = 250
_CONNECTION = re.compile(r"export (AIRFLOW_CONN_\w+)=")


def run_console(example: Example) -> None:
    """Run the commands of a block, or check that a suite of the repository runs them."""
    script = []
    for command in commands(example.block.code):
        if re.match(SANDBOX, command):
            serve(example, command)
        elif connection := _CONNECTION.match(command):
            ((_, value),) = [word.split("=", 1) for word in shlex.split(command)[1:]]
            check_connection(value)
            # It leads to Whisul itself, or holds a placeholder: the sandbox's connection stays.
            if connection[1] != "AIRFLOW_CONN_WHISUL_DEFAULT":
                script.append(command)
        elif any(re.match(pattern, command) for pattern in HERE):
            script.append(command)
        else:
            check_elsewhere(command)
    if script:
        run(example, script)


def commands(code: str) -> Iterator[str]:
    """
    Yield each command of a block, without its comment.

    Where lines begin with ``$``, these are the commands, and the others are what they print.
    """
    lines = code.splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    command = ""
    for line in lines:
        command += line
        if heredoc := re.search(r"<<'?(\w+)", command):
            if line == heredoc[1]:
                yield command
                command = ""
            else:
                command += "\n"
            continue
        if command.endswith("\\"):
            command = command[:-1] + " "
            continue
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            # A quotation that goes on in the next line.
            command += "\n"
            continue
        if words:
            yield re.sub(r"\s+#\s.*$", "", command).strip()
        command = ""
    assert not command, f"The last command is not complete: {command}"


def run(example: Example, script: list[str]) -> None:
    """Run commands one after the other in one shell."""
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(example.localize(command) for command in script)],
        cwd=example.folder,
        env=example.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout


def serve(example: Example, command: str) -> None:
    """Start a sandbox as a command says, and stop it once it serves."""
    arguments = shlex.split(command, comments=True)[1:]
    if "--port" in arguments:
        # Another process may have it.
        arguments[arguments.index("--port") + 1] = "0"
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=example.folder,
        env=example.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Whisul sandbox: http://127.0.0.1:")
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT)


def check_elsewhere(command: str) -> None:
    """Check that a command is one that the repository runs elsewhere, and that it names what there is."""
    found = [place for pattern, place in ELSEWHERE.items() if re.match(pattern, command)]
    assert found, f"No rule in tests/docs/console_blocks.py says where this command is run: {command}"
    assert (REPOSITORY / found[0]).exists(), found[0]
    for word in shlex.split(command):
        if word.startswith(("airflow_provider_whisul/", "constraints/", "example_dags/", "tests/")):
            assert (REPOSITORY / word).exists(), word
    if command.startswith("make "):
        targets = {word for word in shlex.split(command)[1:] if not re.match(r"-|[A-Z_]+=", word)}
        assert targets <= set(make_targets()), targets


def make_targets() -> Iterator[str]:
    """Yield the commands of the Makefile, and those of one version."""
    versions = [path.stem.removeprefix("airflow-") for path in (REPOSITORY / "constraints").glob("airflow-*.txt")]
    for name in re.findall(r"^([a-z][\w.-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE):
        yield name
        yield from (f"{name}-{version}" for version in versions)

"""A stock Airflow with the wheel, used from an empty folder as a user does who has no checkout."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.version import Version

from dev.dist import bare_python

_VERSIONS = sorted(
    (path.stem.removeprefix("airflow-") for path in (Path(__file__).parents[2] / "constraints").glob("airflow-*.txt")),
    key=Version,
)
STOCK_AIRFLOWS = [_VERSIONS[0], _VERSIONS[-1]]

#: Seconds that a command may take. Airflow starts slowly on a busy machine.
TIMEOUT = 600.0


class StockAirflow:
    """
    The Airflow of an environment that ``make dist`` has made.

    :param version: Its version.
    :param folder: An empty folder.
    """

    def __init__(self, version: str, folder: Path) -> None:
        self.version = version
        self.python = bare_python(version)
        self.folder = folder
        self.dags = folder / "dags"
        self.dags.mkdir()
        self.cwd = folder / "empty"
        self.cwd.mkdir()

    def env(self, home: Path, **more: str) -> dict[str, str]:
        """
        Return the variables of a process: a user's, who has set nothing else.

        :param home: Airflow's home.
        """
        return {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PATH": f"{self.python.parent}{os.pathsep}{os.defpath}",
            "TMPDIR": str(self.folder),
            **more,
        }

    @cached_property
    def home(self) -> Path:
        """A home of Airflow with a database."""
        home = self.folder / "home"
        self.output("airflow", "db", "migrate", home=home)
        return home

    def copy_of_home(self, name: str) -> Path:
        """Return another home of Airflow, with an empty database of its own."""
        # The path of the database is in the configuration file, which is written anew.
        home = self.folder / name
        shutil.copytree(self.home, home, ignore=shutil.ignore_patterns("airflow.cfg", "logs"))
        return home

    def output(self, *command: str, home: Path | None = None) -> str:
        """Run a command of the environment, and return what it prints."""
        run = subprocess.run(
            command,
            cwd=self.cwd,
            env=self.env(home or self.home),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert run.returncode == 0, f"{shlex.join(command)}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def json(self, *command: str) -> Any:
        """Return the JSON that a command of Airflow prints, without the log lines around it."""
        output = self.output("airflow", *command, "--output", "json")
        (line,) = [line for line in output.splitlines() if line.startswith("[{")]
        return json.loads(line)

    @contextmanager
    def start(self, *command: str, home: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command of the environment, and end it when the block is left."""
        process = subprocess.Popen(
            command,
            cwd=self.cwd,
            env=self.env(home, **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    @contextmanager
    def sandbox(self, requests: Path) -> Iterator[Mapping[str, str]]:
        """
        Run the sandbox's command; yield the variable that makes ``whisul_default`` lead to it.

        :param requests: The file to which each request is written, as a line of JSON.
        """
        command = ["python", "-m", "airflow_provider_whisul.sandbox", "--job-seconds", "1", "2"]
        with self.start(*command, "--request-log", str(requests), home=self.home) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("export "):
                    name, _, value = shlex.split(line)[1].partition("=")
                    yield {name: value}
                    return
            raise AssertionError("the sandbox has ended")

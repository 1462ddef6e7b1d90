"""Where a task waits: what its author says, else what Airflow's configuration says, else in the triggerer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred, conf

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from tests.integration.operators.batch_task import MakeBatch, Simulate, numbered_prompts
from tests.integration.operators.song_task import MakeTask
from tests.support.airflow import TaskContext
from tests.support.clock import FakeClock

VARIABLE = "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE"


@pytest.fixture
def airflow_cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let Airflow read this too, as if it were in ``airflow.cfg``."""

    def read(text: str) -> None:
        (tmp_path / "airflow.cfg").write_text(text)
        conf.read(tmp_path / "airflow.cfg")

    monkeypatch.setattr("airflow_provider_whisul.operators.arguments.AIRFLOW_CONFIG", str(tmp_path / "airflow.cfg"))
    yield read
    for option in ("default_deferrable", "default_owner"):
        conf.remove_option("operators", option, remove_default=False)


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the ``airflow.cfg`` that Airflow writes where there is none."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "airflow", "config", "get-value", "core", "parallelism"]
    subprocess.run(command, env={**os.environ, "AIRFLOW_HOME": str(home)}, check=True, capture_output=True)
    return (home / "airflow.cfg").read_text()


@pytest.fixture(params=["airflow.cfg", "environment"])
def set_default(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, airflow_cfg: Callable[[str], None]
) -> Callable[[str], None]:
    """Set ``default_deferrable`` in each of the places where a user can."""

    def set_default(value: str) -> None:
        if request.param == "environment":
            monkeypatch.setenv(VARIABLE, value)
        else:
            airflow_cfg(f"[operators]\ndefault_deferrable = {value}\n")

    return set_default


OPERATORS: list[Callable[..., Any]] = [
    lambda **arguments: WhisulGenerateOperator(task_id="song", prompt="a song", **arguments),
    lambda **arguments: WhisulJobSensor(task_id="song", job_id="some-job", **arguments),
    lambda **arguments: WhisulGenerateBatchOperator(task_id="song", prompts=["a song"], **arguments),
]
by_operator = pytest.mark.parametrize("make", OPERATORS, ids=["song", "sensor", "batch"])


@by_operator
class TestTheDefault:
    def test_it_is_the_triggerer_where_the_user_has_set_nothing(self, make: Callable[..., Any]) -> None:
        # Airflow's own default is the worker.
        assert conf.getboolean("operators", "default_deferrable") is False
        assert make().deferrable is True

    def test_it_is_the_triggerer_with_the_file_that_airflow_itself_writes(
        self, make: Callable[..., Any], airflow_cfg: Callable[[str], None], own_file: str
    ) -> None:
        assert "\ndefault_deferrable = false\n" in own_file
        airflow_cfg(
            own_file[own_file.index("[operators]") : own_file.index("\n\n", own_file.index("default_deferrable ="))]
        )
        assert make().deferrable is True

    @pytest.mark.parametrize("value", ["True", "False"])
    def test_it_is_what_the_user_has_set(
        self, make: Callable[..., Any], set_default: Callable[[str], None], value: str
    ) -> None:
        set_default(value)
        assert make().deferrable is (value == "True")

    def test_the_environment_counts_before_the_file(
        self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, airflow_cfg: Callable[[str], None]
    ) -> None:
        airflow_cfg("[operators]\ndefault_deferrable = False\n")
        monkeypatch.setenv(VARIABLE, "True")
        assert make().deferrable is True

    def test_another_option_of_the_section_says_nothing(
        self, make: Callable[..., Any], airflow_cfg: Callable[[str], None]
    ) -> None:
        airflow_cfg("[operators]\ndefault_owner = somebody\n")
        assert make().deferrable is True

    def test_what_is_no_boolean_is_refused_when_the_dag_file_is_read(
        self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, "perhaps")
        # Its class is another one on each Airflow.
        with pytest.raises(Exception, match="default_deferrable.*perhaps"):
            make()

    def test_what_the_author_says_counts_before_it(
        self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, "False")
        assert make(deferrable=True).deferrable is True
        monkeypatch.setenv(VARIABLE, "True")
        assert make(deferrable=False).deferrable is False


@by_operator
def test_an_argument_that_is_no_boolean_is_refused_when_the_dag_file_is_read(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="deferrable is 'no'; it must be True, False, or None"):
        make(deferrable="no")


@pytest.mark.parametrize(("value", "defers"), [(None, True), ("True", True), ("False", False)])
class TestATask:
    @pytest.fixture(autouse=True)
    def _default(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        if value is not None:
            monkeypatch.setenv(VARIABLE, value)

    @pytest.mark.parametrize("home", ["folder"], indirect=True)
    def test_of_one_song(self, task: MakeTask, defers: bool) -> None:
        outcome = task(wait_for_completion=True).attempt()
        assert isinstance(outcome, dict) is not defers

    def test_of_a_sensor(self, sandbox: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, defers: bool) -> None:
        monkeypatch.setattr("time.sleep", clock.sleep)
        sensor = WhisulJobSensor(task_id="song", job_id="some-job")
        sensor.clock = clock.clock
        sensor.job_id = sensor.hook.generate("a song")
        if defers:
            with pytest.raises(TaskDeferred):
                TaskContext().run(sensor)
        else:
            assert TaskContext().run(sensor)["prompt"] == "a song"

    def test_of_a_batch(self, simulate: Simulate, defers: bool) -> None:
        async def main(make: MakeBatch) -> None:
            batch = make(numbered_prompts(3))
            assert {result["status"] for result in await batch.attempt()} == {"completed"}
            assert bool(batch.triggers) is defers

        simulate(main)

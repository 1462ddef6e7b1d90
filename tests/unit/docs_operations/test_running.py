"""docs/running.md names commands, options and figures that there are."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml
from airflow.models.pool import Pool

from airflow_provider_whisul.get_provider_info import get_provider_info
from airflow_provider_whisul.state.retention import LEDGER_DAYS, RECORD_DAYS

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "running.md").read_text()
PROSE = " ".join(PAGE.split())
BENCHMARKS = (REPOSITORY / "docs" / "benchmarks.md").read_text()


def cell(row: str, column: int) -> str:
    """Return a cell of the benchmarks' tables, by the beginning of its row."""
    (line,) = [line for line in BENCHMARKS.splitlines() if line.startswith(f"| {row}")]
    return line.split("|")[column].strip()


def test_a_poll_costs_what_the_page_says() -> None:
    assert "less than a millisecond per poll" in PROSE
    assert "1,000 songs that are polled every 10 s take less than a tenth of a core" in PROSE
    milliseconds = float(cell("`WhisulGenerateOperator`, `WhisulJobSensor` |", 2).removesuffix(" ms"))
    assert milliseconds < 1
    assert 1_000 / 10 * milliseconds / 1_000 < 0.1


def test_task_processes_are_those_that_were_measured() -> None:
    songs = int(cell("`WhisulGenerateOperator` with `expand`", 2))
    assert int(cell("`WhisulGenerateOperator` with `expand`", 7)) == pytest.approx(2 * songs, rel=0.05)
    assert int(cell("the same, not waiting, and `WhisulJobSensor`", 7)) == pytest.approx(3 * songs, rel=0.05)
    assert cell("`WhisulGenerateBatchOperator` | 60", 7) == "2"
    assert "| a mapped song that waits in the triggerer | 2 | none |" in PAGE
    assert "| a mapped song in two tasks, of which a sensor waits | 3 | none |" in PAGE
    assert "| a batch in the triggerer | 2, and 2 more for each report" in PAGE


def test_a_second_of_cpu_for_a_mapped_song_and_a_fifth_for_one_of_a_batch() -> None:
    assert "a second of CPU for a mapped song, a fifth of it for one of a batch" in PROSE
    mapped, batch = (
        float(cell(row, 6).removesuffix(" s"))
        for row in ("`WhisulGenerateOperator` with `expand`", "`WhisulGenerateBatchOperator` | 60")
    )
    assert 0.7 < mapped < 1.3
    assert 0.1 < batch / mapped < 0.3


def test_the_defaults_are_airflows() -> None:
    from airflow.configuration import conf

    assert conf.get_default_value("triggerer", "capacity") == "1000"
    assert "1,000 unless set: `[triggerer] capacity`" in PAGE
    assert float(conf.get_default_value("triggerer", "triggerer_health_check_threshold")) == 30
    assert "`[triggerer] triggerer_health_check_threshold` (30 s)" in PROSE
    assert float(conf.get_default_value("scheduler", "task_instance_heartbeat_timeout")) == 300
    assert "300 s unless set" in PAGE
    # What troubleshooting.md says.
    assert float(conf.get_default_value("dag_processor", "refresh_interval")) == 300


def test_a_pool_can_count_deferred_tasks() -> None:
    assert "--include-deferred" in PAGE
    assert "include_deferred" in inspect.signature(Pool.create_or_update_pool).parameters


def test_airflow_has_the_commands_that_the_page_names() -> None:
    from airflow.cli.cli_parser import get_parser

    parser = get_parser()
    named = re.findall(r"^airflow (.+)$", PAGE, re.MULTILINE)
    assert len(named) == 3
    for line in named:
        parser.parse_args(re.sub(r'"[^"]*"', "text", line).split())
    for command in ("scheduler", "dag-processor", "api-server", "triggerer", "standalone"):
        assert f"`airflow {command}`" in PAGE
        parser.parse_args([command])


def test_the_helm_values_name_our_options() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    values = yaml.safe_load(block)
    assert set(values["config"]["whisul"]) <= set(get_provider_info()["config"]["whisul"]["options"])
    assert yaml.safe_load(values["extraEnvFrom"]) == [{"secretRef": {"name": "whisul-connections"}}]


def test_the_page_says_how_long_records_are_kept() -> None:
    assert f"the records ({RECORD_DAYS} days) and the ledger ({LEDGER_DAYS} days)" in PROSE

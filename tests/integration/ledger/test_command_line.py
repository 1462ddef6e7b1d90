"""``python -m airflow_provider_whisul.ledger``, on what the hook has written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.exceptions import WhisulAmbiguousSubmitError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger import printing
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.command_line import main
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.sandbox import Sandbox
from tests.support.clock import FakeClock

DAYS = ["--since", "2026-02-17", "--until", "2026-02-17"]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, and return what it prints."""

    def output(*arguments: str) -> str:
        capsys.readouterr()
        assert main([*DAYS, *arguments]) == 0
        return capsys.readouterr().out

    return output


Output = Callable[..., str]


@pytest.fixture
def jobs(sandbox: Sandbox, hook: WhisulHook, clock: FakeClock) -> dict[str, str]:
    """Make a song that is taken, one that is not, one that fails, and an ambiguous submission."""

    def submit(prompt: str, dag_id: str, map_index: int = -1) -> str:
        return hook.generate(prompt, submission=SubmissionId(dag_id, "make", "some-run", map_index, 0))

    jobs = {
        "taken": submit("a taken song", "songs"),
        "failed": submit("a song [sandbox:fail]", "songs"),
        "left": submit("a song that is left", "night", 4),
    }
    with pytest.raises(WhisulAmbiguousSubmitError):
        submit("a lost song [sandbox:post-drop]", "night", 5)
    clock.now += 100
    for name in ("taken", "failed"):
        hook.get_job(jobs[name])
    return jobs


def test_the_table_counts_by_day_and_dag_and_lists_what_no_task_has_taken(
    jobs: dict[str, str], output: Output, ledger: AccountLedger
) -> None:
    text = output()
    lines = text.splitlines()
    assert lines[0].startswith(f"Read {ledger.url}: ")
    assert lines[1] == "All files could be read."
    assert "\n".join(lines[3:7]) == (
        "day         DAG    submitted  delivered  failed  not found  ambiguous  no outcome yet\n"
        "2026-02-17  night          2          0       0          0          1               1\n"
        "2026-02-17  songs          2          1       1          0          0               0\n"
        "total                      4          1       1          0          1               1"
    )
    left = jobs["left"]
    assert "1 paid job that no task has taken." in text
    assert f"2026-02-17 12:00:00 UTC, DAG night, task make, run some-run, map index 4, job {left}, prompt " in text
    assert f'WhisulJobSensor(task_id="fetch_{left}", job_id="{left}", whisul_conn_id="whisul_default")' in text
    assert jobs["taken"] not in text
    assert "1 ambiguous submission: nobody knows whether it made a job." in text
    assert "DAG night, task make, run some-run, map index 5, prompt " in text
    # Tasks may still take the others, of which there may be a thousand.
    assert text.index("1 ambiguous submission") < text.index("1 paid job that no task has taken")


def test_the_json_says_the_same(jobs: dict[str, str], output: Output, ledger: AccountLedger) -> None:
    value: dict[str, Any] = json.loads(output("--format", "json"))
    assert (value["folder"], value["conn_id"], value["since"]) == (ledger.url, "whisul_default", "2026-02-17")
    assert [(row["dag_id"], row["submitted"], row["delivered"]) for row in value["rows"]] == [
        ("night", 2, 0),
        ("songs", 2, 1),
    ]
    assert value["total"]["submitted"] == 4
    (left,) = value["not_taken"]
    assert (left["job_id"], left["map_index"], left["at"]) == (jobs["left"], 4, "2026-02-17T12:00:00+00:00")
    assert "prompt" not in left
    assert "WhisulJobSensor" in left["sensor"]
    assert len(value["ambiguous"]) == 1
    assert value["unreadable"] == []


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("form", ["table", "json"])
def test_prompts_are_printed_only_where_they_are_asked_for(output: Output, form: str) -> None:
    assert "a song that is left" not in output("--format", form)
    assert "a song that is left" in output("--format", form, "--prompts")


@pytest.mark.usefixtures("jobs")
def test_an_outcome_of_a_later_day_counts(hook: WhisulHook, clock: FakeClock, output: Output, jobs: Any) -> None:
    clock.now += 2 * 86_400
    hook.get_job(jobs["left"])
    assert "no task has taken" not in output()


@pytest.mark.usefixtures("jobs")
def test_the_text_lists_the_first_jobs_that_no_task_has_taken_and_the_json_all(
    hook: WhisulHook, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "MAX_NOT_TAKEN", 2)
    for number in range(3):
        hook.generate(f"another song {number}")
    text = output()
    assert "4 paid jobs that no task has taken." in text
    assert text.count("WhisulJobSensor") == 2
    assert "2 more are listed with --format json." in text
    assert len(json.loads(output("--format", "json"))["not_taken"]) == 4


@pytest.mark.usefixtures("jobs")
def test_a_day_without_submissions_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--since", "2026-02-18", "--until", "2026-02-19"]) == 0
    assert "Nothing was submitted." in capsys.readouterr().out


def test_a_folder_without_a_ledger_says_so(sandbox: Sandbox, output: Output) -> None:
    assert "Nothing was submitted." in output()


@pytest.mark.usefixtures("jobs")
def test_another_account_is_another_ledger(
    start_sandbox: Callable[..., Sandbox], clock: FakeClock, output: Output
) -> None:
    start_sandbox()
    WhisulHook(clock=clock.clock).generate("another account's song")
    assert "total                         1" in output()
    assert "total                         5" in output("--all-accounts")


@pytest.mark.usefixtures("jobs")
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_counted(state_path: Path, output: Output) -> None:
    damaged = next(path for path in state_path.rglob("s.*.night.json") if '"map_index": 4' in path.read_text())
    damaged.write_text("{")
    text = output()
    assert "1 file could not be read:" in text
    assert f"{damaged.name} cannot be read: it is not JSON" in text
    assert "total                      3" in text
    assert json.loads(output("--format", "json"))["unreadable"][0].count(damaged.name) == 1


def test_several_ambiguous_submissions_are_told_in_the_plural(
    sandbox: Sandbox, hook: WhisulHook, output: Output
) -> None:
    for number in (1, 2):
        with pytest.raises(WhisulAmbiguousSubmitError):
            hook.generate(f"lost song {number} [sandbox:post-drop]")
    assert "2 ambiguous submissions: nobody knows which of them made a job." in output()


def test_the_last_day_before_the_first_one_says_what_is_meant_where_one_is_not_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--until", "2020-01-01"])
    assert " (UTC), where it is not given." in capsys.readouterr().err


@pytest.mark.usefixtures("jobs")
def test_the_price_of_the_connection_is_counted(set_extra: Callable[..., None], output: Output) -> None:
    assert "At the price" not in output()
    set_extra(price_per_song="0.08 USD")
    assert "4 songs (0.32 USD)" in output()


def test_text_of_a_file_cannot_write_to_the_terminal(sandbox: Sandbox, hook: WhisulHook, output: Output) -> None:
    hook.generate("red \x1b[31m\nsong", submission=SubmissionId("a\x1b[31mb\n", "t\x1b", "r\x1b", -1, 0))
    text = output("--prompts")
    assert "\x1b" not in text
    assert "a�[31mb" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "tomorrow"], "'tomorrow' is no date"),
        (["--since", "2026-02-18", "--until", "2026-02-17"], "is before"),
        (["--format", "xml"], "invalid choice"),
        (["--conn", "one", "--all-accounts"], "not allowed with"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_wrong_arguments_end_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_ends_with_1(
    sandbox: Sandbox, state_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state_path / "ledger").write_text("no folder")
    assert main(DAYS) == 1
    assert f"Could not list file://{state_path}/ledger" in capsys.readouterr().err


def test_no_folder_at_all_ends_with_1(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AIRFLOW__WHISUL__STATE_PATH")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "file" / "airflow"))
    assert main(DAYS) == 1
    assert "There is no folder to read." in capsys.readouterr().err


def test_a_connection_that_is_not_there_ends_with_1(
    state_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "airflow_provider_whisul.ledger.command_line.server_connection", lambda conn_id: _raise_not_found(conn_id)
    )
    assert main([*DAYS, "--conn", "nobody"]) == 1
    assert "There is no Airflow connection 'nobody'" in capsys.readouterr().err


def _raise_not_found(conn_id: str) -> None:
    from airflow.exceptions import AirflowNotFoundException

    raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "airflow_provider_whisul.ledger", *arguments]
    folder = Path(__file__).resolve().parents[3]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("jobs")
def test_its_standard_output_is_the_report_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Airflow warns of what it cannot mask.
    monkeypatch.setenv("AIRFLOW_CONN_SHORT", '{"conn_type": "whisul", "password": "k"}')
    ended = run(*DAYS, "--conn", "short", "--format", "json")
    assert (ended.returncode, json.loads(ended.stdout)["rows"]) == (0, []), ended.stderr
    help_text = run("--help")
    assert (help_text.returncode, help_text.stdout[:6]) == (0, "usage:")

"""The pages about the record, the ledger, the connection and the operators say what the code does."""

from __future__ import annotations

import inspect
import re
import shutil
import tomllib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.api.price import Price
from airflow_provider_whisul.get_provider_info import get_provider_info
from airflow_provider_whisul.ledger import ceiling, command_line, printing
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.entries import MAX_PROMPT, Entry
from airflow_provider_whisul.ledger.report import Report, Row
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.state.folder_state_store import FolderStateStore, TaskInstanceKey
from airflow_provider_whisul.state.retention import LEDGER_DAYS, RECORD_DAYS
from airflow_provider_whisul.state.state_store import versioned
from airflow_provider_whisul.storage.documents import LocalDocuments
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from airflow_provider_whisul.version_compat import MissingPackageError

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def page(name: str) -> str:
    return (REPOSITORY / "docs" / f"{name}.md").read_text()


def prose(name: str) -> str:
    """Return a page with its lines joined."""
    return " ".join(page(name).replace("\n> ", " ").split())


# --- docs/state.md


@pytest.mark.parametrize(("extra", "package"), [("s3", "s3fs"), ("s3", "botocore"), ("gcs", "gcsfs")])
def test_the_versions_that_a_store_needs_are_those_of_its_extra(extra: str, package: str) -> None:
    (version,) = [
        match[1]
        for requirement in PROJECT["optional-dependencies"][extra]
        if (match := re.fullmatch(rf"{package}>=(.+)", requirement))
    ]
    (row,) = [line for line in page("state").splitlines() if f"airflow-provider-whisul[{extra}]" in line]
    assert f"{package} {version}" in row


@pytest.mark.parametrize("protocol", ["s3", "gs", "abfs"])
def test_the_error_of_a_store_without_its_package_names_an_extra_that_there_is(protocol: str) -> None:
    (extra,) = re.findall(r"airflow-provider-whisul\[(\w+)\]", str(MissingPackageError(protocol)))
    assert extra in PROJECT["optional-dependencies"]
    assert f"airflow-provider-whisul[{extra}]" in page("state")


def test_the_pages_say_how_long_records_and_the_ledger_are_kept() -> None:
    assert f"A record is removed {RECORD_DAYS} days after its last write" in prose("state")
    assert f"a day of the ledger after {LEDGER_DAYS} days" in prose("state")
    assert f"Days older than {LEDGER_DAYS} are removed" in prose("ledger")


def test_a_record_in_a_copied_folder_is_found(tmp_path: Path) -> None:
    assert "copy its `records` and `ledger` into the new one" in prose("state")
    task = TaskInstanceKey("dag", "run", "song", -1)
    old, new = tmp_path / "old", tmp_path / "new"
    value = versioned({"job_id": "job-1"})
    FolderStateStore(LocalDocuments(old), task).set("whisul_song", value)
    assert FolderStateStore(LocalDocuments(new), task).get("whisul_song") is None
    shutil.copytree(old / "records", new / "records")
    assert FolderStateStore(LocalDocuments(new), task).get("whisul_song") == value


# --- docs/ledger.md


def entry(at: str, dag_id: str, run_id: str, prompt: str, job_id: str | None, map_index: int = -1) -> Entry:
    time = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
    submission = SubmissionId(dag_id, "make", run_id, map_index, 0)
    return Entry(time, time, submission, prompt, "", "whisul_default", "", "accepted", job_id)


def test_the_report_on_the_page_is_what_the_command_prints() -> None:
    left = entry("2026-11-25 01:10:11", "nightly", "scheduled__2026-11-25", "7692c3ad3540bb80", "883f0858-…", 17)
    lost = entry("2026-11-26 09:30:02", "jingles", "manual__2026-11-26", "fe18c1f2640d3df6", None)
    rows = [
        Row("2026-11-25", "nightly", submitted=200, delivered=197, failed=2, no_outcome=1),
        Row("2026-11-26", "jingles", submitted=3, delivered=2, ambiguous=1),
    ]
    scope = printing.Scope(
        "s3://songs/whisul/ledger/a824a864e207ce67",
        "whisul_default",
        "2026-11-01",
        "2026-11-26",
        price=Price.parse("0.08 USD"),
    )
    text = printing.as_table(Report(rows, [left], [lost]), [], scope)
    # The page abbreviates the job's id.
    assert f"```text\n{text}\n```" in page("ledger")


def test_the_options_on_the_page_are_those_of_the_command() -> None:
    help_text = command_line._parser("2026-11-26", None).format_help()
    options = set(re.findall(r"--[a-z-]+", help_text)) - {"--help"}
    rows = [line for line in page("ledger").splitlines() if line.startswith("| `--")]
    assert set(re.findall(r"--[a-z-]+", "".join(row.split(" | ")[0] for row in rows))) == options


def test_the_message_of_the_ceiling_on_the_page_is_that_of_the_error() -> None:
    now = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()
    dags = ["nightly"] * 480 + ["jingles"] * 20
    assert ceiling._message("whisul_default", dags, 500, now) in prose("ledger")


def test_the_ledger_page_says_how_much_of_a_prompt_is_kept() -> None:
    assert f"the first {MAX_PROMPT:,} characters of the prompt" in prose("ledger")


def test_the_folder_of_a_ledger_is_where_the_page_says() -> None:
    assert "`ledger/<account>/<day>/`" in page("ledger")
    ledger = AccountLedger(LocalDocuments(Path("/x")), "account")
    assert ledger.url == "file:///x/ledger/account"


# --- docs/generate.md, docs/batch.md, docs/sensor.md, docs/storage.md, docs/connection.md


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("generate", WhisulGenerateOperator),
        ("batch", WhisulGenerateBatchOperator),
        ("sensor", WhisulJobSensor),
        ("storage", WhisulToObjectStorageOperator),
    ],
)
def test_the_table_of_an_operator_has_its_parameters_and_their_defaults(name: str, operator: type) -> None:
    section = page(name).partition("\n## Parameters\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", section, re.MULTILINE))
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(inspect.unwrap(operator.__init__)).parameters.items()  # type: ignore[misc]
        if name not in ("self", "kwargs", "args")
    }
    for name, default in parameters.items():
        assert name in rows, name
        if isinstance(default, bool | str):
            assert rows[name].replace('"', "'") == f"`{default!r}`", name


def test_the_table_of_the_connection_has_every_field_of_the_form() -> None:
    (connection_type,) = get_provider_info()["connection-types"]
    fields = {name: field["label"] for name, field in connection_type["conn-fields"].items()}
    rows = Counter(re.findall(r"^\| extra `(\w+)` \| ([^|]+) \|", page("connection"), re.MULTILINE))
    assert rows == Counter(fields.items())


# --- docs/troubleshooting.md


def test_what_a_user_sees_according_to_the_page_is_what_the_code_says() -> None:
    source = "".join(path.read_text() for path in sorted((REPOSITORY / "airflow_provider_whisul").rglob("*.py")))
    # Python joins texts that stand beside one another, and a placeholder stands for what the page has in its place.
    said = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)
    said = re.sub(r"%[rsd]|\{[^{}]*\}", "…", said)
    seen = re.findall(r'^\| [^|]*?"([^"|]+)"', page("troubleshooting"), re.MULTILINE)
    assert len(seen) >= 6
    for text in seen:
        for part in re.sub(r"'\w+'|\b(?:int|answered)\b", "…", text).split("…"):
            assert part.strip() in said, text

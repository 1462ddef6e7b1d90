"""Which destinations are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.storage.destination import Destination, check_before_rendering, parse_destination
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("s3://bucket", ("s3", None, "s3://bucket")),
        ("s3://bucket/songs/", ("s3", None, "s3://bucket/songs")),
        ("s3://my_aws@bucket/songs", ("s3", "my_aws", "s3://bucket/songs")),
        (
            "s3://bucket/manual__2026-02-17T12:00:00+00:00",
            ("s3", None, "s3://bucket/manual__2026-02-17T12:00:00+00:00"),
        ),
        ("gs://bucket/a@b/..c/d..", ("gs", None, "gs://bucket/a@b/..c/d..")),
        ("sftp://host:22/songs", ("sftp", None, "sftp://host:22/songs")),
        ("file:///data/Lieder für Ada", ("file", None, "file:///data/Lieder für Ada")),
        ("/data/songs/", ("file", None, "file:///data/songs")),
    ],
)
def test_a_folder_is_named_with_or_without_a_connection(destination: str, expected: tuple[str, str, str]) -> None:
    assert parse_destination(destination) == Destination(*expected)


@pytest.mark.parametrize(
    "destination",
    [
        "",
        None,
        "songs",
        "s3://",
        "s3:///",
        "s3:///songs",
        "s3://my_aws@/songs",
        "file://relative",
        "file:///",
        "/",
        "s3://bucket/q?versionId=1",
        "s3://bucket?versionId=1",
        "s3://bucket/q#fragment",
        "/data/q#fragment",
        "s3://bucket/songs/../../other",
        "s3://bucket/..",
        "file:///data/./songs",
        "/data/../etc",
        # A template rendered to nothing.
        "s3://bucket//songs",
        "s3://bucket/songs//",
        "s3://bucket/ /songs",
        "/data//songs",
        "s3://bucket/songs\n",
    ],
)
def test_a_destination_that_names_no_folder_or_leads_out_of_it_is_refused(destination: object) -> None:
    with pytest.raises(WhisulInvalidInputError, match=r"^The destination .*, so nothing was downloaded\. Name one"):
        parse_destination(destination)


@pytest.mark.parametrize(
    "destination",
    [
        "s3://user:hunter2@bucket/songs",
        "s3://my_aws@user:hunter2@bucket/songs",
        "s3://:hunter2@bucket?x",
        "s3://@bucket",
    ],
)
def test_a_password_in_a_destination_is_refused_and_not_shown(destination: str) -> None:
    with pytest.raises(WhisulInvalidInputError, match="a user name or a password") as raised:
        parse_destination(destination)
    assert "hunter2" not in str(raised.value)


@given(st.from_regex(r"(s3|gs|file|memory)://[a-z@:/.?# ]{0,12}", fullmatch=True))
def test_a_destination_that_is_accepted_has_a_name_in_each_of_its_parts(destination: str) -> None:
    try:
        url = parse_destination(destination).url
    except WhisulInvalidInputError:
        return
    protocol, _, path = url.partition("://")
    parts = path.removeprefix("/").split("/") if protocol == "file" else path.split("/")
    assert all(part.strip() and part not in (".", "..") for part in parts)
    assert not set("?#") & set(url)


def test_a_destination_without_a_template_is_refused_when_the_dag_is_read() -> None:
    with pytest.raises(WhisulInvalidInputError, match="a query or a fragment"):
        WhisulToObjectStorageOperator(task_id="keep", songs=[], destination="s3://bucket/q?versionId=1")


@pytest.mark.parametrize(
    "destination", ["s3://bucket/{{ run_id }}", "{{ params.folder }}", "{% if x %}/a{% endif %}", 5]
)
def test_a_destination_that_only_the_task_knows_passes_when_the_dag_is_read(destination: object) -> None:
    check_before_rendering(destination)

"""The partitions of the transfer's asset events, which Airflow has from 3.3 on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from airflow_provider_whisul.version_compat import HAS_ASSET_PARTITIONS
from tests.integration.storage.helpers import MakeSongs, Transfer, file_names
from tests.support.airflow import TaskContext

KEPT = Asset("whisul://kept-songs")
from_airflow_3_3 = pytest.mark.skipif(not HAS_ASSET_PARTITIONS, reason="Assets have no partitions before Airflow 3.3")


@pytest.fixture
def songs(make_songs: MakeSongs) -> list[dict[str, Any]]:
    return make_songs("a waltz")


def _sent(songs: object, transfer: Transfer, **arguments: Any) -> list[dict[str, Any]]:
    """Run the operator, and return the asset events as Airflow's task process sends them to its API server."""
    from airflow.sdk.execution_time.context import OutletEventAccessors
    from airflow.sdk.execution_time.task_runner import _serialize_outlet_events

    events = OutletEventAccessors()
    transfer(songs, TaskContext(outlet_events=events), **{"outlets": [KEPT], **arguments})
    return list(_serialize_outlet_events(events))


@from_airflow_3_3
@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ("2026-02-17", {"2026-02-17"}),
        (["shanties", "waltzes", "shanties"], {"shanties", "waltzes"}),
        (("shanties",), {"shanties"}),
        ("k" * 250, {"k" * 250}),
    ],
)
def test_each_partition_key_has_an_event_that_says_what_was_stored(
    songs: object, transfer: Transfer, folder: Path, keys: object, sent: set[str]
) -> None:
    events = _sent(songs, transfer, partition_key=keys)
    assert {event["partition_key"] for event in events} == sent
    assert len(events) == len(sent)
    for event in events:
        assert event["dest_asset_key"] == {"name": KEPT.name, "uri": KEPT.uri}
        assert event["extra"]["manifest"] == f"file://{folder}/manifest.json"


@from_airflow_3_3
@pytest.mark.parametrize("keys", [None, []])
def test_without_a_partition_key_airflow_chooses_the_partition(songs: object, transfer: Transfer, keys: object) -> None:
    (event,) = _sent(songs, transfer, partition_key=keys)
    assert "partition_key" not in event


@from_airflow_3_3
@pytest.mark.parametrize("keys", ["", "  ", "k" * 251, ["shanties", ""], [None], 7])
def test_a_partition_key_that_airflow_would_refuse_ends_the_task_before_anything_is_downloaded(
    songs: object, transfer: Transfer, folder: Path, keys: object
) -> None:
    with pytest.raises(WhisulInvalidInputError, match="nothing was downloaded"):
        _sent(songs, transfer, partition_key=keys)
    assert file_names(folder) == set()


def _read(mapped: bool, **arguments: Any) -> None:
    """Do with an operator what a DAG file does."""
    if mapped:
        WhisulToObjectStorageOperator.partial(task_id="keep", **arguments)
    else:
        WhisulToObjectStorageOperator(task_id="keep", songs=[], destination="s3://bucket/songs", **arguments)


mapped_or_not = pytest.mark.parametrize("mapped", [False, True])


@from_airflow_3_3
@mapped_or_not
@pytest.mark.parametrize("outlets", [None, [], [AssetAlias("kept")], [KEPT, AssetAlias("kept")]])
def test_outlets_that_can_have_no_partition_are_refused_when_the_dag_file_is_read(outlets: Any, mapped: bool) -> None:
    with pytest.raises(ValueError, match="AssetAlias"):
        _read(mapped, outlets=outlets, partition_key="{{ run_id }}")


@from_airflow_3_3
@mapped_or_not
@pytest.mark.parametrize("outlets", [KEPT, [KEPT], [KEPT, Asset("whisul://others")]])
def test_outlets_that_can_have_partitions_are_accepted(outlets: Any, mapped: bool) -> None:
    _read(mapped, outlets=outlets, partition_key="{{ run_id }}")


@pytest.mark.skipif(HAS_ASSET_PARTITIONS, reason="Assets have partitions from Airflow 3.3 on")
@mapped_or_not
def test_an_older_airflow_refuses_a_partition_key_when_the_dag_file_is_read(mapped: bool) -> None:
    with pytest.raises(ValueError, match=r"partition_key needs Airflow 3\.3 or later"):
        _read(mapped, outlets=[KEPT], partition_key="shanties")

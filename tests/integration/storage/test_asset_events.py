"""What the asset events of the transfer's outlets carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import Asset, AssetAlias

from tests.integration.storage.helpers import MakeSongs, Transfer, file_names
from tests.support.airflow import TaskContext

if airflow_version.startswith("2."):
    from airflow.utils.context import OutletEventAccessors
else:
    from airflow.sdk.execution_time.context import OutletEventAccessors

KEPT = Asset("whisul://kept-songs")
from_airflow_3 = pytest.mark.skipif(airflow_version.startswith("2."), reason="Airflow 2 has no Asset.ref")


@pytest.fixture
def events() -> Any:
    """Airflow's own events of a task's outlets."""
    return OutletEventAccessors()


@pytest.fixture
def songs(make_songs: MakeSongs) -> list[dict[str, Any]]:
    return make_songs("a waltz", "a tango")


@pytest.fixture
def expected(songs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    return {
        "destination": f"file://{folder}",
        "manifest": f"file://{folder}/manifest.json",
        "count": 2,
        "failed": 0,
        "titles": [song["title"] for song in songs],
    }


def _extra(event: Any) -> dict[str, Any]:
    """Return an event's extra; on Airflow 2 an event is a dict."""
    return event["extra"] if isinstance(event, dict) else event.extra


def test_an_asset_carries_destination_manifest_counts_and_titles(
    songs: object, transfer: Transfer, events: Any, expected: dict[str, Any]
) -> None:
    transfer(songs, TaskContext(outlet_events=events), outlets=[KEPT])
    assert events[KEPT].extra == expected


@from_airflow_3
@pytest.mark.parametrize("reference", [{"name": "whisul://kept-songs"}, {"uri": "whisul://kept-songs"}])
def test_a_reference_to_an_asset_carries_the_same(
    songs: object,
    transfer: Transfer,
    events: Any,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    reference: dict[str, str],
) -> None:
    # Airflow asks its API server, which does not run here.
    monkeypatch.setattr(OutletEventAccessors, "_get_asset_from_db", staticmethod(lambda **kwargs: KEPT))
    transfer(songs, TaskContext(outlet_events=events), outlets=[Asset.ref(**reference)])
    assert events[KEPT].extra == expected


def test_an_alias_gets_an_event_of_the_folder_that_carries_the_same(
    songs: object, transfer: Transfer, events: Any, expected: dict[str, Any], folder: Path
) -> None:
    alias = AssetAlias("kept-songs")
    transfer(songs, TaskContext(outlet_events=events), outlets=[alias])
    accessor = events[alias]
    (event,) = getattr(accessor, "asset_alias_events", None) or accessor.dataset_alias_events
    assert _extra(event) == expected
    assert f"file://{folder}" in str(event)


def test_an_alias_gets_an_event_also_where_the_folder_has_a_name_that_a_uri_cannot_hold(
    songs: object, transfer: Transfer, events: Any, tmp_path: Path
) -> None:
    transfer(
        songs, TaskContext(outlet_events=events), outlets=[AssetAlias("kept")], destination=f"{tmp_path}/Lieder für Ada"
    )
    accessor = events[AssetAlias("kept")]
    (event,) = getattr(accessor, "asset_alias_events", None) or accessor.dataset_alias_events
    assert _extra(event)["destination"].endswith("/Lieder für Ada")
    assert "/Lieder%20f%C3%BCr%20Ada" in str(event)


@from_airflow_3
def test_an_asset_that_airflow_does_not_know_does_not_fail_the_task(
    songs: object,
    transfer: Transfer,
    events: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    task_log: Callable[[], list[str]],
) -> None:
    def refuse(**kwargs: str) -> None:
        raise RuntimeError("There is no such asset.")

    monkeypatch.setattr(OutletEventAccessors, "_get_asset_from_db", staticmethod(refuse))
    manifest = transfer(songs, TaskContext(outlet_events=events), outlets=[Asset.ref(name="nobody"), KEPT])
    assert manifest["manifest"] in file_names(folder)
    assert any("'nobody'" in line and "There is no such asset." in line for line in task_log())
    assert events[KEPT].extra["count"] == 2

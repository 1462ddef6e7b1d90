from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
from tests.integration.storage.helpers import MediaHost, Transfer, running_media_host
from tests.support.airflow import TaskContext, allow_tasks_in_threads
from tests.support.clock import FakeClock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that songs are stored in. It does not exist yet."""
    return tmp_path / "stored" / "songs"


@pytest.fixture
def only_named_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without unnamed files, such as macOS, or a Linux whose folder is on NFS."""
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)


@pytest.fixture(params=["unnamed", "named"])
def either_files(request: pytest.FixtureRequest) -> None:
    """A system with unnamed files, and one without."""
    if request.param == "named":
        request.getfixturevalue("only_named_files")


@pytest.fixture
def transfer(folder: Path, clock: FakeClock, request: pytest.FixtureRequest) -> Transfer:
    """
    Run the operator on the test's clock, and return the manifest.

    A test's own media host is no sandbox, so that the user has to permit it.
    """
    allow_private_media = "host" in request.fixturenames

    def transfer(songs: object, context: TaskContext | None = None, **kwargs: Any) -> Any:
        operator = WhisulToObjectStorageOperator(
            task_id="keep",
            **{
                "songs": songs,
                "destination": f"file://{folder}",
                "allow_private_media": allow_private_media,
                **kwargs,
            },
        )
        operator.clock = clock.clock
        allow_tasks_in_threads()
        return (context or TaskContext()).run(operator)

    return transfer


@pytest.fixture
def host() -> Iterator[MediaHost]:
    """A media host that responds as the test says."""
    with running_media_host() as host:
        yield host

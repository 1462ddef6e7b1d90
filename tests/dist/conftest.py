"""The packages in dist/, and environments that have nothing but a stock Airflow and the wheel: ``make dist`` makes them."""

from __future__ import annotations

import email.message
import email.parser
import tarfile
import zipfile
from pathlib import Path

import pytest

from airflow_provider_whisul import __version__
from dev.dist import DIST
from tests.dist.stock_airflow import STOCK_AIRFLOWS, StockAirflow


@pytest.fixture(scope="session")
def wheel() -> Path:
    (path,) = DIST.glob("*.whl")
    assert path.name == f"airflow_provider_whisul-{__version__}-py3-none-any.whl"
    return path


@pytest.fixture(scope="session")
def sdist() -> Path:
    (path,) = DIST.glob("*.tar.gz")
    assert path.name == f"airflow_provider_whisul-{__version__}.tar.gz"
    return path


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> set[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> email.message.Message:
    """The wheel's metadata, and the README as its body."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="session", params=STOCK_AIRFLOWS)
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StockAirflow:
    """A stock Airflow of the oldest and of the newest supported version, with the wheel."""
    return StockAirflow(request.param, tmp_path_factory.mktemp(f"airflow-{request.param}"))

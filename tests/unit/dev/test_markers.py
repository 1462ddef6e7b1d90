"""Which suites a test belongs to."""

from __future__ import annotations

import pytest

from tests.support.markers import SUITES, TESTS, WITHOUT_AIRFLOW, markers_of


@pytest.mark.parametrize(
    ("test", "markers"),
    [
        ("unit/api/test_models.py", []),
        ("unit/rate_limit/test_backoff.py", []),
        ("unit/test_polling.py", []),
        ("unit/test_provider.py", ["airflow"]),
        ("unit/triggers/test_events.py", ["airflow"]),
        ("integration/storage/test_downloads.py", ["airflow"]),
        ("e2e/test_example_dags.py", ["e2e", "airflow"]),
        ("e2e/crash/test_crashes_with_a_folder.py", ["e2e", "crash", "airflow"]),
        ("s3/test_crashes_with_s3.py", ["s3"]),
        ("docs/test_code_blocks.py", ["docs"]),
        ("browser/test_tracks_songs.py", ["browser"]),
        ("cluster/test_cluster_night.py", ["cluster"]),
        ("s3/test_s3.py", ["s3"]),
        ("dist/test_packages.py", ["dist"]),
    ],
)
def test_the_folder_of_a_test_decides_its_markers(test: str, markers: list[str]) -> None:
    assert markers_of(TESTS / test) == markers


def test_every_place_that_decides_a_marker_exists() -> None:
    assert [name for name in (*SUITES, *WITHOUT_AIRFLOW) if not (TESTS / name).exists()] == []

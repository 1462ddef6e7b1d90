"""The markers of a test, by which suites are chosen. Its folder decides them."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

#: The folders of the suites that have a marker of their name.
SUITES = ("browser", "cluster", "dist", "docs", "e2e", "s3")

#: The folder of the crashes, which take minutes on each Airflow.
CRASHES = "e2e/crash"

#: What does not touch Airflow, and runs once per Python. Everything else is marked ``airflow`` and runs on every
#: supported Airflow.
WITHOUT_AIRFLOW = (
    "unit/api",
    "unit/dev",
    "unit/docs_operations",
    "unit/rate_limit",
    "unit/sandbox",
    "unit/storage",
    "unit/test_architecture.py",
    "unit/test_docs.py",
    "unit/test_documents.py",
    "unit/test_pictures.py",
    "unit/test_polling.py",
    "unit/test_text.py",
)


def markers_of(test: Path) -> list[str]:
    """
    Return the markers of the tests in a file.

    :param test: The file.
    """
    places = {str(place) for place in (test.relative_to(TESTS), *test.relative_to(TESTS).parents)}
    suites = [name for name in SUITES if name in places]
    if CRASHES in places:
        suites.append("crash")
    # The suites beside these need more than an Airflow, and run only where that is installed.
    if suites in ([], ["e2e"], ["e2e", "crash"]) and places.isdisjoint(WITHOUT_AIRFLOW):
        return [*suites, "airflow"]
    return suites

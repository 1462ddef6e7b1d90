"""One Airflow, one browser and one set of runs for all browser tests."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.browser.environment import RUN_TIMEOUT, Environment, Runs, start_environment

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

# Playwright is installed only where the browser tests are to run. The other suites collect this folder without it.
collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

THOUSAND = 1_000


@pytest.fixture(scope="session")
def env() -> Iterator[Environment]:
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    with start_environment() as started:
        yield started


@pytest.fixture(scope="session")
def started_runs(env: Environment) -> dict[str, str]:
    """The ids of runs that have been triggered, by DAG id."""
    # With the characters of a scheduled run's id, which Airflow 3.1 does not encode in a tab's URL.
    run_id = "manual__2026-11-23T08:00:00+00:00"
    return {dag_id: env.airflow.trigger(dag_id, run_id=run_id) for dag_id in ("tracks", "tracks_secret")}


@pytest.fixture(scope="session")
def runs(env: Environment, started_runs: dict[str, str]) -> Runs:
    """The runs that the tests show, all of which have ended."""
    airflow = env.airflow
    all_kinds, secret = started_runs["tracks"], started_runs["tracks_secret"]
    assert airflow.wait("tracks", all_kinds, RUN_TIMEOUT) == "failed"  # one mapped song is to fail
    assert airflow.wait("tracks_secret", secret, RUN_TIMEOUT) == "success"
    songs = [result["song"] for result in airflow.xcom("tracks", all_kinds, "batch") if result["song"]]
    songs_by_run = {
        "thousand": [{**songs[i % len(songs)], "title": f"Song number {i + 1}"} for i in range(THOUSAND)],
        "unusual": [
            {**songs[0], "title": "scripted", "song_url": "javascript:top.hacked=1", "image_url": "data:text/html,x"},
            {
                **songs[1],
                "title": "broken",
                "song_url": songs[1]["song_url"] + "x",
                "image_url": songs[1]["image_url"] + "x",
            },
            {**songs[2], "title": None, "bpm": None, "duration_seconds": None, "tags": [], "prompt": "long " * 300},
            {**songs[3], "title": "W" * 300, "tags": ["t" * 200] * 40},
        ],
    }
    ids = {name: airflow.trigger("tracks_given", {"songs": songs}) for name, songs in songs_by_run.items()}
    for run_id in ids.values():
        assert airflow.wait("tracks_given", run_id, RUN_TIMEOUT) == "success"
    return Runs(all_kinds, secret, **ids)


@pytest.fixture(scope="session")
def admin(env: Environment) -> Iterator[BrowserContext]:
    with env.open_window("admin") as context:
        yield context


@pytest.fixture
def page(admin: BrowserContext) -> Iterator[Page]:
    """An empty page of the admin's browser window."""
    with admin.new_page() as opened:
        yield opened
        # The page sends requests even while it is closed.
        opened.unroute_all(behavior="ignoreErrors")


@pytest.fixture
def own_page(env: Environment) -> Iterator[Page]:
    """An empty page of a browser in which nothing is kept yet."""
    with env.open_window("admin") as context, context.new_page() as opened:
        yield opened
        opened.unroute_all(behavior="ignoreErrors")

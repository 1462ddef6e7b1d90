"""What the Tracks tab says about the cost of songs: counted from the keys of XComs, with exact sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import open_tab, shorten_pauses

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(600)

EARLIER, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"


def submitted(key: str, task: str = "songs", timestamp: str = EARLIER) -> dict[str, Any]:
    """Return an XCom entry as Airflow's API lists it."""
    return {"key": f"whisul_submitted_{key}", "task_id": task, "map_index": -1, "timestamp": timestamp}


@pytest.fixture
def list_entries(page: Page) -> Callable[..., None]:
    """Make Airflow list these XComs of a run in place of its own."""

    def list_entries(*entries: dict[str, Any]) -> None:
        page.unroute("**/xcomEntries?*")
        listed = {"xcom_entries": list(entries), "total_entries": len(entries)}
        page.route("**/xcomEntries?*", lambda route: route.fulfill(json=listed))

    return list_entries


def test_the_head_of_a_run_says_what_all_its_tasks_have_submitted_and_what_that_cost(
    env: Environment, runs: Runs, page: Page
) -> None:
    """Four mapped tasks that only submit, one that waits, and a batch of twelve; three songs failed."""
    songs = open_tab(page, env.run_tab_url("tracks", runs.all_kinds))
    expect(songs.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed")
    expect(songs.locator("#submitted")).to_have_text("Submitted 17 songs (1.36 USD)")


@pytest.mark.parametrize(
    ("task", "map_index", "words"),
    [
        ("batch", None, "Submitted 12 songs (0.96 USD)"),
        ("single", None, "Submitted 1 song (0.08 USD)"),
        ("submit", 3, "Submitted 1 song (0.08 USD)"),
        # These submit nothing.
        ("song", 3, ""),
        ("store", None, ""),
    ],
)
def test_the_tab_of_a_task_says_what_that_task_has_submitted(
    env: Environment, runs: Runs, page: Page, task: str, map_index: int | None, words: str
) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, task, map_index))
    expect(page.get_by_role("status").first).not_to_have_text("")
    expect(page.locator("#submitted")).to_have_text(words)


def test_no_xcom_is_read_to_count_what_was_submitted(env: Environment, runs: Runs, page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.locator("#submitted")).to_have_text("Submitted 17 songs (1.36 USD)")
    assert not [url for url in requests if "xcomEntries/whisul_submitted" in url or "connections" in url]


def test_a_run_whose_connection_had_no_price_says_nothing_of_cost(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks_given", runs.thousand))
    expect(page.get_by_role("status").first).to_have_text("1,000 songs")
    expect(page.locator("#submitted")).to_be_empty()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        # As floats, 0.1 * 3 is 0.30000000000000004.
        (["3_0.1_"], "Submitted 3 songs (0.3)"),
        (["1_0.07_USD", "7_0.07_USD", "1_0.125_USD"], "Submitted 9 songs (0.685 USD)"),
        (["1000000_0.08_USD"], "Submitted 1,000,000 songs (80,000.00 USD)"),
        (["1_1_credit"], "Submitted 1 song (1 credit)"),
        (["3_1_credit"], "Submitted 3 songs (3 credits)"),
        (["1_2_credits", "2_0.08_-E2-82-AC"], "Submitted 3 songs (2 credits + 0.16 €)"),
        (["2_0.000000001_USD"], "Submitted 2 songs (0.000000002 USD)"),
        (["1_0.08_-E2"], "Submitted 1 song (0.08 -E2)"),
        # Not of this provider.
        (["1_0.08", "x_1_USD", "1_0.08_<b>", "1_1e9_USD"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sums_are_exact_and_each_unit_has_its_own(
    env: Environment, runs: Runs, page: Page, list_entries: Callable[..., None], keys: list[str], words: str
) -> None:
    list_entries(*(submitted(key, f"task_{number}") for number, key in enumerate(keys)))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("status").first).to_have_text("This run has made no songs.")
    expect(page.locator("#submitted")).to_have_text(words)


def test_of_a_task_that_has_submitted_more_only_the_latest_count_counts(
    env: Environment, runs: Runs, page: Page, list_entries: Callable[..., None]
) -> None:
    list_entries(submitted("12_0.08_USD", timestamp=LATER), submitted("10_0.08_USD"), submitted("1_0.08_USD", "other"))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.locator("#submitted")).to_have_text("Submitted 13 songs (1.04 USD)")


def test_the_cost_is_cleared_with_the_songs_when_the_viewer_may_no_longer_see_them(
    env: Environment, runs: Runs, page: Page
) -> None:
    shorten_pauses(page)
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.locator("#submitted")).to_have_text("Submitted 17 songs (1.36 USD)")

    def forbid(route: Route) -> None:
        route.fulfill(status=403, json={"detail": "Forbidden"})

    page.route("**/dagRuns/*", forbid)
    expect(page.get_by_role("alert")).to_contain_text("You may not read the XComs of this DAG")
    expect(page.locator("#submitted")).to_be_empty()

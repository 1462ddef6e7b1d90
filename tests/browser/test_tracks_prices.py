"""What the Tracks tab says about what was submitted and its cost: counted from the keys of XComs, with exact sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import open_tab, shorten_pauses

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)

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
    head = "17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)"
    expect(songs.get_by_role("status").first).to_have_text(head)


@pytest.mark.parametrize(
    ("task", "map_index", "words"),
    [
        ("batch", None, "12 songs: 10 done, 2 failed, 12 submitted (0.96 USD)"),
        ("single", None, "1 song, 1 submitted (0.08 USD)"),
        # These submit nothing.
        ("song", 3, "1 song: 1 failed"),
        ("store", None, "1 song"),
    ],
)
def test_the_tab_of_a_task_says_what_that_task_has_submitted(
    env: Environment, runs: Runs, page: Page, task: str, map_index: int | None, words: str
) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, task, map_index))
    expect(page.get_by_role("status").first).to_have_text(words)


def test_the_tab_of_a_task_that_only_submits_says_so_too(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, "submit", 3))
    head = page.get_by_role("status").first
    expect(head).to_contain_text("This task has no songs.")
    expect(head).to_contain_text(" 1 submitted (0.08 USD).")


def test_no_xcom_is_read_to_count_what_was_submitted(env: Environment, runs: Runs, page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("status").first).to_contain_text("17 submitted (1.36 USD)")
    assert not [url for url in requests if "xcomEntries/whisul_submitted" in url or "connections" in url]


def test_a_run_that_has_submitted_nothing_says_nothing_of_cost(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks_given", runs.thousand))
    expect(page.get_by_role("status").first).to_have_text("1,000 songs")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        # As floats, 0.1 * 3 is 0.30000000000000004.
        (["3_0.1_"], "3 submitted (0.3)"),
        (["1_0.07_USD", "7_0.07_USD", "1_0.125_USD"], "9 submitted (0.685 USD)"),
        (["1000000_0.08_USD"], "1,000,000 submitted (80,000.00 USD)"),
        (["1_1_credit"], "1 submitted (1 credit)"),
        (["3_1_credit"], "3 submitted (3 credits)"),
        (["1_2_credits", "2_0.08_-E2-82-AC"], "3 submitted (2 credits + 0.16 €)"),
        (["2_0.000000001_USD"], "2 submitted (0.000000002 USD)"),
        (["1_0.08_-E2"], "1 submitted (0.08 -E2)"),
        # Without a price, and with one for some.
        (["12"], "12 submitted"),
        (["1000", "2_0.08_USD"], "1,002 submitted (0.16 USD for 2 of them)"),
        # Not of this provider.
        (["1_0.08", "1_", "x_1_USD", "1_0.08_<b>", "1_1e9_USD"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sums_are_exact_and_each_unit_has_its_own(
    env: Environment, runs: Runs, page: Page, list_entries: Callable[..., None], keys: list[str], words: str
) -> None:
    list_entries(*(submitted(key, f"task_{number}") for number, key in enumerate(keys)))
    page.goto(env.page_url("tracks", runs.all_kinds))
    told = f" {words}." if words else ""
    expect(page.get_by_role("status").first).to_have_text(f"This run has made no songs.{told}")


def test_of_a_task_that_has_submitted_more_only_the_latest_count_counts(
    env: Environment, runs: Runs, page: Page, list_entries: Callable[..., None]
) -> None:
    list_entries(submitted("12_0.08_USD", timestamp=LATER), submitted("10_0.08_USD"), submitted("1_0.08_USD", "other"))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("status").first).to_contain_text("13 submitted (1.04 USD)")


def test_the_cost_is_cleared_with_the_songs_when_the_viewer_may_no_longer_see_them(
    env: Environment, runs: Runs, page: Page
) -> None:
    shorten_pauses(page)
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("status").first).to_contain_text("17 submitted (1.36 USD)")

    def forbid(route: Route) -> None:
        route.fulfill(status=403, json={"detail": "Forbidden"})

    page.route("**/dagRuns/*", forbid)
    expect(page.get_by_role("alert")).to_contain_text("You may not read the XComs of this DAG")
    expect(page.get_by_role("status").first).to_be_empty()

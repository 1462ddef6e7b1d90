"""How the Tracks tab follows a run, and what it does while Airflow fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import bar, change_run, change_songs, play_button, player, shorten_pauses

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)


def test_the_page_says_that_airflow_fails_and_retries(env: Environment, runs: Runs, page: Page) -> None:
    page.route("**/xcomEntries?*", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("alert")).to_have_text("Airflow responded with status 503. Trying again.")
    page.unroute("**/xcomEntries?*")
    expect(page.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_page_says_that_airflow_does_not_respond_and_retries(env: Environment, runs: Runs, page: Page) -> None:
    page.add_init_script("const after = AbortSignal.timeout; AbortSignal.timeout = () => after.call(AbortSignal, 200)")
    pending: list[Route] = []
    page.route("**/dagRuns/*", lambda route: pending.append(route))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("alert")).to_have_text("Airflow did not respond within 30 s. Trying again.")
    # A busy machine may be late with other responses too.
    while not pending:
        page.wait_for_timeout(50)


def test_a_cleared_run_is_refreshed_until_it_ends_again(env: Environment, runs: Runs, page: Page) -> None:
    listed: list[str] = []
    page.on("request", lambda request: listed.append(request.url) if "/xcomEntries?" in request.url else None)
    shorten_pauses(page)
    page.goto(env.page_url("tracks", runs.all_kinds))
    count = page.get_by_role("status").first
    expect(count).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")
    # After the end the page requests the state of the run, but not its songs.
    while page.evaluate("pauses.length") < 3:
        page.wait_for_timeout(100)
    assert page.evaluate("Math.min(...pauses)") >= 60_000
    assert len(listed) == 1

    change_run(page, state="running", end_date=None)
    expect(count).to_have_text("17 songs so far: 14 done, 3 failed, 17 submitted (1.36 USD)")
    while page.evaluate("pauses.at(-1)") >= 60_000:
        page.wait_for_timeout(100)
    change_run(page, state="success", end_date="2031-01-01T00:00:00Z")
    expect(count).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")


def test_a_run_that_was_cleared_and_has_ended_again_is_listed_again(env: Environment, runs: Runs, page: Page) -> None:
    shorten_pauses(page)
    page.goto(env.page_url("tracks", runs.all_kinds))
    count = page.get_by_role("status").first
    expect(count).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")
    page.route("**/xcomEntries?*", lambda route: route.fulfill(json={"xcom_entries": [], "total_entries": 0}))
    change_run(page, end_date="2031-01-01T00:00:00Z")
    expect(count).to_have_text("This run has made no songs.")
    expect(page.get_by_role("listitem")).to_have_count(0)


def test_cards_that_failed_to_load_can_be_retried_without_losing_the_focus(
    env: Environment, runs: Runs, page: Page
) -> None:
    pending: list[Route] = []
    page.route("**/xcomEntries/*", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(env.page_url("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    words = "This song could not be loaded. Airflow responded with status 503."
    expect(first.get_by_text(words)).to_be_visible()
    expect(first).not_to_have_attribute("aria-busy", re.compile(""))

    page.route("**/xcomEntries/*", lambda route: pending.append(route))
    button = first.get_by_role("button", name="Try again")
    button.focus()
    page.keyboard.press("Enter")
    expect(first.get_by_role("status")).to_have_text("Loading it again…")
    # The test may hear of the request later than the page says so.
    while not pending:
        page.wait_for_timeout(50)
    for route in pending:
        route.fulfill(status=404, body="{}")
    expect(first.get_by_role("status")).to_have_text("This song could not be loaded. Airflow no longer has it.")
    expect(button).to_be_focused()

    page.unroute("**/xcomEntries/*")
    page.keyboard.press("Enter")
    expect(first.get_by_role("heading")).to_be_focused()
    expect(play_button(first)).to_be_visible()


def test_cards_that_failed_to_load_are_filled_when_airflow_works_again(
    env: Environment, runs: Runs, page: Page
) -> None:
    page.route("**/xcomEntries/*", lambda route: route.fulfill(status=503, body="{}"))
    shorten_pauses(page)
    page.goto(env.page_url("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    expect(first.get_by_text("This song could not be loaded.")).to_be_visible()
    page.unroute("**/xcomEntries/*")
    expect(play_button(first)).to_be_visible()


def write_again(page: Page, **fields: Any) -> None:
    """Make Airflow respond as if all XComs had been written again, with these fields changed in all songs."""

    def list_again(route: Route) -> None:
        listed = route.fetch().json()
        entries = [{**entry, "timestamp": "2031-01-01T00:00:00Z"} for entry in listed["xcom_entries"]]
        route.fulfill(json={**listed, "xcom_entries": entries})

    change_songs(page, **fields)
    page.route("**/xcomEntries?*", list_again)


def play_first_song(env: Environment, runs: Runs, page: Page) -> Locator:
    """Open a run that is running, start its first song, and return the song's card."""
    shorten_pauses(page)
    change_run(page, state="running", end_date=None)
    page.goto(env.page_url("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    play_button(first).click()
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    player(page).evaluate("audio => { window.playing = audio; }")
    return first


# The same address, and another one of the same song, such as one that was signed again.
@pytest.mark.parametrize("ending", [None, "?signed=again"])
def test_a_song_goes_on_playing_when_its_xcom_is_written_again(
    env: Environment, runs: Runs, page: Page, ending: str | None
) -> None:
    first = play_first_song(env, runs, page)
    changed = {} if ending is None else {"song_url": env.make_song()["song_url"] + ending}
    write_again(page, title="another title", **changed)
    expect(first.get_by_role("heading")).to_have_text("another title")
    assert page.evaluate("playing.isConnected && !playing.paused")
    expect(first.get_by_role("button", name="Pause another title")).to_be_visible()
    link = first.get_by_role("link", name="Open another title")
    expect(link).to_be_visible()
    if ending is not None:
        expect(link).to_have_attribute("href", changed["song_url"])


def test_a_song_whose_address_expires_while_it_plays_can_be_played_from_its_new_one(
    env: Environment, runs: Runs, page: Page
) -> None:
    first = play_first_song(env, runs, page)
    url = env.make_song()["song_url"]
    write_again(page, title="another title", song_url=url)
    expect(first.get_by_role("heading")).to_have_text("another title")
    page.evaluate("playing.dispatchEvent(new Event('error'))")
    expect(player(page)).to_have_attribute("src", url)
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    assert first.get_by_text("The song cannot be played.").count() == 0


def test_a_song_plays_on_although_its_card_shows_another_job(env: Environment, runs: Runs, page: Page) -> None:
    first = play_first_song(env, runs, page)
    title = bar(page).get_by_role("button").first.inner_text()
    url = page.evaluate("playing.src")
    write_again(page, title="another title", job_id="another-job", song_url=env.make_song()["song_url"])
    expect(first.get_by_role("heading")).to_have_text("another title")
    # The card's button is about the new song, the bar about the one that plays.
    expect(first.get_by_role("button", name="Play another title")).to_be_visible()
    assert page.evaluate("!playing.paused && playing.src") == url
    expect(bar(page).get_by_role("button").first).to_have_text(title)

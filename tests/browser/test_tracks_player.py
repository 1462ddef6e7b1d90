"""The player of the Tracks tab: playing all songs, the bar, the keys, and what is kept in the browser."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.browser.environment import STORED_URL, Environment, Runs
from tests.browser.pages import (
    bar,
    card,
    card_of,
    change_run,
    change_songs,
    open_tab,
    play_button,
    play_fast,
    player,
    shorten_pauses,
)

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)

#: Records in ``played`` the address of each song that plays, and in ``reached`` which part of it was played.
RECORD = """
window.played = [];
window.reached = {};
addEventListener("timeupdate", ({target}) => {
  if (!(target.currentTime > 0)) return;
  if (played.at(-1) !== target.src) played.push(target.src);
  reached[target.src] = Math.max(reached[target.src] ?? 0, target.currentTime / target.duration);
}, true);
"""

TO_BEGIN = "audio => { audio.pause(); audio.currentTime = 0; }"


def _batch(env: Environment, runs: Runs) -> list[dict[str, Any]]:
    """Return the songs of the batch that are done, in the order in which the tab shows them."""
    return [result["song"] for result in env.airflow.xcom("tracks", runs.all_kinds, "batch") if result["song"]]


def test_play_all_plays_every_song_of_a_run_to_its_end(env: Environment, runs: Runs, page: Page) -> None:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    play_fast(page)
    page.add_init_script(RECORD)
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    page.get_by_role("button", name="Play all").click()
    made = [song["song_url"] for song in _batch(env, runs)]
    page.wait_for_function(f"() => played.length === {len(made)} && document.querySelector('.bar audio').ended")
    assert page.evaluate("played") == made
    assert min(page.evaluate("Object.values(reached)")) > 0.9
    expect(page.get_by_text("Heard", exact=True)).to_have_count(len(made))
    expect(page.get_by_role("button", name="Play all")).to_be_visible()
    # The viewer's session goes to Airflow's API, and to the page's own files.
    for request in requests:
        if "cookie" in request.all_headers():
            assert request.url.startswith((f"{env.airflow.ui_url}/api/v2/", f"{env.airflow.ui_url}/whisul-tracks/"))


def test_play_all_goes_on_to_songs_that_come_meanwhile_also_above(env: Environment, runs: Runs, page: Page) -> None:
    """The tasks of a run end in any order. Here that of the single song comes after the mapped ones, and above them."""
    hidden = {"batch", "single"}

    def without_some(route: Route) -> None:
        listed = route.fetch().json()
        entries = [entry for entry in listed["xcom_entries"] if entry["task_id"] not in hidden]
        route.fulfill(json={**listed, "xcom_entries": entries, "total_entries": len(entries)})

    shorten_pauses(page)
    play_fast(page)
    page.add_init_script(RECORD)
    change_run(page, state="running", end_date=None)
    page.route("**/xcomEntries?*", without_some)
    page.goto(env.page_url("tracks", runs.all_kinds))
    page.get_by_role("button", name="Play all").click()
    expect(bar(page).get_by_role("status")).to_have_text("Waiting for more songs")
    before = page.evaluate("played")
    assert len(before) == 3
    hidden.remove("single")
    page.wait_for_function("() => played.length === 4")
    expect(bar(page).get_by_role("status")).to_have_text("Waiting for more songs")
    single = env.airflow.xcom("tracks", runs.all_kinds, "single")["song_url"]
    assert page.evaluate("played") == [*before, single]


def test_next_reads_songs_that_the_viewer_has_not_scrolled_to(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks_given", runs.thousand))
    # Without scrolling there.
    play_button(card(page, "Song number 39")).dispatch_event("click")
    now = bar(page).get_by_role("button").first
    expect(now).to_have_text("Song number 39")
    expect(page.locator(".card").nth(40)).to_have_attribute("aria-busy", "true")
    for number in (40, 41, 42):
        bar(page).get_by_role("button", name="Next song").click()
        expect(now).to_have_text(f"Song number {number}")
    assert page.evaluate("document.scrollingElement.scrollTop") == 0
    now.click()
    expect(card(page, "Song number 42")).to_be_in_viewport()
    # Also where three seconds of it have been played by now.
    player(page).evaluate(TO_BEGIN)
    bar(page).get_by_role("button", name="Previous song").click()
    expect(now).to_have_text("Song number 41")


def test_a_song_plays_on_while_the_viewer_scrolls(env: Environment, runs: Runs, page: Page) -> None:
    songs = open_tab(page, env.run_tab_url("tracks_given", runs.thousand))
    play_button(card(songs, "Song number 1")).click()
    expect(player(songs)).not_to_have_js_property("currentTime", 0)
    url = player(songs).get_attribute("src")
    songs.locator(":root").evaluate("root => { root.scrollTop = root.scrollHeight; }")
    expect(songs.get_by_role("heading", name="Song number 1000", exact=True)).to_be_visible()
    time = player(songs).evaluate("audio => audio.currentTime")
    page.wait_for_function("([audio, time]) => audio.currentTime > time", arg=[player(songs).element_handle(), time])
    expect(player(songs)).to_have_attribute("src", url or "")
    expect(bar(songs)).to_be_visible()


def test_the_bar_shows_and_moves_the_position(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, "single"))
    song = env.airflow.xcom("tracks", runs.all_kinds, "single")
    total = f"{song['duration_seconds'] // 60}:{song['duration_seconds'] % 60:02}"
    play_button(card(page, song["title"])).click()
    position = bar(page).get_by_role("slider", name="Position")
    expect(position).not_to_have_attribute("aria-valuetext", f"0:00 of {total}")
    bar(page).get_by_role("button", name="Pause").click()
    position.fill("5")
    expect(player(page)).to_have_js_property("currentTime", 5)
    expect(position).to_have_attribute("aria-valuetext", f"0:05 of {total}")
    expect(bar(page).get_by_text(f"0:05 / {total}")).to_be_visible()
    expect(bar(page).get_by_role("button").first).to_have_text(song["title"])


def test_keys_drive_the_player_until_they_are_turned_off(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    made = _batch(env, runs)
    now = bar(page).get_by_role("button").first
    play_button(card_of(page, made[0])).click()
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    page.keyboard.press("Space")
    expect(player(page)).to_have_js_property("paused", True)
    player(page).evaluate("audio => { audio.currentTime = 1; }")
    page.keyboard.press("ArrowRight")
    expect(player(page)).to_have_js_property("currentTime", 6)
    page.keyboard.press("ArrowLeft")
    expect(player(page)).to_have_js_property("currentTime", 1)
    page.keyboard.press("n")
    expect(now).to_have_text(made[1]["title"])
    expect(bar(page).get_by_role("button", name="Pause")).to_be_visible()
    player(page).evaluate(TO_BEGIN)
    page.keyboard.press("p")
    expect(now).to_have_text(made[0]["title"])
    # They are letters in the filter.
    page.get_by_role("searchbox").press_sequentially("n p")
    expect(now).to_have_text(made[0]["title"])
    page.get_by_role("searchbox").fill("")

    page.get_by_text("Keys", exact=True).click()
    page.get_by_role("checkbox", name="Use them").click()
    page.reload()
    play_button(card_of(page, made[0])).click()
    page.keyboard.press("n")
    page.keyboard.press("Space")
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    expect(now).to_have_text(made[0]["title"])
    page.get_by_text("Keys", exact=True).click()
    page.get_by_role("checkbox", name="Use them").check()


def test_volume_and_marks_are_kept_in_the_browser(env: Environment, runs: Runs, own_page: Page) -> None:
    page = own_page
    play_fast(page)
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    made = _batch(env, runs)
    play_button(card_of(page, made[9])).click()
    expect(card_of(page, made[9]).get_by_text("Heard")).to_be_visible()
    bar(page).get_by_role("slider", name="Volume").fill("0.25")
    bar(page).get_by_role("button", name="Mute").click()
    card_of(page, made[1]).get_by_role("button", name="Favourite").click()
    page.reload()
    expect(card_of(page, made[9]).get_by_text("Heard")).to_be_visible()
    expect(card_of(page, made[1]).get_by_role("button", name="Favourite", pressed=True)).to_be_visible()
    expect(card_of(page, made[2]).get_by_role("button", name="Favourite", pressed=False)).to_be_visible()
    play_button(card_of(page, made[1])).click()
    expect(player(page)).to_have_js_property("volume", 0.25)
    expect(player(page)).to_have_js_property("muted", True)
    bar(page).get_by_role("button", name="Mute").click()
    expect(player(page)).to_have_js_property("muted", False)


def test_play_goes_on_after_a_song_that_cannot_be_played_but_not_after_three(
    env: Environment, runs: Runs, page: Page
) -> None:
    made = _batch(env, runs)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url) if "/media/audio/" in request.url else None)
    page.route(made[0]["song_url"], lambda route: route.fulfill(status=403))
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    now = bar(page).get_by_role("button").first
    page.get_by_role("button", name="Play all").click()
    expect(now).to_have_text(made[1]["title"])
    position = bar(page).get_by_role("slider", name="Position")
    expect(position).not_to_have_attribute("aria-valuetext", re.compile("^0:00 "))

    page.route("**/media/audio/**", lambda route: route.fulfill(status=403))
    requested.clear()
    bar(page).get_by_role("button", name="Next song").click()
    expect(bar(page).get_by_role("status")).to_have_text("3 songs in a row cannot be played.")
    assert len(set(requested)) == 3
    # Pressing play tries the same song again.
    title = now.inner_text()
    page.unroute("**/media/audio/**")
    bar(page).get_by_role("button", name="Play", exact=True).click()
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    expect(now).to_have_text(title)
    expect(page.get_by_role("listitem").get_by_role("button", name=f"Pause {title}")).to_be_visible()


def test_the_bar_shows_texts_as_text(env: Environment, runs: Runs, page: Page) -> None:
    change_songs(page, title="<img src=x onerror=alert(1)>")
    page.goto(env.page_url("tracks", runs.all_kinds, "single"))
    play_button(page.get_by_role("listitem").first).click()
    expect(bar(page).get_by_role("button").first).to_have_text("<img src=x onerror=alert(1)>")
    assert bar(page).locator("img").count() == 0


def test_the_stored_copy_is_played_where_whisuls_own_address_has_expired(
    env: Environment, runs: Runs, page: Page
) -> None:
    single = env.airflow.xcom("tracks", runs.all_kinds, "single")
    name = env.airflow.xcom("tracks", runs.all_kinds, "store")["songs"][0]["audio"]["name"]
    with urlopen(single["song_url"]) as response:
        wav = response.read()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.route(single["song_url"], lambda route: route.fulfill(status=403))
    stored = f"{STORED_URL}/store/{quote(name)}"
    page.route(stored, lambda route: route.fulfill(body=wav, headers={"Content-Type": "audio/wav"}))
    page.goto(env.page_url("tracks", runs.all_kinds))
    song = card_of(page, single)
    expect(song).to_be_visible()
    # What is stored is looked up only where it is needed.
    assert not any("/xcomEntries/whisul_stored_" in url for url in requests)
    play_button(song).click()
    expect(player(page)).to_have_attribute("src", stored)
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    expect(song.get_by_role("button", name=f"Pause {single['title']}")).to_be_visible()
    assert requests.index(single["song_url"]) < requests.index(stored)

    page.goto(env.page_url("tracks", runs.all_kinds, "store"))
    play_button(page.get_by_role("listitem").first).click()
    expect(player(page)).to_have_attribute("src", stored)

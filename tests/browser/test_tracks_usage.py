"""Using the Tracks tab: players, links, keyboard, theme and size."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import card, change_songs, open_tab, play_button, player

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)


def test_only_one_song_plays_at_a_time(env: Environment, runs: Runs, page: Page) -> None:
    songs = open_tab(page, env.run_tab_url("tracks", runs.all_kinds))
    first, second = (songs.get_by_role("list", name="Songs of batch").locator("> li").nth(index) for index in (0, 1))
    play_button(first).click()
    expect(player(songs)).not_to_have_js_property("currentTime", 0)
    url = player(songs).get_attribute("src")
    play_button(second).click()
    expect(player(songs)).not_to_have_attribute("src", url or "")
    expect(player(songs)).not_to_have_js_property("currentTime", 0)
    assert songs.locator("audio").count() == 1
    expect(first.get_by_role("button", name=re.compile("^Play "))).to_be_visible()
    expect(second.get_by_role("button", name=re.compile("^Pause "))).to_be_visible()


def test_a_card_keeps_the_focus_when_its_song_cannot_be_played(env: Environment, runs: Runs, page: Page) -> None:
    page.route("**/media/**", lambda route: route.fulfill(status=404))
    page.goto(env.page_url("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    play_button(first).focus()
    page.keyboard.press("Enter")
    expect(first.get_by_text("The song cannot be played.")).to_be_focused()


def test_songs_open_and_download_although_the_frame_may_do_neither(env: Environment, runs: Runs, page: Page) -> None:
    songs = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "single"))
    url = env.airflow.xcom("tracks", runs.all_kinds, "single")["song_url"]
    title = env.airflow.xcom("tracks", runs.all_kinds, "single")["title"]
    with page.context.expect_page() as opened:
        songs.get_by_role("link", name="Open").click()
    assert opened.value.url == url
    assert opened.value.evaluate("window.opener") is None
    opened.value.close()

    # The sandbox lets pages read its media.
    with page.expect_download() as saved:
        songs.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == f"{title}.wav"

    # As other hosts do not, though pages may play its songs.
    song_url = env.make_song("[sandbox:media-no-cors]")["song_url"]
    change_songs(page, song_url=song_url)
    songs = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "single"))
    with page.context.expect_page() as opened:
        songs.get_by_role("link", name="Download").click()
    assert opened.value.url == song_url
    opened.value.close()
    expect(songs.get_by_text("save it from there")).to_be_visible()


@pytest.mark.parametrize(
    ("path", "name"), [("song.flac?part=1", "page.html.flac"), ("song.html", "page html"), ("song", "page html")]
)
def test_a_download_is_never_saved_as_a_web_page(
    env: Environment, runs: Runs, page: Page, path: str, name: str
) -> None:
    url = f"http://media.test/{path}"

    change_songs(page, song_url=url, image_url=None, title="page.html")
    headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/html"}
    page.route(url, lambda route: route.fulfill(body="<script>alert(1)</script>", headers=headers))
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    with page.expect_download() as saved:
        page.get_by_role("listitem").first.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == name


def test_the_keyboard_reaches_players_and_links(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds))
    title = env.airflow.xcom("tracks", runs.all_kinds, "batch")[0]["song"]["title"]
    expect(page.get_by_role("listitem").first.get_by_role("heading")).to_have_text(title)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.getAttribute('aria-label')")
        if name and (not reached or reached[-1] != name):
            reached.append(name)
        if reached[-1:] == [f"Download {title}"]:
            break
    assert reached[-4:] == [f"Play {title}", f"Favourite {title}", f"Open {title}", f"Download {title}"]
    assert reached[:4] == ["Filter by title, prompt or tag", "Show", "Tag", "Sort"]


def test_truncated_texts_expand_for_the_keyboard_but_not_for_the_mouse(
    env: Environment, runs: Runs, page: Page
) -> None:
    change_songs(page, title="long " * 60, prompt="long " * 60, tags=["a tag of some length"] * 10)
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    first = page.get_by_role("listitem").first
    expect(play_button(first)).to_be_visible()
    cut = "card => [...card.querySelectorAll('.title, .prompt, .tags')].map(it => it.scrollHeight > it.clientHeight)"
    # They do not expand for the mouse, whose target would move away.
    play_button(first).click()
    assert first.evaluate(cut) == [True] * 3
    link = first.get_by_role("link", name="Open")
    while not link.evaluate("link => link === document.activeElement"):
        page.keyboard.press("Tab")
    assert first.evaluate(cut) == [False] * 3


def test_the_tab_is_light_or_dark_as_the_ui_around_it(env: Environment, runs: Runs, page: Page) -> None:
    songs = open_tab(page, env.run_tab_url("tracks", runs.all_kinds))
    root = songs.locator(":root")
    expect(root).to_have_css("color-scheme", "light")
    light = songs.locator("body").evaluate("body => getComputedStyle(body).color")
    # What Airflow's own switch does.
    page.evaluate(
        "localStorage.theme = 'dark'; dispatchEvent(new StorageEvent('storage', {key: 'theme', newValue: 'dark'}))"
    )
    expect(page.locator(":root")).to_have_class(re.compile("dark"))
    expect(root).to_have_css("color-scheme", "dark")
    assert songs.locator("body").evaluate("body => getComputedStyle(body).color") != light
    page.evaluate("localStorage.removeItem('theme')")


def test_the_page_on_its_own_is_dark_where_the_browser_prefers_it(env: Environment, runs: Runs) -> None:
    with env.open_window("admin", color_scheme="dark") as context, context.new_page() as page:
        page.goto(env.page_url("tracks", runs.all_kinds))
        expect(page.locator(":root")).to_have_css("color-scheme", "dark")


def test_the_page_fits_a_window_of_320_pixels(env: Environment, runs: Runs) -> None:
    with env.open_window("admin", viewport={"width": 320, "height": 700}) as context, context.new_page() as page:
        page.goto(env.page_url("tracks_given", runs.unusual))
        expect(card(page, "broken")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320

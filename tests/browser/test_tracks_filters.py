"""Filtering, sorting and downloading the songs of the Tracks tab, and the rules of accessibility."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Download, Page, Request, Route, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import bar, card_of, change_songs, open_tab, play_button, player

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)


def _batch(env: Environment, runs: Runs) -> list[dict[str, Any]]:
    """Return the songs of the batch that are done, in the order in which the tab shows them."""
    return [result["song"] for result in env.airflow.xcom("tracks", runs.all_kinds, "batch") if result["song"]]


def _shown(page: Page) -> list[str]:
    return page.locator(".card:visible h3").all_text_contents()


def test_songs_are_filtered_by_text_tag_and_outcome(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds))
    text, show, tag = (
        page.get_by_role("searchbox"),
        page.get_by_role("combobox", name="Show"),
        page.get_by_role("combobox", name="Tag"),
    )
    text.fill("LULLABY eight")
    expect(page.get_by_text("Shows 1 of 17 songs", exact=True)).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="a lullaby in seven eight")).to_be_visible()
    # The headings of tasks without a song that is shown are gone, too.
    assert page.get_by_role("list", name="Songs of ").count() == 1
    text.fill("")
    expect(page.get_by_role("list", name="Songs of ")).to_have_count(3)

    show.select_option("Failed")
    expect(page.get_by_text("Shows 3 of 17 songs", exact=True)).to_be_visible()
    assert page.locator(".card:visible").count() == page.locator(".card.failed:visible").count() == 3
    show.select_option("All songs")

    song = _batch(env, runs)[0]
    tag.select_option(song["tags"][0])
    expect(card_of(page, song)).to_be_visible()
    shown = page.locator(".card:visible .tags")
    assert all(song["tags"][0] in tags for tags in shown.all_text_contents())


def test_songs_are_sorted_and_played_in_that_order(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    made = _batch(env, runs)
    expect(card_of(page, made[0])).to_be_visible()
    sort = page.get_by_role("combobox", name="Sort")
    sort.select_option("Longest first")
    by_length = [song["title"] for song in sorted(made, key=lambda song: -song["duration_seconds"])]
    # Those without a length are the failed ones.
    expect(page.locator(".card h3").first).to_have_text(by_length[0])
    assert _shown(page)[: len(made)] == by_length
    page.get_by_role("button", name="Play all").click()
    now = bar(page).get_by_role("button").first
    expect(now).to_have_text(by_length[0])
    bar(page).get_by_role("button", name="Next song").click()
    expect(now).to_have_text(by_length[1])
    sort.select_option("In order")
    expect(page.locator(".card h3").first).to_have_text(made[0]["title"])
    # The song plays on, and the next one is the one after it in the new order.
    expect(now).to_have_text(by_length[1])


def test_favourites_and_songs_that_were_not_heard_can_be_shown(env: Environment, runs: Runs, own_page: Page) -> None:
    page = own_page
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    first, second, third, *others = _batch(env, runs)
    for song in (first, third):
        card_of(page, song).get_by_role("button", name="Favourite").click()
    show = page.get_by_role("combobox", name="Show")
    show.select_option("Favourites")
    expect(page.get_by_text("Shows 2 of 12 songs", exact=True)).to_be_visible()
    expect(card_of(page, second)).to_be_hidden()
    assert _shown(page) == [first["title"], third["title"]]
    show.select_option("Not heard")
    expect(page.get_by_text(f"Shows {len(others) + 3} of 12 songs", exact=True)).to_be_visible()
    play_button(card_of(page, second)).click()
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    player(page).evaluate("audio => { audio.currentTime = audio.duration * 0.6; }")
    expect(card_of(page, second).get_by_text("Heard")).to_be_visible()
    # It goes when the viewer asks again, and not while it plays.
    show.select_option("All songs")
    show.select_option("Not heard")
    expect(card_of(page, second)).to_be_hidden()


def test_a_filter_reads_all_of_a_thousand_songs_a_few_at_a_time(env: Environment, runs: Runs, page: Page) -> None:
    open_now: set[Request] = set()
    most = 0

    def begin(request: Request) -> None:
        nonlocal most
        if "/xcomEntries/" in request.url:
            open_now.add(request)
            most = max(most, len(open_now))

    page.on("request", begin)
    page.on("requestfinished", lambda request: open_now.discard(request))
    page.goto(env.page_url("tracks_given", runs.thousand))
    shown = page.locator(".card:visible h3")
    expect(shown.first).to_have_text("Song number 1")
    page.get_by_role("searchbox").fill("number 777")
    expect(page.get_by_text("Shows 1 of 1,000 songs", exact=True)).to_be_visible()
    expect(shown).to_have_text(["Song number 777"])
    assert 0 < most <= 4
    page.get_by_role("searchbox").fill("")
    expect(shown.first).to_have_text("Song number 1")


def test_a_filter_reads_songs_that_were_waiting_when_it_was_set(env: Environment, runs: Runs, page: Page) -> None:
    """Their cards are no longer near the viewport when it is their turn."""
    held: list[Route] = []
    released = False
    page.route("**/xcomEntries/*", lambda route: route.continue_() if released else held.append(route))
    page.goto(env.page_url("tracks", runs.all_kinds))
    while len(held) < 4:
        page.wait_for_timeout(50)
    page.get_by_role("searchbox").fill("LULLABY eight")
    released = True
    for route in held:
        route.continue_()
    expect(page.get_by_text("Shows 1 of 17 songs", exact=True)).to_be_visible()


def test_all_songs_that_are_shown_are_downloaded_a_few_at_a_time(env: Environment, runs: Runs, page: Page) -> None:
    made = _batch(env, runs)
    downloads: list[Download] = []
    waiting: list[Route] = []
    page.on("download", lambda download: downloads.append(download))
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    expect(card_of(page, made[0])).to_be_visible()
    # A host that does not let pages read its files.
    unreadable = env.make_song("[sandbox:media-no-cors]")["song_url"]
    page.route(made[1]["song_url"], lambda route: route.continue_(url=unreadable))
    others = [song for song in made if song is not made[1]]
    for song in others:
        page.route(song["song_url"], lambda route: waiting.append(route))
    page.get_by_role("button", name="Download all").click()
    page.wait_for_timeout(300)
    assert len(waiting) <= 3
    for song in others:
        page.unroute(song["song_url"])
    for route in waiting:
        route.continue_()
    report = page.get_by_text(f"Downloaded {len(others)} of {len(made)} songs.")
    expect(report).to_contain_text(f"Not {made[1]['title']}: the media host does not let this page read them")
    # The browser may tell of a download later than the page.
    while len(downloads) < len(others):
        page.wait_for_timeout(50)
    names = [download.suggested_filename for download in downloads]
    assert sorted(names) == sorted(f"{song['title']}.wav" for song in others)


def test_only_songs_that_are_shown_are_downloaded_also_in_airflows_frame(
    env: Environment, runs: Runs, page: Page
) -> None:
    song = _batch(env, runs)[2]
    songs = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "batch"))
    songs.get_by_role("searchbox").fill(song["prompt"])
    expect(songs.get_by_text("Shows 1 of 12 songs", exact=True)).to_be_visible()
    with page.expect_download() as saved:
        songs.get_by_role("button", name="Download all").click()
    assert saved.value.suggested_filename == f"{song['title']}.wav"
    expect(songs.get_by_text("Downloaded 1 of 1 song.", exact=True)).to_be_visible()


def test_a_single_song_needs_no_toolbar(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds, "single"))
    expect(play_button(page.get_by_role("listitem").first)).to_be_visible()
    expect(page.get_by_role("button", name="Play all")).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark"), (3840, "light")])
def test_the_rules_of_axe_find_nothing(env: Environment, runs: Runs, width: int, scheme: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    size: Any = {"width": width, "height": 900}
    with env.open_window("admin", viewport=size, color_scheme=scheme) as context, context.new_page() as page:
        # The page has no ground of its own.
        page.goto(env.page_url("tracks", runs.all_kinds))
        page.evaluate(
            "dark => { document.documentElement.style.background = dark ? '#0b0d10' : '#fff'; }", scheme == "dark"
        )
        page.get_by_text("Keys", exact=True).click()
        play_button(page.get_by_role("listitem").first).click()
        expect(player(page)).not_to_have_js_property("currentTime", 0)
        violations = Axe().run(page).response["violations"]
        assert not [(found["id"], [node["html"] for node in found["nodes"]]) for found in violations]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_text_of_a_filter_finds_markup_and_is_no_pattern(env: Environment, runs: Runs, page: Page) -> None:
    change_songs(page, prompt="<b>(.*)[</b>")
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    page.get_by_role("searchbox").fill("(.*)[")
    expect(page.get_by_text("Shows 12 of 12 songs", exact=True)).to_be_visible()


def test_modules_that_decide(env: Environment, runs: Runs, page: Page) -> None:
    """Without the page: in its own origin, as its policy forbids scripts of others."""
    page.goto(env.page_url("tracks", runs.all_kinds))
    found = page.evaluate(
        """async () => {
          const [playlist, filters, keys, downloads] = await Promise.all(
            ["playlist", "filters", "keys", "downloads"].map((name) => import(`/whisul-tracks/${name}.js`)));
          const songs = [false, true, null, false, true].map((playable) => ({ playable }));
          const next = (from, step) => songs.indexOf(playlist.findNext(songs, from, step, (song) => song.playable));
          const press = (key, name = "body", more = {}) => keys.actionOf({ key, ...more }, name);
          const sorted = (sort) => filters.inOrder(
            [{ title: "b", bpm: 90 }, { title: "a" }, { bpm: 70 }, null], sort, (song) => song);
          return {
            next: [next(-1, 1), next(1, 1), next(2, 1), next(4, -1), next(4, 1), next(0, -1)],
            gone: [playlist.indexOfCurrent(["a", "b"], "b", 0), playlist.indexOfCurrent(["a", "b"], "x", 1),
                   playlist.indexOfCurrent([], "x", 7)],
            keys: [press(" "), press(" ", "button"), press("n", "button"), press("n", "search"),
                   press(" ", "range"), press("ArrowLeft", "range"), press("n", "select-one"),
                   press("n", "body", { ctrlKey: true }), press("x"), press("toString")],
            sorted: ["title", "slowest", "fastest", "made"].map(
              (sort) => sorted(sort).map((song) => song?.title ?? null)),
            end: [downloads.describeEnd(0, 0, []), downloads.describeEnd(6, 1, ["a", "b", "c", "d", "e"])],
          };
        }"""
    )
    assert found["next"] == [1, 2, 4, 2, -1, -1]
    assert found["gone"] == [1, 0, -1]
    assert found["keys"] == ["toggle", None, "next", None, "toggle", None, None, None, None, None]
    assert found["sorted"] == [
        ["a", "b", None, None],
        [None, "b", "a", None],
        ["b", None, "a", None],
        ["b", "a", None, None],
    ]
    assert found["end"][0] == "There is no song to download."
    assert found["end"][1].startswith("Downloaded 1 of 6 songs. Not a, b, c and 2 more: the media host")

"""
The Tracks tab as people see it: Chromium, a real API server, real runs on the sandbox, and the login on.

Run by ``make test-browser``; its name keeps it out of a plain ``pytest``, which needs no browser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Frame, FrameLocator, Page, Request, Route, expect

from tests.browser.stage import RUN_TIMEOUT, Stage, stage

# The first test waits for Airflow, the second for all the runs.
pytestmark = pytest.mark.timeout(300)

THOUSAND = 1_000
#: Requests for XComs that showing the first of a thousand songs, and then all of them, may take.
FEW, ALL = 6, 70
expect.set_options(timeout=30_000)


@dataclass(frozen=True)
class Runs:
    """The ids of the runs, by what is in them."""

    all_kinds: str
    secret: str
    thousand: str
    odd: str


@pytest.fixture(scope="session")
def on() -> Iterator[Stage]:
    with stage() as started:
        yield started


@pytest.fixture(scope="session")
def late(on: Stage) -> str:
    """A run whose second song takes half a minute. The others begin with it."""
    return on.airflow.trigger("tracks_late")


@pytest.fixture(scope="session")
def begun(on: Stage, late: str) -> dict[str, str]:
    # With what a scheduled run's id has in it, and Airflow 3.1 does not encode in a tab's address.
    run_id = "manual__2026-11-23T08:00:00+00:00"
    return {dag_id: on.airflow.trigger(dag_id, run_id=run_id) for dag_id in ("tracks", "tracks_secret")}


@pytest.fixture(scope="session")
def runs(on: Stage, begun: dict[str, str]) -> Runs:
    """All of them, over."""
    airflow = on.airflow
    assert airflow.wait("tracks", begun["tracks"], RUN_TIMEOUT) == "failed"  # one mapped song is to fail
    assert airflow.wait("tracks_secret", begun["tracks_secret"], RUN_TIMEOUT) == "success"
    songs = [made["track"] for made in airflow.xcom("tracks", begun["tracks"], "batch") if made["track"]]
    given = {
        "thousand": [{**songs[i % len(songs)], "title": f"Song number {i + 1}"} for i in range(THOUSAND)],
        "odd": [
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
    ids = {name: airflow.trigger("tracks_given", {"songs": songs}) for name, songs in given.items()}
    for run_id in ids.values():
        assert airflow.wait("tracks_given", run_id, RUN_TIMEOUT) == "success"
    return Runs(begun["tracks"], begun["tracks_secret"], **ids)


@pytest.fixture(scope="session")
def admin(on: Stage) -> Iterator[BrowserContext]:
    with on.visitor("admin") as context:
        yield context


@pytest.fixture
def page(admin: BrowserContext) -> Iterator[Page]:
    with admin.new_page() as opened:
        yield opened
        # The page goes on asking while it is closed.
        opened.unroute_all(behavior="ignoreErrors")


def tab(page: Page, address: str) -> FrameLocator:
    """Open a page of Airflow's UI and return the tab that it frames."""
    page.goto(address)
    return page.frame_locator("iframe[title=Tracks]")


def frame_of(page: Page) -> Frame:
    return next(frame for frame in page.frames if "/whisul-tracks/" in frame.url)


def card(frame: FrameLocator | Page, title: str) -> Any:
    return frame.get_by_role("listitem").filter(has=frame.get_by_role("heading", name=title, exact=True))


def give(page: Page, **fields: Any) -> None:
    """Have all the songs say something else."""

    def changed(route: Route) -> None:
        entry = route.fetch().json()
        value = entry["value"]
        songs = json.loads(value) if isinstance(value, str) else value
        route.fulfill(json={**entry, "value": [{**song, **fields} for song in songs]})

    page.route("**/xcomEntries/*", changed)


def test_the_tab_fills_while_the_run_goes_on(on: Stage, late: str, page: Page, begun: dict[str, str]) -> None:
    count = tab(page, on.run_page("tracks_late", late)).get_by_role("status").first
    expect(count).to_have_text("No songs yet. They appear here as they come.")
    expect(count).to_have_text("1 song so far", timeout=60_000)
    expect(count).to_have_text("2 songs", timeout=90_000)


def test_a_run_shows_the_songs_of_all_its_tasks(on: Stage, runs: Runs, page: Page) -> None:
    page.goto(on.run_page("tracks", runs.all_kinds).rpartition("/plugin/")[0])
    page.get_by_role("link", name="Tracks", exact=True).click()
    songs = page.frame_locator("iframe[title=Tracks]")
    expect(songs.get_by_role("status").first).to_have_text("14 songs, 3 failed")
    for task, cards in {"batch": 12, "single": 1, "song": 4}.items():
        expect(songs.get_by_role("heading", name=task, exact=True)).to_be_attached()
        expect(songs.get_by_role("list", name=f"Songs of {task}").locator("> li")).to_have_count(cards)

    made = on.airflow.xcom("tracks", runs.all_kinds, "batch")[0]["track"]
    first = songs.get_by_role("list", name="Songs of batch").locator("> li").first
    expect(first.get_by_role("heading")).to_have_text(made["title"])
    expect(first.get_by_text("lo-fi for the last train home")).to_be_visible()
    length = f"{made['duration_seconds'] // 60}:{made['duration_seconds'] % 60:02}"
    expect(first.get_by_text(f"{made['bpm']} bpm · {length}")).to_be_visible()
    assert first.get_by_role("list", name="Tags").locator("li").all_inner_texts() == made["tags"]
    expect(first.get_by_role("img", name=f"Cover of {made['title']}")).to_have_js_property("naturalWidth", 256)
    expect(first.get_by_role("link", name="Open")).to_have_attribute("href", made["song_url"])

    failed = songs.get_by_role("listitem").filter(has_text="a march nobody asked for")
    expect(failed.get_by_text("Generation failed due to an internal error")).to_be_visible()
    assert failed.get_by_role("link").count() == 0


def test_a_task_shows_its_own_songs(on: Stage, runs: Runs, page: Page) -> None:
    mapped = tab(page, on.task_page("tracks", runs.all_kinds, "song", 1))
    expect(mapped.get_by_role("status").first).to_have_text("1 song")
    expect(mapped.get_by_text("dark trap with a choir, 140 bpm")).to_be_visible()
    failed = tab(page, on.task_page("tracks", runs.all_kinds, "song", 3))
    expect(failed.get_by_role("status").first).to_have_text("0 songs, 1 failed")
    expect(failed.get_by_text("failed: Generation failed due to an internal error")).to_be_visible()
    single = tab(page, on.task_page("tracks", runs.all_kinds, "single"))
    expect(single.get_by_text("a tango for one")).to_be_visible()
    submitted = tab(page, on.task_page("tracks", runs.all_kinds, "submit", 0))
    expect(submitted.get_by_role("status").first).to_contain_text("with the task that waits for them")


def test_mapped_songs_are_labelled_by_their_prompts_and_have_a_link(on: Stage, runs: Runs) -> None:
    tasks = on.airflow.task_instances("tracks", runs.all_kinds)
    labels = {task.map_index: task.rendered_map_index for task in tasks if task.task_id == "song"}
    assert labels[0] == "a slow waltz for a rainy harbour"
    assert labels[3] == on.airflow.xcom("tracks", runs.all_kinds, "submit", 3)  # which failed, so that nobody knows
    song = on.airflow.xcom("tracks", runs.all_kinds, "song", 0)
    assert on.airflow.extra_links("tracks", runs.all_kinds, "song", 0) == {"Song": song["song_url"]}
    assert on.airflow.extra_links("tracks", runs.all_kinds, "song", 3) == {"Song": None}
    assert on.airflow.extra_links("tracks", runs.all_kinds, "submit", 0) == {"Song": None}


def test_a_song_plays_and_only_one_at_a_time(on: Stage, runs: Runs, page: Page) -> None:
    songs = tab(page, on.run_page("tracks", runs.all_kinds))
    players = songs.locator("audio")
    players.nth(0).focus()
    page.keyboard.press("Space")
    expect(players.nth(0)).not_to_have_js_property("currentTime", 0)
    page.wait_for_function("audio => audio.currentTime > 0.5", arg=players.nth(0).element_handle())
    players.nth(1).focus()
    page.keyboard.press("Space")
    page.wait_for_function("audio => audio.currentTime > 0.2", arg=players.nth(1).element_handle())
    expect(players.nth(0)).to_have_js_property("paused", True)


def test_it_is_light_and_dark_as_the_page_around_it(on: Stage, runs: Runs, page: Page) -> None:
    songs = tab(page, on.run_page("tracks", runs.all_kinds))
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


def test_outside_the_ui_it_is_dark_where_the_browser_is(on: Stage, runs: Runs) -> None:
    with on.visitor("admin", color_scheme="dark") as context, context.new_page() as page:
        page.goto(on.bare_page("tracks", runs.all_kinds))
        expect(page.locator(":root")).to_have_css("color-scheme", "dark")


def test_hostile_texts_stay_texts(on: Stage, runs: Runs, page: Page) -> None:
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    songs = tab(page, on.task_page("tracks", runs.all_kinds, "song", 2))
    expect(songs.get_by_role("listitem").locator("h3")).to_have_text(re.compile(r"^<script>alert\('.*'\)</script>$"))
    expect(songs.get_by_role("list", name="Tags").locator("li").nth(1)).to_have_text("<img src=x onerror=alert(1)>")
    assert songs.locator("h3 *, .tags li *").count() == 0
    assert said == []


def test_what_is_broken_is_told_on_its_card(on: Stage, runs: Runs, page: Page) -> None:
    songs = tab(page, on.run_page("tracks_given", runs.odd))
    scripted = card(songs, "scripted")
    expect(scripted.get_by_text("No cover")).to_be_visible()
    expect(scripted.get_by_text("There is no address to play it from.")).to_be_visible()
    assert scripted.get_by_role("link").count() == 0
    assert page.evaluate("window.hacked") is None
    broken = card(songs, "broken")
    expect(broken.get_by_text("The cover cannot be shown.")).to_be_visible()
    broken.locator("audio").focus()
    page.keyboard.press("Space")
    expect(broken.get_by_text("The song cannot be played.")).to_be_visible()
    expect(card(songs, "Untitled")).to_be_visible()


def test_songs_open_and_download_though_the_frame_may_do_neither(on: Stage, runs: Runs, page: Page) -> None:
    songs = tab(page, on.task_page("tracks", runs.all_kinds, "single"))
    url = on.airflow.xcom("tracks", runs.all_kinds, "single")["song_url"]
    title = on.airflow.xcom("tracks", runs.all_kinds, "single")["title"]
    with page.context.expect_page() as opened:
        songs.get_by_role("link", name="Open").click()
    assert opened.value.url == url
    assert opened.value.evaluate("window.opener") is None
    opened.value.close()

    # The sandbox lets pages play a song, not read it.
    with page.context.expect_page() as opened:
        songs.get_by_role("link", name="Download").click()
    assert opened.value.url == url
    opened.value.close()
    expect(songs.get_by_text("save it from there")).to_be_visible()

    allowed = {"Access-Control-Allow-Origin": "*", "Content-Type": "audio/wav"}
    page.route(url, lambda route: route.fulfill(body=b"RIFF", headers=allowed))
    with page.expect_download() as saved:
        songs.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == f"{title}.wav"


def test_media_hosts_learn_nothing(on: Stage, runs: Runs, page: Page) -> None:
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if "/media/" in request.url else None)
    songs = tab(page, on.task_page("tracks", runs.all_kinds, "single"))
    songs.locator("audio").focus()
    page.keyboard.press("Space")
    expect(songs.locator("audio")).not_to_have_js_property("currentTime", 0)
    assert {request.url.split("/")[4] for request in asked} == {"audio", "covers"}
    for request in asked:
        # The cookie is of this host, which here keeps the songs too; no browser sends it to another.
        assert not {"referer", "authorization"} & set(request.all_headers())


def test_a_thousand_songs_scroll(on: Stage, runs: Runs, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/xcomEntries" in request.url else None)
    songs = tab(page, on.run_page("tracks_given", runs.thousand))
    expect(songs.get_by_role("status").first).to_have_text("1,000 songs")
    expect(songs.get_by_role("heading", name="Song number 1", exact=True)).to_be_visible()
    assert len(asked) <= FEW
    scrolled = frame_of(page).evaluate(
        """async () => {
          const page = document.scrollingElement;
          const frames = [];
          for (let last = performance.now(); page.scrollTop + innerHeight < page.scrollHeight - 2; ) {
            page.scrollTop += 300;
            await new Promise(requestAnimationFrame);
            frames.push(performance.now() - last);
            last = performance.now();
          }
          frames.sort((a, b) => a - b);
          return {frames: frames.length, median: frames[frames.length >> 1], worst: frames.at(-1)};
        }"""
    )
    print(f"\n1,000 songs: {scrolled}, {len(asked)} requests for XComs")
    assert scrolled["frames"] > 50
    assert scrolled["median"] < 100
    expect(songs.get_by_role("heading", name="Song number 1000", exact=True)).to_be_visible()
    assert len(asked) <= ALL
    # The players are what makes such a page heavy.
    assert songs.locator("audio").count() < 60


def test_it_is_usable_when_narrow(on: Stage, runs: Runs) -> None:
    with on.visitor("admin", viewport={"width": 320, "height": 700}) as context, context.new_page() as page:
        page.goto(on.bare_page("tracks_given", runs.odd))
        expect(card(page, "broken")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_keyboard_reaches_players_and_links(on: Stage, runs: Runs, page: Page) -> None:
    page.goto(on.bare_page("tracks", runs.all_kinds))
    title = on.airflow.xcom("tracks", runs.all_kinds, "batch")[0]["track"]["title"]
    expect(page.get_by_role("listitem").first.get_by_role("heading")).to_have_text(title)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.getAttribute('aria-label')")
        if name and (not reached or reached[-1] != name):
            reached.append(name)
        if len(reached) == 4:
            break
    assert reached[:3] == [f"Play {title}", f"Open {title}", f"Download {title}"]
    assert reached[3].startswith("Play ")


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("viewer", "You may not read the XComs of this DAG"),
        ("guest", "You may not read the XComs of this DAG"),
        (None, "Your session is over."),
    ],
)
def test_who_may_not_see_a_dag_sees_none_of_its_songs(on: Stage, runs: Runs, user: str | None, words: str) -> None:
    song = on.airflow.xcom("tracks_secret", runs.secret, "single")
    with on.visitor(user) as context, context.new_page() as page:
        bodies: list[str] = []
        page.on("response", lambda response: bodies.append(response.text()))
        page.goto(on.bare_page("tracks_secret", runs.secret))
        expect(page.get_by_role("alert")).to_contain_text(words)
        assert page.get_by_role("listitem").count() == 0
        assert bodies
        for secret in (song["title"], song["job_id"], song["song_url"], "a secret serenade"):
            assert secret not in "".join(bodies)


def test_who_may_not_read_xcoms_sees_no_songs(on: Stage, runs: Runs) -> None:
    with on.visitor("guest") as context, context.new_page() as page:
        songs = tab(page, on.run_page("tracks", runs.all_kinds))
        expect(songs.get_by_role("alert")).to_contain_text("You may not read the XComs of this DAG")
        assert songs.get_by_role("listitem").count() == 0


def test_a_viewer_sees_the_other_songs(on: Stage, runs: Runs) -> None:
    with on.visitor("viewer") as context, context.new_page() as page:
        songs = tab(page, on.run_page("tracks", runs.all_kinds))
        expect(songs.get_by_role("status").first).to_have_text("14 songs, 3 failed")


def test_an_airflow_that_fails_is_told_and_asked_again(on: Stage, runs: Runs, page: Page) -> None:
    page.route("**/xcomEntries?*", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(on.bare_page("tracks", runs.all_kinds))
    expect(page.get_by_role("alert")).to_have_text("Airflow answered 503. Trying again.")
    page.unroute("**/xcomEntries?*")
    expect(page.get_by_role("status").first).to_have_text("14 songs, 3 failed")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Your session is over."),
        (403, "You may not read the XComs of this DAG"),
        (404, "Airflow knows no such run or task, or does not show it to you."),
    ],
)
def test_songs_go_where_the_right_to_see_them_has_gone(
    on: Stage, runs: Runs, page: Page, status: int, words: str
) -> None:
    page.goto(on.bare_page("tracks", runs.all_kinds))
    expect(page.get_by_role("status").first).to_have_text("14 songs, 3 failed")
    page.route("**/xcomEntries?*", lambda route: route.fulfill(status=status, body="{}"))
    # As when somebody comes back to the tab: it looks again.
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_role("status").first).to_have_text("")
    assert page.get_by_role("listitem").count() == 0


def test_airflow_3_1_0_is_asked_with_the_token_that_its_ui_keeps(on: Stage, runs: Runs) -> None:
    """It reads no cookie for its API."""
    token = on.airflow.token(("admin", on.passwords["admin"]))
    with on.visitor(None) as context, context.new_page() as page:
        page.add_init_script(f"localStorage.setItem('token', '{token}')")
        page.goto(on.bare_page("tracks", runs.all_kinds))
        expect(page.get_by_role("status").first).to_have_text("14 songs, 3 failed")
        expect(page.get_by_role("listitem").first.get_by_role("heading")).to_be_visible()


def test_a_token_that_is_over_is_asked_with_once(on: Stage, runs: Runs) -> None:
    with on.visitor(None) as context, context.new_page() as page:
        asked: list[Request] = []
        page.on("request", lambda request: asked.append(request) if "/api/" in request.url else None)
        page.add_init_script("localStorage.setItem('token', 'old')")
        page.goto(on.bare_page("tracks", runs.all_kinds))
        expect(page.get_by_role("alert")).to_contain_text("Your session is over.")
        assert [request.all_headers().get("authorization") for request in asked] == [None, "Bearer old"]


@pytest.mark.parametrize(
    "login",
    [
        {"status": 200, "content_type": "text/html", "body": "<!doctype html><title>Log in</title>"},
        {"status": 302, "headers": {"Location": "https://login.test/"}},
    ],
)
def test_the_login_of_a_proxy_is_a_session_that_is_over(
    on: Stage, runs: Runs, page: Page, login: dict[str, Any]
) -> None:
    page.route("**/api/v2/**", lambda route: route.fulfill(**login))
    page.goto(on.bare_page("tracks", runs.all_kinds))
    expect(page.get_by_role("alert")).to_contain_text("Your session is over.")


def test_an_airflow_that_hangs_is_told_and_asked_again(on: Stage, runs: Runs, page: Page) -> None:
    page.add_init_script("const after = AbortSignal.timeout; AbortSignal.timeout = () => after.call(AbortSignal, 200)")
    held: list[Route] = []
    page.route("**/dagRuns/*", lambda route: held.append(route))
    page.goto(on.bare_page("tracks", runs.all_kinds))
    expect(page.get_by_role("alert")).to_have_text("Airflow did not answer within 30 s. Trying again.")
    assert held


def hurry(page: Page) -> None:
    """Have the page look again after half a second, and note in ``pauses`` what it would have waited (ms)."""
    page.add_init_script(
        """
        const later = setTimeout;
        window.pauses = [];
        setTimeout = (call, ms) => {
          if (ms >= 10_000) pauses.push(ms);
          return later(call, Math.min(ms, 500));
        };
        """
    )


def give_run(page: Page, **fields: Any) -> None:
    page.route("**/dagRuns/*", lambda route: route.fulfill(json={**route.fetch().json(), **fields}))


def test_a_run_that_is_cleared_is_seen_to_go_on(on: Stage, runs: Runs, page: Page) -> None:
    listed: list[str] = []
    page.on("request", lambda request: listed.append(request.url) if "/xcomEntries?" in request.url else None)
    hurry(page)
    page.goto(on.bare_page("tracks", runs.all_kinds))
    count = page.get_by_role("status").first
    expect(count).to_have_text("14 songs, 3 failed")
    # While it stays over, it is asked for, but not its songs.
    while page.evaluate("pauses.length") < 3:
        page.wait_for_timeout(100)
    assert page.evaluate("Math.min(...pauses)") >= 60_000
    assert len(listed) == 1

    give_run(page, state="running", end_date=None)
    expect(count).to_have_text("14 songs, 3 failed so far")
    while page.evaluate("pauses.at(-1)") >= 60_000:
        page.wait_for_timeout(100)
    give_run(page, state="success", end_date="2031-01-01T00:00:00Z")
    expect(count).to_have_text("14 songs, 3 failed")


def test_a_run_that_was_cleared_and_is_over_again_is_listed_anew(on: Stage, runs: Runs, page: Page) -> None:
    hurry(page)
    page.goto(on.bare_page("tracks", runs.all_kinds))
    count = page.get_by_role("status").first
    expect(count).to_have_text("14 songs, 3 failed")
    page.route("**/xcomEntries?*", lambda route: route.fulfill(json={"xcom_entries": [], "total_entries": 0}))
    give_run(page, end_date="2031-01-01T00:00:00Z")
    expect(count).to_have_text("This run has made no songs.")
    expect(page.get_by_role("listitem")).to_have_count(0)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("failed", "This task ended (failed) without a song; its log says why."),
        ("upstream_failed", "This task ended (upstream_failed) without a song."),
    ],
)
def test_a_task_that_failed_without_a_song_says_so(on: Stage, runs: Runs, page: Page, state: str, words: str) -> None:
    page.route("**/taskInstances/submit/0", lambda route: route.fulfill(json={**route.fetch().json(), "state": state}))
    page.goto(on.bare_page("tracks", runs.all_kinds, "submit", 0))
    expect(page.get_by_role("status").first).to_have_text(words)


def test_cards_that_failed_to_load_can_be_tried_again_without_losing_ones_place(
    on: Stage, runs: Runs, page: Page
) -> None:
    held: list[Route] = []
    page.route("**/xcomEntries/*", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(on.bare_page("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    words = "This song could not be loaded. Airflow answered 503."
    expect(first.get_by_text(words)).to_be_visible()
    expect(first).not_to_have_attribute("aria-busy", re.compile(""))

    page.route("**/xcomEntries/*", lambda route: held.append(route))
    button = first.get_by_role("button", name="Try again")
    button.focus()
    page.keyboard.press("Enter")
    expect(first.get_by_role("status")).to_have_text("Loading it again…")
    for route in held:
        route.fulfill(status=404, body="{}")
    expect(first.get_by_role("status")).to_have_text("This song could not be loaded. Airflow has it no longer.")
    expect(button).to_be_focused()

    page.unroute("**/xcomEntries/*")
    page.keyboard.press("Enter")
    expect(first.get_by_role("heading")).to_be_focused()
    expect(first.locator("audio")).to_be_visible()


def test_cards_that_failed_to_load_are_filled_when_airflow_is_back(on: Stage, runs: Runs, page: Page) -> None:
    page.route("**/xcomEntries/*", lambda route: route.fulfill(status=503, body="{}"))
    hurry(page)
    page.goto(on.bare_page("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    expect(first.get_by_text("This song could not be loaded.")).to_be_visible()
    page.unroute("**/xcomEntries/*")
    expect(first.locator("audio")).to_be_visible()


def test_a_song_that_cannot_be_played_keeps_the_focus(on: Stage, runs: Runs, page: Page) -> None:
    page.route("**/media/**", lambda route: route.fulfill(status=404))
    page.goto(on.bare_page("tracks", runs.all_kinds))
    first = page.get_by_role("listitem").first
    first.locator("audio").focus()
    page.keyboard.press("Space")
    expect(first.get_by_text("The song cannot be played.")).to_be_focused()


def test_a_song_that_is_still_loading_outlives_scrolling(on: Stage, runs: Runs) -> None:
    with on.visitor("admin", viewport={"width": 320, "height": 400}) as context, context.new_page() as page:
        held: list[Route] = []
        page.route("**/media/audio/**", lambda route: held.append(route))
        page.goto(on.bare_page("tracks", runs.all_kinds))
        player, other = (page.get_by_role("listitem").nth(index).locator("audio") for index in (0, 1))
        player.focus()
        page.keyboard.press("Space")
        expect(player).to_have_js_property("paused", False)
        player.evaluate("audio => audio.blur()")
        page.evaluate("document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight")
        expect(other).to_have_count(0)
        expect(player).to_have_count(1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_song_sends_its_viewers_to_airflow_itself(on: Stage, runs: Runs, page: Page, scheme: str) -> None:
    logout = f"{scheme}://{on.airflow.ui_url.partition('://')[2]}/auth/logout"

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    give(page, song_url=logout, image_url=logout)
    page.goto(on.bare_page("tracks", runs.all_kinds, "batch"))
    first = page.get_by_role("listitem").first
    expect(first.get_by_text("There is no address to play it from.")).to_be_visible()
    expect(first.get_by_text("No cover")).to_be_visible()
    assert logout not in asked


@pytest.mark.parametrize(
    ("path", "name"), [("song.flac?part=1", "page.html.flac"), ("song.html", "page html"), ("song", "page html")]
)
def test_only_a_song_is_saved(on: Stage, runs: Runs, page: Page, path: str, name: str) -> None:
    url = f"http://media.test/{path}"

    give(page, song_url=url, image_url=None, title="page.html")
    headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/html"}
    page.route(url, lambda route: route.fulfill(body="<script>alert(1)</script>", headers=headers))
    page.goto(on.bare_page("tracks", runs.all_kinds, "batch"))
    with page.expect_download() as saved:
        page.get_by_role("listitem").first.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == name


def test_cut_texts_are_whole_for_who_is_there_by_keyboard(on: Stage, runs: Runs, page: Page) -> None:
    give(page, title="long " * 60, prompt="long " * 60, tags=["a tag of some length"] * 10)
    page.goto(on.bare_page("tracks", runs.all_kinds, "batch"))
    first = page.get_by_role("listitem").first
    expect(first.locator("audio")).to_be_visible()
    cut = "card => [...card.querySelectorAll('.title, .prompt, .tags')].map(it => it.scrollHeight > it.clientHeight)"
    # To the mouse they stay as they are: what is about to be clicked must not move away.
    first.locator("audio").click()
    assert first.evaluate(cut) == [True] * 3
    link = first.get_by_role("link", name="Open")
    while not link.evaluate("link => link === document.activeElement"):
        page.keyboard.press("Tab")
    assert first.evaluate(cut) == [False] * 3

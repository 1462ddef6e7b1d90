"""Which songs the Tracks tab shows, and how: in Chromium, after real runs on a real Airflow."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import card, frame_of, open_tab

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(600)

#: Requests for XComs that showing the first of a thousand songs, and then all of them, may take.
MAX_FIRST_REQUESTS, MAX_REQUESTS = 6, 70


def test_the_tab_shows_songs_while_the_run_is_running(
    env: Environment, page: Page, started_runs: dict[str, str]
) -> None:
    """The second song of this run takes half a minute."""
    run_id = env.airflow.trigger("tracks_late")
    count = open_tab(page, env.run_tab_url("tracks_late", run_id)).get_by_role("status").first
    expect(count).to_have_text("No songs yet. They appear here when they are completed.")
    expect(count).to_have_text("1 song so far", timeout=60_000)
    expect(count).to_have_text("2 songs", timeout=90_000)


def test_the_tab_of_a_run_shows_the_songs_of_all_its_tasks(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.run_tab_url("tracks", runs.all_kinds).rpartition("/plugin/")[0])
    page.get_by_role("link", name="Tracks", exact=True).click()
    songs = page.frame_locator("iframe[title=Tracks]")
    expect(songs.get_by_role("status").first).to_have_text("14 songs, 3 failed")
    for task, cards in {"batch": 12, "single": 1, "song": 4}.items():
        expect(songs.get_by_role("heading", name=task, exact=True)).to_be_attached()
        expect(songs.get_by_role("list", name=f"Songs of {task}").locator("> li")).to_have_count(cards)

    made = env.airflow.xcom("tracks", runs.all_kinds, "batch")[0]["song"]
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


def test_the_tab_of_a_task_shows_only_its_songs(env: Environment, runs: Runs, page: Page) -> None:
    mapped = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "song", 1))
    expect(mapped.get_by_role("status").first).to_have_text("1 song")
    expect(mapped.get_by_text("dark trap with a choir, 140 bpm")).to_be_visible()
    failed = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "song", 3))
    expect(failed.get_by_role("status").first).to_have_text("0 songs, 1 failed")
    expect(failed.get_by_text("failed: Generation failed due to an internal error")).to_be_visible()
    single = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "single"))
    expect(single.get_by_text("a tango for one")).to_be_visible()
    submitted = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "submit", 0))
    expect(submitted.get_by_role("status").first).to_contain_text("the task that waits for them shows their songs")


def test_mapped_tasks_are_labelled_by_their_prompts_and_have_a_song_link(env: Environment, runs: Runs) -> None:
    tasks = env.airflow.task_instances("tracks", runs.all_kinds)
    labels = {task.map_index: task.rendered_map_index for task in tasks if task.task_id == "song"}
    assert labels[0] == "a slow waltz for a rainy harbour"
    # The sensor does not know the prompt of a job that failed.
    assert labels[3] == env.airflow.xcom("tracks", runs.all_kinds, "submit", 3)
    song = env.airflow.xcom("tracks", runs.all_kinds, "song", 0)
    assert env.airflow.extra_links("tracks", runs.all_kinds, "song", 0) == {"Song": song["song_url"]}
    assert env.airflow.extra_links("tracks", runs.all_kinds, "song", 3) == {"Song": None}
    assert env.airflow.extra_links("tracks", runs.all_kinds, "submit", 0) == {"Song": None}


def test_a_card_says_which_of_its_media_cannot_be_shown_or_played(env: Environment, runs: Runs, page: Page) -> None:
    songs = open_tab(page, env.run_tab_url("tracks_given", runs.unusual))
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


def test_markup_in_songs_is_shown_as_text(env: Environment, runs: Runs, page: Page) -> None:
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    songs = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "song", 2))
    expect(songs.get_by_role("listitem").locator("h3")).to_have_text(re.compile(r"^<script>alert\('.*'\)</script>$"))
    expect(songs.get_by_role("list", name="Tags").locator("li").nth(1)).to_have_text("<img src=x onerror=alert(1)>")
    assert songs.locator("h3 *, .tags li *").count() == 0
    assert dialogs == []


def test_a_thousand_songs_scroll_smoothly_and_are_read_as_needed(env: Environment, runs: Runs, page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/xcomEntries" in request.url else None)
    songs = open_tab(page, env.run_tab_url("tracks_given", runs.thousand))
    expect(songs.get_by_role("status").first).to_have_text("1,000 songs")
    expect(songs.get_by_role("heading", name="Song number 1", exact=True)).to_be_visible()
    assert len(requests) <= MAX_FIRST_REQUESTS
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
    print(f"\n1,000 songs: {scrolled}, {len(requests)} requests for XComs")
    assert scrolled["frames"] > 50
    assert scrolled["median"] < 100
    expect(songs.get_by_role("heading", name="Song number 1000", exact=True)).to_be_visible()
    assert len(requests) <= MAX_REQUESTS
    # The players make such a page slow.
    assert songs.locator("audio").count() < 60


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("failed", "This task ended (failed) without a song. See its log for the reason."),
        ("upstream_failed", "This task ended (upstream_failed) without a song."),
    ],
)
def test_the_tab_of_a_failed_task_without_songs_says_so(
    env: Environment, runs: Runs, page: Page, state: str, words: str
) -> None:
    page.route("**/taskInstances/submit/0", lambda route: route.fulfill(json={**route.fetch().json(), "state": state}))
    page.goto(env.page_url("tracks", runs.all_kinds, "submit", 0))
    expect(page.get_by_role("status").first).to_have_text(words)

"""Which songs the Tracks tab shows, and how: in Chromium, after real runs on a real Airflow."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import card, change_songs, frame_of, open_tab, play_button, shorten_pauses

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)

#: Requests for XComs that showing the first of a thousand songs, and then all of them, may take.
MAX_FIRST_REQUESTS, MAX_REQUESTS = 6, 70


def test_the_tab_shows_songs_while_the_run_is_running(
    env: Environment, page: Page, started_runs: dict[str, str]
) -> None:
    """The second song of this run takes half a minute."""
    # Else a slow machine ends the first song between two refreshes.
    shorten_pauses(page)
    run_id = env.airflow.trigger("tracks_late")
    songs = open_tab(page, env.run_tab_url("tracks_late", run_id))
    count = songs.get_by_role("status").first
    expect(count).to_have_text("2 songs so far: 2 pending, 2 submitted (0.16 USD)", timeout=60_000)
    pending = songs.get_by_role("listitem").filter(has_text="a late one")
    expect(pending.get_by_text("Being made")).to_be_visible()
    expect(pending.get_by_text("Since")).to_be_visible()
    expect(count).to_have_text("2 songs so far: 1 done, 1 pending, 2 submitted (0.16 USD)", timeout=60_000)
    expect(pending.get_by_text("Being made")).to_be_visible()
    expect(count).to_have_text("2 songs, 2 submitted (0.16 USD)", timeout=90_000)
    expect(play_button(pending)).to_be_visible()


def test_the_tab_of_a_batch_says_that_it_shows_finished_songs_in_steps(
    env: Environment, runs: Runs, page: Page
) -> None:
    """As in the middle of a batch of 100: the page is told that its task runs, and makes more songs."""

    def in_the_middle(route: Route) -> None:
        listed = route.fetch().json()
        entries = [entry for entry in listed["xcom_entries"] if not entry["key"].startswith("whisul_expected_")]
        pending = {**entries[0], "key": "whisul_expected_100", "timestamp": "2031-01-01T00:00:00Z"}
        route.fulfill(json={**listed, "xcom_entries": [*entries, pending], "total_entries": len(entries) + 1})

    card_json = {"status": "pending", "prompt": "a song of the batch", "job_id": "some-job", "since": None}
    page.route("**/xcomEntries?*", in_the_middle)
    page.route("**/xcomEntries/whisul_expected_100*", lambda route: route.fulfill(json={"value": [card_json]}))
    task = "**/taskInstances/batch"
    page.route(task, lambda route: route.fulfill(json={**route.fetch().json(), "state": "deferred"}))
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    expect(page.get_by_role("status").first).to_have_text(
        "100 songs so far: 10 done, 2 failed, 88 pending, 12 submitted (0.96 USD). "
        "A batch shows its finished songs in steps, minutes apart."
    )
    pending = page.get_by_role("listitem").filter(has_text="a song of the batch")
    # It may be finished already: the task has not been told yet.
    expect(pending.get_by_text("Pending", exact=True)).to_be_visible()


def test_the_tab_of_a_run_shows_the_songs_of_all_its_tasks(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.run_tab_url("tracks", runs.all_kinds).rpartition("/plugin/")[0])
    page.get_by_role("link", name="Tracks", exact=True).click()
    songs = page.frame_locator("iframe[title=Tracks]")
    expect(songs.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")
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
    expect(failed.get_by_role("status").first).to_have_text("1 song: 1 failed")
    expect(failed.get_by_text("failed: Generation failed due to an internal error")).to_be_visible()
    # The sensor knows the prompt from the poll of the job.
    expect(failed.get_by_role("listitem").get_by_role("heading")).to_have_text("a doomed one [sandbox:fail]")
    single = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "single"))
    expect(single.get_by_text("a tango for one")).to_be_visible()
    submitted = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "submit", 0))
    expect(submitted.get_by_role("status").first).to_contain_text("the task that waits for them shows their songs")


def test_the_tab_of_a_transfer_shows_what_was_stored_and_the_tab_of_the_run_shows_no_song_twice(
    env: Environment, runs: Runs, page: Page
) -> None:
    songs = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "store"))
    expect(songs.get_by_role("status").first).to_have_text("1 song")
    stored = env.airflow.xcom("tracks", runs.all_kinds, "store")["songs"][0]
    expect(songs.get_by_text(f"Stored as {stored['audio']['name']}")).to_be_visible()
    run = open_tab(page, env.run_tab_url("tracks", runs.all_kinds))
    expect(run.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")


def test_a_length_below_zero_is_not_shown(env: Environment, runs: Runs, page: Page) -> None:
    change_songs(page, bpm=-1, duration_seconds=-65)
    page.goto(env.page_url("tracks", runs.all_kinds, "single"))
    expect(page.get_by_role("listitem").get_by_role("heading")).to_be_visible()
    assert page.get_by_role("listitem").locator(".facts").all_inner_texts() == [""]


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
    play_button(broken).click()
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


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("failed", "This task ended (failed) without a song. See its log for the reason. 1 submitted (0.08 USD)."),
        ("upstream_failed", "This task ended (upstream_failed) without a song. 1 submitted (0.08 USD)."),
    ],
)
def test_the_tab_of_a_failed_task_without_songs_says_so(
    env: Environment, runs: Runs, page: Page, state: str, words: str
) -> None:
    page.route("**/taskInstances/submit/0", lambda route: route.fulfill(json={**route.fetch().json(), "state": state}))
    page.goto(env.page_url("tracks", runs.all_kinds, "submit", 0))
    expect(page.get_by_role("status").first).to_have_text(words)

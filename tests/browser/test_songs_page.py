"""The page Songs: the songs of all runs of a DAG or of all DAGs, newest first, and who sees which of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Request, Response, expect

from tests.browser.environment import RUN_TIMEOUT, Environment, Runs
from tests.browser.pages import card, open_tab, play_fast, player, shorten_pauses

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)

#: Titles of the songs of the runs of old, by the days since.
OLD = {5: "Five days old", 400: "More than a year old"}
HEAD = "17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)"


def a_song(env: Environment, runs: Runs, title: str) -> dict[str, Any]:
    """Return a song of a title, such as a task returns."""
    return {**env.airflow.xcom("tracks", runs.all_kinds, "single"), "title": title, "job_id": title}


@pytest.fixture(scope="module")
def history(env: Environment, runs: Runs) -> None:
    """Runs with a song each: of ``tracks_given``, days and more than a year old, and a second one of another DAG."""
    airflow = env.airflow
    now = datetime.now(UTC)
    ids = [
        airflow.trigger("tracks_given", {"songs": [a_song(env, runs, title)]}, run_after=now - timedelta(days=days))
        for days, title in OLD.items()
    ]
    earlier = airflow.trigger("tracks_secret", run_after=now - timedelta(hours=1))
    for run_id in ids:
        assert airflow.wait("tracks_given", run_id, RUN_TIMEOUT) == "success"
    assert airflow.wait("tracks_secret", earlier, RUN_TIMEOUT) == "success"


@pytest.fixture
def api_requests(page: Page) -> list[Request]:
    """The requests that the page sends to Airflow's API, without the others of Airflow's UI."""
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request) if "/api/v2/" in request.url else None)
    return requests


def read_all_older(page: Page, older: Locator) -> None:
    """Press the button for older songs until there are none."""
    while older.is_visible():
        # The page may just have taken it away.
        older.evaluate_all("buttons => buttons.forEach((button) => button.click())")
        page.wait_for_timeout(50)


def test_the_tab_of_a_dag_shows_the_songs_of_its_runs_newest_first(env: Environment, history: None, page: Page) -> None:
    songs = open_tab(page, env.songs_tab_url("tracks_given"), "Songs")
    count = songs.get_by_role("status").first
    expect(count).to_contain_text("1,004 songs")
    expect(count).to_contain_text("2 runs since")
    assert songs.get_by_role("heading", name=OLD[5]).count() == 0

    # Coming to the end of the list reads what is older, until there are no songs for months.
    older = songs.get_by_role("button", name="Older songs")
    older.scroll_into_view_if_needed()
    expect(count).to_contain_text("3 runs since")
    expect(count).to_contain_text("1,005 songs")
    read_all_older(page, older)
    expect(count).to_have_text("4 runs. 1,006 songs")
    expect(card(songs, OLD[400])).to_be_visible()
    dates = songs.get_by_role("heading", level=2).all_inner_texts()
    times = page.evaluate("dates => dates.map(date => Date.parse(date))", dates)
    assert len(times) == 4
    assert times == sorted(times, reverse=True)


def test_the_head_of_each_run_counts_its_songs_and_leads_to_its_tracks_tab(
    env: Environment, runs: Runs, page: Page
) -> None:
    songs = open_tab(page, env.songs_tab_url("tracks"), "Songs")
    expect(songs.get_by_role("status").first).to_have_text(f"1 run. {HEAD}")
    expect(songs.locator("section").get_by_text(HEAD)).to_be_visible()
    with page.context.expect_page() as opened:
        songs.get_by_role("heading", level=2).get_by_role("link").click()
    tab = opened.value.frame_locator("iframe[title=Tracks]")
    expect(tab.get_by_role("status").first).to_have_text(HEAD)
    opened.value.close()


def test_few_requests_show_a_history(env: Environment, runs: Runs, page: Page, api_requests: list[Request]) -> None:
    page.goto(env.songs_page_url("tracks"))
    expect(page.get_by_role("status").first).to_have_text(f"1 run. {HEAD}")
    expect(card(page, env.airflow.xcom("tracks", runs.all_kinds, "single")["title"])).to_be_visible()
    # When the first run was, which runs are running, and the keys of the XComs. Then XComs with the cards near the top.
    lists = [request.url for request in api_requests if "/xcomEntries/" not in request.url]
    assert len(lists) == 3


def test_the_page_of_all_dags_shows_the_admin_all_songs(env: Environment, runs: Runs, page: Page) -> None:
    songs = open_tab(page, f"{env.airflow.ui_url}/plugin/whisul-songs", "Songs")
    for dag in ("tracks", "tracks_given", "tracks_secret"):
        expect(songs.get_by_role("heading", level=2).filter(has_text=f"{dag}, ").first).to_be_visible()


@pytest.mark.parametrize("dag", [None, "tracks", "tracks_secret"])
@pytest.mark.parametrize("user", ["viewer", "guest", None])
def test_users_see_no_songs_of_dags_that_they_may_not_see(
    env: Environment, runs: Runs, user: str | None, dag: str | None
) -> None:
    song = env.airflow.xcom("tracks_secret", runs.secret, "single")
    with env.open_window(user) as context, context.new_page() as page:
        responses: list[Response] = []
        page.on("response", lambda response: responses.append(response))
        page.goto(env.songs_page_url(dag))
        if user == "viewer" and dag != "tracks_secret":
            expect(page.get_by_role("heading", level=2).last).to_be_visible()
            expect(page.get_by_role("listitem").first.get_by_role("heading")).to_be_visible()
        else:
            words = "You may not read" if user else "Your session is over."
            expect(page.get_by_role("alert")).to_contain_text(words)
            assert page.get_by_role("listitem").count() == 0
        bodies = "".join(response.text() for response in responses if "/media/" not in response.url)
        assert bodies
        for secret in (song["job_id"], song["song_url"], "a secret serenade"):
            assert secret not in bodies


def test_the_viewers_session_is_sent_to_airflows_api_only(env: Environment, runs: Runs, page: Page) -> None:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    page.goto(env.songs_page_url("tracks"))
    expect(page.get_by_role("img").first).to_be_visible()
    ui = env.airflow.ui_url
    for request in requests:
        if "/media/" in request.url:
            assert "authorization" not in request.all_headers()
        else:
            assert request.url.startswith((f"{ui}/whisul-tracks/", f"{ui}/api/v2/dags/tracks/dagRuns"))
            assert request.method == "GET"


def test_songs_of_a_new_run_come_by_themselves(env: Environment, runs: Runs, page: Page) -> None:
    shorten_pauses(page)
    page.goto(env.songs_page_url("tracks_given"))
    expect(page.get_by_role("status").first).to_contain_text("songs")
    title = "A new one"
    run_id = env.airflow.trigger("tracks_given", {"songs": [a_song(env, runs, title)]})
    assert env.airflow.wait("tracks_given", run_id, RUN_TIMEOUT) == "success"
    expect(card(page, title)).to_be_visible()
    expect(page.get_by_role("listitem").first.get_by_role("heading")).to_have_text(title)


def test_a_filter_searches_what_was_read_and_older_songs_only_when_asked(
    env: Environment, history: None, page: Page, api_requests: list[Request]
) -> None:
    page.goto(env.songs_page_url("tracks_given"))
    older = page.get_by_role("button", name="Older songs")
    expect(older).to_be_attached()
    page.get_by_role("searchbox").fill("years old")
    expect(older).to_be_in_viewport()
    listed = len([request for request in api_requests if "run_after_lt" in request.url])
    page.get_by_role("searchbox").fill("year old")
    expect(older).to_be_in_viewport()
    assert len([request for request in api_requests if "run_after_lt" in request.url]) == listed
    read_all_older(page, older)
    expect(card(page, OLD[400])).to_be_visible()


def test_play_all_goes_on_from_one_run_to_the_next(env: Environment, history: None, own_page: Page) -> None:
    page = own_page
    play_fast(page)
    page.goto(env.songs_page_url("tracks_secret"))
    sections = page.locator("section").filter(has=page.get_by_role("list"))
    expect(sections).to_have_count(2)
    page.get_by_role("button", name="Play all").click()
    # By itself, when the first song has ended, which takes less than a second.
    expect(sections.nth(1).locator(".current")).to_be_visible()
    expect(sections.nth(0).get_by_text("Heard", exact=True)).to_be_visible()
    expect(player(page)).not_to_have_js_property("currentTime", 0)


def test_the_page_says_that_airflow_fails_and_retries(env: Environment, runs: Runs, page: Page) -> None:
    shorten_pauses(page)
    page.route("**/xcomEntries?*", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(env.songs_page_url("tracks"))
    expect(page.get_by_role("alert")).to_have_text("Airflow responded with status 503. Trying again.")
    page.unroute("**/xcomEntries?*")
    expect(page.get_by_role("status").first).to_have_text(f"1 run. {HEAD}")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_songs_are_removed_when_the_viewer_loses_access(env: Environment, runs: Runs, page: Page) -> None:
    page.goto(env.songs_page_url("tracks"))
    expect(page.get_by_role("status").first).to_have_text(f"1 run. {HEAD}")
    page.route("**/dagRuns?*", lambda route: route.fulfill(status=403, body="{}"))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("alert")).to_contain_text("You may not read the XComs of this DAG")
    expect(page.get_by_role("status").first).to_have_text("")
    assert page.get_by_role("listitem").count() == 0


def test_periods_follow_each_other_without_a_gap_and_become_longer_where_there_are_few_songs(
    env: Environment, page: Page
) -> None:
    page.goto(env.songs_page_url("tracks"))
    hour = 3_600_000
    periods = page.evaluate(
        """async (counts) => {
          const { firstPeriod, periodBefore } = await import(new URL("periods.js", location.href));
          const periods = [firstPeriod(0)];
          for (const songs of counts) periods.push(periodBefore(periods.at(-1), songs));
          return periods;
        }""",
        [0, 20, 19, *[0] * 9, *[201] * 12],
    )
    assert periods[0]["to"] is None
    for newer, older in pairwise(periods):
        assert older["to"] == newer["from"]
        assert older["from"] == older["to"] - older["length"]
    days = [period["length"] / hour / 24 for period in periods]
    assert days[:4] == [2, 4, 4, 8]
    assert max(days) == 64
    assert periods[-1]["length"] == hour

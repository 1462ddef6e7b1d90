"""Who may see songs in the Tracks tab, and what the page sends to which host."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import bar, change_songs, open_tab, play_button, player

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("viewer", "You may not read the XComs of this DAG"),
        ("guest", "You may not read the XComs of this DAG"),
        (None, "Your session is over."),
    ],
)
def test_users_without_access_to_a_dag_get_none_of_its_songs(
    env: Environment, runs: Runs, user: str | None, words: str
) -> None:
    song = env.airflow.xcom("tracks_secret", runs.secret, "single")
    with env.open_window(user) as context, context.new_page() as page:
        bodies: list[str] = []
        page.on("response", lambda response: bodies.append(response.text()))
        page.goto(env.page_url("tracks_secret", runs.secret))
        expect(page.get_by_role("alert")).to_contain_text(words)
        assert page.get_by_role("listitem").count() == 0
        assert bodies
        for secret in (song["title"], song["job_id"], song["song_url"], "a secret serenade"):
            assert secret not in "".join(bodies)


def test_users_who_may_not_read_xcoms_see_no_songs(env: Environment, runs: Runs) -> None:
    with env.open_window("guest") as context, context.new_page() as page:
        songs = open_tab(page, env.run_tab_url("tracks", runs.all_kinds))
        expect(songs.get_by_role("alert")).to_contain_text("You may not read the XComs of this DAG")
        assert songs.get_by_role("listitem").count() == 0


def test_a_viewer_sees_the_songs_of_other_dags(env: Environment, runs: Runs) -> None:
    with env.open_window("viewer") as context, context.new_page() as page:
        songs = open_tab(page, env.run_tab_url("tracks", runs.all_kinds))
        expect(songs.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Your session is over."),
        (403, "You may not read the XComs of this DAG"),
        (404, "Airflow has no such run or task, or you may not see it."),
    ],
)
def test_songs_are_removed_when_the_viewer_loses_access(
    env: Environment, runs: Runs, page: Page, status: int, words: str
) -> None:
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")
    play_button(page.get_by_role("listitem").first).click()
    expect(player(page)).not_to_have_js_property("currentTime", 0)
    page.evaluate("window.playing = document.querySelector('.bar audio')")
    page.route("**/xcomEntries?*", lambda route: route.fulfill(status=status, body="{}"))
    # As when the viewer returns to the tab: the page refreshes.
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_role("status").first).to_have_text("")
    assert page.get_by_role("listitem").count() == 0
    expect(bar(page)).to_be_hidden()
    page.wait_for_function("() => playing.paused")
    for removed in (page.get_by_role("button"), page.get_by_role("combobox")):
        assert removed.count() == 0


def test_the_token_that_the_ui_of_airflow_3_1_0_stores_is_used(env: Environment, runs: Runs) -> None:
    """Its API does not read the cookie."""
    token = env.airflow.token(("admin", env.passwords["admin"]))
    with env.open_window(None) as context, context.new_page() as page:
        page.add_init_script(f"localStorage.setItem('token', '{token}')")
        page.goto(env.page_url("tracks", runs.all_kinds))
        expect(page.get_by_role("status").first).to_have_text("17 songs: 14 done, 3 failed, 17 submitted (1.36 USD)")
        expect(page.get_by_role("listitem").first.get_by_role("heading")).to_be_visible()


def test_an_expired_stored_token_is_sent_only_once(env: Environment, runs: Runs) -> None:
    with env.open_window(None) as context, context.new_page() as page:
        requests: list[Request] = []
        page.on("request", lambda request: requests.append(request) if "/api/" in request.url else None)
        page.add_init_script("localStorage.setItem('token', 'old')")
        page.goto(env.page_url("tracks", runs.all_kinds))
        expect(page.get_by_role("alert")).to_contain_text("Your session is over.")
        assert [request.all_headers().get("authorization") for request in requests] == [None, "Bearer old"]


@pytest.mark.parametrize(
    "login",
    [
        {"status": 200, "content_type": "text/html", "body": "<!doctype html><title>Log in</title>"},
        {"status": 302, "headers": {"Location": "https://login.test/"}},
    ],
)
def test_the_login_page_of_a_proxy_means_that_the_session_is_over(
    env: Environment, runs: Runs, page: Page, login: dict[str, Any]
) -> None:
    page.route("**/api/v2/**", lambda route: route.fulfill(**login))
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("alert")).to_contain_text("Your session is over.")


def test_media_hosts_get_no_referrer_and_no_credentials(env: Environment, runs: Runs, page: Page) -> None:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request) if "/media/" in request.url else None)
    songs = open_tab(page, env.task_tab_url("tracks", runs.all_kinds, "single"))
    play_button(songs.get_by_role("listitem").first).click()
    expect(player(songs)).not_to_have_js_property("currentTime", 0)
    assert {request.url.split("/")[4] for request in requests} == {"audio", "covers"}
    for request in requests:
        # The cookie is not checked: the media host is Airflow's host here. No browser sends it to another.
        assert not {"referer", "authorization"} & set(request.all_headers())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_urls_of_a_song_that_lead_to_airflow_itself_are_not_requested(
    env: Environment, runs: Runs, page: Page, scheme: str
) -> None:
    logout = f"{scheme}://{env.airflow.ui_url.partition('://')[2]}/auth/logout"

    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    change_songs(page, song_url=logout, image_url=logout)
    page.goto(env.page_url("tracks", runs.all_kinds, "batch"))
    first = page.get_by_role("listitem").first
    expect(first.get_by_text("There is no address to play it from.")).to_be_visible()
    expect(first.get_by_text("No cover")).to_be_visible()
    assert logout not in requests

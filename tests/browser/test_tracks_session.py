"""Covers and songs are requested without the viewer's session, whatever their host redirects to."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Request, expect

from tests.browser.environment import Environment, Runs
from tests.browser.pages import bar, change_songs, play_button, player

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)


def _show(page: Page, env: Environment, runs: Runs, song: dict[str, Any], *, localhost: bool = False) -> list[Request]:
    """Open the page with one song on its cards, play it, and return all requests that the page sends."""
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request))
    change_songs(page, song_url=song["song_url"], image_url=song["image_url"], title="given")
    url = env.page_url("tracks", runs.all_kinds, "single")
    page.goto(url.replace("127.0.0.1", "localhost") if localhost else url)
    return sent


def _log_in_at_localhost(context: BrowserContext, env: Environment) -> None:
    token = env.airflow.token(("admin", env.passwords["admin"]))
    context.add_cookies(
        [{"name": "_token", "value": token, "url": env.airflow.ui_url.replace("127.0.0.1", "localhost")}]
    )


def _is_logged_in(page: Page) -> bool:
    return page.evaluate("async () => (await fetch('../api/v2/dags?limit=1')).status") == 200


def _press_play(page: Page) -> None:
    play_button(page.get_by_role("listitem").first).click()


@pytest.mark.parametrize("cors", ["", "[sandbox:media-no-cors]"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_media_host_that_redirects_to_the_logout_does_not_log_the_viewer_out(
    env: Environment, runs: Runs, cors: str, name: str
) -> None:
    """The sandbox is on another port of Airflow's host, or, where the viewer says localhost, on another host."""
    logout = f"{env.airflow.ui_url.replace('127.0.0.1', name)}/api/v2/auth/logout"
    song = env.make_song(f"[sandbox:media-location={logout}]{cors}")
    with env.open_window("admin") as context, context.new_page() as page:
        _log_in_at_localhost(context, env)
        sent = _show(page, env, runs, song, localhost=name == "localhost")
        first = page.get_by_role("listitem").first
        expect(first.get_by_text("The cover cannot be shown.")).to_be_visible()
        _press_play(page)
        expect(first.get_by_text("The song cannot be played.")).to_be_visible()
        assert {song["song_url"], song["image_url"]} <= {request.url for request in sent}
        for request in sent:
            if request.url == logout:
                assert "cookie" not in request.all_headers()
        assert _is_logged_in(page)


def test_media_on_another_port_of_airflows_host_get_no_cookie_and_are_shown(env: Environment, runs: Runs) -> None:
    song = env.make_song()
    with env.open_window("admin") as context, context.new_page() as page:
        sent = _show(page, env, runs, song)
        first = page.get_by_role("listitem").first
        expect(first.get_by_role("img")).to_have_js_property("naturalWidth", 256)
        _press_play(page)
        expect(player(page)).not_to_have_js_property("currentTime", 0)
        media = [request for request in sent if request.url in song.values()]
        assert {request.url for request in media} == {song["song_url"], song["image_url"]}
        for request in media:
            assert not {"cookie", "referer", "authorization"} & set(request.all_headers())
        # Without this the test could not fail.
        assert any("cookie" in request.all_headers() for request in sent if "/api/v2/" in request.url)


def test_media_of_another_port_without_cors_are_not_requested_with_the_session(env: Environment, runs: Runs) -> None:
    song = env.make_song("[sandbox:media-no-cors]")
    with env.open_window("admin") as context, context.new_page() as page:
        sent = _show(page, env, runs, song)
        expect(page.get_by_text("The cover cannot be shown.").first).to_be_visible()
        assert not any("cookie" in request.all_headers() for request in sent if request.url == song["image_url"])


def test_media_of_a_host_without_cors_are_shown_and_played_in_a_frame(env: Environment, runs: Runs) -> None:
    song = env.make_song("[sandbox:media-no-cors]")
    with env.open_window("admin") as context, context.new_page() as page:
        _log_in_at_localhost(context, env)
        _show(page, env, runs, song, localhost=True)
        first = page.get_by_role("listitem").first
        image = first.locator(".cover iframe").content_frame.get_by_role("img", name="Cover of given")
        expect(image).to_have_js_property("naturalWidth", 256)
        _press_play(page)
        framed = page.locator(".bar iframe").content_frame.locator("audio")
        expect(framed).not_to_have_js_property("currentTime", 0)
        # The bar drives the player in the frame.
        time = bar(page).get_by_role("slider", name="Position")
        expect(time).not_to_have_attribute("aria-valuetext", re.compile("^0:00 "))
        bar(page).get_by_role("button", name="Pause").click()
        expect(framed).to_have_js_property("paused", True)
        time.press("Home")
        expect(framed).to_have_js_property("currentTime", 0)
        bar(page).get_by_role("button", name="Play", exact=True).click()
        expect(framed).not_to_have_js_property("currentTime", 0)
        assert framed.evaluate("audio => !audio.error")


@pytest.mark.parametrize("url", ["http://user:secret@127.0.0.1:1/x.wav", "javascript:alert(1)", "blob:x", "//x/y"])
def test_a_url_with_a_password_or_of_another_scheme_is_not_requested(
    env: Environment, runs: Runs, page: Page, url: str
) -> None:
    sent = _show(page, env, runs, {"song_url": url, "image_url": url})
    first = page.get_by_role("listitem").first
    expect(first.get_by_text("No cover")).to_be_visible()
    expect(first.get_by_text("There is no address to play it from.")).to_be_visible()
    assert first.get_by_role("link").count() == 0
    assert all(env.airflow.ui_url in request.url for request in sent)


def test_no_song_is_requested_before_the_viewer_plays_one(env: Environment, runs: Runs, page: Page) -> None:
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if "/media/" in request.url else None)
    page.goto(env.page_url("tracks", runs.all_kinds))
    expect(page.get_by_role("img").first).to_have_js_property("naturalWidth", 256)
    page.wait_for_load_state("networkidle")
    assert sent
    assert not [request.url for request in sent if "/audio/" in request.url]
    assert page.locator("audio").count() == 0

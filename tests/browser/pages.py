"""Opening the Tracks tab in a browser, and changing what Airflow's API responds to it."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import Frame, FrameLocator, Locator, Page, Route


def open_tab(page: Page, url: str, name: str = "Tracks") -> FrameLocator:
    """Open a page of Airflow's UI and return the frame that holds the tab of a name."""
    page.goto(url)
    return page.frame_locator(f"iframe[title={name}]")


def frame_of(page: Page) -> Frame:
    """Return the frame of the tab in an open page of Airflow's UI."""
    return next(frame for frame in page.frames if "/whisul-tracks/" in frame.url)


def card(frame: FrameLocator | Page, title: str) -> Locator:
    """Return the card of the song with a title."""
    return frame.get_by_role("listitem").filter(has=frame.get_by_role("heading", name=title, exact=True))


def card_of(frame: FrameLocator | Page, song: dict[str, Any]) -> Locator:
    """Return the card of a song, by its prompt: two songs of the sandbox may have the same title."""
    return frame.get_by_role("listitem").filter(has_text=song["prompt"])


def play_button(shown: Locator) -> Locator:
    """Return the button that plays a card's song, or pauses it."""
    return shown.get_by_role("button", name=re.compile("^(Play|Pause) "))


def player(frame: FrameLocator | Page) -> Locator:
    """Return the element that plays the songs. There is none before the first one is played."""
    return frame.locator(".bar audio")


def bar(frame: FrameLocator | Page) -> Locator:
    """Return the bar that says what plays."""
    return frame.get_by_role("region", name="Player")


def play_fast(page: Page) -> None:
    """Make songs play sixteen times as fast, the most that the browser allows."""
    page.add_init_script("addEventListener('playing', event => { event.target.playbackRate = 16; }, true)")


def change_songs(page: Page, **fields: Any) -> None:
    """Change fields of all songs in Airflow's responses."""

    def change(route: Route) -> None:
        entry = route.fetch().json()
        value = entry["value"]
        songs = json.loads(value) if isinstance(value, str) else value
        route.fulfill(json={**entry, "value": [{**song, **fields} for song in songs]})

    page.route("**/xcomEntries/*", change)


def change_run(page: Page, **fields: Any) -> None:
    """Change fields of the run in Airflow's responses."""
    page.route("**/dagRuns/*", lambda route: route.fulfill(json={**route.fetch().json(), **fields}))


def shorten_pauses(page: Page) -> None:
    """Make the page refresh after half a second, and record in ``pauses`` how long it would have waited (ms)."""
    page.add_init_script(
        """
        const original = setTimeout;
        window.pauses = [];
        setTimeout = (call, ms) => {
          if (ms >= 10_000) pauses.push(ms);
          return original(call, Math.min(ms, 500));
        };
        """
    )

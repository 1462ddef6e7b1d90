"""
The pictures of the documentation: `make pictures` writes them to docs/pictures. Else each one is taken again, and
compared with the one that is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.documented import difference, documented_window, read_words, take_picture, wait_for_covers
from tests.browser.environment import RUN_TIMEOUT, Environment
from tests.browser.pages import bar, card, frame_of, open_tab, play_button, player
from tests.support.pictures import DIGESTS, PICTURES, SOURCES, WIDTH, WORDS, normalise, read_texts

# The first test waits for Airflow and all runs.
pytestmark = pytest.mark.timeout(1800)

#: Whether the pictures are written.
WRITE = os.environ.get("WHISUL_WRITE_PICTURES") == "1"
#: By how much a picture may differ from the one that is there. Without one of its covers it differs by 4 or more, with
#: another font by 2.2 at most, and taken again by 0.01.
MAX_DIFFERENCE = 3.0

#: The prompts of two nights. The lengths are those of real songs, and give each song a title of its own.
NIGHTS = {
    "2026-11-22": [
        "soul with brass for a Sunday market [sandbox:duration=2:55]",
        "a piano nocturne for snow [sandbox:duration=3:32]",
        "a swing tune for the kitchen [sandbox:duration=1:56]",
        "dub for a hot afternoon [sandbox:duration=3:04]",
        "a folk song about the tide [sandbox:duration=4:08]",
        "synthwave for a night drive [sandbox:duration=4:08]",
        "a tango for one [sandbox:duration=1:58]",
        "a lullaby in seven eight [sandbox:duration=3:12]",
    ],
    "2026-11-23": [
        "lo-fi for the last train home [sandbox:duration=2:40]",
        "a bossa nova for two umbrellas [sandbox:duration=2:51]",
        "surf rock under northern lights [sandbox:duration=4:02]",
        "a sea shanty, sung by robots [sandbox:fail]",
        "a string quartet after the storm [sandbox:duration=2:22]",
        "an 8-bit fanfare for a small victory [sandbox:duration=1:36]",
        "ambient for an empty airport [sandbox:duration=2:30]",
        "a slow waltz for a rainy harbour [sandbox:duration=2:23]",
    ],
}
LAST_NIGHT = "2026-11-23"
DUE = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
MORNING = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
COUNT = "8 songs: 7 done, 1 failed, 8 submitted (0.64 USD)"

Keep = Callable[[str, Page, Locator], None]


@pytest.fixture(scope="module")
def nights(env: Environment, started_runs: dict[str, str]) -> None:
    """A run for each night, and one of a morning whose song fails. Those of the other tests run beside them."""
    airflow = env.airflow
    for night, prompts in NIGHTS.items():
        due = datetime.fromisoformat(night).replace(hour=2, tzinfo=UTC)
        airflow.trigger("nightly_songs", {"prompts": prompts}, run_id=night, run_after=due)
    airflow.trigger("morning_show", run_id=LAST_NIGHT, run_after=MORNING)
    for night in NIGHTS:
        assert airflow.wait("nightly_songs", night, RUN_TIMEOUT) == "success"
    assert airflow.wait("morning_show", LAST_NIGHT, RUN_TIMEOUT) == "failed"


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Write the picture of a page, or compare it with the one that is there."""

    def keep(name: str, page: Page, shown: Locator) -> None:
        words = normalise(read_words(shown))
        picture = take_picture(page, {SOURCES: DIGESTS[name](), WORDS: words})
        there = PICTURES / name
        if WRITE:
            there.write_bytes(picture)
            return
        taken = tmp_path / name
        taken.write_bytes(picture)
        assert words == read_texts(there.read_bytes())[WORDS], "Run `make pictures`."
        differs = difference(picture, there.read_bytes())
        print(f"\n{name}: {len(picture):,} bytes, a difference of {differs:.2f}")
        assert differs <= MAX_DIFFERENCE, f"{taken} differs from {there} by {differs:.2f}. Run `make pictures`."

    return keep


@pytest.mark.parametrize(("name", "scheme"), [("tracks-tab.png", "light"), ("tracks-tab-dark.png", "dark")])
def test_the_picture_of_the_tracks_tab(env: Environment, nights: None, keep: Keep, name: str, scheme: str) -> None:
    with documented_window(env, DUE, 900, scheme) as page:
        songs = open_tab(page, env.run_tab_url("nightly_songs", LAST_NIGHT))
        expect(songs.get_by_role("status").first).to_have_text(COUNT)
        expect(songs.locator(":root")).to_have_css("color-scheme", scheme)
        play_button(card(songs, "Quiet Circuit")).click()
        expect(player(songs)).not_to_have_js_property("currentTime", 0)
        bar(songs).get_by_role("button", name="Pause").click()
        bar(songs).get_by_label("Position").fill("47")
        expect(bar(songs).get_by_text("0:47 / 2:40")).to_be_visible()
        songs.locator("body").evaluate("() => document.activeElement.blur()")
        wait_for_covers(frame_of(page))
        keep(name, page, songs.locator("body"))


def test_the_picture_of_the_page_songs(env: Environment, nights: None, keep: Keep) -> None:
    with documented_window(env, DUE, 1300) as page:
        songs = open_tab(page, env.songs_tab_url("nightly_songs"), "Songs")
        expect(songs.get_by_role("status").first).to_have_text(
            "2 runs. 16 songs: 15 done, 1 failed, 16 submitted (1.28 USD)"
        )
        expect(card(songs, "Velvet Tide")).to_be_visible()
        wait_for_covers(frame_of(page))
        keep("songs-page.png", page, songs.locator("body"))


def test_the_picture_of_a_failed_song(env: Environment, nights: None, keep: Keep) -> None:
    with documented_window(env, MORNING, 760) as page:
        songs = open_tab(page, env.task_tab_url("morning_show", LAST_NIGHT, "theme"))
        expect(songs.get_by_role("listitem").get_by_text("Generation failed")).to_be_visible()
        keep("failed-song.png", page, songs.locator("body"))


def test_the_pictures_of_the_connection_form(env: Environment, nights: None, keep: Keep) -> None:
    with documented_window(env, DUE, 940) as page:
        page.goto(f"{env.airflow.ui_url}/connections")
        page.get_by_role("button", name="Add Connection").click()
        form = page.get_by_role("dialog")
        form.locator("input[name=connection_id]").fill("whisul_default")
        form.get_by_role("combobox").click()
        page.keyboard.type("Whisul")
        page.keyboard.press("Enter")
        form.locator("input[name=password]").fill("a key that is none")
        page.evaluate("document.activeElement.blur()")
        expect(form.get_by_text("Base URL")).to_be_visible()
        keep("connection-form.png", page, form)
        form.get_by_role("button", name="Extra Fields", exact=True).click()
        expect(form.get_by_text("Price per song")).to_be_visible()
        expect(form.get_by_text("Base URL")).to_be_hidden()
        page.set_viewport_size({"width": WIDTH, "height": 1340})
        keep("connection-fields.png", page, form)


def test_another_picture_differs_by_more_than_is_allowed() -> None:
    light, dark, failed = (
        (PICTURES / name).read_bytes() for name in ("tracks-tab.png", "tracks-tab-dark.png", "failed-song.png")
    )
    assert difference(light, light) == 0
    assert min(difference(light, dark), difference(light, failed)) > MAX_DIFFERENCE

"""Airflow's UI as the documentation's pictures show it: the same at each time, on each machine."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Frame, Locator, Page, Route, ViewportSize

from airflow_provider_whisul.sandbox import media
from tests.browser.environment import Environment

if TYPE_CHECKING:
    from PIL.Image import Image

#: The browser's time.
NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
#: How long a run takes, and each of its tasks.
DURATION = timedelta(minutes=3, seconds=47)
#: Where a picture of 1280 pixels has nothing that the mouse could change.
CORNER = (1278, 2)

_DIRECTIVE = re.compile(r" *\[sandbox:[^\]\"]*\]")
_TIME = re.compile(r'"(queued_at|start_date|end_date|min_start_date|max_end_date)":\s*"[^"]*"')
_DURATION = re.compile(r'"duration":\s*[\d.]+')
_DATA = re.compile(r"^https?://[^/]+/(api/v2|ui)/")
_MEDIA = re.compile(r"/media/(audio|covers)/([0-9a-f-]{36})\.")

# What of an element and its descendants is in the window.
_WORDS = """
root => {
  const words = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const { top, bottom, width, height } = element.getBoundingClientRect();
    const isInWindow = width > 1 && height > 1 && bottom > 0 && top < innerHeight;
    if (isInWindow && element.checkVisibility({ visibilityProperty: true })) words.push(walker.currentNode.data);
  }
  return words.join(" ");
}
"""

_CARDS_ARE_FILLED = """
() => [...document.querySelectorAll(".card")]
  .filter((card) => card.getBoundingClientRect().top < innerHeight)
  .every((card) => card.matches(".failed") || card.querySelector(".cover img")?.naturalWidth > 0)
"""
_DECODE_COVERS = """
async () => {
  await Promise.all([...document.querySelectorAll(".cover img")].map((image) => image.decode()));
  for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
}
"""


@contextmanager
def documented_window(env: Environment, due: datetime, height: int, scheme: str = "light") -> Iterator[Page]:
    """
    Open a window in which each job has the same id, each cover the same look and each time the same value always.

    :param env: The servers and the browser.
    :param due: When the run that is shown was due.
    :param height: The window's height in pixels.
    :param scheme: ``light`` or ``dark``.
    """
    # By the ids that they are given here: the sandbox draws an id of its own for each job.
    jobs = {_same_id(job.prompt): job for job in env.sandbox.jobs.values()}
    ids = {job.job_id: job_id for job_id, job in jobs.items()}
    times = {
        "queued_at": due,
        "start_date": due,
        "min_start_date": due,
        "end_date": due + DURATION,
        "max_end_date": due + DURATION,
    }

    def change(route: Route) -> None:
        response = route.fetch()
        text = _DIRECTIVE.sub("", response.text())
        for job_id, same_id in ids.items():
            text = text.replace(job_id, same_id)
        text = _TIME.sub(lambda found: f'"{found[1]}": "{times[found[1]]:%Y-%m-%dT%H:%M:%SZ}"', text)
        text = _DURATION.sub(f'"duration": {DURATION.total_seconds()}', text)
        content_type = response.headers.get("content-type", "application/json")
        route.fulfill(status=response.status, content_type=content_type, body=text)

    def send_media(route: Route) -> None:
        found = _MEDIA.search(route.request.url)
        job = jobs.get(found[2]) if found else None
        if found is None or job is None:
            route.continue_()
        elif found[1] == "covers":
            headers = {"Access-Control-Allow-Origin": "*"}
            route.fulfill(body=media.cover(job.prompt), content_type="image/png", headers=headers)
        else:
            route.continue_(url=route.request.url.replace(found[2], job.job_id))

    options: Mapping[str, Any] = {
        "viewport": ViewportSize(width=1280, height=height),
        "color_scheme": scheme,
        "reduced_motion": "reduce",
        "locale": "en-US",
        "timezone_id": "UTC",
    }
    with env.open_window("admin", **options) as context, context.new_page() as page:
        page.clock.set_fixed_time(NOW)
        page.route(_DATA, change)
        page.route(_MEDIA, send_media)
        yield page
        page.unroute_all(behavior="ignoreErrors")


def read_words(shown: Locator) -> str:
    """Return the words of an element that are in the window."""
    return str(shown.evaluate(_WORDS))


def wait_for_covers(frame: Frame) -> None:
    """Wait until each card in a frame's window is filled, and shows its cover."""
    frame.wait_for_function(_CARDS_ARE_FILLED)
    frame.evaluate(_DECODE_COVERS)


def take_picture(page: Page, texts: Mapping[str, str]) -> bytes:
    """
    Return a small PNG file of a window.

    :param page: The page in the window.
    :param texts: The texts that the file keeps, by their names.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    page.mouse.move(*CORNER)
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide"))).convert("RGB")
    # A third of the size. Without `kmeans` small things, such as a red word, lose their colour to the covers.
    small = shot.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    kept = PngInfo()
    for name, text in texts.items():
        kept.add_itxt(name, text)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True, pnginfo=kept)
    return file.getvalue()


def difference(one: bytes, other: bytes) -> float:
    """Return by how much two pictures differ: the mean over a grid of 64 x 36 and three colours, of 255."""
    from PIL import ImageChops, ImageStat

    return sum(ImageStat.Stat(ImageChops.difference(_reduced(one), _reduced(other))).mean) / 3


def _reduced(png: bytes) -> Image:
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB").resize((64, 36), Image.Resampling.BOX)


def _same_id(prompt: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, prompt))

"""A job of the sandbox: when it ends, how, and what the API says of it at a given time."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from airflow_provider_whisul.sandbox.directives import Directives
from airflow_provider_whisul.sandbox.options import SandboxOptions

_FIRST = ("Amber", "Distant", "Electric", "Golden", "Hidden", "Midnight", "Paper", "Quiet", "Silver", "Velvet")
_SECOND = ("Avenue", "Circuit", "Garden", "Harbour", "Lantern", "Mirror", "Orbit", "River", "Signal", "Tide", "Window")
_TAGS = ("acoustic", "ambient", "bass", "chill", "dark", "drums", "dreamy", "guitar", "keys", "synth", "upbeat", "warm")

Ending = Literal["completed", "failed"]


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """One job, from its making on. Times are Unix seconds of the sandbox's clock.

    :param job_id: its id.
    :param prompt: the prompt as sent.
    :param started_at: when it was made.
    :param ends_at: when it is over; infinite for never.
    :param expires_at: from when on it is answered 404; infinite for never.
    :param ending: how it ends.
    :param title: title of the song.
    :param bpm: tempo of the song in beats per minute.
    :param seconds: length of the song in seconds.
    :param tags: tags of the song, separated by commas.
    :param directives: what the prompt asked of the sandbox.
    """

    job_id: str
    prompt: str
    started_at: float
    ends_at: float
    expires_at: float
    ending: Ending
    title: str
    bpm: int
    seconds: int
    tags: str
    directives: Directives

    def is_over(self, now: float) -> bool:
        """Tell whether the job has ended at ``now``."""
        return now >= self.ends_at

    def is_expired(self, now: float) -> bool:
        """Tell whether the API has forgotten the job at ``now``."""
        return now >= self.expires_at

    def body(self, now: float, media_url: str, signature: str = "") -> dict[str, object]:
        """Return what ``GET /jobs/{job_id}`` says of the job.

        :param now: Unix seconds.
        :param media_url: what the URLs of song and cover start with, without a slash at the end.
        :param signature: what they end with.
        """
        over = self.is_over(now)
        body: dict[str, object] = {
            "status": (self.directives.end_status or self.ending) if over else self.directives.status,
            "prompt": self.prompt,
            "result": self._result(now, media_url, signature) if over and self.ending == "completed" else None,
            "error": "Generation failed due to an internal error." if over and self.ending == "failed" else None,
            "started_at": _time(self.started_at),
        }
        if over:
            body["finished_at"] = _time(self.ends_at)
        return body

    def _result(self, now: float, media_url: str, signature: str) -> Mapping[str, object]:
        if now < self.ends_at + self.directives.song_late:
            return {}
        if self.directives.bare_track:
            return {"title": None, "bpm": None, "song_url": None}
        duration = self.directives.duration
        return {
            "title": self.title,
            "bpm": self.bpm,
            "duration": f"{self.seconds // 60}:{self.seconds % 60:02}" if duration is None else duration,
            "song_url": f"{media_url}/audio/{self.job_id}.wav{signature}",
            "image_url": f"{media_url}/covers/{self.job_id}.png{signature}",
            "tags": self.tags,
        }


def make_job(
    job_id: str, prompt: str, earlier: int, directives: Directives, options: SandboxOptions, now: float
) -> SandboxJob:
    """Make the job of a prompt.

    :param job_id: its id.
    :param prompt: the prompt as sent.
    :param earlier: how many jobs of this very prompt there are already.
    :param directives: those of the prompt.
    :param options: those of the sandbox.
    :param now: Unix seconds.
    """
    # Seeded by the prompt, not drawn in turn: a thousand mapped tasks arrive in any order and still get their own song.
    rng = random.Random(f"job:{options.seed}:{earlier}:{prompt}")  # noqa: S311
    drawn = rng.uniform(*options.job_seconds)
    takes = drawn if directives.seconds is None else directives.seconds
    ends_at = math.inf if directives.forever else now + takes
    lifetime = 0.0 if directives.expired else options.expire_seconds
    title = f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}"
    tags = ", ".join(rng.sample(_TAGS, 4))
    bpm, seconds = rng.randint(70, 160), rng.randint(8, 20)
    return SandboxJob(
        job_id=job_id,
        prompt=prompt,
        started_at=now,
        ends_at=ends_at,
        expires_at=math.inf if lifetime is None else ends_at + lifetime,
        ending="failed" if earlier < directives.fail else "completed",
        title=f"<script>alert('{title}')</script>" if directives.hostile else title,
        bpm=bpm,
        seconds=_length(directives.duration) or seconds,
        tags=f"<b>loud</b>, <img src=x onerror=alert(1)>, {tags}" if directives.hostile else tags,
        directives=directives,
    )


def _length(duration: str | int | None) -> int:
    """Return the seconds that a ``duration`` directive stands for, 0 if it is none or not a length."""
    if isinstance(duration, int):
        return duration
    if duration is None or not re.fullmatch(r"[0-9]{1,4}(:[0-9]{1,2}){1,2}", duration):
        return 0
    seconds = 0
    for part in duration.split(":"):
        seconds = seconds * 60 + int(part)
    return seconds


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")

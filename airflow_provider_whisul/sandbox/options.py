"""What a sandbox can be told: its options, and the faults that it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GET_FAULTS = (
    "get-500",
    "get-502-html",
    "get-429",
    "get-drop",
    "get-truncated",
    "get-slow",
    "get-redirect",
    "get-404",
    "get-html-200",
    "get-401",
    "get-402",
    "get-403-html",
    "get-410",
)

POST_FAULTS = (
    "post-500",
    "post-502-html",
    "post-429",
    "post-drop",
    "post-drop-before",
    "post-truncated",
    "post-html-202",
    "post-slow",
    "post-redirect",
    "post-no-id",
    "post-bad-id",
    "post-303",
    "post-402",
    "post-no-credits",
    "post-403-html",
    "post-413",
    "post-422",
    "post-201",
    "post-int-id",
    "post-poll-url",
)

MEDIA_FAULTS = (
    "media-403",
    "media-404",
    "media-500",
    "media-429",
    "media-drop",
    "media-cut",
    "media-slow",
    "media-stall",
    "media-html",
    "media-disguised",
    "media-empty",
    "media-wrong-length",
    "media-endless",
    "media-endless-chunks",
    "media-drip",
    "media-no-range",
    "media-redirect",
    "media-redirect-http",
    "media-redirect-file",
)
"""The faults of songs and covers; each of the two files of a job meets them for itself."""

FAULTS = GET_FAULTS + POST_FAULTS + MEDIA_FAULTS

JOB_MAKING_FAULTS = frozenset(
    {
        *("post-drop", "post-truncated", "post-html-202", "post-slow", "post-no-id", "post-bad-id"),
        *("post-303", "post-201", "post-int-id", "post-poll-url"),
    }
)
"""The faults on POST after which the job exists all the same; after the others there is none."""


@dataclass(frozen=True)
class SandboxOptions:
    """How a sandbox behaves. Raises ValueError for a value that makes no sense.

    :param api_key: the key that requests must carry; no spaces, no control characters.
    :param job_seconds: shortest and longest time in seconds that a job takes; drawn uniformly, by ``seed``.
    :param seed: decides every random draw. The same prompts give the same songs, times and faults.
    :param rate_limit: requests that a key may make per ``rate_window``; None for no limit.
    :param rate_window: length of the rate limit's sliding window in seconds.
    :param block_seconds: how long in seconds a key must be quiet, once it has exceeded the limit, to be served again.
    :param retry_after: whether a 429 carries ``Retry-After``: True in seconds, ``"date"`` as an HTTP date.
    :param expire_seconds: seconds after its end from which a job is answered 404; None for never.
    :param fault_rates: probability (0 to 1) per request of each fault, by the fault's name.
    :param slow_seconds: delay in seconds of a slow fault that does not say its own.
    """

    api_key: str = "sandbox-key"
    job_seconds: tuple[float, float] = (20.0, 40.0)
    seed: int = 0
    rate_limit: int | None = None
    rate_window: float = 1.0
    block_seconds: float = 10.0
    retry_after: bool | Literal["date"] = False
    expire_seconds: float | None = None
    fault_rates: Mapping[str, float] = field(default_factory=dict)
    slow_seconds: float = 5.0

    def __post_init__(self) -> None:
        check_key(self.api_key)
        low, high = self.job_seconds
        if not 0 <= low <= high < float("inf"):
            raise ValueError(f"job_seconds must be two numbers, 0 <= shortest <= longest, not {self.job_seconds!r}")
        if self.rate_limit is not None and self.rate_limit < 1:
            raise ValueError(f"rate_limit must be at least 1, or None for no limit, not {self.rate_limit!r}")
        if not self.rate_window > 0:
            raise ValueError(f"rate_window must be more than 0 seconds, not {self.rate_window!r}")
        for name, seconds in (
            ("block_seconds", self.block_seconds),
            ("expire_seconds", self.expire_seconds),
            ("slow_seconds", self.slow_seconds),
        ):
            if seconds is not None and not seconds >= 0:
                raise ValueError(f"{name} must be 0 seconds or more, not {seconds!r}")
        if self.retry_after not in (True, False, "date"):
            raise ValueError(f'retry_after must be True, False or "date", not {self.retry_after!r}')
        for name, rate in self.fault_rates.items():
            if name not in FAULTS:
                raise ValueError(f"unknown fault {name!r} in fault_rates; known: {', '.join(FAULTS)}")
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of {name} must be between 0 and 1, not {rate!r}")
        for kind in (GET_FAULTS, POST_FAULTS, MEDIA_FAULTS):
            # One request gets at most one fault, so the rates share its single draw. The margin is for 10 x 0.1.
            if sum(self.fault_rates.get(name, 0.0) for name in kind) > 1 + 1e-9:
                raise ValueError(f"the rates of the {kind[0].split('-')[0]} faults add up to more than 1")


def check_key(key: str) -> None:
    """Raise ValueError unless ``key`` can stand in an Authorization header."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key must be printable ASCII without spaces, and not empty")

"""The time after a 429, in which nothing is sent but one half-open probe at a time. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_provider_whisul.api.messages import MAX_RETRY_AFTER
from airflow_provider_whisul.rate_limit.backoff import BACKOFF_SCHEDULE, backoff_delay

#: By what share of its schedule step a cool-down is prolonged at most, so that several probes do not come together.
JITTER = 0.1

#: Seconds after which a probe without a response is followed by another: the process that sent it may have been killed.
PROBE_TIMEOUT = 60.0

#: Seconds after a block in which the next one's first cool-down becomes a step shorter. Blocks of one limit take about
#: as long, and each probe that comes too early is a 429.
STEP_FORGOTTEN_AFTER = 300.0

#: Seconds that a cool-down takes at most.
MAX_COOLDOWN = MAX_RETRY_AFTER + BACKOFF_SCHEDULE[-1]


@dataclass
class Block:
    """
    The time after a 429.

    :param active: Whether a 429 has come and no probe has found the block to be over.
    :param probing: Whether a probe has been sent and has no response yet.
    :param throttled_at: When the latest 429 came.
    :param began: When the cool-down began. It may outlast the block.
    :param cooldown: Seconds that the cool-down takes.
    :param step: The step of the backoff schedule, of this block or of the latest one.
    :param last_request_before: The number of the latest request that was sent before the block.
    :param ended_at: When a probe found the latest block to be over.
    """

    active: bool = False
    probing: bool = False
    throttled_at: float = -math.inf
    began: float = -math.inf
    cooldown: float = 0.0
    step: int = 0
    last_request_before: int = 0
    ended_at: float = -math.inf

    def start(self, now: float, last_request: int) -> None:
        """Begin a block, with the last step of the one before, or one less for each five minutes since then."""
        self.active = True
        self.last_request_before = last_request
        self.step = math.ceil(max(self.step - (now - self.throttled_at) / STEP_FORGOTTEN_AFTER, 0))
        self.throttled_at = now

    def cool_down(self, now: float, retry_after: float | None, jitter: float) -> None:
        """Send nothing for as long as the backoff schedule says, or ``Retry-After`` where that is longer."""
        self.throttled_at = now
        delay = backoff_delay(self.step)
        self.wait(now, max(delay, retry_after or 0.0) + JITTER * delay * jitter)

    def wait(self, now: float, seconds: float) -> None:
        """Send nothing for some seconds. A longer cool-down is not cut short."""
        self.began, self.cooldown = now, min(max(float(seconds), self.cooldown - (now - self.began)), MAX_COOLDOWN)

    def send_probe(self) -> None:
        """Record that a probe is sent."""
        self.probing = True
        # A late response may still ask for a cool-down, which then holds even if the probe ends the block.
        self.cooldown = 0.0

    def notice_reset_clock(self, now: float) -> None:
        """Count times that lie ahead as now, but for the end of a block: it was not just now, and nobody knows when."""
        self.throttled_at, self.began = min(self.throttled_at, now), min(self.began, now)
        if self.ended_at > now:
            self.ended_at = -math.inf

    def end(self, now: float) -> None:
        """End the block."""
        self.active, self.ended_at = False, now

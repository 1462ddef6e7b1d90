"""The submissions that wait for the rate limiter's permission, in the order in which they came. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: Seconds after which a submission that waits asks again at the latest, or half of that: those before it may have died,
#: or the rate may have been reset.
MAX_TURN_WAIT = 10.0

#: The share of the time that the submissions before another one take at this rate after which it asks: the rate rises.
TURN_SHARE = 0.65

#: Seconds before its turn in which a submission asks: permits are given up to a second ahead.
ASKS_AHEAD = 0.5

#: Seconds for which a place is kept without a question. It is not prolonged by each one: that would cost a write.
PLACE_SECONDS = 20.0

#: Seconds that a place must be kept beyond the time at which its client asks again: a busy machine is late.
ASKS_LATE = 2.0

#: How many submissions have a place of their own. Those that come later are all at the end.
MAX_PLACES = 300


@dataclass
class SubmissionLine:
    """
    The submissions that wait.

    A process that waits is told after how many seconds it is likely to have its turn, so that sixty of them do not ask
    for each permit. A place is no more than that: a permit that would be lost is given to whoever asks.

    :param places: For each submission the number of the client that waits, and until when its place is kept.
    """

    places: list[list[float]] = field(default_factory=list)

    @property
    def waits_until(self) -> float:
        """Until when a submission is known to wait, in seconds of the store's clock; ``-inf`` where none does."""
        return max((until for _, until in self.places), default=-math.inf)

    def place(self, now: float, client: int) -> int:
        """
        Return how many submissions are before that of a client. Those that have not asked for long are removed.

        :param now: The time.
        :param client: The client's number.
        """
        self.places = [place for place in self.places if now <= place[1]]
        return next((number for number, (other, _) in enumerate(self.places) if other == client), len(self.places))

    def wait(self, now: float, client: int, earliest: float, next_in: float, before: float) -> float:
        """
        Give a client its place, and return the seconds after which it asks again.

        :param now: The time.
        :param client: The client's number.
        :param earliest: Seconds until it may be given a permit at the earliest.
        :param next_in: Seconds until the next request may be sent.
        :param before: Seconds that the submissions before it take from then on, at this rate.
        """
        # Each in a rhythm of its own, so that somebody asks soon also where all those before have died.
        latest = MAX_TURN_WAIT * (1 - client % 97 / 97 / 2)
        wait = min(max(earliest, next_in + TURN_SHARE * before - ASKS_AHEAD), latest)
        place = next((place for place in self.places if place[0] == client), None)
        if place is None and len(self.places) < MAX_PLACES:
            place = [client, now]
            self.places.append(place)
        if place is not None and place[1] < now + wait + ASKS_LATE:
            place[1] = round(now + PLACE_SECONDS, 3)
        return wait

    def notice_reset_clock(self, now: float) -> None:
        """Remove the places that are kept for longer than any is: they were given before the clock was put back."""
        if self.waits_until > now + PLACE_SECONDS + 1:
            self.places = [place for place in self.places if place[1] <= now + PLACE_SECONDS + 1]

    def leave(self, client: int) -> None:
        """Remove a client that waits no longer, if it is there."""
        self.places = [place for place in self.places if place[0] != client]

"""
The songs as the Tracks tab of Airflow's UI shows them: a card each, in XComs that the tab's page reads as the viewer.

Airflow lists XComs by key without their values. So a key says how many cards its value holds, and how many of their
songs failed, and the page counts a thousand songs without reading one: ``whisul_songs_<first>_<songs>_<failed>``.
Stored songs have ``whisul_stored_…``, which only the task's own tab shows. ``whisul_expected_<songs>`` says how many
songs the task makes in all, and holds the cards of some that are pending: made, or still to be reported.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypedDict, TypeVar, cast

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.state.batch_song import PENDING, UNSUCCESSFUL, BatchSong
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.state_store import MAX_ENTRY_BYTES
from airflow_provider_whisul.text import storable, truncate

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context

    Task = TypeVar("Task", bound=BaseOperator)
    Arguments = ParamSpec("Arguments")
    Result = TypeVar("Result")

log = logging.getLogger(__name__)

#: The prefixes of the XComs' keys.
KEY_PREFIX = "whisul_songs_"
STORED_PREFIX = "whisul_stored_"
EXPECTED_PREFIX = "whisul_expected_"

#: Cards in one XCom: about as many as a screen shows.
MAX_CARDS = 20

#: Seconds after which a batch that submits pushes again which songs are being made.
PUSH_SECONDS = 30.0

#: Characters of a text on a card and of a tag, tags of a song, and bytes that a URL may take as JSON. With all of them
#: at their largest a card still fits into one XCom.
MAX_TEXT = 400
MAX_TAG = 40
MAX_TAGS = 10
MAX_URL_BYTES = 4_000

#: The variable in the task's context that labels a mapped sensor.
PROMPT_VARIABLE = "whisul_prompt"


class Card(TypedDict):
    """One song in the tab."""

    #: ``completed``, ``failed`` or ``pending``.
    status: str
    prompt: str | None
    job_id: str | None
    title: str | None
    bpm: float | None
    duration_seconds: float | None
    song_url: str | None
    image_url: str | None
    tags: list[str]
    #: Why the song failed.
    error: str | None
    #: Since when a pending song is being made (ISO 8601, UTC), None where that is not known.
    since: str | None
    #: The name of a stored song's file.
    stored_as: str | None
    #: Where a browser can play that file, None where no URL is known.
    stored_url: str | None


_EMPTY: Card = {
    "status": "pending",
    "prompt": None,
    "job_id": None,
    "title": None,
    "bpm": None,
    "duration_seconds": None,
    "song_url": None,
    "image_url": None,
    "tags": [],
    "error": None,
    "since": None,
    "stored_as": None,
    "stored_url": None,
}


def completed_card(song: Song, stored_as: str | None = None, stored_url: str | None = None) -> Card:
    """
    Return the card of a song.

    :param song: The song.
    :param stored_as: The name of its file, None unless it was stored.
    :param stored_url: Where a browser can play that file, None where no URL is known.
    """
    return {
        **_EMPTY,
        "status": "completed",
        "prompt": _text(song["prompt"]),
        "job_id": song["job_id"],
        "title": _text(song["title"]),
        "bpm": song["bpm"],
        "duration_seconds": song["duration_seconds"],
        "song_url": _url(song["song_url"]),
        "image_url": _url(song["image_url"]),
        "tags": [truncate(storable(tag), MAX_TAG) for tag in song["tags"][:MAX_TAGS]],
        "stored_as": _text(stored_as),
        "stored_url": _url(stored_url),
    }


def failed_card(prompt: str | None, job_id: str | None, reason: str | None) -> Card:
    """
    Return the card of a song that failed.

    :param prompt: The song's prompt, None where the task does not know it.
    :param job_id: The song's job, None if there was none.
    :param reason: Why the song failed.
    """
    return {**_EMPTY, "status": "failed", "prompt": _text(prompt), "job_id": job_id, "error": _text(reason)}


def pending_card(prompt: str | None, job_id: str | None, since: float | None) -> Card:
    """
    Return the card of a song that is being made.

    :param prompt: The song's prompt, None where it is not known.
    :param job_id: The song's job, None if it is not submitted yet.
    :param since: When the song was submitted, in Unix seconds; None where that is not known.
    """
    time = None if since is None else datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
    return {**_EMPTY, "prompt": _text(prompt), "job_id": job_id, "since": time}


def card_xcoms(cards: Iterable[Card], first: int = 0, prefix: str = KEY_PREFIX) -> Iterator[tuple[str, list[Card]]]:
    """
    Yield key and value of the XComs that hold some cards, each of at most :data:`MAX_CARDS` and ``MAX_ENTRY_BYTES``.

    :param cards: The cards.
    :param first: How many cards the task has pushed before.
    :param prefix: The prefix of their keys.
    """
    value: list[Card] = []
    size = 0
    for card in cards:
        length = len(json.dumps(card)) + 2
        if value and (len(value) == MAX_CARDS or size + length > MAX_ENTRY_BYTES):
            yield _key(value, first, prefix), value
            first += len(value)
            value, size = [], 0
        value.append(card)
        size += length
    if value:
        yield _key(value, first, prefix), value


def push_cards(context: Context, cards: Iterable[Card], first: int = 0, prefix: str = KEY_PREFIX) -> None:
    """
    Show songs in the Tracks tab. Never raises, not even where iterating over the cards does.

    :param context: The context of the task that made the songs.
    :param cards: The cards.
    :param first: How many cards the task has pushed before.
    :param prefix: The prefix of the XComs' keys.
    """
    try:
        for key, value in card_xcoms(cards, first, prefix):
            context["ti"].xcom_push(key=key, value=value)
    except Exception:
        # Any error at all: a card is not worth a task, which a retry might pay for again, nor the task's own error.
        log.warning("The Tracks tab will not show all songs of this task. The task continues.", exc_info=True)


def push_expected(context: Context, songs: int, pending: Iterable[Card]) -> None:
    """
    Show in the Tracks tab which songs are being made, in place of those that were pushed before. Never raises.

    :param context: The context of the task that waits for the songs.
    :param songs: How many songs the task makes in all, with those that are done.
    :param pending: The cards of the songs that are being made. The first of them are shown.
    """
    try:
        _, value = next(card_xcoms(islice(pending, MAX_CARDS)), ("", []))
        context["ti"].xcom_push(key=f"{EXPECTED_PREFIX}{songs}", value=value)
    except Exception:
        log.warning("The Tracks tab will not show which songs are being made. The task continues.", exc_info=True)


def pushes_card(
    run: Callable[Concatenate[Task, Context, Arguments], Result],
) -> Callable[Concatenate[Task, Context, Arguments], Result]:
    """
    Decorate a method of a task that makes one song: push its card, or the card that says why it failed.

    :param run: The method. What it returns or raises is passed on.
    """

    @wraps(run)
    def wrapper(task: Task, context: Context, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            result = run(task, context, *args, **kwargs)
        except (WhisulError, AirflowSensorTimeout, AirflowSkipException) as error:
            push_failed_card(task, context, error)
            raise
        # Else it is the id of a job that another task waits for.
        if isinstance(result, dict):
            song = cast(Song, result)
            push_cards(context, map(completed_card, [song]))
            task.song_url = song.get("song_url")
            context[PROMPT_VARIABLE] = song.get("prompt")  # type: ignore[literal-required]
        return result

    # Airflow passes the context by its name, which the type does not promise.
    return wrapper  # type: ignore[return-value]


def push_failed_card(task: BaseOperator, context: Context, error: Exception) -> None:
    """
    Show why a task that makes one song has none. Never raises.

    :param task: The task.
    :param context: The task's context.
    :param error: The error that ended the task; of a skip its cause is shown.
    """
    cause = error.__cause__ if isinstance(error, AirflowSkipException) else error
    if isinstance(cause, WhisulError | AirflowSensorTimeout):
        job_id = getattr(cause, "job_id", None) or getattr(task, "job_id", None)
        prompt = getattr(task, "prompt", None) or getattr(cause, "prompt", None) or _pending_prompt(context)
        push_cards(context, [failed_card(prompt, job_id, str(cause))])


class BatchCards:
    """
    Pushes the card of each song of a batch once, when the task learns that the song is completed or has failed for
    good. Beside them it pushes which songs are being made.

    :param context: The task's context.
    :param state: The batch's state, as it was when the task last ran.
    :param attempts: How often a song may be submitted.
    :param resumed: Whether this try has pushed cards before it was deferred.
    """

    def __init__(self, context: Context, state: BatchState, attempts: int, *, resumed: bool = False) -> None:
        self._context = context
        self._state = state
        self._attempts = attempts
        self._pending_pushed_at: float | None = None
        self._pushed = {index for index, song in enumerate(state.songs) if self._has_ended(song)} if resumed else set()

    def push(self, *, ended: bool = False) -> None:
        """
        Push the cards of the songs that have ended since. Never raises.

        :param ended: Whether nothing will be submitted again, so that every failed song has failed for good.
        """
        new = [
            index
            for index, song in enumerate(self._state.songs)
            if index not in self._pushed and (self._has_ended(song) or (ended and song.status in UNSUCCESSFUL))
        ]
        push_cards(self._context, (_batch_card(self._state.songs[index]) for index in new), len(self._pushed))
        self._pushed.update(new)
        if ended and len(self._pushed) < len(self._state.songs):
            # The others are not being made by this try.
            push_expected(self._context, len(self._pushed), ())

    def push_progress(self, now: float) -> None:
        """
        Push which songs are being made, unless it did so less than half a minute ago. Never raises.

        :param now: The time, in Unix seconds.
        """
        if self._pending_pushed_at is None or now - self._pending_pushed_at >= PUSH_SECONDS:
            self._pending_pushed_at = now
            self.push_pending()

    def push_pending(self) -> None:
        """Push which songs are being made. Never raises."""
        songs = self._state.songs
        running = (song for song in songs if song.status in PENDING)
        push_expected(self._context, len(songs), (pending_card(song.prompt, song.job_id, None) for song in running))

    def _has_ended(self, song: BatchSong) -> bool:
        if song.status == "completed":
            return song.song is not None
        if song.status in ("not_found", "timed_out"):
            return True
        return song.status == "failed" and song.submissions >= self._attempts


def _pending_prompt(context: Context) -> str | None:
    """Return the prompt of the one song that the task was waiting for, None where it is not known."""
    try:
        ti = context["ti"]
        value = ti.xcom_pull(task_ids=ti.task_id, key=f"{EXPECTED_PREFIX}1", map_indexes=ti.map_index)
        return cast("str | None", value[0]["prompt"]) if value else None
    except Exception:
        log.debug("The prompt is not known", exc_info=True)
        return None


def _batch_card(song: BatchSong) -> Card:
    if song.song is not None:
        return completed_card(song.song)
    return failed_card(song.prompt, song.job_id, song.error)


def _key(cards: Sequence[Card], first: int, prefix: str) -> str:
    failures = sum(card["status"] == "failed" for card in cards)
    return f"{prefix}{first:04d}_{len(cards)}_{failures}"


def _text(text: str | None) -> str | None:
    return truncate(storable(text), MAX_TEXT) if isinstance(text, str) else None


def _url(url: str | None) -> str | None:
    # Half a URL is none. The whole one is in the XCom that the task returns.
    return url if url is not None and len(json.dumps(url)) <= MAX_URL_BYTES else None

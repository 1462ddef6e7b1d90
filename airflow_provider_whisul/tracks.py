"""
The songs as the Tracks tab of Airflow's UI shows them: XComs of their own, which its page reads as the viewer.

Airflow lists XComs by key without their values. So a key says how many songs its value holds, and how many of them
failed, and the page counts a thousand songs without reading one: ``whisul_songs_<first>_<songs>_<failed>``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypedDict, TypeVar, cast

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException

from airflow_provider_whisul.api import Song, storable
from airflow_provider_whisul.batch import LARGEST_ENTRY, NOT_MADE, Batch, BatchSong
from airflow_provider_whisul.exceptions import WhisulError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context

    Task = TypeVar("Task", bound=BaseOperator)
    Arguments = ParamSpec("Arguments")
    Result = TypeVar("Result")

log = logging.getLogger(__name__)

#: What the keys of all these XComs begin with.
KEY_PREFIX = "whisul_songs_"

#: Songs in one XCom: about as many as a screen shows.
MOST_SONGS = 20

#: Characters of a text that a card shows, tags of a song, and bytes that a URL may take as JSON. With all of them at
#: their largest a song still fits into one XCom.
LONGEST_TEXT = 400
LONGEST_TAG = 40
MOST_TAGS = 10
LONGEST_URL = 4_000

#: The context's variable that a mapped sensor is labelled by.
PROMPT_VARIABLE = "whisul_prompt"


class ShownSong(TypedDict):
    """One card."""

    #: ``completed`` or ``failed``.
    status: str
    prompt: str | None
    job_id: str | None
    title: str | None
    bpm: float | None
    duration_seconds: float | None
    song_url: str | None
    image_url: str | None
    tags: list[str]
    #: Why it failed.
    error: str | None


def completed(song: Song) -> ShownSong:
    """
    Return the card of a song that is there.

    :param song: The song.
    """
    return {
        "status": "completed",
        "prompt": _text(song["prompt"]),
        "job_id": song["job_id"],
        "title": _text(song["title"]),
        "bpm": song["bpm"],
        "duration_seconds": song["duration_seconds"],
        "song_url": _url(song["song_url"]),
        "image_url": _url(song["image_url"]),
        "tags": [_cut(tag, LONGEST_TAG) for tag in song["tags"][:MOST_TAGS]],
        "error": None,
    }


def failed(prompt: str | None, job_id: str | None, reason: str | None) -> ShownSong:
    """
    Return the card of a song that there will not be.

    :param prompt: Its prompt, where the task knows it.
    :param job_id: Its job, if there was one.
    :param reason: Why.
    """
    return {
        "status": "failed",
        "prompt": _text(prompt),
        "job_id": job_id,
        "title": None,
        "bpm": None,
        "duration_seconds": None,
        "song_url": None,
        "image_url": None,
        "tags": [],
        "error": _text(reason),
    }


def entries(songs: Iterable[ShownSong], first: int = 0) -> Iterator[tuple[str, list[ShownSong]]]:
    """
    Yield the XComs that hold some songs, each of at most :data:`MOST_SONGS` and ``LARGEST_ENTRY`` bytes.

    :param songs: The songs.
    :param first: How many songs the task has shown before.
    """
    entry: list[ShownSong] = []
    size = 0
    for song in songs:
        length = len(json.dumps(song)) + 2
        if entry and (len(entry) == MOST_SONGS or size + length > LARGEST_ENTRY):
            yield _key(entry, first), entry
            first += len(entry)
            entry, size = [], 0
        entry.append(song)
        size += length
    if entry:
        yield _key(entry, first), entry


def show(context: Context, songs: Iterable[ShownSong], first: int = 0) -> None:
    """
    Show songs in the Tracks tab. Never raises, nor does what the songs are made by.

    :param context: The context of the task that made them.
    :param songs: The songs.
    :param first: How many songs the task has shown before.
    """
    try:
        for key, entry in entries(songs, first):
            context["ti"].xcom_push(key=key, value=entry)
    except Exception:
        # Whatever it is: a card is not worth a task, which a retry might pay for again, nor the task's own error.
        log.warning("The Tracks tab will not show all songs of this task, which goes on.", exc_info=True)


def shows_song(
    run: Callable[Concatenate[Task, Context, Arguments], Result],
) -> Callable[Concatenate[Task, Context, Arguments], Result]:
    """
    Have a method of a task that makes one song show it, or show why there is none.

    :param run: The method. What it returns or raises is passed on.
    """

    @wraps(run)
    def shown(task: Task, context: Context, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            result = run(task, context, *args, **kwargs)
        except (WhisulError, AirflowSensorTimeout, AirflowSkipException) as error:
            show_failure(task, context, error)
            raise
        # Else it is the id of a job that another task waits for.
        if isinstance(result, dict):
            song = cast(Song, result)
            show(context, map(completed, [song]))
            task.song_url = song.get("song_url")
            context[PROMPT_VARIABLE] = song.get("prompt")  # type: ignore[literal-required]
        return result

    # Airflow hands over the context by its name, which the type does not promise.
    return shown  # type: ignore[return-value]


def show_failure(task: BaseOperator, context: Context, error: Exception) -> None:
    """
    Show why a task that makes one song has none. Never raises.

    :param task: The task.
    :param context: Its context.
    :param error: What ended it; a skip is shown by what it was made of.
    """
    ended = error.__cause__ if isinstance(error, AirflowSkipException) else error
    if isinstance(ended, WhisulError | AirflowSensorTimeout):
        job_id = getattr(ended, "job_id", None) or getattr(task, "job_id", None)
        show(context, [failed(getattr(task, "prompt", None), job_id, str(ended))])


class BatchShow:
    """
    Shows each song of a batch once, when it is known what becomes of it.

    :param context: The context of the task.
    :param batch: The batch, as it stood when the task was last here.
    :param attempts: How often a song may be submitted.
    :param resumed: Whether this try has shown songs before it was deferred.
    """

    def __init__(self, context: Context, batch: Batch, attempts: int, *, resumed: bool = False) -> None:
        self._context = context
        self._batch = batch
        self._attempts = attempts
        self._shown = {index for index, song in enumerate(batch.songs) if self._is_over(song)} if resumed else set()

    def show(self, *, ended: bool = False) -> None:
        """
        Show what has come about since. Never raises.

        :param ended: Whether nothing will be submitted again, so that what has failed stays so.
        """
        new = [
            index
            for index, song in enumerate(self._batch.songs)
            if index not in self._shown and (self._is_over(song) or (ended and song.status in NOT_MADE))
        ]
        show(self._context, (_of_batch(self._batch.songs[index]) for index in new), len(self._shown))
        self._shown.update(new)

    def _is_over(self, song: BatchSong) -> bool:
        if song.status == "completed":
            return song.song is not None
        if song.status in ("gone", "late"):
            return True
        return song.status == "failed" and song.submissions >= self._attempts


def _of_batch(song: BatchSong) -> ShownSong:
    if song.song is not None:
        return completed(song.song)
    return failed(song.prompt, song.job_id, song.error)


def _key(entry: Sequence[ShownSong], first: int) -> str:
    failures = sum(song["status"] == "failed" for song in entry)
    return f"{KEY_PREFIX}{first:04d}_{len(entry)}_{failures}"


def _text(text: str | None) -> str | None:
    return _cut(text, LONGEST_TEXT) if isinstance(text, str) else None


def _cut(text: str, most: int) -> str:
    text = storable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _url(url: str | None) -> str | None:
    # Half an address is none. The whole one is in the XCom that the task returns.
    return url if url is not None and len(json.dumps(url)) <= LONGEST_URL else None

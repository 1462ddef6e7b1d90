"""What is said of songs that could not be stored."""

from __future__ import annotations

from collections.abc import Sequence

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import WhisulError, WhisulMediaExpiredError
from airflow_provider_whisul.storage.manifest import SkippedSong
from airflow_provider_whisul.text import excerpt, quote

#: How many songs an error names. The task's log names all of them.
MAX_NAMED_SONGS = 20

#: A song, and why it could not be stored.
Failure = tuple[Song, WhisulError]


def not_polled(expired: WhisulMediaExpiredError, outage: WhisulError) -> WhisulError:
    """
    Return the error of a song whose URL has expired during an outage of Whisul: of a class that a retry helps.

    :param expired: Which URL does not work.
    :param outage: How the poll for another URL ended, of this song or of an earlier one.
    """
    return type(outage)(
        f"{expired} Whisul did not say whether there is another URL: {outage} A retry polls the job again.",
        job_id=expired.job_id,
        http_status=outage.http_status,
    )


def failed_song(song: Song, error: WhisulError) -> SkippedSong:
    """
    Return what the manifest says of a song that could not be stored.

    :param song: The song.
    :param error: Why it could not be stored.
    """
    return {"job_id": song["job_id"], "prompt": song["prompt"], "error": quote(str(error))}


def too_many_failures(failures: Sequence[Failure], songs: int, max_failures: int) -> WhisulError:
    """
    Return the error that the task fails with: of a class that a retry helps, if one of the failures is.

    :param failures: The songs that could not be stored.
    :param songs: How many songs the task was to store.
    :param max_failures: How many of them may fail.
    """
    errors = [error for _, error in failures]
    if len(errors) == 1 and songs == 1:
        return errors[0]
    first = next((error for error in errors if not isinstance(error, AirflowFailException)), errors[0])
    named = "; ".join(
        f"{excerpt(song['title'] or song['job_id'])!r}: {quote(str(error))[:300].rstrip('.')}"
        for song, error in failures[:MAX_NAMED_SONGS]
    )
    more = f"; and {len(errors) - MAX_NAMED_SONGS} more, see the log" if len(errors) > MAX_NAMED_SONGS else ""
    return type(first)(
        f"{len(errors)} of {songs} songs could not be stored, more than max_failures={max_failures}: {named}{more}. "
        "The others are in the store, without a manifest; a later try downloads only the missing ones."
    )

"""What is said of songs that could not be stored, or were not made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import WhisulError, WhisulInvalidInputError, WhisulMediaExpiredError
from airflow_provider_whisul.storage.manifest import SkippedSong
from airflow_provider_whisul.text import excerpt, quote

#: How many songs an error names. The task's log names all of them.
MAX_NAMED_SONGS = 20

#: Airflow's trigger rules of a task that is to run although tasks before it have failed. Not each Airflow has all.
RULES_AFTER_FAILURES = (
    "all_done",
    "all_done_min_one_success",
    "all_done_setup_success",
    "all_failed",
    "always",
    "none_skipped",
    "one_done",
    "one_failed",
)

#: A song, and why it could not be stored.
Failure = tuple[Song, WhisulError]


def no_song_to_store(songs: object, trigger_rule: str) -> AirflowSkipException | WhisulInvalidInputError:
    """
    Return what a task ends with whose songs have all failed before it.

    A task that takes one result of a batch is skipped: the batch has succeeded, so its ``max_failures`` allows for the
    failed song. With a trigger rule that lets a task run after failures the batch may have failed as well, and a run
    without a single song would be a success. So would one after a batch none of whose songs was made.

    :param songs: What the task was given.
    :param trigger_rule: The task's trigger rule.
    """
    if isinstance(songs, Mapping) and trigger_rule not in RULES_AFTER_FAILURES:
        return AirflowSkipException("This song failed, which the task before this one allows. Nothing was stored.")
    return WhisulInvalidInputError(
        "There is no song to store: no task before this one has returned a song to it. Nothing was stored."
    )


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

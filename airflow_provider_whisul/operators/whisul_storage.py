"""Keeping songs in a store of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator

from airflow_provider_whisul.account import DEFAULT_CONN_ID
from airflow_provider_whisul.api import Song, quote
from airflow_provider_whisul.common import WhisulTask
from airflow_provider_whisul.exceptions import (
    WhisulError,
    WhisulFileExistsError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulStorageError,
)
from airflow_provider_whisul.landing import (
    URL_FIELDS,
    LandedSong,
    Manifest,
    PassedOver,
    Role,
    event_extra,
    is_of_same_task,
    manifest_name,
    read_songs,
)
from airflow_provider_whisul.retry_policy import set_default_retry_policy

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.lander import SongLander
    from airflow_provider_whisul.media import MediaClient
    from airflow_provider_whisul.storage import Store

#: How many songs an error names; the task's log names all of them.
_MOST_NAMED = 20

Problem = tuple[Song, WhisulError]


class WhisulToObjectStorageOperator(WhisulTask, BaseOperator):
    """
    Lands songs in a store of one's own: audio and cover, beside them their metadata, and last of all a manifest.

    Whoever sees the manifest sees whole files. A later try fetches only what is missing. Files of others are never
    overwritten unless that is asked for. Costs no credits, and never sends the API key to the media host.

    :param songs: The songs: what operator, sensor or batch operator return, one or many (templated). Failed ones are
        passed over, which the log and the manifest say.
    :param destination: The folder, as ``ObjectStoragePath`` takes it: ``s3://bucket/songs/{{ run_id }}``,
        ``file:///data/songs/{{ ds }}``, … (templated). Each run needs one of its own.
    :param storage_conn_id: The Airflow connection to reach the store with; None for the one in ``destination``
        (``s3://connection@bucket/…``), or else what the worker's environment says (templated).
    :param whisul_conn_id: The Airflow connection that holds the API key, to ask a job for another URL where one has
        expired (templated).
    :param max_failures: How many songs may fail to land before the task does.
    :param max_concurrent_downloads: How many songs are fetched at once. Each needs room for its files in the worker's
        temporary folder.
    :param overwrite: Whether other files that have the name of one of ours, such as the manifest of another run, may be
        replaced.
    :return: The manifest, as it is in ``manifest.json``: a dict of ``destination, manifest, dag_id, task_id, run_id,
        map_index, landed_at`` (ISO 8601, UTC)``, count, songs, failed``. Each song has its metadata, and ``audio`` and
        ``cover`` (None if it has none) with ``name, size`` (bytes)``, sha256, content_type``.
    :raises ValueError: When the DAG file is read: an argument makes no sense.
    :raises WhisulInvalidInputError: ``songs`` holds something else, or ``destination`` names no folder.
    :raises WhisulMediaError: More songs than ``max_failures`` could not be fetched. The others are landed.
    :raises WhisulMediaExpiredError: The same, where no retry can mend that: their URLs do not work, and asking their
        jobs again gave no others.
    :raises WhisulFileExistsError: Another file has the name of one of ours.
    :raises WhisulStorageError: The store cannot be read or written; for example, there is no room left.
    :raises WhisulError: Anything else; see :mod:`airflow_provider_whisul.exceptions`.

    With ``outlets``, their asset events carry ``destination, manifest`` (its URL)``, count, failed`` and the first
    ``titles``.
    """

    template_fields: Sequence[str] = ("songs", "destination", "storage_conn_id", "whisul_conn_id")
    ui_color = "#dcf2e3"

    def __init__(
        self,
        *,
        songs: object,
        destination: str,
        storage_conn_id: str | None = None,
        whisul_conn_id: str = DEFAULT_CONN_ID,
        max_failures: int = 0,
        max_concurrent_downloads: int = 4,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        set_default_retry_policy(kwargs)
        super().__init__(**kwargs)
        self.songs = songs
        self.destination = destination
        self.storage_conn_id = storage_conn_id
        self.whisul_conn_id = whisul_conn_id
        if max_failures < 0 or max_concurrent_downloads < 1:
            raise ValueError(
                "max_failures must be 0 or more, max_concurrent_downloads 1 or more, not "
                f"{max_failures} and {max_concurrent_downloads}."
            )
        self.max_failures = max_failures
        self.max_concurrent_downloads = max_concurrent_downloads
        self.overwrite = overwrite
        self._media: MediaClient | None = None
        self._killed = False

    def execute(self, context: Context) -> Manifest:
        """Land what is missing, and write the manifest."""
        from airflow_provider_whisul.lander import SongLander
        from airflow_provider_whisul.media import MediaClient
        from airflow_provider_whisul.storage import Store

        songs, failed = read_songs(self.songs)
        for passed in failed:
            self.log.warning("Passed over: %r: %s", quote(passed["prompt"] or "")[:60], passed["error"])
        store = Store.at(self.destination, self.storage_conn_id)
        there = store.sizes()
        manifest = self._empty_manifest(context, store)
        self._refuse_manifest_of_others(store, manifest, there)
        self.log.info("Landing %d song%s in %s", len(songs), "" if len(songs) == 1 else "s", store.url)
        with TemporaryDirectory(prefix="whisul-") as workdir, MediaClient(clock=self.clock) as media:
            self._media = media
            if self._killed:
                media.stop()
            lander = SongLander(store, media, Path(workdir), there, self.overwrite)
            landed, problems = self._land_all(lander, songs)
            for song, error in problems:
                self.log.error("Not landed: %r: %s", quote(song["title"] or song["job_id"])[:60], error)
            if len(problems) > self.max_failures:
                raise _too_many(problems, len(songs), self.max_failures)
            manifest["songs"] = [landed[song["job_id"]] for song in songs if song["job_id"] in landed]
            manifest["count"] = len(landed)
            manifest["failed"] = failed + [_not_landed(*problem) for problem in problems]
            manifest["landed_at"] = datetime.fromtimestamp(self.clock.time(), UTC).isoformat()
            lander.remove_parts(manifest["manifest"])
            # Looked for again: another run may have been as fast.
            self._refuse_manifest_of_others(store, manifest, store.sizes())
            self._check_killed()
            store.put_json(cast("dict[str, object]", manifest), manifest["manifest"], Path(workdir))
        self.log.info("Songs in %s: %d, not there: %d", store.url, len(landed), len(manifest["failed"]))
        self._tell_outlets(context, manifest)
        return manifest

    def on_kill(self) -> None:
        """End the landing, which raises soon: Airflow 3 does no more than call this before it kills the process."""
        self._killed = True
        if self._media is not None:
            self._media.stop()

    def _check_killed(self) -> None:
        if self._killed:
            raise WhisulMediaError(
                "The landing was ended with the task, so that there is no manifest. What is in the store already is "
                "whole: a retry fetches only what is missing."
            )

    def _empty_manifest(self, context: Context, store: Store) -> Manifest:
        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        return {
            "destination": store.url,
            "manifest": manifest_name(map_index),
            "dag_id": ti.dag_id,
            "task_id": ti.task_id,
            "run_id": ti.run_id,
            "map_index": map_index,
            "landed_at": "",
            "count": 0,
            "songs": [],
            "failed": [],
        }

    def _refuse_manifest_of_others(self, store: Store, manifest: Manifest, there: dict[str, int | None]) -> None:
        name = manifest["manifest"]
        if name in there and not self.overwrite and not is_of_same_task(store.read_json(name), manifest):
            raise WhisulFileExistsError(
                f"{store.url}/{name} is not of this run, and is not overwritten. Give each run a destination of its "
                "own, such as one that ends in {{ run_id }}; or set overwrite=True, so that it tells of the latest run."
            )

    def _land_all(self, lander: SongLander, songs: Sequence[Song]) -> tuple[dict[str, LandedSong], list[Problem]]:
        """Land songs, several at once; one that fails does not disturb the others, unless it is the store's fault."""
        landed: dict[str, LandedSong] = {}
        problems: list[Problem] = []
        asked: set[str] = set()
        away: WhisulError | None = None
        pool = ThreadPoolExecutor(self.max_concurrent_downloads, "whisul-landing")
        try:
            waiting: dict[Future[LandedSong], Song] = {pool.submit(lander.land, song): song for song in songs}
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                self._check_killed()
                for future in done:
                    song = waiting.pop(future)
                    job_id = song["job_id"]
                    try:
                        try:
                            landed[job_id] = future.result()
                        except WhisulMediaExpiredError as expired:
                            if job_id in asked:
                                raise
                            asked.add(job_id)
                            if away is not None:
                                raise _nobody_knows(expired, away) from None
                            try:
                                # In this thread alone: the hook, and Airflow's connections, are not for several.
                                fresh, brought = self._ask_again(song, expired)
                            except WhisulError as error:
                                # Asking takes minutes where nobody answers: not for song after song.
                                away = error
                                raise _nobody_knows(expired, away) from error
                            waiting[pool.submit(lander.land, fresh, brought)] = fresh
                    except WhisulFileExistsError as error:
                        problems.append((song, error))
                    except WhisulStorageError:
                        raise
                    except WhisulError as error:
                        problems.append((song, error))
        except BaseException:
            lander.media.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return landed, problems

    def _ask_again(self, song: Song, expired: WhisulMediaExpiredError) -> tuple[Song, dict[Role, str]]:
        """
        Ask a song's job for URLs that work.

        :param song: The song.
        :param expired: What became of its URL.
        :return: The song with what the job says now, and a sentence for each file on what that was.
        :raises WhisulError: Whisul cannot say at the moment.
        """
        job_id = song["job_id"]
        self.log.warning("%s Asking the job again.", expired)
        try:
            job = self.hook.get_job(job_id)
        except AirflowException as error:
            if isinstance(error, WhisulError) and error.transient:
                raise
            return song, dict.fromkeys(URL_FIELDS, f"Asking the job again brought no other: {error}")
        if not job.completed:
            return song, dict.fromkeys(URL_FIELDS, f"Asking the job again brought no other: it is {job.status} now.")
        said = job.song()
        fresh = cast(Song, {**said, **{key: value for key, value in song.items() if value}})
        brought: dict[Role, str] = {}
        for role, field in URL_FIELDS.items():
            # Where the job has none any more, the old one still says what was wrong with it.
            fresh[field] = said[field] or song[field]
            if not said[field]:
                brought[role] = "Asking the job again brought none."
            elif said[field] == song[field]:
                brought[role] = "Asking the job again brought the same URL: only a new submission makes the song anew."
            else:
                brought[role] = "Asking the job again brought another URL, which does not work either."
        return fresh, brought

    def _tell_outlets(self, context: Context, manifest: Manifest) -> None:
        from airflow.providers.common.compat.sdk import Asset

        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = cast("Any", event_extra(manifest))


def _nobody_knows(expired: WhisulMediaExpiredError, away: WhisulError) -> WhisulError:
    """Return why a song is not landed whose URL has expired while Whisul is away: of a kind that a retry can mend."""
    return type(away)(
        f"{expired} Whisul could not say whether there is another: {away} A retry asks again.",
        job_id=expired.job_id,
        http_status=away.http_status,
    )


def _not_landed(song: Song, error: WhisulError) -> PassedOver:
    return {"job_id": song["job_id"], "prompt": song["prompt"], "error": quote(str(error))}


def _too_many(problems: Sequence[Problem], songs: int, max_failures: int) -> WhisulError:
    """Return the error that a task fails with: of the kind of those that a retry can mend, if there are any."""
    errors = [error for _, error in problems]
    if len(errors) == 1 and songs == 1:
        return errors[0]
    first = next((error for error in errors if not isinstance(error, AirflowFailException)), errors[0])
    named = "; ".join(
        f"{quote(song['title'] or song['job_id'])[:60]!r}: {quote(str(error))[:300]}"
        for song, error in problems[:_MOST_NAMED]
    )
    more = f"; and {len(errors) - _MOST_NAMED} more, see the log" if len(errors) > _MOST_NAMED else ""
    return type(first)(
        f"{len(errors)} of {songs} songs are not landed, more than max_failures={max_failures}: {named}{more}. The "
        "others are in the store, without a manifest; a retry fetches only what is missing."
    )

"""
What OpenLineage learns of a task's songs: the jobs at Whisul that made them, and the files that hold them. No I/O.

A job is a dataset, so that the task that submits it and the task that stores its song are joined by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_whisul.state.state_store import prompt_fingerprint

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_whisul.storage.manifest import Manifest

#: Songs that an event names at most. Each is up to three datasets of half a kB, and some backends refuse large events.
MAX_LINEAGE_SONGS = 100

#: The namespace of the jobs. Their ids are unique in all of Whisul, so it names no host and no account.
WHISUL_NAMESPACE = "whisul"

# OpenLineage knows each of these stores by one name only.
_PROTOCOLS = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}


class SongDataset(NamedTuple):
    """
    A job, or a file in a store.

    :param namespace: The store, or :data:`WHISUL_NAMESPACE`.
    :param name: The place of the file in the store, or ``jobs/`` and the job's id.
    :param job_id: The job that made the song, None for a manifest.
    :param prompt_fingerprint: The fingerprint of the song's prompt, None where the prompt is not known.
    :param size: The size of the file in bytes, None for what has none or has one that is not known.
    """

    namespace: str
    name: str
    job_id: str | None = None
    prompt_fingerprint: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Lineage:
    """
    What an event says of a task.

    :param inputs: What the task has read.
    :param outputs: What the task has made.
    :param songs: How many songs these are about. At most :data:`MAX_LINEAGE_SONGS` of them are in the event.
    """

    inputs: tuple[SongDataset, ...] = ()
    outputs: tuple[SongDataset, ...] = ()
    songs: int = 0

    @property
    def listed(self) -> int:
        """How many of the songs the event names."""
        return min(self.songs, MAX_LINEAGE_SONGS)


class LineageMixin:
    """A task that tells OpenLineage of its songs; a mixin before Airflow's own base class."""

    #: Set when the task runs, so that the event costs no look-up.
    _lineage = Lineage()

    def get_openlineage_facets_on_complete(self, task_instance: object) -> OperatorLineage[Any, Any]:
        """
        Return what an OpenLineage event says of the songs. Only OpenLineage's provider calls this.

        :param task_instance: The task instance, which has ended.
        """
        from airflow_provider_whisul.operators.openlineage import operator_lineage

        return operator_lineage(self._lineage)


def lineage_of_jobs(jobs: Iterable[tuple[str, str | None]]) -> Lineage:
    """
    Return the lineage of a task that has submitted jobs.

    :param jobs: The id and the prompt of each job.
    """
    found = list(jobs)
    return Lineage(outputs=tuple(_job(*job) for job in found[:MAX_LINEAGE_SONGS]), songs=len(found))


def lineage_of_stored_songs(manifest: Manifest) -> Lineage:
    """
    Return the lineage of a task that has stored songs: from their jobs to the manifest and the files of the songs.

    :param manifest: The manifest.
    """
    folder = manifest["destination"]
    songs = manifest["songs"][:MAX_LINEAGE_SONGS]
    files = tuple(
        SongDataset(
            *_place(f"{folder}/{file['name']}"), song["job_id"], _fingerprint(song["prompt"]), size=file["size"]
        )
        for song in songs
        for file in (song["audio"], song["cover"])
        if file is not None
    )
    return Lineage(
        inputs=tuple(_job(song["job_id"], song["prompt"]) for song in songs),
        outputs=(SongDataset(*_place(f"{folder}/{manifest['manifest']}")), *files),
        songs=manifest["count"],
    )


def _job(job_id: str, prompt: str | None) -> SongDataset:
    return SongDataset(WHISUL_NAMESPACE, f"jobs/{job_id}", job_id, _fingerprint(prompt))


def _fingerprint(prompt: str | None) -> str | None:
    return None if prompt is None else prompt_fingerprint(prompt)


def _place(url: str) -> tuple[str, str]:
    """Return the namespace and the name of a file, as OpenLineage's naming conventions have them."""
    protocol, _, location = url.partition("://")
    if protocol in ("file", "local"):
        return "file", location
    host, _, path = location.partition("/")
    return f"{_PROTOCOLS.get(protocol, protocol)}://{host}", path

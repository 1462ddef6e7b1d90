"""A task's lineage in the classes of OpenLineage. Imported only where OpenLineage's provider is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from airflow.providers.common.compat.openlineage.facet import (
    Dataset,
    DatasetFacet,
    OutputDataset,
    OutputStatisticsOutputDatasetFacet,
    RunFacet,
)
from airflow.providers.openlineage.extractors import OperatorLineage

if TYPE_CHECKING:
    from airflow_provider_whisul.operators.lineage import Lineage, SongDataset


@attrs.define
class WhisulSongDatasetFacet(DatasetFacet):
    """
    Which song a dataset is of.

    :param jobId: The job that made the song.
    :param promptFingerprint: The fingerprint of its prompt, as in the ledger; None where the prompt is not known.
    """

    jobId: str
    promptFingerprint: str | None


@attrs.define
class WhisulSongsRunFacet(RunFacet):
    """
    How many songs a run of a task is about.

    :param songs: How many there are.
    :param listed: How many of them the event names.
    """

    songs: int
    listed: int


def operator_lineage(lineage: Lineage) -> OperatorLineage[Any, Any]:
    """
    Return what an operator hands to OpenLineage's provider.

    :param lineage: The lineage. One without outputs is empty.
    """
    if not lineage.outputs:
        return OperatorLineage()
    return OperatorLineage(
        inputs=[Dataset(dataset.namespace, dataset.name, facets=_facets(dataset)) for dataset in lineage.inputs],
        outputs=[_output(dataset) for dataset in lineage.outputs],
        run_facets={"whisul_songs": WhisulSongsRunFacet(songs=lineage.songs, listed=lineage.listed)},
    )


def _facets(dataset: SongDataset) -> dict[str, DatasetFacet]:
    if dataset.job_id is None:
        return {}
    return {"whisul_song": WhisulSongDatasetFacet(dataset.job_id, dataset.prompt_fingerprint)}


def _output(dataset: SongDataset) -> Dataset:
    output = OutputDataset(dataset.namespace, dataset.name, facets=_facets(dataset))
    if dataset.size is not None:
        output.outputFacets = {"outputStatistics": OutputStatisticsOutputDatasetFacet(size=dataset.size)}
    return output

"""What the asset events of a transfer's outlets carry: what was stored where, and their partitions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote as url_quote

from airflow import __version__ as airflow_version

from airflow_provider_whisul.exceptions import WhisulInvalidInputError
from airflow_provider_whisul.operators.arguments import ArgumentChecks
from airflow_provider_whisul.storage.manifest import Manifest, event_extra
from airflow_provider_whisul.text import excerpt, quote
from airflow_provider_whisul.version_compat import HAS_ASSET_PARTITIONS, AssetRef

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Characters of a partition's key that Airflow's database holds.
MAX_PARTITION_KEY_CHARACTERS = 250


def check_partition_key(value: object) -> object:
    """
    Return the argument ``partition_key``, unless this Airflow has no partitions of assets.

    :param value: The argument.
    :raises ValueError: Airflow is older than 3.3.
    """
    if value is not None and not HAS_ASSET_PARTITIONS:
        raise ValueError(
            f"partition_key needs Airflow 3.3 or later, and this is Airflow {airflow_version}. Leave it out: then the "
            "asset events have no partition."
        )
    return value


#: The arguments of the transfer that are checked where its tasks are mapped, too.
TRANSFER_CHECKS: ArgumentChecks = {"partition_key": check_partition_key}


def check_outlets(outlets: object) -> None:
    """
    Refuse outlets whose events cannot have partitions.

    :param outlets: The outlets of a task that has a ``partition_key``: a list, one outlet, or None.
    :raises ValueError: There is none, or one of them is an alias, to whose events Airflow gives no partition.
    """
    from airflow.providers.common.compat.sdk import Asset

    found = outlets if isinstance(outlets, list | tuple) else [outlets]
    if not found or not all(isinstance(outlet, Asset | AssetRef) for outlet in found):
        raise ValueError(
            "partition_key is the partition of the asset events, so it needs outlets: each an Asset or an "
            "Asset.ref(…). Airflow gives no partition to the events of an AssetAlias."
        )


def read_partition_keys(value: object) -> list[str]:
    """
    Return the keys of partitions, each once.

    :param value: The argument ``partition_key`` after it was rendered: a key, several of them, or None.
    :raises WhisulInvalidInputError: A key is no text, or blank, or longer than 250 characters.
    """
    if value is None:
        return []
    keys = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    for key in keys:
        if not isinstance(key, str) or not key.strip() or len(key) > MAX_PARTITION_KEY_CHARACTERS:
            raise WhisulInvalidInputError(
                f"The partition key {excerpt(str(key))!r} is not a text of 1 to {MAX_PARTITION_KEY_CHARACTERS} "
                "characters, so nothing was downloaded. Where partition_key is a template, look at the task's rendered "
                "fields."
            )
    return list(dict.fromkeys(cast("list[str]", keys)))


def set_asset_events(
    context: Context,
    outlets: Sequence[object] | None,
    manifest: Manifest,
    partition_keys: Sequence[str],
    log: logging.Logger | Any,
) -> None:
    """
    Set what the asset events of a task's outlets carry. Where Airflow does not know an asset, it is logged.

    :param context: The task's context.
    :param outlets: The task's outlets.
    :param manifest: The manifest of what was stored.
    :param partition_keys: The partitions of the events, one event each. Without any, Airflow makes one event, of the
        partition of the DAG run, if that has one.
    :param log: The task's log.
    """
    from airflow.providers.common.compat.sdk import Asset, AssetAlias

    extra = cast("Any", event_extra(manifest))
    events = cast("Mapping[object, Any]", context.get("outlet_events"))
    for outlet in outlets or ():
        try:
            if isinstance(outlet, AssetAlias):
                # An alias has no event unless it is given an asset.
                folder = Asset(url_quote(manifest["destination"], safe="/:@+,=~"))
                events[outlet].add(folder, extra=extra)
            elif isinstance(outlet, Asset | AssetRef):
                event = events[outlet]
                event.extra = extra
                if partition_keys:
                    event.add_partitions(list(partition_keys))
        except Exception as error:
            # The songs are stored, whatever Airflow knows of the asset.
            log.warning("The asset event of %s does not say what was stored: %s", quote(str(outlet)), quote(str(error)))

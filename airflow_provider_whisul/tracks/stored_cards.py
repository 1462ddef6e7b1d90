"""The cards of stored songs, and the addresses from which a browser can play the stored copies."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote as percent_encode
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import conf

from airflow_provider_whisul.api.models import Song
from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.storage.manifest import StoredSong
from airflow_provider_whisul.tracks.cards import STORED_PREFIX, Card, completed_card, failed_card, push_cards

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)


def push_stored_cards(
    context: Context,
    songs: Sequence[Song],
    stored: Mapping[str, StoredSong],
    errors: Mapping[str, WhisulError],
    folder: str,
) -> None:
    """
    Show in the Tracks tab which songs were stored, and which could not be. Never raises.

    :param context: The context of the task that has stored them.
    :param songs: All songs of the task.
    :param stored: Those that were stored, by job id.
    :param errors: Why the others were not, by job id.
    :param folder: The URL of the folder that they are stored in, without a connection.
    """
    address = browser_address(folder)

    def card(song: Song) -> Card:
        job_id = song["job_id"]
        if job_id not in stored:
            return failed_card(song["prompt"], job_id, str(errors[job_id]) if job_id in errors else None)
        name = stored[job_id]["audio"]["name"]
        return completed_card(song, name, None if address is None else f"{address}/{percent_encode(name)}")

    push_cards(context, map(card, songs), prefix=STORED_PREFIX)


def browser_address(folder: str) -> str | None:
    """
    Return the address at which browsers can reach a folder, None where ``[whisul] stored_songs_url`` names none.

    A setting that cannot be used is logged.

    :param folder: The URL of the folder, such as ``s3://bucket/songs/2026-11-26``.
    """
    try:
        text = conf.get("whisul", "stored_songs_url", fallback="") or ""
        if not text.strip():
            return None
        addresses = {_without_slash(ours): _checked(theirs) for ours, theirs in json.loads(text).items()}
    except Exception as error:
        # Any error at all, such as that of a single % in airflow.cfg: a card is not worth a task. The setting itself is
        # not logged: it may hold a password.
        log.warning(
            "[whisul] stored_songs_url must be a JSON object of folders and their https URLs, such as "
            '{"s3://bucket/songs": "https://songs.example.com"} (%s). The Tracks tab cannot play stored songs.',
            type(error).__name__,
        )
        return None
    found = [ours for ours in addresses if f"{folder}/".startswith(f"{ours}/")]
    if not found:
        return None
    longest = max(found, key=len)
    return addresses[longest] + percent_encode(folder.removeprefix(longest))


def _without_slash(url: object) -> str:
    return str(url).rstrip("/")


def _checked(url: object) -> str:
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("It is no http(s) URL of a folder.")
    return _without_slash(url)

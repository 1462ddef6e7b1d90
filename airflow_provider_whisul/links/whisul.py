"""The buttons on a task's page in Airflow's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_whisul.version_compat import UI_COMPUTES_LINKS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey


class WhisulSongLink(BaseOperatorLink):
    """Opens the song that a task has made."""

    name = "Song"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """
        Return the song's URL, or an empty string where there is no song or its URL is none for a browser.

        :param operator: The task; on Airflow 3 the one that has just run.
        :param ti_key: Which of its instances.
        """
        url = _returned_url(ti_key) if UI_COMPUTES_LINKS else getattr(operator, "song_url", None)
        if not isinstance(url, str):
            return ""
        try:
            parts = urlsplit(url)
        except ValueError:
            return ""
        return url if parts.scheme in ("http", "https") and parts.netloc else ""


def _returned_url(ti_key: TaskInstanceKey) -> object:
    from airflow.providers.common.compat.sdk import XCom

    song = XCom.get_value(ti_key=ti_key, key="return_value")
    return song.get("song_url") if isinstance(song, dict) else None

"""The buttons on a task's page in Airflow's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_whisul.version_compat import UI_COMPUTES_LINKS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey


class WhisulSongLink(BaseOperatorLink):
    """The button that opens the song of a task."""

    name = "Song"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """
        Return the URL of the song, or an empty string if there is no song or its URL is not an http(s) URL.

        On Airflow 2 the web server calls this when a user opens the task's page. On Airflow 3 the worker calls it when
        the task has run.

        :param operator: The task; on Airflow 3 the object that has just run.
        :param ti_key: The key of the task instance.
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

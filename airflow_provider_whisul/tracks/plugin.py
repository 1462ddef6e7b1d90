"""
The Tracks tab of a DAG run and of a task instance in Airflow's UI (3.1 and later), and the page Songs over all runs.

The pages that are served here hold no data. They read the songs from Airflow's REST API with the viewer's session, so
Airflow decides who may see them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowPlugin, conf

from airflow_provider_whisul.version_compat import HAS_EXTERNAL_VIEWS

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

URL_PREFIX = "/whisul-tracks"

#: The page's scripts and styles are its own files. Covers and songs come from any host that Whisul's URLs name. Who may
#: hold Airflow's UI in a frame is for Airflow, or a proxy in front of it, to say: the page is a part of that UI.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src http: https:; media-src http: https:; "
        "connect-src 'self' http: https:; base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # The browser asks each time whether the file has changed, else it would mix the files of two versions.
    "Cache-Control": "no-cache",
}

# Airflow before 3.2 inserts the ids unencoded. The run's id may hold any character, so it comes last.
_BASE = URL_PREFIX.removeprefix("/")
_VIEW = {"name": "Tracks", "icon": f"{_BASE}/note.svg"}
_SONGS = {**_VIEW, "name": "Songs"}

#: The tabs, and the page in the navigation. Their URLs are relative, since Airflow may be served under a prefix.
VIEWS: list[dict[str, str]] = [
    {
        **_VIEW,
        "destination": "dag_run",
        "url_route": "whisul-tracks",
        "href": f"{_BASE}/?dag={{DAG_ID}}&run={{RUN_ID}}",
    },
    {
        **_VIEW,
        "destination": "task_instance",
        "url_route": "whisul-task-tracks",
        "href": f"{_BASE}/?dag={{DAG_ID}}&task={{TASK_ID}}&map={{MAP_INDEX}}&run={{RUN_ID}}",
    },
    {
        **_SONGS,
        "destination": "dag",
        "url_route": "whisul-dag-songs",
        "href": f"{_BASE}/songs.html?dag={{DAG_ID}}",
    },
    # Of all DAGs that the viewer may see.
    {**_SONGS, "destination": "nav", "url_route": "whisul-songs", "href": f"{_BASE}/songs.html"},
]


class TracksPage:
    """The files of the pages as an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        await self._files(scope, receive, send)

    @cached_property
    def _files(self) -> ASGIApp:
        # Imported at the first request: every Airflow process, each task's too, loads all plugins.
        from starlette.staticfiles import StaticFiles

        class Files(StaticFiles):
            def file_response(self, *args: Any, **kwargs: Any) -> Response:
                response = super().file_response(*args, **kwargs)
                response.headers.update(HEADERS)
                return response

        return Files(directory=Path(__file__).with_name("page"), html=True)


#: Whether the tabs are there: in an Airflow whose UI supports them, unless ``[whisul] tracks_tab`` is False.
HAS_TABS = HAS_EXTERNAL_VIEWS and conf.getboolean("whisul", "tracks_tab", fallback=True)


class WhisulTracksPlugin(AirflowPlugin):
    """Adds the tabs and the page Songs."""

    name = "whisul_tracks"
    fastapi_apps: list[Any] = (
        [{"app": TracksPage(), "url_prefix": URL_PREFIX, "name": "Whisul tracks"}] if HAS_TABS else []
    )
    external_views: list[Any] = VIEWS if HAS_TABS else []

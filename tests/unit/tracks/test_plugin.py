"""The plugin that adds the Tracks tab to Airflow's UI, and the files of its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_whisul.api.price import Price
from airflow_provider_whisul.links.whisul import WhisulSongLink
from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator
from airflow_provider_whisul.sensors.whisul import WhisulJobSensor
from airflow_provider_whisul.tracks import plugin
from airflow_provider_whisul.tracks.cards import EXPECTED_PREFIX, KEY_PREFIX, MAX_CARDS, STORED_PREFIX
from airflow_provider_whisul.tracks.plugin import HEADERS, VIEWS, WhisulTracksPlugin
from airflow_provider_whisul.tracks.submissions import submitted_key

PAGE = Path(plugin.__file__).with_name("page")
MODULES = sorted(PAGE.glob("*.js"))
HAS_TABS = Version(airflow_version) >= Version("3.1")


def test_the_entry_point_leads_to_the_plugin() -> None:
    (entry_point,) = entry_points(group="airflow.plugins").select(name="whisul_tracks")
    assert entry_point.load() is WhisulTracksPlugin


def test_the_plugin_adds_its_tabs_and_its_page_where_airflow_supports_them() -> None:
    destinations = [view["destination"] for view in WhisulTracksPlugin.external_views]
    assert destinations == (["dag_run", "task_instance", "dag", "nav"] if HAS_TABS else [])
    assert len(WhisulTracksPlugin.fastapi_apps) == (1 if HAS_TABS else 0)
    assert len({view["url_route"] for view in WhisulTracksPlugin.external_views}) == len(destinations)


def test_airflow_accepts_the_plugin() -> None:
    """In another process, which has not loaded any plugins yet."""
    code = """
import json
from airflow import plugins_manager
from airflow_provider_whisul.tracks.plugin import WhisulTracksPlugin
plugin = WhisulTracksPlugin()
WhisulTracksPlugin.validate()
print(json.dumps([plugin.name, len(getattr(plugin, "external_views"))]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == ["whisul_tracks", 4 if HAS_TABS else 0]


def test_importing_the_plugin_imports_no_web_framework() -> None:
    """Every task's process loads all plugins."""
    code = """
import sys
from airflow.providers.common.compat.sdk import AirflowPlugin
before = set(sys.modules)
import airflow_provider_whisul.tracks.plugin
print(*[name for name in ("fastapi", "starlette", "requests", "aiohttp") if name in set(sys.modules) - before])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == ""


@pytest.mark.parametrize(("value", "views", "apps"), [("True", 4, 1), ("False", 0, 0)])
def test_the_configuration_turns_the_tab_off(value: str, views: int, apps: int) -> None:
    code = """
from airflow_provider_whisul.tracks.plugin import WhisulTracksPlugin as plugin
print(len(plugin.external_views), len(plugin.fastapi_apps))
"""
    env = {**os.environ, "AIRFLOW__WHISUL__TRACKS_TAB": value}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.splitlines()[-1] == (f"{views} {apps}" if HAS_TABS else "0 0")


def test_airflow_knows_the_configuration_section() -> None:
    """In another process, where the providers' configuration has been loaded."""
    code = """
from airflow.providers_manager import ProvidersManager
from airflow.configuration import conf
ProvidersManager().initialize_providers_configuration()
print(conf.get("whisul", "tracks_tab"))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "True"


def test_the_page_does_not_say_who_may_hold_it_in_a_frame() -> None:
    """Airflow's own pages do not either: a portal that holds Airflow's UI in a frame holds this page, too."""
    assert "frame-ancestors" not in HEADERS["Content-Security-Policy"]
    assert "X-Frame-Options" not in HEADERS


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view["destination"])
def test_the_urls_of_the_tabs_are_relative_and_end_with_the_run(view: dict[str, str]) -> None:
    """Airflow may be served under a prefix, and 3.1 inserts ids unencoded."""
    query = {
        "dag_run": "?dag={DAG_ID}&run={RUN_ID}",
        "task_instance": "?dag={DAG_ID}&task={TASK_ID}&map={MAP_INDEX}&run={RUN_ID}",
        "dag": "songs.html?dag={DAG_ID}",
        "nav": "songs.html",
    }
    assert view["href"] == f"whisul-tracks/{query[view['destination']]}"
    assert view["icon"] == "whisul-tracks/note.svg"


@pytest.mark.parametrize(("file", "script"), [("index.html", "tracks.js"), ("songs.html", "songs.js")])
def test_the_page_needs_no_scripts_or_styles_but_its_own_files(file: str, script: str) -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = (PAGE / file).read_text()
    assert re.findall(r"<script\b[^>]*>", page) == [f'<script type="module" src="{script}">']
    assert not re.search(r"\son\w+=|\sstyle=|https?://", page)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_no_module_turns_texts_into_markup(module: Path) -> None:
    script = module.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_the_pages_import_each_of_their_modules_and_no_others() -> None:
    """Their CSP forbids others, and a module that is not imported is dead."""
    imports = {
        module.name: set(re.findall(r"""\b(?:from|import)\s*\(?\s*["'`]([^"'`]*)""", module.read_text()))
        for module in MODULES
    }
    imported, found = set(), {"./tracks.js", "./songs.js"}
    while found:
        imported |= found
        found = {name for path in found for name in imports[path.removeprefix("./")]} - imported
    assert imported == {f"./{name}" for name in imports}


def test_page_and_package_agree_on_the_keys_of_the_xcoms() -> None:
    script = (PAGE / "airflow_api.js").read_text()
    key, pattern, expected, size = (
        re.search(rf"const {name} = (.*);", script)[1]  # type: ignore[index]
        for name in ("KEY", "KEY_PARTS", "EXPECTED_KEY", "MAX_CARDS")
    )
    for prefix in (KEY_PREFIX, STORED_PREFIX):
        assert prefix.startswith(json.loads(key))
        assert re.fullmatch(pattern.strip("/"), f"{prefix}0000_{MAX_CARDS}_{MAX_CARDS}")
    assert re.fullmatch(expected.strip("/"), f"{EXPECTED_PREFIX}1000")
    assert int(size) == MAX_CARDS
    submitted = re.search(r"const SUBMITTED_KEY = (.*);", (PAGE / "submissions.js").read_text())[1]  # type: ignore[index]
    for price in ("0.08 USD", "1000000 €", "0.000000001 credit", "3", None):
        written = submitted_key(1_000_000, Price.parse(price))
        assert written.startswith(json.loads(key))
        assert re.fullmatch(submitted.strip("/"), written)


@pytest.mark.parametrize("task", [WhisulGenerateOperator, WhisulJobSensor])
def test_operator_and_sensor_have_the_song_link(task: Any) -> None:
    (link,) = task.operator_extra_links
    assert isinstance(link, WhisulSongLink)
    assert link.name == "Song"

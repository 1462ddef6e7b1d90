"""A real Airflow with its login on, the sandbox, and a browser."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from dev.airflow_runner.local import LocalAirflow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Roles by user. The admin may see everything, the viewer all but the secret DAG, the guest also no XComs.
USERS = {"admin": "admin", "viewer": "viewer", "guest": "viewer"}
RUN_TIMEOUT = 1200.0
#: Where browsers reach the songs that were stored. A test says what is there.
STORED_URL = "http://songs.test/stored"
#: What a song costs.
PRICE = "0.08 USD"


@dataclass(frozen=True)
class Runs:
    """The ids of the runs that the tests show, by their songs."""

    all_kinds: str
    secret: str
    thousand: str
    unusual: str


@dataclass(frozen=True)
class Environment:
    """
    The servers and the browser that the tests use.

    :param airflow: Airflow.
    :param sandbox: The API that makes the songs.
    :param browser: The browser.
    :param passwords: Each user's password by name.
    """

    airflow: LocalAirflow
    sandbox: Sandbox
    browser: Browser
    passwords: dict[str, str]

    def open_window(self, user: str | None, **options: Any) -> BrowserContext:
        """Open a browser window in which a user is logged in, or none."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        # A busy machine may need longer than the half minute of the default.
        context.set_default_timeout(60_000)
        if user is not None:
            token = self.airflow.token((user, self.passwords[user]))
            context.add_cookies([{"name": "_token", "value": token, "url": self.airflow.ui_url}])
        return context

    def make_song(self, directives: str = "") -> dict[str, Any]:
        """Return the result of a job that the sandbox has made at once."""
        key = json.loads(self.sandbox.connection)["password"]
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {key}"
            prompt = f"one more song [sandbox:seconds=0]{directives}"
            url = self.sandbox.base_url
            job_id = session.post(f"{url}/generate", json={"prompt": prompt}, timeout=10).json()["job_id"]
            return dict(session.get(f"{url}/jobs/{job_id}", timeout=10).json()["result"])

    def run_tab_url(self, dag_id: str, run_id: str) -> str:
        """Return the URL of a run's tab in Airflow's UI."""
        return f"{self.airflow.ui_url}/dags/{dag_id}/runs/{quote(run_id, safe='')}/plugin/whisul-tracks"

    def task_tab_url(self, dag_id: str, run_id: str, task_id: str, map_index: int | None = None) -> str:
        """Return the URL of a task's tab in Airflow's UI."""
        mapped = "" if map_index is None else f"/mapped/{map_index}"
        run = quote(run_id, safe="")
        return f"{self.airflow.ui_url}/dags/{dag_id}/runs/{run}/tasks/{task_id}{mapped}/plugin/whisul-task-tracks"

    def songs_tab_url(self, dag_id: str) -> str:
        """Return the URL of the tab with the songs of all runs of a DAG in Airflow's UI."""
        return f"{self.airflow.ui_url}/dags/{dag_id}/plugin/whisul-dag-songs"

    def songs_page_url(self, dag_id: str | None = None) -> str:
        """Return the URL of the page with the songs of a DAG, or of all, which the UI holds in a frame."""
        return f"{self.airflow.ui_url}/whisul-tracks/songs.html" + ("" if dag_id is None else f"?dag={dag_id}")

    def page_url(self, dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None) -> str:
        """Return the URL of the page that a tab holds in its frame."""
        task = "" if task_id is None else f"&task={task_id}&map={'' if map_index is None else map_index}"
        return f"{self.airflow.ui_url}/whisul-tracks/?dag={dag_id}{task}&run={quote(run_id, safe='')}"


def with_price(connection: str) -> str:
    """Return an Airflow connection in which a song has a price."""
    fields = json.loads(connection)
    return json.dumps({**fields, "extra": {**(fields.get("extra") or {}), "price_per_song": PRICE}})


def find_chromium() -> str:
    """Return the path of the browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := os.environ.get("CHROMIUM") or shutil.which(name):
            return path
    raise FileNotFoundError("There is no Chromium on the PATH. `dev/get_chromium.sh` installs one.")


@contextmanager
def start_environment() -> Iterator[Environment]:
    """Start sandbox, Airflow and browser, and stop them at the end."""
    passwords = {name: secrets.token_urlsafe(12) for name in USERS}
    with TemporaryDirectory(prefix="whisul-browser-") as folder:
        password_file = Path(folder, "passwords.json")
        password_file.write_text(json.dumps(passwords))
        with Sandbox(SandboxOptions(api_key=secrets.token_hex(16), job_seconds=(2.0, 8.0))) as sandbox:
            env = {
                "AIRFLOW_CONN_WHISUL_DEFAULT": with_price(sandbox.connection),
                "WHISUL_TEST_STORE": Path(folder, "store").as_uri(),
                "AIRFLOW__WHISUL__STORED_SONGS_URL": json.dumps({Path(folder).as_uri(): STORED_URL}),
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(password_file),
                "AIRFLOW__CORE__AUTH_MANAGER": "tests.browser.auth.PerDagAuthManager",
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            }
            login = ("admin", passwords["admin"])
            with LocalAirflow(HERE / "dags", env=env, login=login) as airflow, start_browser() as browser:
                airflow.wait_for_dags(
                    "tracks", "tracks_secret", "tracks_late", "tracks_given", "nightly_songs", "morning_show"
                )
                yield Environment(airflow, sandbox, browser, passwords)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start Chromium, with flags that keep it from sending requests of its own."""
    from playwright.sync_api import sync_playwright

    flags: Sequence[str] = (
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--mute-audio",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=list(flags))
        try:
            yield chromium
        finally:
            chromium.close()

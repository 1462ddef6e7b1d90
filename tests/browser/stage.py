"""A real Airflow with its login on, after real runs on the sandbox, and a browser."""

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
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from dev.local_airflow import LocalAirflow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: The admin may all, the viewer may see all but the secret DAG, the guest no XComs either.
USERS = {"admin": "admin", "viewer": "viewer", "guest": "viewer"}
RUN_TIMEOUT = 150.0


@dataclass(frozen=True)
class Stage:
    """
    What the tests look at.

    :param airflow: Airflow.
    :param sandbox: What has made the songs.
    :param browser: The browser.
    :param passwords: Each user's password by name.
    """

    airflow: LocalAirflow
    sandbox: Sandbox
    browser: Browser
    passwords: dict[str, str]

    def visitor(self, user: str | None, **options: Any) -> BrowserContext:
        """A window of somebody who has logged in, or of nobody."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        if user is not None:
            token = self.airflow.token((user, self.passwords[user]))
            context.add_cookies([{"name": "_token", "value": token, "url": self.airflow.ui_url}])
        return context

    def run_page(self, dag_id: str, run_id: str) -> str:
        """The address of a run's tab in Airflow's UI."""
        return f"{self.airflow.ui_url}/dags/{dag_id}/runs/{quote(run_id, safe='')}/plugin/whisul-tracks"

    def task_page(self, dag_id: str, run_id: str, task_id: str, map_index: int | None = None) -> str:
        """The address of a task's tab in Airflow's UI."""
        mapped = "" if map_index is None else f"/mapped/{map_index}"
        run = quote(run_id, safe="")
        return f"{self.airflow.ui_url}/dags/{dag_id}/runs/{run}/tasks/{task_id}{mapped}/plugin/whisul-task-tracks"

    def bare_page(self, dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None) -> str:
        """The address of the page that the tab frames."""
        task = "" if task_id is None else f"&task={task_id}&map={'' if map_index is None else map_index}"
        return f"{self.airflow.ui_url}/whisul-tracks/?dag={dag_id}{task}&run={quote(run_id, safe='')}"


def find_chromium() -> str:
    """The browser's path. :raises SystemExit: There is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := os.environ.get("CHROMIUM") or shutil.which(name):
            return path
    raise SystemExit("There is no Chromium on the PATH. `make test-browser` says how to get one.")


@contextmanager
def stage() -> Iterator[Stage]:
    """Start everything, and stop it."""
    passwords = {name: secrets.token_urlsafe(12) for name in USERS}
    with TemporaryDirectory(prefix="whisul-browser-") as folder:
        password_file = Path(folder, "passwords.json")
        password_file.write_text(json.dumps(passwords))
        with Sandbox(SandboxOptions(api_key=secrets.token_hex(16), job_seconds=(2.0, 8.0))) as sandbox:
            env = {
                "AIRFLOW_CONN_WHISUL_DEFAULT": sandbox.connection,
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(password_file),
                "AIRFLOW__CORE__AUTH_MANAGER": "tests.browser.auth.PerDagAuthManager",
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            }
            login = ("admin", passwords["admin"])
            with LocalAirflow(HERE / "dags", env=env, login=login) as airflow, browser() as chromium:
                airflow.wait_for_dags("tracks", "tracks_secret", "tracks_late", "tracks_given")
                yield Stage(airflow, sandbox, chromium, passwords)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium. It asks nobody but the loopback servers."""
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

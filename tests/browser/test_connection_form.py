"""Editing a connection in Airflow's form: nothing is lost that was set elsewhere, such as the ceiling of the day."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import requests
from cryptography.fernet import Fernet
from playwright.sync_api import Locator, Page, Route, expect

from airflow_provider_whisul.get_provider_info import CONN_FIELDS
from tests.browser.environment import Environment

# The first test waits for Airflow.
pytestmark = pytest.mark.timeout(1800)

KEY = "the-key-that-was-there+/%"
UNKNOWN = {"team": {"name": "marketing", "floors": [1, 2]}}
#: Each with a value that is not its default.
AS_JSON = {
    "timeout": 45,
    "max_requests_per_second": 2.5,
    "max_submissions_per_day": 500,
    "price_per_song": "0.08 USD",
    "rate_limit_conn_id": "whisul_redis",
    "verify": False,
}
#: As a connection has them that was made of a URI.
AS_URI = {
    "timeout": "45",
    "max_requests_per_second": "2.5",
    "max_submissions_per_day": "500",
    "price_per_song": "0.08 USD",
    "rate_limit_conn_id": "whisul_redis",
    "verify": "/etc/ssl/whisul.pem",
}
EXTRAS: dict[str, dict[str, Any]] = {
    "json": {**AS_JSON, **UNKNOWN},
    "uri": {**AS_URI, **UNKNOWN},
    "zero": {"max_submissions_per_day": 0},
}

TYPES = "/ui/connections/hook_meta"


@pytest.fixture(scope="module", autouse=True)
def types(env: Environment) -> None:
    """Airflow has the types of connections and their fields: its first response to that takes it long."""
    call(env, "GET", TYPES)


def open_at_once(env: Environment, page: Page, conn_id: str) -> Locator:
    show_connections(env, page)
    return open_form(page, conn_id)


def open_before_types(env: Environment, page: Page, conn_id: str) -> Locator:
    """Open the form while the page has not yet received the types of connections and their fields."""
    held: list[Route] = []
    is_held = True

    def hold(route: Route) -> None:
        if is_held:
            held.append(route)
        else:
            route.continue_()

    page.route(f"**{TYPES}", hold)
    show_connections(env, page)
    with page.expect_request(f"**{TYPES}"):
        form = open_form(page, conn_id)
    expect(form.locator("input[name=connection_id]")).to_have_value(conn_id)
    expect(form.locator("[name=description]")).to_have_count(0)
    assert held
    is_held = False
    for route in held:
        route.continue_()
    if env.airflow.airflow_version.startswith("3.1."):
        # There the form closes when they come. Nothing has been saved.
        expect(form).to_have_count(0)
        form = open_form(page, conn_id)
    return form


def open_after_another(env: Environment, page: Page, conn_id: str) -> Locator:
    """Open the form of another connection first: the page already has the types, and has shown other extras."""
    another = make_connection(env, {**EXTRAS["json"], "max_submissions_per_day": 7})
    show_connections(env, page)
    form = open_form(page, another)
    expect(form.locator("[name=description]")).to_be_visible()
    page.keyboard.press("Escape")
    expect(form).to_have_count(0)
    return open_form(page, conn_id)


def look_at_fields(env: Environment, page: Page, conn_id: str) -> Locator:
    """Open the form and each of its sections."""
    form = open_at_once(env, page, conn_id)
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    expect(form.locator("[name=element_max_submissions_per_day]")).to_be_visible()
    form.get_by_role("button", name="Extra Fields JSON").click()
    expect(form.locator("[name=element_max_submissions_per_day]")).to_be_hidden()
    form.get_by_role("button", name="Standard Fields").click()
    return form


Opening = Callable[[Environment, Page, str], Locator]
in_each_way = pytest.mark.parametrize(
    "open_in_a_way", [open_at_once, open_before_types, open_after_another, look_at_fields]
)


@in_each_way
@pytest.mark.parametrize("extra", EXTRAS)
def test_saving_another_description_keeps_the_key_and_all_extras(
    env: Environment, page: Page, open_in_a_way: Opening, extra: str
) -> None:
    conn_id = make_connection(env, EXTRAS[extra])
    before = read_connection(env, conn_id)
    form = open_in_a_way(env, page, conn_id)
    form.locator("[name=description]").fill("changed")
    save(page, form)
    assert read_connection(env, conn_id) == {**before, "description": "changed"}


@in_each_way
def test_saving_a_connection_without_extras_adds_no_more_than_defaults(
    env: Environment, page: Page, open_in_a_way: Opening
) -> None:
    conn_id = make_connection(env, {})
    before = read_connection(env, conn_id)
    form = open_in_a_way(env, page, conn_id)
    form.locator("[name=description]").fill("changed")
    save(page, form)
    after = read_connection(env, conn_id)
    for name, value in after.pop("extra").items():
        assert value in (None, CONN_FIELDS[name]["schema"].get("default"))
    assert {**after, "extra": {}} == {**before, "description": "changed"}


def test_changing_one_extra_keeps_the_key_and_the_other_extras(env: Environment, page: Page) -> None:
    conn_id = make_connection(env, EXTRAS["json"])
    before = read_connection(env, conn_id)
    form = look_at_fields(env, page, conn_id)
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    form.locator("[name=element_max_submissions_per_day]").fill("600")
    save(page, form)
    after = read_connection(env, conn_id)
    assert int(after["extra"].pop("max_submissions_per_day")) == 600
    assert before["extra"].pop("max_submissions_per_day") == 500
    assert after == before


def test_the_connections_have_all_fields() -> None:
    assert AS_JSON.keys() == AS_URI.keys() == CONN_FIELDS.keys()


def call(env: Environment, method: str, path: str, body: dict[str, Any] | None = None) -> None:
    headers = {"Authorization": f"Bearer {env.airflow.token(('admin', env.passwords['admin']))}"}
    with requests.Session() as session:
        session.trust_env = False
        url = f"{env.airflow.ui_url}{path}"
        session.request(method, url, json=body, headers=headers, timeout=120).raise_for_status()


def make_connection(env: Environment, extra: dict[str, Any]) -> str:
    """Make a connection as the command line or a script does, and return its id."""
    conn_id = f"whisul_{secrets.token_hex(4)}"
    body = {
        "connection_id": conn_id,
        "conn_type": "whisul",
        "description": "as it was",
        "host": "https://whisul.example.com/api",
        "password": KEY,
        "extra": json.dumps(extra) if extra else None,
    }
    call(env, "POST", "/api/v2/connections", body)
    made = read_connection(env, conn_id)
    assert (made["password"], made["extra"]) == (KEY, extra)
    return conn_id


def read_connection(env: Environment, conn_id: str) -> dict[str, Any]:
    """Return a connection as it is in Airflow's database: the API masks the key."""
    fields = ("conn_type", "host", "schema", "login", "port", "description", "password", "extra")
    query = f"SELECT {', '.join(fields)} FROM connection WHERE conn_id = ?"
    with closing(sqlite3.connect(f"file:{env.airflow.home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as database:
        found = dict(zip(fields, database.execute(query, [conn_id]).fetchone(), strict=True))
    fernet = Fernet(env.airflow.env["AIRFLOW__CORE__FERNET_KEY"])
    secret = {name: fernet.decrypt(found[name]).decode() if found[name] else "" for name in ("password", "extra")}
    # The form saves a blank field where there was none.
    blank = {name: value if value is not None else "" for name, value in found.items()}
    return {**blank, **secret, "extra": json.loads(secret["extra"] or "{}")}


def show_connections(env: Environment, page: Page) -> None:
    page.goto(f"{env.airflow.ui_url}/connections")


def open_form(page: Page, conn_id: str) -> Locator:
    """Open a connection's form, from the list that the page shows."""
    # By the keyboard: the tooltip of another row may cover the button.
    page.get_by_role("row").filter(has_text=conn_id).get_by_role("button", name="Edit Connection").press("Enter")
    return page.get_by_role("dialog")


def save(page: Page, form: Locator) -> None:
    """Save a form, and wait until Airflow has done so."""
    with page.expect_response(lambda response: response.request.method == "PATCH") as patched:
        form.get_by_role("button", name="Save").click()
    assert patched.value.ok, patched.value.text()
    expect(form).to_have_count(0)

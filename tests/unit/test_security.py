"""Who sends requests: docs/security.md says that there is nobody else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import airflow_provider_whisul

PACKAGE = Path(airflow_provider_whisul.__file__).parent

#: What opens a connection, by the last part of its name.
OPENS = {
    "ClientSession",
    "HTTPConnection",
    "HTTPSConnection",
    "PoolManager",
    "ProxyManager",
    "Session",
    "create_connection",
    "open_connection",
    "urlopen",
    "urlretrieve",
}
LIBRARIES = {"aiohttp", "asyncio", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib", "urllib3"}


def opened_connections(source: str) -> set[str]:
    """Return the calls in some code that open connections."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    calls = (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    full = {names.get(call, call) for call in calls}
    direct = {f"{library}.{verb}" for library in ("requests", "httpx") for verb in ("get", "post", "request")}
    return {
        call
        for call in full
        if call in direct or (call.partition(".")[0] in LIBRARIES and call.rpartition(".")[2] in OPENS)
    }


@pytest.mark.parametrize(
    "source",
    [
        "requests.get(url)",
        "aiohttp.ClientSession()",
        "from requests import Session as S\nS()",
        "urllib.request.urlopen(url)",
        "from http.client import HTTPSConnection\nHTTPSConnection(host)",
        "socket.create_connection(address)",
    ],
)
def test_a_call_that_opens_a_connection_is_found(source: str) -> None:
    assert len(opened_connections(source)) == 1


def test_only_hooks_and_storage_send_requests() -> None:
    folders = {
        path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if opened_connections(path.read_text())
    }
    assert folders == {"hooks", "storage"}

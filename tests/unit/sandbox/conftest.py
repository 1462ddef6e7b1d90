"""A clock that tests move, and sandboxes with a client that has the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import requests

from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions

KEY = "a-secret-key-of-some-length"


class Clock:
    """Unix seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = 1_771_342_774.0  # 2026-02-17 15:39:34 UTC

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Client:
    """A sandbox, and a session that sends its key."""

    sandbox: Sandbox
    session: requests.Session

    def post(self, prompt: str, **arguments: object) -> requests.Response:
        return self.session.post(f"{self.sandbox.base_url}/generate", json={"prompt": prompt}, timeout=30, **arguments)

    def make(self, prompt: str) -> str:
        response = self.post(prompt)
        assert response.status_code == 202, response.text
        return response.json()["job_id"]

    def get(self, job_id: str, **arguments: object) -> requests.Response:
        return self.session.get(f"{self.sandbox.base_url}/jobs/{job_id}", **{"timeout": 30, **arguments})

    def job(self, job_id: str) -> dict[str, object]:
        response = self.get(job_id)
        assert response.status_code == 200, response.text
        return response.json()

    @property
    def last(self) -> LoggedRequest:
        return self.sandbox.requests[-1]


def session(key: str | None) -> requests.Session:
    made = requests.Session()
    made.trust_env = False  # a proxy of the machine must not get in between
    if key is not None:
        made.headers["Authorization"] = f"Bearer {key}"
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(clock: Clock) -> Iterator[Callable[..., Client]]:
    """Return a function that starts a sandbox with the options given to it."""
    with ExitStack() as stack:

        def start(**options: object) -> Client:
            settings = SandboxOptions(**{"api_key": KEY, "job_seconds": (10.0, 20.0), **options})
            sandbox = stack.enter_context(Sandbox(settings, clock=clock))
            return Client(sandbox, stack.enter_context(session(settings.api_key)))

        yield start


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    return start()


@pytest.fixture
def anonymous() -> Iterator[requests.Session]:
    """A session without any key."""
    with session(None) as made:
        yield made

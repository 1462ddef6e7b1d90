"""A local stand-in of the Whisul API, to develop and test DAGs with no key and no cost.

``with Sandbox(SandboxOptions(...)) as sandbox: ...`` in tests, ``python -m airflow_provider_whisul.sandbox`` on the
command line. Importing it is cheap: aiohttp is loaded when a sandbox is started.
"""

from __future__ import annotations

from airflow_provider_whisul.sandbox.jobs import SandboxJob
from airflow_provider_whisul.sandbox.options import SandboxOptions
from airflow_provider_whisul.sandbox.server import Sandbox
from airflow_provider_whisul.sandbox.state import LoggedRequest

__all__ = ["LoggedRequest", "Sandbox", "SandboxJob", "SandboxOptions"]

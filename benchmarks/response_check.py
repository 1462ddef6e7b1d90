"""What HttpEventTrigger calls with a response. A module of its own, since that trigger loads it again for each poll."""

from __future__ import annotations

import requests


async def is_over(response: requests.Response) -> bool:
    """Return whether the job is over."""
    return bool(response.json()["status"] != "running")

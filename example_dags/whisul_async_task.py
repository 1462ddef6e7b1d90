"""Two songs at once in one async task of your own (Airflow 3.2 and later)."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import dag, task

from airflow_provider_whisul.version_compat import HAS_ASYNC_TASKS

if TYPE_CHECKING:
    from airflow_provider_whisul.api.models import Song
    from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

PROMPTS = ["a duet for two cellos, first voice", "a duet for two cellos, second voice"]

log = logging.getLogger(__name__)


async def make_song(hook: WhisulAsyncHook, prompt: str) -> Song | None:
    job_id = await hook.generate(prompt)
    job = await hook.wait_for_job(job_id)
    return job.song


@dag(
    dag_id="whisul_async_task",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### An async task of your own

`duet` submits two prompts and waits for both songs at once, on the worker. It has no retries, since a retry would
submit, and pay for, both again. The operators remember what an earlier try has submitted.
""",
)
def whisul_async_task() -> None:
    @task(retries=0)
    async def duet() -> list[Song]:
        # Here, so that reading this file loads no HTTP client.
        from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook

        async with WhisulAsyncHook("whisul_default") as hook:
            # With the errors, so that one song is not lost where the other fails.
            results = await asyncio.gather(*(make_song(hook, prompt) for prompt in PROMPTS), return_exceptions=True)
        songs: list[Song] = []
        for result in results:
            if isinstance(result, BaseException):
                log.error("%s", result)
            elif result is not None:
                songs.append(result)
        if not songs:
            raise RuntimeError("No song was made. The log says why.")
        return songs

    duet()


# Before 3.2 Airflow has no async tasks, and this file has no DAG.
if HAS_ASYNC_TASKS:
    whisul_async_task()

"""
A process that uses the asynchronous hook, forks, and uses it in its child.

``python -m tests.integration.hooks.fork_process`` prints a line for each use.
"""

from __future__ import annotations

import asyncio
import os
import signal

from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook


def use(hook: WhisulAsyncHook, who: str) -> None:
    """Submit a song, and poll it."""
    job_id = asyncio.run(hook.generate(f"a song of the {who}"))
    job = asyncio.run(hook.get_job(job_id))
    os.write(1, f"{who}: {job.prompt}\n".encode())


def main() -> None:
    """Use a hook before and after a fork, and a new one after it."""
    hook = WhisulAsyncHook()
    use(hook, "parent")
    pid = os.fork()
    if not pid:
        # It must not outlive the test that it hangs in.
        signal.alarm(40)
        try:
            use(hook, "child")
            use(WhisulAsyncHook(), "child's hook")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    use(hook, "parent after the fork")


if __name__ == "__main__":
    main()

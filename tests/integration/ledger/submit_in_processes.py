"""
Submits prompts from processes of their own, which a test may let die at a chosen point.

Usage: python -m tests.integration.ledger.submit_in_processes FILE, where FILE holds as JSON ``submissions``, a list of
the prompt and the fields of its SubmissionId (null for none) per process, and ``die``: null or where each process is
killed. ``machines`` is null, or a folder in which each process has a state folder and a temporary folder of its own, as
on a machine of its own. All processes submit at the same moment. Prints one line of JSON per process: its job, or its
error's class.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.ledger import ceiling
from airflow_provider_whisul.ledger.account_ledger import AccountLedger
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.rate_limit import redis_store

DEATHS = ("before the entry", "after the entry", "after the response", "after the job is written")


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        method(*args)
        die()

    return wrapped


def submit(prompt: str, fields: list[Any] | None, death: str | None) -> dict[str, str]:
    if death == "before the entry":
        AccountLedger.create = die  # type: ignore[assignment, method-assign]
    elif death == "after the response":
        AccountLedger.write = die  # type: ignore[assignment, method-assign]
    elif death == "after the job is written":
        AccountLedger.write = die_after(AccountLedger.write)  # type: ignore[method-assign]
    submission = None if fields is None else SubmissionId(*fields)
    try:
        before_send = die if death == "after the entry" else None
        return {"job_id": WhisulHook().generate(prompt, before_send=before_send, submission=submission)}
    except WhisulError as error:
        return {"error": type(error).__name__, "message": str(error)}


def move_to_own_machine(machines: Path, number: int) -> None:
    # A busy machine is no Redis that is away.
    redis_store.SOCKET_TIMEOUT = redis_store.CONFLICT_TIMEOUT = 30.0
    machine = machines / str(number)
    (machine / "state").mkdir(parents=True)
    tempfile.tempdir = str(machine)
    os.environ["AIRFLOW__WHISUL__STATE_PATH"] = str(machine / "state")


def main() -> None:
    arguments = json.loads(Path(sys.argv[1]).read_text())
    # A busy machine is no lock that cannot be had.
    ceiling.LOCK_TIMEOUT = 60.0
    # What all processes need is loaded once, before they are forked.
    WhisulHook().settings  # noqa: B018
    closed_at_start, start = os.pipe()
    children = []
    for number, (prompt, fields) in enumerate(arguments["submissions"]):
        pid = os.fork()
        if not pid:
            os.close(start)
            if arguments["machines"]:
                move_to_own_machine(Path(arguments["machines"]), number)
            os.read(closed_at_start, 1)
            os.write(1, (json.dumps(submit(prompt, fields, arguments["die"])) + "\n").encode())
            os._exit(0)
        children.append(pid)
    os.close(start)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

"""The ledger beside the sandbox's own log of requests: do the two say the same?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_whisul.api.connection import DEFAULT_CONN_ID, read_connection
from airflow_provider_whisul.ledger.account_ledger import AccountLedger, account_of, day_of
from airflow_provider_whisul.ledger.reader import LedgerContent, all_ledgers, read_ledgers
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox
from airflow_provider_whisul.state.state_path import DEFAULT_FOLDER, state_folder
from airflow_provider_whisul.state.state_store import prompt_fingerprint
from airflow_provider_whisul.storage.documents import DocumentFolder, LocalDocuments
from airflow_provider_whisul.version_compat import server_connection


def read_ledger(folder: DocumentFolder, account: str | None = None) -> LedgerContent:
    """
    Read all that a folder's ledgers have.

    :param folder: The state folder.
    :param account: The account, None for all of them.
    """
    ledgers = all_ledgers(folder) if account is None else [AccountLedger(folder, account)]
    return read_ledgers(ledgers, "0000-01-01", "9999-12-31")


def read_machine_ledger(airflow_home: Path) -> LedgerContent:
    """
    Read all that the ledgers have that are kept where no ``state_path`` is configured.

    :param airflow_home: The home of the Airflow.
    """
    return read_ledger(LocalDocuments(airflow_home / DEFAULT_FOLDER))


def differences(content: LedgerContent, requests: Iterable[LoggedRequest]) -> list[str]:
    """
    Return what the ledger and the sandbox do not agree about, one sentence for each fact.

    Every job is in the ledger exactly once. Where the response of its submission was lost, an ambiguous entry of the
    same prompt stands for it. Entries of prompts that the sandbox does not know are others' and count for nothing.

    :param content: What the ledger has.
    :param requests: The sandbox's log.
    """
    posts = [request for request in requests if request.method == "POST"]
    fingerprints = {prompt_fingerprint(post.prompt) for post in posts}
    entries = [entry for entry in content.entries if entry.prompt_fingerprint in fingerprints]
    made = {post.job_id: prompt_fingerprint(post.prompt) for post in posts if post.job_id is not None}
    entered = Counter(entry.job_id for entry in entries if entry.job_id is not None)
    ambiguous = Counter(entry.prompt_fingerprint for entry in entries if entry.job_id is None)
    found = [f"Cannot be read: {reason}" for reason in content.unreadable]
    found += [f"Job {job_id} is in the ledger {times} times." for job_id, times in entered.items() if times > 1]
    found += [f"Job {job_id} of the ledger was not made." for job_id in entered if job_id not in made]
    for job_id, fingerprint in made.items():
        if job_id in entered:
            continue
        if not ambiguous[fingerprint]:
            found.append(f"Job {job_id} is not in the ledger.")
        ambiguous[fingerprint] -= 1
    return found


def check_ledger(sandbox: Sandbox) -> None:
    """
    Check that this machine's ledger and a sandbox agree, and that the ledger knows each job that a response has told.

    :param sandbox: The sandbox, to which ``whisul_default`` leads.
    """
    folder = state_folder()
    assert folder is not None
    account = account_of(read_connection(DEFAULT_CONN_ID, server_connection))
    content = read_ledger(folder, account)
    assert differences(content, sandbox.requests) == []
    told = {post.job_id for post in sandbox.requests if post.method == "POST" and post.status == 202 and not post.fault}
    assert not told - {entry.job_id for entry in content.entries}


def printed_ledger(env: Mapping[str, str], conn_id: str = "whisul_default") -> Any:
    """
    Return what ``python -m airflow_provider_whisul.ledger --format json`` prints of the last two days.

    :param env: The environment of the Airflow.
    :param conn_id: The Airflow connection whose account is meant.
    """
    return json.loads(print_ledger(env, conn_id, "json"))


def print_ledger(env: Mapping[str, str], conn_id: str, format: str) -> str:
    """
    Run the command line, and return what it prints.

    :param env: The environment of the Airflow.
    :param conn_id: The Airflow connection whose account is meant.
    :param format: ``table`` or ``json``.
    """
    since = day_of(time.time() - 86_400)
    command = ["-m", "airflow_provider_whisul.ledger", "--conn", conn_id, "--since", since, "--format", format]
    done = subprocess.run(
        [sys.executable, *command], env=dict(env), capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
